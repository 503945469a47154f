"""What only a CUDA device can show.

The tests of vLLM and of packed rows have not been run on CUDA by their authors; all others have.
"""

import copy

import lightning as L
import pytest
import torch

from contracts.engine_contract import TOKENIZER, EngineContract, perturbed, random_prompts
from fulgurite.engines.transformers_engine import TransformersEngine
from fulgurite.engines.vllm_engine import VLLMEngine
from fulgurite.models import packing
from fulgurite.models.adapters import LoRA
from fulgurite.models.causal_lm import CausalLM
from fulgurite.models.tiny import TinyModel
from fulgurite.modules.optimizer import OptimizerSpec
from fulgurite.parallel import FSDP2Strategy
from fulgurite.types import SamplingSpec
from tiny import tiny_data, tiny_grpo, tiny_trainer

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
POLICY = TinyModel(hidden_size=64, intermediate_size=64, heads=2, kv_heads=2, alphabet="0123456789+=#")
GREEDY = SamplingSpec(temperature=0, max_new_tokens=24)


def on_device(model):
    """A copy; the original stays on the CPU as the reference."""
    return copy.deepcopy(model).to(DEVICE)


def loaded(engine, model, version=0):
    engine.bind(model, TOKENIZER)
    engine.load_weights(model.named_full_weights(), version)
    return engine


@pytest.fixture(scope="module")
def vllm():
    """A function that gives an engine with small memory."""
    pytest.importorskip("vllm", reason="vLLM is not installed: its tests are skipped")
    return lambda **settings: VLLMEngine(memory_share=0.1, kv_cache_gib=0.5, **settings)


class PlacesOfMoments(L.Callback):
    """Kinds of device that the optimizer's moments are on between updates; at its end Lightning moves them to the CPU."""

    def __init__(self):
        self.seen = set()

    def on_train_batch_end(self, trainer, *_):
        states = trainer.optimizers[0].state.values()
        self.seen |= {state[name].device.type for state in states for name in ("exp_avg", "exp_avg_sq")}


def test_an_offloaded_optimizer_waits_on_the_cpu_and_takes_the_same_steps():
    from fulgurite.callbacks.codistillation import CoDistillation
    from fulgurite.modules.codistill import CoDistillGRPO

    larger, weights = TinyModel(**{**vars(POLICY), "hidden_size": 128}), []
    for offload in (False, True):
        spec = OptimizerSpec(learning_rate=1e-2)
        module = CoDistillGRPO(POLICY, larger, spec, spec, offload_optimizer=offload)
        data = tiny_data(advantage=None)
        places = PlacesOfMoments()
        callbacks = [CoDistillation(), places]
        trainer = tiny_trainer(accelerator="cuda", max_epochs=3, enable_checkpointing=False, callbacks=callbacks)
        trainer.fit(module, datamodule=data)
        assert places.seen == ({"cpu"} if offload else {"cuda"})
        weights.append([p.detach().cpu() for p in module.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


class TestTransformersEngine(EngineContract):
    def make(self, model, **settings):
        return loaded(TransformersEngine(), on_device(model))


class TestVLLMEngine(EngineContract):
    """In float32, so that the tolerances of the contract hold; without CUDA graphs, to start within seconds."""

    engine = None

    @pytest.fixture(autouse=True)
    def one_for_all(self, vllm):
        if TestVLLMEngine.engine is None:
            TestVLLMEngine.engine = vllm(dtype="float32", options={"enforce_eager": True})

    def make(self, model, **settings):
        return loaded(self.engine, on_device(model))


def mean_gap(engine, model):
    """Between the engine's log-probabilities and those of a pass in the trainer's mixed precision."""
    gaps, prompts = [], random_prompts(5, 9, 30)
    owners = [p for p in prompts for _ in range(8)]
    completions = engine.generate(prompts, SamplingSpec(max_new_tokens=20, n=8))
    for prompt, completion in zip(owners, completions, strict=True):
        row = torch.tensor([prompt.token_ids + completion.token_ids], device=DEVICE)
        keep = torch.arange(row.shape[1], device=DEVICE)[None] >= len(prompt.token_ids)
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
            scored = model.score(row, keep).logprobs[keep].cpu()
        gaps.append((scored - torch.tensor(completion.logprobs)).abs())
    return float(torch.cat(gaps).mean())


def test_vllm_in_bfloat16_stays_near_the_trainer_and_other_weights_do_not(vllm):
    """bfloat16 keeps 8 bits, so a logit of size 4 is off by up to 0.016 on either side after one rounding, and a few more
    roundings lie before it; other weights are about a nat away."""
    model, other = on_device(perturbed()), on_device(perturbed())
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.1 * torch.randn_like(weight)
    engine = loaded(vllm(dtype="bfloat16"), model)
    assert 0 < mean_gap(engine, model) < 0.05
    assert mean_gap(engine, other) > 0.3
    engine.load_weights(other.named_full_weights(), 1)
    assert 0 < mean_gap(engine, other) < 0.05


def test_sleep_gives_memory_back_and_a_load_wakes_with_the_right_weights(vllm):
    model, prompts = on_device(perturbed()), random_prompts(5, 9, 200)
    engine = loaded(vllm(dtype="float32", options={"enforce_eager": True}), model)
    before = engine.generate(prompts, GREEDY)
    free = torch.cuda.mem_get_info()[0]
    engine.sleep()
    assert torch.cuda.mem_get_info()[0] - free > 0.4 * 2**30, "the key-value cache alone is half a GiB"
    with pytest.raises(RuntimeError, match="holds no weights"):
        engine.generate(prompts, GREEDY)
    engine.load_weights(model.named_full_weights(), 1)
    assert [c.token_ids for c in engine.generate(prompts, GREEDY)] == [c.token_ids for c in before]
    engine.sleep()
    with torch.no_grad():
        model.hf.model.embed_tokens.weight.mul_(-1)
    engine.load_weights(model.named_full_weights(), 2)
    after = [c.token_ids for c in engine.generate(prompts, GREEDY)]
    expected = loaded(TransformersEngine(), model).generate(prompts, GREEDY)
    assert after == [c.token_ids for c in expected] and after != [c.token_ids for c in before]


@pytest.mark.parametrize("engine", ["embedded", "vllm"])
def test_rounds_in_mixed_precision_move_the_weights(engine, request):
    make = TransformersEngine if engine == "embedded" else request.getfixturevalue("vllm")
    module, start = tiny_grpo(policy=POLICY), dict(CausalLM.load(POLICY).named_parameters())
    trainer = tiny_trainer(max_epochs=3, accelerator=DEVICE, precision="bf16-mixed", enable_checkpointing=False)
    trainer.fit(module, datamodule=tiny_data(engine=make()))
    assert (int(module.updates), int(module.skipped_updates)) == (3, 0)
    for name, weight in module.trained["policy"].named_parameters():
        assert weight.dtype == torch.float32
        moved = (weight.detach().cpu() != start[name]).float().mean()
        assert moved > 0.5, f"{moved:.0%} of {name} moved"
    # bfloat16 on both sides, by different kernels
    assert 0 <= module.last_update["mismatch/logprob_gap_mean_nats"] < 0.05


WAYS = [None, packing.whole, packing.parted, packing.grouped]


@pytest.mark.parametrize(("temperature", "way"), [(0.7, None), *((1.0, way) for way in WAYS)])
def test_the_scorer_gives_what_it_gives_on_the_cpu(temperature, way, monkeypatch):
    """Log-probabilities, entropies and gradients in float32; each way to lay out rows that begin alike, too."""
    reference = perturbed()
    model = on_device(reference)
    tokens = torch.randint(3, 48, (4, 60), generator=torch.Generator().manual_seed(1))
    keep = torch.arange(60)[None] >= torch.tensor([1, 5, 30, 59])[:, None]
    if way:
        monkeypatch.setattr(packing, "cheapest", lambda *_: way)
        tokens[1, :20], keep[:2] = tokens[0, :20], torch.arange(60) >= 20
        assert packing.pack(tokens, keep)
    weights = torch.randn(4, 60, generator=torch.Generator().manual_seed(2))
    scores = [m.score(tokens.to(d), keep.to(d), temperature) for m, d in ((reference, "cpu"), (model, DEVICE))]
    for name in ("logprobs", "entropy"):
        torch.testing.assert_close(getattr(scores[1], name).cpu(), getattr(scores[0], name), atol=1e-4, rtol=0)
    for score, device in zip(scores, ("cpu", DEVICE), strict=True):
        (score.logprobs * weights.to(device)).sum().backward()
    for (name, expected), weight in zip(reference.named_parameters(), model.parameters(), strict=True):
        gap = (weight.grad.cpu() - expected.grad).abs().max() / expected.grad.abs().max()
        assert gap < 1e-4, f"{name}: {gap:.1e} of its largest gradient"


@pytest.mark.parametrize(
    "settings", [{}, {"gather_dtype": "bfloat16"}, {"cpu_offload": True}, {"reshard_after_forward": False}]
)
def test_fsdp2_on_one_gpu_ends_where_a_plain_run_does(settings):
    """In float32 the same weights; where weights are gathered in bfloat16, moved in the same direction."""
    start, moves = dict(CausalLM.load(POLICY).named_full_weights()), []
    for strategy in ("auto", FSDP2Strategy(**settings)):
        module = tiny_grpo(policy=POLICY, optimizer=OptimizerSpec(learning_rate=1e-3))
        trainer = tiny_trainer(max_epochs=3, accelerator=DEVICE, enable_checkpointing=False, strategy=strategy)
        trainer.fit(module, datamodule=tiny_data())
        assert int(module.updates) == 3
        ends = module.trained["policy"].named_full_weights()
        moves.append(torch.cat([(weight.detach().cpu() - start[name]).flatten() for name, weight in ends]))
    if settings.get("gather_dtype"):
        assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.95
    else:
        assert (moves[0] - moves[1]).abs().max() < 1e-5 < moves[0].abs().max()


@pytest.mark.parametrize("offload", [False, True])
def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(offload, tmp_path):
    def run(rounds, checkpoint=None):
        module, strategy = tiny_grpo(policy=POLICY), FSDP2Strategy(cpu_offload=True) if offload else "auto"
        settings = dict(max_epochs=rounds, precision="bf16-mixed", strategy=strategy, enable_checkpointing=False)
        trainer = tiny_trainer(accelerator=DEVICE, **settings)
        trainer.fit(module, datamodule=tiny_data(), ckpt_path=checkpoint, weights_only=False)
        return module, trainer

    whole, _ = run(4)
    _, trainer = run(2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    resumed, _ = run(4, tmp_path / "two.ckpt")
    ends = [dict(module.trained["policy"].named_full_weights()) for module in (whole, resumed)]
    assert all(torch.equal(ends[0][name].cpu(), ends[1][name].cpu()) for name in ends[0])


def test_adapters_train_beside_frozen_weights_in_bfloat16():
    module = tiny_grpo(policy=POLICY, lora=LoRA(rank=4))
    trainer = tiny_trainer(max_epochs=3, accelerator=DEVICE, precision="bf16-mixed", enable_checkpointing=False)
    trainer.fit(module, datamodule=tiny_data())
    kinds = {(w.requires_grad, w.dtype) for w in module.trained["policy"].parameters()}
    assert kinds == {(False, torch.bfloat16), (True, torch.float32)}
    assert (int(module.updates), int(module.skipped_updates)) == (3, 0)
    assert 0 <= module.last_update["mismatch/logprob_gap_mean_nats"] < 0.05
