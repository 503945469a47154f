import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` are skipped, with the reason in the report, where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none: not run"))


@pytest.fixture(scope="module", autouse=True)
def no_engine_is_left_running():
    """vLLM holds a process group of its own, in which no other test may be."""
    yield
    module = sys.modules.get("fulgurite.engines.vllm_engine")
    if module and module.VLLMEngine.running:
        module.VLLMEngine.running._stop()
