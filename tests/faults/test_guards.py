"""Each guard, with the fault it is for: it warns, it stops the run, and without the fault it does neither."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint

from fulgurite.callbacks.guards import Guards
from fulgurite.data.rewards import Reward
from fulgurite.engines.transformers_engine import TransformersEngine
from fulgurite.guards import GuardError
from fulgurite.guards.all_equal_groups import check_all_equal_groups, equal_groups, equal_groups_without_credit
from fulgurite.guards.engine_gap import check_engine_gap, max_gap_of
from fulgurite.guards.failed_grading import check_failed_grading
from fulgurite.guards.truncation import check_truncation, cut_completions, cut_without_gold
from fulgurite.guards.weights_move import check_weights_move, count_moved, watch
from fulgurite.parallel import FSDP2Strategy
from fulgurite.tasks.grading import Grader
from fulgurite.types import ConfigError, Segment
from records import StubModule, StubRounds, make_round
from tiny import tiny_data, tiny_grpo

GOOD = make_round([[1.0, 0.0], [0.0, 1.0]])
CUT = make_round([[1.0, 0.0], [0.0, 1.0]], cut=[True] * 4)
EQUAL = make_round([[1.0, 1.0], [0.0, 0.0]])


class SaveInsideRounds(Checkpoint):
    """Keeps a checkpoint after every update: `<round>-<update>.ckpt`."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{trainer.current_epoch}-{batch_idx}.ckpt")


def fit(
    folder, guards, *, rounds=(GOOD,), kinds=(("good",),), epochs=6, module=None, data=None, resume=None, save=False, **trainer
):
    """Returns the number of rounds that were finished when the run stopped, and its warnings."""
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        callbacks=[guards, *([SaveInsideRounds()] if save else [])],
        max_epochs=epochs,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=save,
        num_sanity_val_steps=0,
        **trainer,
    )
    stopped = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(module or StubModule(), data or StubRounds(rounds, kinds), ckpt_path=resume)
        except GuardError as error:
            stopped = str(error)
    ours = [str(w.message) for w in caught if "expected" in str(w.message)]
    return trainer.current_epoch, stopped, ours


def test_no_guard_speaks_in_a_sound_run(tmp_path):
    assert fit(tmp_path, Guards(patience_rounds=1, max_skipped_updates=1, max_empty_rounds=1)) == (6, None, [])


# Truncation


def test_truncated_rounds_in_a_row_stop_the_run(tmp_path):
    rounds, error, warned = fit(tmp_path, Guards(patience_rounds=3), rounds=[CUT])
    assert rounds == 2
    assert "4 of 4 completions of this round were cut by max_new_tokens (round 3 in a row)" in error
    assert "expected a share of at most 0.9. Raise max_new_tokens" in error
    assert len(warned) == 1 and "round 1 in a row" in warned[0]


def test_a_round_in_between_starts_the_count_again(tmp_path):
    rounds, error, warned = fit(tmp_path, Guards(patience_rounds=3), rounds=[CUT, CUT, GOOD])
    assert (rounds, error, len(warned)) == (6, None, 2)


def test_reasoning_that_a_gold_answer_ends_is_no_fault(tmp_path):
    segments = CUT.segments.clone()
    segments[:3, -1] = int(Segment.GOLD)
    ended = replace(CUT, segments=segments)
    assert (cut_completions(ended), cut_without_gold(ended)) == ((4, 4), 1)
    assert fit(tmp_path, Guards(patience_rounds=1), rounds=[ended]) == (6, None, [])
    _, error, _ = fit(tmp_path, Guards(max_truncated=0.2, patience_rounds=1), rounds=[ended])
    assert "1 of 4 completions of this round were cut" in error


def test_truncation_one_switches_it_off(tmp_path):
    assert fit(tmp_path, Guards(max_truncated=1, patience_rounds=1), rounds=[CUT]) == (6, None, [])


def test_the_truncation_threshold_itself_is_allowed_and_no_completion_says_nothing():
    assert check_truncation(9, 10, 0.9, streak=2, patience=3) == 0
    assert check_truncation(0, 0, 0.9, streak=2, patience=3) == 2
    with pytest.raises(GuardError):
        check_truncation(10, 10, 0.9, streak=2, patience=3)


# All-equal groups


def test_rounds_of_all_equal_groups_stop_the_run(tmp_path):
    rounds, error, warned = fit(tmp_path, Guards(patience_rounds=2), rounds=[EQUAL])
    assert rounds == 1
    assert "in 2 of 2 groups of this round all completions have the same reward, and none has credit for 'policy' (rou" in error
    assert "expected a share below 1.0. Take prompts that the model solves sometimes" in error
    assert len(warned) == 1


def test_one_mixed_group_is_enough_unless_the_threshold_says_otherwise(tmp_path):
    half = make_round([[1.0, 0.0], [0.0, 0.0]])
    assert fit(tmp_path, Guards(patience_rounds=1), rounds=[half]) == (6, None, [])
    rounds, error, _ = fit(tmp_path, Guards(max_all_equal=0.5, patience_rounds=1), rounds=[half])
    assert rounds == 0 and "in 1 of 2 groups" in error
    assert fit(tmp_path, Guards(max_all_equal=1.1, patience_rounds=1), rounds=[EQUAL]) == (6, None, [])


def test_groups_of_one_row_and_prompts_without_rows_are_not_counted():
    assert equal_groups(make_round([[1.0], [0.5, 0.5], [], [0.0, 0.25]])) == (1, 2)
    assert equal_groups(make_round([])) == (0, 0)
    assert equal_groups(make_round([[-1.0, -1.0], [-1.0, -2.0]])) == (1, 2)
    assert check_all_equal_groups({"policy": 0}, 0, 1.0, streak=4, patience=5) == 4


def test_equal_rewards_are_no_fault_where_there_is_credit(tmp_path):
    """Such as that of the likelihood of a gold answer, where no completion is right."""
    rewards = [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.5]]
    streams = {"policy": [0, 0, 0, 0.1, 1, -1, 1], "answer": [0.0] * 7}
    held = make_round(rewards, coefficients=streams)
    assert equal_groups_without_credit(held, {"policy": {"policy", "answer"}}) == {"policy": 1}
    assert equal_groups_without_credit(held, {"policy": {"answer"}}) == {"policy": 2}
    assert equal_groups_without_credit(held, {"policy": set()}) == {"policy": 2} and equal_groups(held) == (2, 3)
    taught = make_round([[0.0, 0.0]] * 2, coefficients={"policy": [0.5, -0.5, 0.1, -0.1]})
    module = StubModule()
    module.streams = {"policy": {"policy"}}
    rounds, error, warned = fit(tmp_path, Guards(patience_rounds=1), rounds=[taught], module=module)
    assert error is None and not warned


def test_every_trained_model_needs_credit(tmp_path):
    """One model of a pair may have credit of its own, whatever the rewards are: that must not hide that the other has none."""
    streams = {"small": {"small"}, "large": {"large"}}
    equal = make_round([[0.0, 0.0]] * 2, coefficients={"small": [0.5, -0.5, 0.1, -0.1], "large": [0.0] * 4})
    assert equal_groups_without_credit(equal, streams) == {"small": 0, "large": 2}
    module = StubModule()
    module.streams = streams
    rounds, error, _ = fit(tmp_path, Guards(patience_rounds=2), rounds=[equal], module=module)
    assert rounds == 1 and "in 2 of 2 groups of this round" in error and "none has credit for 'large' (round 2" in error


# Failed grading


def failed(*reasons: str):
    """A round of two groups of two in which judging failed for these reasons; "" where it did not."""
    held = make_round([[1.0, 0.0], [0.0, 1.0]])
    return replace(held, verdicts=tuple(replace(v, failure=why) for v, why in zip(held.verdicts, reasons, strict=True)))


def test_rounds_on_which_the_grader_fails_stop_the_run(tmp_path):
    broken = failed("", "no answer within 5 s", "more than 1024 MiB of memory", "")
    rounds, error, warned = fit(tmp_path, Guards(patience_rounds=3), rounds=[broken])
    assert rounds == 2 and len(warned) == 1 and "round 1 in a row" in warned[0]
    assert "the grader or a reward failed on 2 of 4 completions of this round (round 3 in a row)" in error
    assert "for example: no answer within 5 s; expected a share of at most 0.1. Correct the reward function" in error
    assert fit(tmp_path, Guards(patience_rounds=1, max_failed=0.5), rounds=[broken]) == (6, None, [])
    assert fit(tmp_path, Guards(patience_rounds=1, max_failed=1), rounds=[failed(*["raised"] * 4)]) == (6, None, [])


def test_a_real_reward_that_hangs_on_some_texts_is_counted_and_stops_the_run(tmp_path):
    reward = Reward(1.0, "reward_functions.hangs_on_even_digits")
    data = tiny_data(rewards={"slow": reward}, grader=Grader(workers=2, time_limit_s=0.1))
    rounds, error, warned = fit(tmp_path, Guards(patience_rounds=2, max_truncated=1), module=tiny_grpo(), data=data)
    assert rounds == 1 and len(warned) == 1
    assert re.search(
        r"failed on \d+ of 12 completions of this round \(round 2 in a row\), .*: slow: no answer within 0.1 s", error
    )


def test_a_round_without_completions_says_nothing_of_the_grader():
    assert check_failed_grading(0, 0, "", 0.1, streak=2, patience=3) == 2
    assert check_failed_grading(1, 10, "x", 0.1, streak=2, patience=3) == 0
    with pytest.raises(GuardError, match="for example: see rounds/ in the run folder"):
        check_failed_grading(2, 10, "", 0.1, streak=2, patience=3)


# Non-finite updates


def test_skipped_updates_in_a_row_stop_the_run(tmp_path):
    rounds, error, warned = fit(tmp_path, Guards(), kinds=[["good", "bad"], ["bad", "bad"]])
    assert rounds == 1
    assert "loss or gradient is not finite: {'loss': nan, 'grad_norm/policy': nan} (update 3 in a row)" in error
    assert "Lower the learning rate" in error and len(warned) == 1


def test_a_finite_update_starts_the_count_again_and_an_empty_one_does_not(tmp_path):
    kinds = [["bad", "bad", "good"]]
    rounds, error, warned = fit(tmp_path, Guards(), kinds=kinds)
    assert (rounds, error, len(warned)) == (6, None, 6)
    rounds, error, _ = fit(tmp_path, Guards(), kinds=[["bad", "empty", "bad", "empty", "bad"]])
    assert rounds == 0 and "update 3 in a row" in error


def test_skipped_zero_only_warns(tmp_path):
    rounds, error, warned = fit(tmp_path, Guards(max_skipped_updates=0), kinds=[["bad", "bad"]])
    assert (rounds, error, len(warned)) == (6, None, 1)


# The gap between the engine's and the trainer's log-probabilities


class ShiftedEngine(TransformersEngine):
    """Its log-probabilities are wrong by so many nats from the second token of a completion on, and from a version on."""

    def __init__(self, nats, first_version=0):
        super().__init__()
        self.nats, self.first_version = nats, first_version

    def generate(self, prompts, spec):
        completions = super().generate(prompts, spec)
        if self.version < self.first_version:
            return completions
        return [replace(c, logprobs=(c.logprobs[0], *(x - self.nats for x in c.logprobs[1:]))) for c in completions]


def fit_tiny(folder, engine=None, max_gap_nats=None, epochs=6, precision="32-true"):
    """Rounds of one update with completions of five tokens."""
    guards, settings = Guards(max_truncated=1, max_gap_nats=max_gap_nats), {"use_distributed_sampler": False}
    data = tiny_data(engine=engine)
    return fit(folder, guards, module=tiny_grpo(), data=data, epochs=epochs, precision=precision, **settings)


def test_an_engine_whose_logprobs_are_shifted_stops_the_run(tmp_path):
    rounds, error, warned = fit_tiny(tmp_path, ShiftedEngine(0.5, first_version=2))
    assert rounds == 4, "two sound rounds, two with a gap, and the third of these stops the run"
    (gap,) = re.findall(r"are (\S+) nats apart in the mean over the tokens of an update \(update 3 in a row\)", error)
    assert 0.35 < float(gap) <= 0.4, "half a nat for four of five tokens, less where a completion is shorter"
    assert "expected at most 0.001. The engine has stale weights" in error
    assert "model.init_args.importance" in error and "raise guards.max_gap_nats" in error
    assert len(warned) == 1 and "update 1 in a row" in warned[0]


def test_the_embedded_engine_and_a_gap_that_is_allowed_are_let_alone(tmp_path):
    assert fit_tiny(tmp_path) == (6, None, [])
    assert fit_tiny(tmp_path, ShiftedEngine(0.5), max_gap_nats=0.5) == (6, None, [])
    assert fit_tiny(tmp_path, ShiftedEngine(nan), max_gap_nats=inf) == (6, None, [])


def test_mixed_precision_is_allowed_a_tenth_of_a_nat(tmp_path):
    assert fit_tiny(tmp_path, ShiftedEngine(0.05), epochs=3, precision="bf16-mixed") == (3, None, [])
    rounds, error, _ = fit_tiny(tmp_path, ShiftedEngine(0.2), epochs=3, precision="bf16-mixed")
    assert rounds == 2 and "expected at most 0.1." in error


def test_the_allowed_gap_is_wide_where_anything_computes_in_16_bits():
    def allowed(precision="32-true", dtype=torch.float32, strategy="auto"):
        return max_gap_of(None, SimpleNamespace(precision=precision, strategy=strategy), dtype)

    assert allowed() == allowed(strategy=FSDP2Strategy()) == 0.001
    lowered = FSDP2Strategy(gather_dtype="bfloat16")
    assert allowed("bf16-mixed") == allowed(dtype=torch.bfloat16) == allowed(strategy=lowered) == 0.1
    assert max_gap_of(0.5, None, torch.float32) == 0.5


def test_the_gap_threshold_itself_is_allowed_and_what_is_no_number_is_not():
    assert check_engine_gap(0.1, 0.1, streak=2, patience=3) == 0
    assert check_engine_gap(nan, 0.1, streak=0, patience=3) == 1
    with pytest.raises(GuardError):
        check_engine_gap(0.11, 0.1, streak=2, patience=3)


# Weights that do not move


def test_bfloat16_updates_that_round_away_stop_the_run(tmp_path):
    module = StubModule(torch.bfloat16, rate=1e-4)
    before = module.weight.detach().clone()
    rounds, error, warned = fit(tmp_path, Guards(), kinds=[["good", "good"]], module=module)
    assert rounds == 1 and torch.equal(module.weight, before)
    assert "only 0 of 50 sampled weights of 'policy' with a gradient changed in an update (update 3 in a row)" in error
    assert "Keep float32 weights" in error and len(warned) == 1


@pytest.mark.parametrize(
    "module, guards",
    [
        (StubModule(torch.float32, rate=1e-4), Guards()),
        (StubModule(torch.bfloat16, rate=0.1), Guards()),
        (StubModule(torch.bfloat16, rate=1e-4), Guards(min_moved=0)),
        (StubModule(torch.bfloat16, rate=0.0), Guards()),
    ],
    ids=["float32", "bfloat16, large updates", "switched off", "rate 0"],
)
def test_weights_that_move_or_need_not_are_let_alone(tmp_path, module, guards):
    assert fit(tmp_path, guards, module=module) == (6, None, [])


def test_only_weights_with_a_gradient_count_and_the_group_that_moves_least_decides():
    moving, stuck = torch.nn.Parameter(torch.ones(6000)), torch.nn.Parameter(torch.ones(10, dtype=torch.bfloat16))
    frozen = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD(
        [
            {"params": [moving, frozen], "lr": 1.0, "weight_decay": 0.1, "name": "small"},
            {"params": [stuck], "lr": 1e-5, "name": "large"},
        ]
    )
    moving.grad = (torch.arange(6000) % 2).float()
    stuck.grad = torch.tensor([1.0, 0.0] * 5, dtype=torch.bfloat16)
    watched = watch(optimizer)
    optimizer.step()
    counts = {name: tuple(count.tolist()) for name, count in count_moved(watched).items()}
    assert counts == {"small": (2048, 2048), "large": (0, 5)}
    with pytest.raises(GuardError, match="only 0 of 5 sampled weights of 'large'"):
        check_weights_move(counts, min_moved=0.01, streak=2)
    assert check_weights_move({"small": counts["small"]}, min_moved=0.01, streak=2) == 0
    assert check_weights_move({"small": (0, 0)}, min_moved=0.01, streak=2) == 2


# Empty minibatches


def test_empty_rounds_only_warn_by_default_and_stop_the_run_if_asked(tmp_path):
    kinds = [["good", "empty"], ["empty", "empty"], ["empty", "empty"]]
    rounds, error, warned = fit(tmp_path, Guards(), kinds=kinds)
    assert (rounds, error, len(warned)) == (6, None, 2)
    assert "all 2 minibatches of this round were empty (round 1 in a row)" in warned[0]
    rounds, error, _ = fit(tmp_path, Guards(max_empty_rounds=2), kinds=kinds)
    assert rounds == 2
    assert "round 2 in a row" in error and "expected rows that are left after selection" in error


# Counts survive a resume; settings are checked; the table is complete


def test_a_resumed_run_counts_on(tmp_path):
    guards = {"patience_rounds": 3, "max_skipped_updates": 4, "max_empty_rounds": 2}
    fit(tmp_path, Guards(**guards), rounds=[CUT], kinds=[["bad", "empty"]], epochs=2, save=True)
    resumed = Guards(**guards)
    rounds, error, _ = fit(tmp_path, resumed, rounds=[CUT], kinds=[["bad", "empty"]], resume=tmp_path / "1-0.ckpt")
    assert rounds == 2 and "cut by max_new_tokens (round 3 in a row)" in error
    assert resumed.streaks["non_finite"] == 2
    # Round 1 was resumed after its only filled update: it must not count as empty.
    assert resumed.streaks["empty_rounds"] == 0


@pytest.mark.parametrize(
    "setting", [{"max_truncated": 1.5}, {"max_all_equal": -0.1}, {"patience_rounds": 0}, {"max_skipped_updates": -1},
                {"min_moved": 2.0}, {"max_empty_rounds": -1}, {"max_gap_nats": -0.1}],
)  # fmt: skip
def test_a_threshold_out_of_range_is_refused(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError, match=re.escape(f"guards.{name} is {value}; expected a number from")):
        Guards(**setting)


def test_every_guard_and_its_default_are_in_the_docs():
    root = Path(__file__).parents[2]
    text = (root / "docs" / "guards.md").read_text()
    for path in (root / "src" / "fulgurite" / "guards").glob("[a-z]*.py"):
        assert re.search(rf"^\| {path.stem.replace('_', '[ -]')} \|", text, re.M), f"docs/guards.md has no row {path.stem}"
    defaults = vars(Guards())
    for name in ("max_truncated", "max_all_equal", "patience_rounds", "max_skipped_updates", "min_moved"):
        assert f"`{name}: {defaults[name]}`" in text
    assert "`max_empty_rounds: 0`" in text and "`max_gap_nats: null`" in text
