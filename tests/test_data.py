"""Prompts, their order, rounds of tensors, and the transforms of a round."""

from dataclasses import replace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from fulgurite.callbacks.pruning import CompletionPruning  # noqa: E402
from fulgurite.credit.group import Advantage
from fulgurite.data.assemble import Samples, assemble
from fulgurite.data.prompts import PromptOrder, encode
from fulgurite.data.supervised_datamodule import SupervisedDataModule
from fulgurite.data.task_datamodule import Benchmark
from fulgurite.data.transforms import RoundTransform, check_streams, find_transforms
from fulgurite.models.sources import load_tokenizer
from fulgurite.modules.supervised import SupervisedFineTuning
from fulgurite.seeding import address
from fulgurite.tasks.protocol import Task
from fulgurite.types import Completion, ConfigError, Prompt, Round, SamplingSpec, Segment, Verdict
from tiny import TINY, EvenDigits, OptimizerSpec, tiny_benchmarks, tiny_data, tiny_grpo, tiny_trainer


def test_addresses_differ_by_every_part_and_repeat():
    assert address(0, "train", 1) == address(0, "train", 1)
    assert len({address(0, "train", 1), address(1, "train", 1), address(0, "train", 2), address(0, "order", 1)}) == 4
    assert address("ab", "c") != address("a", "bc")
    assert 0 <= address("x") < 2**63


def test_each_pass_over_the_prompts_is_a_permutation_of_its_own():
    order = PromptOrder(7, 0, "order")
    passes = [[order[7 * turn + place] for place in range(7)] for turn in range(3)]
    for turn, drawn in enumerate(passes):
        assert sorted(index for index, _ in drawn) == list(range(7))
        assert {t for _, t in drawn} == {turn}
    assert passes[0] != [(index, 0) for index, _ in passes[1]]
    assert [order[5], order[20], order[5]] == [passes[0][5], passes[2][6], passes[0][5]]


def test_prompts_become_tokens_through_text_or_chat_template():
    tokenizer = load_tokenizer(TINY)
    plain, chat = encode([Prompt("a", text="1+2="), Prompt("b", messages=({"role": "user", "content": "3+4="},))], tokenizer)
    assert tokenizer.decode(plain.token_ids) == "1+2="
    assert tokenizer.decode(chat.token_ids) == "3+4="
    with pytest.raises(ConfigError, match="'empty' has no tokens"):
        encode([Prompt("empty", text="")], tokenizer)


def two_prompts() -> Samples:
    prompts = [Prompt("p", token_ids=(5,)), Prompt("q", token_ids=(6, 7, 8))]
    completions = [Completion((1, 2), (-0.5, -1.0), "stop", ""), Completion((3,), (-2.0,), "length", "")] * 2
    verdicts = [Verdict("correct", {"a": r}, r) for r in (1.0, 0.0, 2.0, 2.0)]
    return Samples(prompts, [0, 1], completions, verdicts)


def test_assembled_rows_are_right_padded_and_name_every_token():
    held = assemble(two_prompts(), number=3, weight_version=9, temperature=0.7)
    assert held.tokens.tolist() == [[5, 1, 2, 0, 0], [5, 3, 0, 0, 0], [6, 7, 8, 1, 2], [6, 7, 8, 3, 0]]
    prompt, sampled = int(Segment.PROMPT), int(Segment.SAMPLED)
    assert held.segments[0].tolist() == [prompt, sampled, sampled, 0, 0]
    assert held.segments[3].tolist() == [prompt] * 3 + [sampled, 0]
    assert held.columns["engine"].tolist()[0] == [0, -0.5, -1, 0, 0]
    assert (held.group_index.tolist(), held.step.tolist()) == ([0, 0, 1, 1], [0, 0, 1, 1])
    assert held.rewards.tolist() == [1, 0, 2, 2]
    assert (held.number, held.weight_version, held.temperature) == (3, 9, 0.7)


def test_a_round_without_rows_has_no_tokens():
    held = assemble(Samples(), 0, 0, 1.0)
    assert len(held) == 0 and held.tokens.shape == (0, 1)
    assert len(held.minibatch(0)) == 0


def test_minibatches_of_a_round_hold_the_rows_of_one_update_trimmed():
    held = assemble(two_prompts(), 0, 0, 0.7).with_coefficients(policy=torch.tensor([1.0, -1.0, 0.0, 0.0]))
    first = held.minibatch(0)
    assert first.tokens.tolist() == [[5, 1, 2], [5, 3, 0]]
    assert first.coefficients["policy"].tolist() == [1, -1]
    assert first.columns["engine"].shape == (2, 3) and first.temperature == 0.7
    assert first.keep().tolist() == [[False, True, True], [False, True, False]]
    assert first.keep(Segment.PROMPT).sum() == 2


def test_taking_rows_keeps_everything_aligned():
    held = assemble(two_prompts(), 0, 0, 1.0).with_coefficients(policy=torch.arange(4.0))
    taken = held.take(torch.tensor([False, True, False, True]))
    assert taken.coefficients["policy"].tolist() == [1, 3]
    assert [taken.completions[i].token_ids for i in (0, 1)] == [(3,), (3,)]
    assert [taken.prompts[g].id for g in taken.group_index] == ["p", "q"]
    assert taken.verdicts[1].reward == 2.0 and taken.rewards.tolist() == [0, 2]


def test_a_round_survives_a_checkpoint_that_loads_weights_only(tmp_path):
    held = assemble(two_prompts(), 2, 5, 1.0).with_coefficients(policy=torch.ones(4))
    asked = replace(held.prompts[0], metadata={"level": "1"}, messages=({"role": "user", "content": "x"},))
    held = replace(held, prompts=(asked, held.prompts[1]))
    torch.save(held.to_state(), tmp_path / "state")
    again = Round.from_state(torch.load(tmp_path / "state", weights_only=True))
    assert again.prompts == held.prompts and again.completions == held.completions and again.verdicts == held.verdicts
    for name in ("tokens", "segments", "group_index", "step", "rewards"):
        assert torch.equal(getattr(again, name), getattr(held, name))
    assert torch.equal(again.columns["engine"], held.columns["engine"]) and (again.number, again.weight_version) == (2, 5)


class Stage(Callback, RoundTransform):
    def __init__(self, name, stage, streams=(), reads=()):
        self.name, self.stage, self.streams, self.reads = name, stage, streams, reads

    def transform(self, held):
        return held


def test_transforms_run_by_stage_whatever_the_order_of_the_callbacks():
    given = [Stage("s", "select"), Callback(), Stage("r1", "reweight"), Stage("a", "advantage"), Stage("r2", "reweight")]
    assert [t.name for t in find_transforms(given)] == ["a", "r1", "r2", "s"]


def test_a_stream_with_two_owners_is_refused():
    owner, scaler = Stage("a", "advantage", ("small",)), Stage("r", "reweight", ("small",), reads=("policy",))
    check_streams([owner, scaler], True, ("policy",), {"policy", "small"}, "GRPO")
    with pytest.raises(ConfigError, match="'policy' has two owners: data.advantage and Stage"):
        check_streams([Stage("a", "advantage", ("policy",))], True, ("policy",), {"policy"}, "GRPO")
    with pytest.raises(ConfigError, match="two owners: Stage and Stage"):
        check_streams([Stage("a", "advantage", ("x",)), Stage("b", "advantage", ("x",))], False, (), {"x"}, "GRPO")


def test_a_stream_without_an_owner_or_a_reader_is_refused():
    arguments = True, ("policy",), {"policy"}, "GRPO"
    with pytest.raises(ConfigError, match="nothing sets the coefficient stream 'policy' that GRPO reads; set data.advantage"):
        check_streams([], False, *arguments[1:])
    with pytest.raises(ConfigError, match="'answer' that GRPO reads; take a module that does not read it, or add"):
        check_streams([], *arguments[:2], {"policy", "answer"}, "GRPO")
    with pytest.raises(ConfigError, match="Stage sets the coefficient stream 'small', and GRPO reads policy"):
        check_streams([Stage("a", "advantage", ("small",))], *arguments)
    with pytest.raises(ConfigError, match="Stage.stream is 'small', which nothing sets; expected policy"):
        check_streams([Stage("s", "select", reads=("small",))], *arguments)
    check_streams([Stage("a", "advantage", ("small", "large"))], False, ("small", "large"), {"small"}, "one of a pair")


def fit_rounds(data, rounds=2, callbacks=(), **module) -> tuple[list[tuple[Round, Round]], L.LightningModule]:
    seen = []

    class Look(Callback):
        def on_round(self, trainer, module, sampled, kept):
            seen.append((sampled, kept))

    model = tiny_grpo(**module)
    tiny_trainer(max_epochs=rounds, callbacks=[Look(), *callbacks], enable_checkpointing=False).fit(model, datamodule=data)
    return seen, model


def test_two_owners_and_missing_owners_are_refused_before_a_model_loads():
    module = tiny_grpo()
    trainer = tiny_trainer(callbacks=[Stage("a", "advantage", ("policy",))], enable_checkpointing=False)
    with pytest.raises(ConfigError, match="two owners"):
        trainer.fit(module, datamodule=tiny_data())
    assert not len(module.trained)
    with pytest.raises(ConfigError, match="nothing sets the coefficient stream 'policy'"):
        tiny_trainer(enable_checkpointing=False).fit(module, datamodule=tiny_data(advantage=None))
    assert not len(module.trained)


class Halves(EvenDigits):
    """Every second prompt is answered right by anything: its groups are dead."""

    def judge(self, prompt, completion):
        if sum(map(int, prompt.text[:3:2])) % 2:
            return Verdict("correct", {"even": 1.0}, 1.0)
        return super().judge(prompt, completion)


def test_dead_groups_are_kept_or_dropped_and_dropping_changes_only_the_rows():
    (sampled, kept), *_ = fit_rounds(tiny_data(task=Halves(digits=1)))[0]
    assert len(kept) == len(sampled) == 12
    (again, dropped), *_ = fit_rounds(tiny_data(task=Halves(digits=1), zero_variance="drop"))[0]
    dead = [g for g in range(4) if sum(map(int, again.prompts[g].text[:3:2])) % 2]
    assert dead and torch.equal(again.tokens, sampled.tokens)
    live = set(dropped.group_index.tolist())
    assert live.isdisjoint(dead) and len(dropped) == 3 * len(live)


def test_refilling_gives_every_update_the_rows_wanted_from_further_prompts():
    data = tiny_data(task=Halves(digits=1), zero_variance="drop", fill_to=9, steps_per_round=2, max_fill_rounds=20)
    for sampled, kept in fit_rounds(data)[0]:
        assert [len(kept.minibatch(s)) for s in (0, 1)] == [9, 9]
        assert len(sampled) > 24 or len(sampled) == 24 and len(kept) == 18
        for group in kept.group_index.unique():
            assert len(kept.coefficients["policy"][kept.group_index == group].unique()) > 1
        drawn = [tuple(c.token_ids) for c in sampled.completions]
        assert len(set(drawn)) > len(drawn) // 2


def test_refilling_stops_at_its_limit_and_says_so():
    class Dead(EvenDigits):
        def judge(self, prompt, completion):
            return Verdict("wrong", {"even": 0.0}, 0.0)

    data = tiny_data(task=Dead(digits=1), zero_variance="drop", fill_to=12, max_fill_rounds=2)
    with pytest.warns(UserWarning, match="0 of 4 groups after 2 further samplings"):
        rounds, module = fit_rounds(data)
    assert [len(sampled) for sampled, _ in rounds] == [36, 36] and int(module.updates) == 0
    assert int(module.empty_minibatches) == 2


def test_a_prompt_drawn_twice_in_a_round_gets_fresh_samples():
    class One(EvenDigits):
        def prompts(self, split):
            return super().prompts(split)[:1]

    (sampled, _), *_ = fit_rounds(tiny_data(task=One(digits=1), prompts_per_step=2))[0]
    first, second = sampled.completions[:3], sampled.completions[3:]
    assert sampled.prompts[0].id == sampled.prompts[1].id and [c.token_ids for c in first] != [c.token_ids for c in second]


def test_the_seed_decides_prompts_and_completions():
    runs = [fit_rounds(tiny_data(seed=seed))[0][0][0] for seed in (0, 0, 1)]
    assert torch.equal(runs[0].tokens, runs[1].tokens)
    assert [p.id for p in runs[0].prompts] != [p.id for p in runs[2].prompts]


def test_the_old_column_is_there_only_when_a_round_has_several_updates():
    assert set(fit_rounds(tiny_data())[0][0][1].columns) == {"engine"}
    (_, kept), *_ = fit_rounds(tiny_data(inner_epochs=2))[0]
    assert set(kept.columns) == {"engine", "old"}
    mask = kept.all_rows().keep()
    assert torch.allclose(kept.columns["old"][mask], kept.columns["engine"][mask], atol=1e-5)  # sampled by the same weights
    assert kept.columns["old"][~mask].abs().sum() == 0


def test_every_prompt_drawn_and_every_token_sampled_is_counted():
    rounds, module = fit_rounds(tiny_data(task=EvenDigits(digits=1), zero_variance="drop", fill_to=9))
    assert int(module.prompts) == sum(len(sampled.prompts) for sampled, _ in rounds)
    rounds, module = fit_rounds(tiny_data())
    assert int(module.prompts) == sum(len(sampled.prompts) for sampled, _ in rounds) == 8
    assert int(module.sampled_tokens) == sum(len(c.token_ids) for sampled, _ in rounds for c in sampled.completions)
    assert [sampled.weight_version for sampled, _ in rounds] == [0, 1] and int(module.updates) == 2 and int(module.rounds) == 2


@pytest.mark.parametrize(
    ("settings", "callbacks", "words"),
    [
        ({"fill_to": 9}, (), "fill_to is 9 with zero_variance keep, .* expected zero_variance: drop or a callback that prunes"),
        ({"fill_to": 10, "zero_variance": "drop"}, (), "where 3 rows of a group of 3 are left; .* a multiple of 3"),
        ({"fill_to": 9}, (CompletionPruning(0.3),), "where 2 rows of a group of 3 are left; .* a multiple of 2"),
        (
            {"fill_to": 9},
            (CompletionPruning(threshold=1.0),),
            "a callback leaves a number of rows that is not the same for every",
        ),
        ({"fill_to": 9}, (CompletionPruning(0.5, scope="global"),), "a callback leaves a number of rows that is not the same"),
    ],
)
def test_rows_that_cannot_be_filled_are_refused_before_a_model_is_made(settings, callbacks, words):
    module = tiny_grpo()
    with pytest.raises(ConfigError, match=words):
        tiny_trainer(callbacks=list(callbacks)).fit(module, datamodule=tiny_data(**settings))
    assert not len(module.trained)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompts_per_step": 0}, "prompts_per_step is 0"),
        ({"completions_per_prompt": 1}, "group of one"),
        ({"steps_per_round": 0}, "steps_per_round is 0"),
        ({"inner_epochs": -1}, "inner_epochs is -1"),
        ({"sampling": SamplingSpec(n=5)}, "sampling.n is 5"),
        ({"sampling": SamplingSpec(seed=7)}, "sampling.seed is 7"),
    ],
)
def test_impossible_numbers_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        tiny_data(**settings)


def test_a_benchmark_has_no_seed_of_its_own():
    with pytest.raises(ConfigError, match="sampling.seed is 7"):
        Benchmark("held_out", SamplingSpec(seed=7))


def test_a_group_of_one_is_fine_without_a_group_baseline():
    assert tiny_data(completions_per_prompt=1, advantage=None).updates_per_round == 1
    assert Advantage().baseline == "mean"


def test_settings_of_the_trainer_that_break_rounds_are_refused():
    trainer = tiny_trainer(reload_dataloaders_every_n_epochs=1, enable_checkpointing=False)
    with pytest.raises(ConfigError, match="reload_dataloaders_every_n_epochs is 1"):
        trainer.fit(tiny_grpo(), datamodule=tiny_data())


def test_a_precision_that_rounds_updates_away_is_refused():
    trainer = tiny_trainer(precision="bf16-true", enable_checkpointing=False)
    with pytest.raises(ConfigError, match="trainer.precision is bf16-true; expected one of 32-true, bf16-mixed"):
        trainer.fit(tiny_grpo(), datamodule=tiny_data())


def test_a_round_runs_in_mixed_precision_and_the_scorer_sees_what_the_engine_saw():
    module = tiny_grpo()
    tiny_trainer(max_epochs=2, precision="bf16-mixed", enable_checkpointing=False).fit(module, datamodule=tiny_data())
    assert int(module.updates) == 2 and next(module.trained["policy"].parameters()).dtype == torch.float32
    # bfloat16 activations, batched otherwise in the engine
    assert 0 < module.last_update["mismatch/logprob_gap_mean_nats"] < 0.05


def test_a_minibatch_waits_where_it_was_sampled_and_other_batches_are_moved():
    """On a GPU its micro-batches are moved, one at a time; `meta` stands for one here."""
    trainer, data = tiny_trainer(enable_checkpointing=False), tiny_data()
    trainer.fit(tiny_grpo(), datamodule=data)
    minibatch = data.held.minibatch(0)
    moved = trainer.strategy.batch_to_device(minibatch, torch.device("meta"))
    assert moved is minibatch and moved.tokens.device.type == "cpu"
    assert trainer.strategy.batch_to_device(torch.ones(1), torch.device("meta")).is_meta


def test_a_second_fit_in_one_process_samples_its_own_rounds():
    data = tiny_data()
    first, _ = fit_rounds(data, rounds=1)
    second, _ = fit_rounds(data, rounds=1)
    assert first[0][0] is not second[0][0] and torch.equal(first[0][0].tokens, second[0][0].tokens)


@pytest.mark.parametrize(("rate", "same"), [(0.0, True), (0.05, False)])
def test_each_validation_samples_anew_with_the_current_weights_from_the_same_seeds(rate, same):
    seen = []

    class Look(Callback):
        def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
            seen.append((trainer.current_epoch, batch.benchmark, [c.token_ids for c in batch.completions]))

    data = tiny_data(benchmarks=tiny_benchmarks())
    module = tiny_grpo(optimizer=OptimizerSpec(learning_rate=rate))
    tiny_trainer(max_epochs=2, callbacks=[Look()], enable_checkpointing=False).fit(module, datamodule=data)
    first, second = ([row[1:] for row in seen if row[0] == epoch] for epoch in (0, 1))
    assert [row[0] for row in first] == ["easy", "easy", "hard"] and [len(row[1]) for row in first] == [3, 2, 2]
    assert (first == second) is same


def test_prompts_with_one_id_and_benchmarks_of_any_name():
    class Twins(EvenDigits):
        def prompts(self, split):
            return [replace(p, id="twin") for p in super().prompts(split)]

    with pytest.raises(ConfigError, match="prompts with the id 'twin'; expected an id of its own"):
        fit_rounds(tiny_data(task=Twins(digits=1)))
    benchmarks = {name: tiny_benchmarks()["hard"] for name in ("train", "update", "math.v2")}
    trainer = tiny_trainer(max_epochs=2, enable_checkpointing=False)
    trainer.fit(tiny_grpo(), datamodule=tiny_data(benchmarks=benchmarks))
    assert {f"eval/{name}/accuracy" for name in benchmarks} <= set(trainer.callback_metrics)


def test_validating_in_inference_mode_spoils_no_later_fit():
    data, module = tiny_data(benchmarks=tiny_benchmarks()), tiny_grpo()
    tiny_trainer(inference_mode=True, enable_checkpointing=False).validate(module, datamodule=data, verbose=False)
    tiny_trainer(max_epochs=1, enable_checkpointing=False).fit(module, datamodule=data)
    assert int(module.updates) == 1


def test_solutions_longer_than_the_model_and_tasks_without_solutions_are_refused():
    class Long(EvenDigits):
        def solution(self, prompt):
            return "1" * 3000

    def fit(task):
        module = SupervisedFineTuning(TINY)
        data = SupervisedDataModule(task, prompts_per_step=2, updates_per_round=1)
        tiny_trainer(max_epochs=1, enable_checkpointing=False).fit(module, datamodule=data)

    with pytest.raises(ConfigError, match="3005 tokens; expected at most 2048"):
        fit(Long(digits=1))

    class Unsolved(Task):
        prompts, judge = EvenDigits.prompts, EvenDigits.judge
        _prompt, _is_held_out, digits, held_out = EvenDigits._prompt, EvenDigits._is_held_out, 1, 0.1

    with pytest.raises(ConfigError, match="Unsolved has no solutions to learn from"):
        fit(Unsolved())
