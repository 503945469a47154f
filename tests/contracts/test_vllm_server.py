"""The contract with two vLLM servers, and what only this engine does."""

from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: its tests are skipped")

import httpx  # noqa: E402
import yaml  # noqa: E402
from engine_contract import ALPHABET, TOKENIZER, EngineContract, generated, perturbed, prompt, random_prompts, same  # noqa: E402

from fulgurite import cli  # noqa: E402
from fulgurite.engines.server_calls import completion_request  # noqa: E402
from fulgurite.engines.vllm_engine import VLLMEngine, sampling_params  # noqa: E402
from fulgurite.engines.vllm_server import VLLMServerEngine  # noqa: E402
from fulgurite.guards import GuardError  # noqa: E402
from fulgurite.models.tiny import TinyModel  # noqa: E402
from fulgurite.types import SamplingSpec  # noqa: E402
from servers import ROOT, Front, vllm_servers  # noqa: E402
from tiny import tiny_data, tiny_grpo, tiny_trainer  # noqa: E402

pytestmark = [pytest.mark.xdist_group("vllm servers"), pytest.mark.timeout(400)]


def urls():
    return [server.url for server in vllm_servers(ALPHABET)]


def loaded(model, *chosen):
    engine = VLLMServerEngine(list(chosen) or urls())
    engine.bind(model, TOKENIZER)
    engine.load_weights(model.named_full_weights(), 0)
    return engine


class TestVLLMServerEngine(EngineContract):
    architectures = ("qwen2",)

    def make(self, model, **settings):
        return loaded(model)


def test_both_servers_are_asked_and_both_take_every_load():
    servers = vllm_servers(ALPHABET)
    engine, asked = loaded(perturbed()), random_prompts(*range(30, 42))  # most fill a block of the prefix cache
    before = [server.completed() for server in servers]
    engine.generate(asked, SamplingSpec(max_new_tokens=4, n=3))
    assert [server.completed() - b for server, b in zip(servers, before, strict=True)] == [18, 18]
    model, greedy = perturbed(), SamplingSpec(temperature=0, max_new_tokens=12)
    model.hf.model.layers[0].mlp.down_proj.weight.data.mul_(-3)
    old = engine.generate(asked, greedy)
    engine.load_weights(model.named_full_weights(), 1)
    assert [c.token_ids for c in old] != [generated(model, p, 12) for p in asked]
    for url in urls():
        engine.urls = [url]
        assert [c.token_ids for c in engine.generate(asked, greedy)] == [generated(model, p, 12) for p in asked]


def test_both_servers_are_in_the_fingerprint():
    model = perturbed()
    engine = loaded(model)
    both = engine.fingerprint()
    engine.load_weights(((name, weight * (2 if "norm" in name else 1)) for name, weight in model.named_full_weights()), 1)
    engine.urls = engine.urls[:1]
    engine.load_weights(model.named_full_weights(), 2)
    engine.urls = urls()
    mixed = engine.fingerprint()
    half = len(both) // 2
    assert mixed[:half] == both[:half] == both[half:] and mixed[half:] != both[half:]


SPECS = [
    SamplingSpec(max_new_tokens=9, n=3, seed=4),
    SamplingSpec(0.7, top_p=0.8, top_k=20, max_new_tokens=5, n=2, stop=("#", "ab"), seed=2**62),
    SamplingSpec(temperature=0, max_new_tokens=3),
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_request_is_what_the_engine_in_this_process_asks_for(spec):
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    question = prompt("12+3=")
    request = CompletionRequest(**completion_request(question, spec, [1, 7]))
    of_the_model = {"temperature": 0.6, "top_p": 0.9, "top_k": 30, "min_p": 0.1, "repetition_penalty": 1.1,
                    "presence_penalty": 0.5, "frequency_penalty": 0.5}  # fmt: skip
    asked, wanted = request.to_sampling_params(request.max_tokens, of_the_model), sampling_params(question, spec, [1, 7])
    assert request.prompt == list(question.token_ids) and request.return_token_ids
    names = ("n", "temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "min_tokens", "stop", "stop_token_ids",
             "ignore_eos", "logprobs", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
             "skip_special_tokens", "include_stop_str_in_output", "bad_words")  # fmt: skip
    assert {name: getattr(asked, name) for name in names} == {name: getattr(wanted, name) for name in names}


def test_completions_are_those_of_the_engine_in_this_process():
    model, asked = perturbed(), random_prompts(5, 9, 2, 30)
    inside = VLLMEngine()
    inside.bind(model, TOKENIZER)
    inside.load_weights(model.named_full_weights(), 0)
    outside = loaded(model)
    for spec in SPECS:
        same(outside.generate(asked, spec), inside.generate(asked, spec))


def test_a_server_that_ignores_updates_is_stopped_by_the_checksums():
    loads = []

    def swallow(path, body):
        if body.get("method") != "reload_weights":
            return None
        loads.append(body)
        return (200, {"results": [None]}) if len(loads) > 1 else None

    with Front(swallow, behind=urls()[0]) as front:
        data = tiny_data(engine=VLLMServerEngine([front.url]), sampling=SamplingSpec(max_new_tokens=5))
        module = tiny_grpo(policy=TinyModel(alphabet=ALPHABET))
        with pytest.raises(GuardError, match="tensors of the engine are not the weights it was just given"):
            tiny_trainer(enable_checkpointing=False).fit(module, datamodule=data)
    assert len(loads) == 2 and int(module.updates) == 1


def test_the_overlay_trains_against_servers(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = ROOT / "configs" / "engine" / "vllm_server.yaml"
    command = path.read_text().splitlines()[0].split()[2:]
    options = ["--run_dir", str(tmp_path), "--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false",
               "--model.init_args.policy", f'{{"alphabet": "{ALPHABET}"}}', "--data.init_args.engine.init_args.urls",
               str(urls()), "--data.init_args.prompts_per_step", "4", "--trainer.limit_val_batches", "0"]  # fmt: skip
    cli.main([*command, *options])
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())["data"]["init_args"]["engine"]
    assert saved["class_path"].endswith("VLLMServerEngine") and saved["init_args"]["urls"] == urls()
    assert (Path(tmp_path) / "policy" / "model.safetensors").exists()


def test_a_server_started_otherwise_is_refused():
    """The same server behind a front without the development endpoints."""
    hidden = lambda path, body: (404, {"detail": "Not Found"}) if "rpc" in path else None  # noqa: E731
    with Front(hidden, behind=urls()[0]) as front, pytest.raises(ValueError, match="lacks vLLM's development endpoints"):
        loaded(perturbed(), front.url)
    assert httpx.get(urls()[0] + "/health", trust_env=False).status_code == 200
