"""The contract with vLLM in this process, and what only this engine does."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: its tests are skipped")

from engine_contract import TOKENIZER, EngineContract  # noqa: E402

from fulgurite.engines.vllm_engine import VLLMEngine  # noqa: E402

ENGINE = VLLMEngine()


class TestVLLMEngine(EngineContract):
    def make(self, model, **settings):
        """One engine for the whole file: it starts anew for another architecture only, which takes seconds."""
        ENGINE.bind(model, TOKENIZER)
        ENGINE.load_weights(model.named_full_weights(), 0)
        return ENGINE
