"""vLLM servers elsewhere, one or more, asked over HTTP; `tools/serve.sh` starts one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..types import Completion, ConfigError, Prompt, SamplingSpec
from .protocol import Engine, EngineError
from .requests import check_requests, check_temperature, end_tokens
from .server_calls import (
    NoAnswer,
    Spread,
    all_or_first_error,
    ask,
    completion_request,
    completions_in,
    is_server,
    new_client,
    run_to_end,
)
from .weights import Fingerprint, Read, WorkerChecksums, merged, untied

if TYPE_CHECKING:
    from httpx import AsyncClient
    from transformers import PreTrainedTokenizerBase

    from ..models.causal_lm import CausalLM

T = TypeVar("T")
START = "bash tools/serve.sh MODEL"
RESTART = "restart it: the run goes on from its last checkpoint with --ckpt_path last"
LACKING = {
    404: "vLLM's development endpoints (VLLM_SERVER_DEV_MODE=1)",
    500: f"the worker extension (--worker-extension-cls {WorkerChecksums.__module__}.{WorkerChecksums.__qualname__})",
}
DTYPES = ("float32", "bfloat16")
HEALTH_S, LONGEST_PAUSE_S = 60.0, 8.0
SHARD_BYTES = 2**30


class VLLMServerEngine(Engine):
    """vLLM servers that all hold the same weights; each prompt goes to the one with the fewest requests.

    A request that fails is sent again, to another server if there is one: draws are addressed, so its completions are the same.
    A server that was restarted gets no request before the next weight load.

    Args:
        urls: of the servers, for example `[http://127.0.0.1:8000]`.
        weights_dir: a folder that the trainer and all servers see, through which weights travel; by default the system's
            folder for temporary files, which is enough on one machine.
        max_tokens: longest prompt and completion together; by default what model and servers allow.
        deadline_s: of one request, its time in the server's queue included.
        retries: of a request, after its first attempt.
        in_flight: requests at once, one per prompt, times the number of servers.
    """

    def __init__(
        self,
        urls: list[str],
        weights_dir: str | None = None,
        max_tokens: int | None = None,
        deadline_s: float = 1800.0,
        retries: int = 3,
        in_flight: int = 64,
    ) -> None:
        self.urls = [url.rstrip("/") for url in urls]
        if not urls or not all(map(is_server, self.urls)) or len(set(self.urls)) < len(urls):
            raise ConfigError(f"urls is {urls}; expected different servers, each as http://HOST:PORT without a path")
        if weights_dir is not None and not Path(weights_dir).is_dir():
            raise ConfigError(f"weights_dir {weights_dir} is no folder; make one that the trainer and all servers see")
        if max_tokens is not None and max_tokens < 2:
            raise ConfigError(f"max_tokens is {max_tokens}; expected at least 2, or null for what model and servers allow")
        if deadline_s <= 0:
            raise ConfigError(f"deadline_s is {deadline_s}; expected more than 0")
        if retries < 0:
            raise ConfigError(f"retries is {retries}; expected 0 or more")
        if in_flight < 1:
            raise ConfigError(f"in_flight is {in_flight}; expected at least 1")
        self.weights_dir, self.max_tokens, self.deadline_s = weights_dir, max_tokens, deadline_s
        self.retries, self.in_flight = retries, in_flight
        self.processes: Mapping[str, str | None] = {}
        self.replicas = len(self.urls)

    def bind(self, model: CausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
        """Asks every server what it can do.

        Raises:
            ConfigError: one does not answer, lacks something, or holds weights of another type than the others.
        """
        self.tokenizer, self.tied, self.version = tokenizer, model.tied_weights(), None
        self.end_tokens = end_tokens(model.hf.generation_config, model.hf.config, tokenizer)
        found = run_to_end(self._on_every_server(self._limit_and_dtype))
        dtypes = {url: dtype for url, (_, dtype) in found.items()}
        if len(set(dtypes.values())) > 1 or not set(dtypes.values()) <= set(DTYPES):
            raise ConfigError(
                f"the servers' weights are {dtypes}; expected {' or '.join(DTYPES)}, the same for all: start them with --dtype"
            )
        self.dtype = getattr(torch, dtypes[self.urls[0]])
        limits = [self.max_tokens, model.hf.config.max_position_embeddings, *(limit for limit, _ in found.values())]
        self.limit = min(limit for limit in limits if limit is not None)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """The first rank writes the weights into a folder and has every server read it; no rank goes on before.

        Raises:
            EngineError: they cannot be written, or a server does not take them; on every rank.
        """
        self.version, stream, failure = None, untied(weights, self.tied), None
        if not dist.is_initialized() or dist.get_rank() == 0:
            try:
                self.processes = self._hand_over(stream)
            except Exception as error:
                failure = error
        for _ in stream:  # gathering a weight is collective: every rank looks at all of them
            pass
        text, self.processes = _from_first_rank((failure and str(failure), self.processes))
        if text is not None:
            raise EngineError(f"the weights of version {version} did not reach every server: {text}") from failure
        self.version = version

    def fingerprint(self) -> Fingerprint:
        reads = run_to_end(self._on_every_server(self._checksums))
        return merged([worker for server in reads.values() for worker in server], self.dtype, self.tied)

    def generate(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[Completion]:
        """As in the protocol.

        Raises:
            EngineError: no server completes a prompt, or one answers with something else than completions.
        """
        if self.version is None:
            raise RuntimeError("the engine holds no weights; call load_weights first")
        check_requests(prompts, spec, self.limit)
        check_temperature(spec)
        return [completion for group in run_to_end(self._complete_all(prompts, spec)) for completion in group]

    async def _complete_all(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[list[Completion]]:
        spread = Spread(self.urls, self.in_flight * len(self.urls))
        async with new_client() as client:
            return await all_or_first_error([self._complete(client, spread, prompt, spec) for prompt in prompts])

    async def _complete(self, client: AsyncClient, spread: Spread, prompt: Prompt, spec: SamplingSpec) -> list[Completion]:
        request, causes = completion_request(prompt, spec, self.end_tokens), {}
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(min(LONGEST_PAUSE_S, 0.25 * 2**attempt))
            try:
                async with spread.server(causes) as url:
                    answer = await ask(client, "POST", f"{url}/v1/completions", self.deadline_s, request)
                    if answer.get("system_fingerprint") != self.processes[url]:
                        raise NoAnswer(f"{url} was restarted after the last weight load, so it holds other weights")
                return completions_in(answer, spec, self.tokenizer)
            except NoAnswer as error:
                if error.status is not None and error.status < 500:
                    raise EngineError(f"the request for prompt {prompt.id!r} was refused: {error}") from error
                causes[url] = str(error)
            except ValueError as error:
                raise EngineError(f"{url} answered the request for prompt {prompt.id!r} wrongly: {error}") from error
        raise EngineError(
            f"prompt {prompt.id!r} was not completed in {self.retries + 1} attempts; {'; '.join(causes.values())}; {RESTART}"
        )

    async def _limit_and_dtype(self, client: AsyncClient, url: str) -> tuple[int, str]:
        """Longest row in tokens and type of the weights of a server that can do all that this engine asks of it."""
        try:
            await ask(client, "GET", f"{url}/health", min(self.deadline_s, HEALTH_S))
        except NoAnswer as error:
            raise ConfigError(f"no vLLM server at {url}: {error}; start one with {START}, or correct urls") from error
        try:
            workers = await self._checksums(client, url)
        except NoAnswer as error:
            lacking = LACKING.get(error.status, "an answer about its weights")
            raise ConfigError(f"the server at {url} lacks {lacking}: {error}; start it with {START}") from error
        _, logprob = await self._greet(client, url)
        if logprob != 0:
            raise ConfigError(
                f"the server at {url} gives the only token it may draw the log-probability {logprob:g}; expected 0, that of "
                f"the distribution drawn from (--logprobs-mode processed_logprobs): start it with {START}"
            )
        models = await ask(client, "GET", f"{url}/v1/models", self.deadline_s)
        elements = Counter()
        for _, size, _, dtype in (row for worker in workers for row in worker):
            elements[dtype] += size
        return models["data"][0]["max_model_len"], elements.most_common(1)[0][0]

    def _hand_over(self, weights: Iterable[tuple[str, Tensor]]) -> dict[str, str | None]:
        """Has every server load the weights; returns the name of each one's process."""
        with TemporaryDirectory(prefix="fulgurite-weights-", dir=self.weights_dir) as folder:
            Path(folder).chmod(0o755)  # servers may run as another user
            write_shards(weights, Path(folder))
            return run_to_end(self._on_every_server(lambda client, url: self._reload(client, url, folder)))

    async def _reload(self, client: AsyncClient, url: str, folder: str) -> str | None:
        try:
            process, _ = await self._greet(client, url)
            # a server that was started without weights would otherwise read none
            await self._call(client, url, "update_config", overrides={"load_config": {"load_format": "safetensors"}})
            await self._call(client, url, "reload_weights", weights_path=folder)
            if not (await ask(client, "POST", f"{url}/reset_prefix_cache", self.deadline_s)).get("success"):
                raise NoAnswer(f"{url} could not reset its prefix cache, as if another run had requests in flight")
        except NoAnswer as error:
            raise EngineError(
                f"{error}; check that this server serves the model that is trained and sees {folder} (set weights_dir), "
                f"or {RESTART}"
            ) from error
        return process

    async def _greet(self, client: AsyncClient, url: str) -> tuple[str | None, float]:
        """The name of a server's process, new after a restart, and the log-probability of a token without choice."""
        request = completion_request(Prompt(id="", token_ids=(0,)), SamplingSpec(max_new_tokens=1), [])
        request["allowed_token_ids"] = [0]
        answer = await ask(client, "POST", f"{url}/v1/completions", self.deadline_s, request)
        return answer.get("system_fingerprint"), answer["choices"][0]["logprobs"]["token_logprobs"][0]

    async def _checksums(self, client: AsyncClient, url: str) -> list[Read]:
        return await self._call(client, url, "weight_checksums")

    async def _call(self, client: AsyncClient, url: str, method: str, **arguments: Any) -> list:
        """What a method returns on each of a server's workers."""
        body = {"method": method, "kwargs": arguments}
        return (await ask(client, "POST", f"{url}/collective_rpc", self.deadline_s, body))["results"]

    async def _on_every_server(self, work: Callable[[AsyncClient, str], Awaitable[T]]) -> dict[str, T]:
        async with new_client() as client:
            return dict(zip(self.urls, await all_or_first_error([work(client, url) for url in self.urls]), strict=True))


def write_shards(weights: Iterable[tuple[str, Tensor]], folder: Path, limit: int = SHARD_BYTES) -> None:
    """Writes weights as they come into safetensors files of at most `limit` bytes, or of one weight that is larger."""
    from safetensors.torch import save_file

    for number, shard in enumerate(_shards(weights, limit)):
        save_file(shard, folder / f"model-{number:05d}.safetensors")


def _shards(weights: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    shard, size = {}, 0
    for name, weight in weights:
        if shard and size + weight.nbytes > limit:
            yield shard
            shard, size = {}, 0
        # a copy: safetensors refuses tensors that share memory, as a tied weight does under its two names
        shard[name] = weight.to("cpu", copy=True, memory_format=torch.contiguous_format)
        size += weight.nbytes
    if shard:
        yield shard


def _from_first_rank(value: T) -> T:
    """What the first rank holds, on every rank; none goes on before the first has come here."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
