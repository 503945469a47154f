"""What is said to vLLM servers: requests with a deadline each, spread over the servers, and what their answers hold."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import httpx

from ..types import Completion, Prompt, SamplingSpec
from .requests import cut, request_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
CONNECT_S = 10.0


class NoAnswer(RuntimeError):
    """A server could not be reached, took too long or answered with an error, whose `status` it is."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class Spread:
    """Chooses the server of each request: one that did not fail last, then one not tried, then the one with the fewest open.

    Args:
        in_flight: requests open at once, over all servers; further ones wait.
    """

    def __init__(self, urls: Iterable[str], in_flight: int) -> None:
        self.open, self.failing = dict.fromkeys(urls, 0), set()
        self.places = asyncio.Semaphore(in_flight)

    @asynccontextmanager
    async def server(self, tried: Collection[str]) -> AsyncIterator[str]:
        async with self.places:
            url = min(self.open, key=lambda url: (url in self.failing, url in tried, self.open[url]))
            self.open[url] += 1
            try:
                yield url
                self.failing.discard(url)
            except NoAnswer:
                self.failing.add(url)
                raise
            finally:
                self.open[url] -= 1


def new_client() -> httpx.AsyncClient:
    """A connection for each request: servers close those that idle. Proxies named in the environment are not used."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(timeout=httpx.Timeout(None, connect=CONNECT_S), limits=limits, trust_env=False)


async def ask(client: httpx.AsyncClient, method: str, url: str, deadline_s: float, body: dict | None = None) -> dict:
    """The JSON object that a server answers; an empty one for an empty answer.

    Raises:
        NoAnswer: there is none in time.
    """
    try:
        async with asyncio.timeout(deadline_s):
            answer = await client.request(method, url, json=body)
    except TimeoutError as error:
        raise NoAnswer(f"{url} did not answer within {deadline_s:g} s") from error
    except httpx.HTTPError as error:
        raise NoAnswer(f"{url} cannot be reached ({str(error) or type(error).__name__})") from error
    if answer.status_code != 200:
        raise NoAnswer(f"{url} answered with status {answer.status_code} {answer.text[:300]}".strip(), answer.status_code)
    try:
        found = answer.json() if answer.content else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise NoAnswer(f"{url} answered with {answer.text[:80]!r}, which is no JSON object")
    return found


async def all_or_first_error(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What each returns, in order; at the first error the others are cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as errors:
        first = errors.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise first


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, also in a thread that has a running event loop, as a notebook's has."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def is_server(url: str) -> bool:
    """Whether it is http(s)://HOST[:PORT] and nothing more."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not any(parts[2:])
    except ValueError:
        return False


def completion_request(prompt: Prompt, spec: SamplingSpec, ends: Sequence[int]) -> dict[str, Any]:
    """A `SamplingSpec` as the body of /v1/completions. vLLM draws sample i of a prompt from the seed plus i.

    What a server would otherwise take from the model's generation config is switched off by name.
    """
    off = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    return {
        "prompt": list(prompt.token_ids),
        "n": spec.n if spec.temperature else 1,
        "temperature": spec.temperature,
        "top_p": spec.top_p,
        "top_k": spec.top_k,
        "max_tokens": spec.max_new_tokens,
        "seed": request_seed(prompt, spec),
        "stop": list(spec.stop),
        "stop_token_ids": list(ends),
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
        **off,
    }


def completions_in(answer: Mapping[str, Any], spec: SamplingSpec, tokenizer: PreTrainedTokenizerBase) -> list[Completion]:
    """The completions in an answer of /v1/completions.

    Raises:
        ValueError: it does not hold `spec.n` whole ones.
    """
    try:
        found = [(c["token_ids"], c["logprobs"]["token_logprobs"], c["finish_reason"]) for c in answer["choices"]]
        sound = [
            reason in ("stop", "length") and 0 < len(tokens) == len(logprobs) and all(map(math.isfinite, logprobs))
            for tokens, logprobs, reason in found
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected choices with token_ids, logprobs and finish_reason, found {str(answer)[:200]}") from error
    wanted = spec.n if spec.temperature else 1
    if len(found) != wanted:
        raise ValueError(f"expected {wanted} choices, found {len(found)}")
    if not all(sound):
        tokens, logprobs, reason = found[sound.index(False)]
        raise ValueError(
            f"expected a finite log-probability for each token and an end by stop or length, found {len(tokens)} tokens, "
            f"log-probabilities {logprobs[:8]} and {reason!r}"
        )
    texts = [cut(tokenizer.decode(tokens, skip_special_tokens=True), spec.stop) for tokens, _, _ in found]
    completions = [Completion(tuple(t), tuple(p), reason, text) for (t, p, reason), text in zip(found, texts, strict=True)]
    return completions * (spec.n // wanted)  # greedy ones are all the same, and vLLM writes only one
