"""fulgurite doctor: what each check passes and fails, and that nothing ends in a traceback."""

import json
import os
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
import torch

from fulgurite import cli
from fulgurite.commands import checks, doctor, vllm_trial
from fulgurite.engines import vllm_engine
from fulgurite.engines.transformers_engine import TransformersEngine
from fulgurite.guards import GuardError


def seen_by(check: str) -> doctor.Finding:
    """The line of one check, with the others left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "CHECKS", [row for row in checks.CHECKS if row[0] == check])
        patch.setattr(doctor, "try_vllm", lambda: iter(()))
        (found,) = doctor.findings()
    assert found.name == check
    return found


def outcome(check: str) -> tuple[str, str]:
    found = seen_by(check)
    assert bool(found.remedy) == (found.status != "pass")
    return found.status, found.seen


# Each check


def test_python(monkeypatch):
    assert seen_by("Python").status == "pass"
    monkeypatch.setattr(checks.platform, "python_version", lambda: "3.10.9")
    status, seen = outcome("Python")
    assert status == "FAIL" and seen.startswith("3.10.9; expected ") and ">=3.11" in seen


def test_packages_are_compared_with_the_ranges_of_the_installed_package(monkeypatch):
    status, seen = outcome("packages")
    assert status == "pass" and f"torch {torch.__version__}" in seen and "pytest" not in seen and "vllm" not in seen
    real, versions = metadata.version, {"transformers": "5.30.0"}
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or real(name))
    status, seen = outcome("packages")
    assert status == "FAIL" and seen.startswith("transformers 5.30.0; expected ") and "<5.20" in seen
    monkeypatch.setattr(metadata, "requires", lambda name: ["no-such-package>=1", "another; extra == 'dev'"])
    assert outcome("packages") == ("FAIL", "no no-such-package; expected >=1")


def test_a_package_that_is_not_installed_has_no_ranges(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    status, seen = outcome("packages")
    assert status == "FAIL" and seen.startswith("PackageNotFoundError: ") and "fulgurite" in seen


def test_torch(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert outcome("torch") == ("pass", f"{torch.__version__}, 3 threads (OMP_NUM_THREADS 3)")
    monkeypatch.setitem(sys.modules, "torch", None)
    status, seen = outcome("torch")
    assert status == "FAIL" and seen.startswith("ModuleNotFoundError: ")


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """A function that makes the only nvidia-smi on the path, with what it prints and its exit code."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(text, code=0):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    return make


def test_a_machine_without_a_gpu_passes(smi, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert outcome("CUDA") == ("pass", "no GPU: everything runs on the CPU")
    smi("No devices were found", code=6)
    assert outcome("CUDA") == ("pass", "no GPU: everything runs on the CPU")


def test_a_gpu_that_torch_cannot_use_fails(smi, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    smi("580.159.03")
    status, seen = outcome("CUDA")
    assert status == "FAIL" and "driver 580.159.03" in seen and f"torch {torch.__version__} cannot use it" in seen
    smi("Failed to initialize NVML: Driver/library version mismatch", code=18)
    assert outcome("CUDA") == ("FAIL", "nvidia-smi fails: Failed to initialize NVML: Driver/library version mismatch")


def test_a_broken_cuda_and_a_missing_nvidia_smi_fail(smi, monkeypatch):
    def broken():
        raise RuntimeError("CUDA driver initialization failed,\nyou might not have a CUDA gpu")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    assert outcome("CUDA") == ("FAIL", "RuntimeError: CUDA driver initialization failed, you might not have a CUDA gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    status, seen = outcome("CUDA")
    assert status == "FAIL" and "nvidia-smi does not answer" in seen


def test_gpus_are_named_with_their_memory(smi, monkeypatch):
    ones = torch.ones
    smi("580.1\n580.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (2**30, 80 * 2**30))
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size))
    assert outcome("CUDA") == (
        "pass", "driver 580.1, Card 0 (1.0 of 80.0 GiB free), Card 1 (1.0 of 80.0 GiB free)"
    )  # fmt: skip
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size) * (1 + int(device[-1])))
    assert outcome("CUDA") == ("FAIL", "device 1 gives a wrong product of ones")


def test_that_nobody_ran_it_on_cuda_is_said_here_and_in_the_docs():
    assert outcome("tried on CUDA") == ("skip", checks.RUN_ON_CUDA)
    page = Path(__file__).parents[1] / "docs" / "engines.md"
    assert checks.RUN_ON_CUDA.capitalize().replace("cuda", "CUDA") in page.read_text()


def test_tensorboard(monkeypatch, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    assert outcome("TensorBoard")[0] == "pass"
    with monkeypatch.context() as patch:
        patch.setattr(SummaryWriter, "add_scalar", lambda self, tag, value, step: None)
        assert outcome("TensorBoard")[0] == "FAIL"
    with monkeypatch.context() as patch:
        real = SummaryWriter.add_scalar
        patch.setattr(SummaryWriter, "add_scalar", lambda self, tag, value, step: real(self, tag, value / 2, step))
        assert outcome("TensorBoard") == ("FAIL", "the point (7, 0.5) was written and [(7, 0.25)] was read")
    monkeypatch.setattr(checks.tempfile, "tempdir", str(tmp_path / "gone"))
    status, seen = outcome("TensorBoard")
    assert status == "FAIL" and str(tmp_path / "gone") in seen


def test_disk(monkeypatch, tmp_path):
    def with_free(gigabytes):
        monkeypatch.setattr(checks.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=gigabytes * 1e9))

    monkeypatch.chdir(tmp_path)
    with_free(100)
    assert outcome("disk") == ("pass", f"100.0 GB free in {tmp_path}")
    with_free(2)
    status, seen = outcome("disk")
    assert status == "pass" and "enough for tiny models only" in seen
    with_free(0.5)
    assert outcome("disk") == ("FAIL", f"0.5 GB free in {tmp_path}; expected at least 1 GB")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that cannot be written, whoever asks")
def test_a_folder_that_cannot_be_written_fails(monkeypatch):
    monkeypatch.chdir("/proc")
    status, seen = outcome("disk")
    assert status == "FAIL" and "/proc/" in seen


def test_memory(monkeypatch):
    def with_free(kib):
        monkeypatch.setattr(Path, "read_text", lambda path: f"MemTotal:  16777216 kB\nMemAvailable:  {kib} kB\n")

    with_free(3 << 20)
    assert outcome("memory") == ("pass", "3.0 of 16.0 GiB free")
    with_free(1 << 20)
    assert outcome("memory") == ("FAIL", "1.0 GiB free; expected at least 2 GiB")

    def no_such_file(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", no_such_file)
    assert outcome("memory")[0] == "skip"


def test_compiler(monkeypatch, tmp_path):
    (tmp_path / "cc").write_text("#!/bin/sh\necho 'cc 1.2'\necho more\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "cc"))
    assert outcome("C++ compiler") == ("pass", "cc 1.2")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    assert outcome("C++ compiler") == ("skip", "there is no no-such-compiler; only vLLM needs one")
    monkeypatch.setattr(checks, "find_spec", lambda name: "found")
    assert outcome("C++ compiler")[0] == "FAIL"


# vLLM in a process of its own


@pytest.fixture
def vllm_is(tmp_path, monkeypatch):
    """A function that puts a package `vllm` with this text in front of all others, for child processes."""

    def make(text):
        (tmp_path / "vllm").mkdir()
        (tmp_path / "vllm" / "__init__.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(doctor, "find_spec", lambda name: "found")
        return [(f.status, f.name, f.seen) for f in doctor.try_vllm()]

    return make


def others_not_reached(after: int) -> list[tuple[str, str, str]]:
    names = doctor.VLLM_STEPS
    return [("skip", name, f"not reached: {names[after]} failed") for name in names[after + 1 :]]


def test_vllm_that_is_not_installed_is_skipped_with_the_command(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    (found,) = doctor.try_vllm()
    assert (found.status, found.name, found.remedy) == ("skip", "vLLM", vllm_engine.INSTALL)
    assert "pip install" in found.remedy


def test_vllm_that_cannot_be_imported(vllm_is):
    found = vllm_is("print('noise on stdout')\nraise ImportError('libcudart.so.13: cannot open\\nshared object file')")
    assert found == [
        ("FAIL", "vLLM import", "ImportError: libcudart.so.13: cannot open shared object file"), *others_not_reached(0)
    ]  # fmt: skip


def test_vllm_that_takes_the_process_down(vllm_is):
    found = vllm_is("import os, sys\nprint('Illegal instruction', file=sys.stderr, flush=True)\nos._exit(132)")
    assert found == [("FAIL", "vLLM import", "Illegal instruction"), *others_not_reached(0)]


def test_vllm_that_dies_without_a_word(vllm_is):
    assert vllm_is("import os\nos._exit(7)")[0] == ("FAIL", "vLLM import", "the process ended with exit code 7")


def test_vllm_that_hangs_is_killed_with_its_own_processes(vllm_is, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "VLLM_LIMIT_S", 20)
    text = (
        "import subprocess, time\nchild = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\ntime.sleep(600)\n"
    )
    assert vllm_is(text) == [("FAIL", "vLLM import", "no answer within 20 s"), *others_not_reached(0)]
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] in "ZX"


def test_vllm_that_lacks_what_the_engine_needs(vllm_is):
    found = vllm_is(
        "class LLM:\n    collective_rpc = reset_prefix_cache = sleep = None\n"
        "class SamplingParams:\n    flat_logprobs = output_kind = None\n"
        "class EngineArgs:\n    worker_extension_cls = kv_cache_memory_bytes = None\n"
    )
    status, name, seen = found[1]
    assert found[0][:2] == ("pass", "vLLM import") and (status, name) == ("FAIL", "vLLM capabilities")
    assert seen.startswith("ConfigError: this vLLM lacks LLM.wake_up, EngineArgs.logprobs_mode; install it ")
    assert found[2:] == others_not_reached(1)


class StandIn(TransformersEngine):
    """A copy of the model, as vLLM has; `ignores` says from which load on it takes no weights."""

    ignores, reads = 9, True

    def __init__(self, **settings):
        super().__init__()

    def bind(self, model, tokenizer):
        model.is_sharded = True
        super().bind(model, tokenizer)
        model.is_sharded = False

    def load_weights(self, weights, version):
        if version < self.ignores:
            return super().load_weights(weights, version)
        list(weights)

    def fingerprint(self):
        return super().fingerprint() if self.reads else []


def steps_with(monkeypatch, **attributes):
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setattr(vllm_engine, "missing_capabilities", lambda: [])
    monkeypatch.setattr(vllm_engine, "VLLMEngine", type("StandInForVLLM", (StandIn,), attributes))
    return vllm_trial.trial()


def test_the_trial_passes_an_engine_that_takes_both_loads(monkeypatch):
    *_, last = steps_with(monkeypatch)
    assert last == "26 checksums and the greedy tokens of 4 prompts are as expected after two loads"


@pytest.mark.parametrize(
    ("reads", "words"),
    [
        (True, "26 of 26 tensors of the engine are not the weights it was just given"),
        (False, "after load 2 the greedy tokens of 4 of 4 prompts are not those of the embedded engine"),
    ],
)
def test_the_trial_sees_an_engine_that_ignores_the_second_load(monkeypatch, reads, words):
    seen = []
    with pytest.raises((GuardError, RuntimeError), match=words):
        for step in steps_with(monkeypatch, ignores=1, reads=reads):
            seen.append(step)
    assert len(seen) == 3


def test_another_version_than_the_tested_one_is_said(monkeypatch):
    def of(name):
        if name == "vllm":
            return "0.31.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", of)
    assert vllm_trial.version() == "vllm 0.31.0, tested is ==0.32.0"


def test_the_real_vllm_starts_and_takes_weights():
    pytest.importorskip("vllm", reason="vLLM is not installed: its tests are skipped")
    found = list(doctor.try_vllm())
    assert [(f.status, f.name) for f in found] == [("pass", name) for name in doctor.VLLM_STEPS], found
    assert "the greedy tokens of 4 prompts are as expected after two loads" in found[-1].seen


# The report


@pytest.fixture
def report(monkeypatch, capsys):
    """A function that runs the verb on checks with these outcomes and returns exit code and output."""

    def fails():
        raise OSError("broken")

    def skips():
        raise checks.Skipped("not here")

    kinds = {"pass": lambda: "fine", "FAIL": fails, "skip": skips}

    def run(*outcomes, options=()):
        rows = [(f"check {i}", kinds[kind], "do this") for i, kind in enumerate(outcomes)]
        monkeypatch.setattr(doctor, "CHECKS", rows)
        monkeypatch.setattr(doctor, "try_vllm", lambda: iter(()))
        with pytest.raises(SystemExit) as stop:
            cli.main(["doctor", *options])
        return int(stop.value.code), capsys.readouterr().out

    return run


def test_a_line_per_check_and_the_exit_code(report):
    assert report("pass", "skip") == (
        0, "pass  check 0              fine\nskip  check 1              not here  -> do this\n1 pass, 0 FAIL, 1 skip\n"
    )  # fmt: skip
    code, text = report("pass", "FAIL", "pass")
    assert code == 1 and "FAIL  check 1              OSError: broken  -> do this\n" in text


def test_json_holds_the_same(report):
    code, text = report("pass", "FAIL", options=["--json"])
    assert code == 1 and json.loads(text) == [
        {"status": "pass", "name": "check 0", "seen": "fine", "remedy": ""},
        {"status": "FAIL", "name": "check 1", "seen": "OSError: broken", "remedy": "do this"},
    ]


def test_an_error_around_vllm_itself_is_a_line_too(report, monkeypatch):
    def broken(name):
        raise ValueError("vllm.__spec__ is None")

    real = doctor.try_vllm
    report("pass")
    monkeypatch.setattr(doctor, "try_vllm", real)
    monkeypatch.setattr(doctor, "find_spec", broken)
    assert [(f.status, f.name, f.seen) for f in doctor.findings()][-1] == ("FAIL", "vLLM", "vllm.__spec__ is None")


def test_help_checks_nothing(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "findings", lambda: pytest.fail("a check was made"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", "--help"])
    assert stop.value.code == 0 and "--json" in capsys.readouterr().out


def test_the_child_does_not_import_from_the_current_folder(vllm_is, monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "packaging.py").write_text("raise RuntimeError('imported from the current folder')")
    monkeypatch.chdir(tmp_path / "here")
    assert os.listdir() == ["packaging.py"]
    assert vllm_is("raise ImportError('reached')")[0][2] == "ImportError: reached"
