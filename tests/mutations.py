"""Breaks of one line each, and the test that must notice: `python tests/mutations.py [--only NAME]`.

Copies the sources to a temporary folder, breaks one line there, and runs the named test against the copy. Exits with 1
if a break stays unnoticed, a test fails without the break, or a line is not found exactly once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "fulgurite"
ALL_PASSED, SOME_FAILED = 0, 1  # exit statuses of pytest


@dataclass(frozen=True)
class Break:
    """In `file`, the only `old` becomes `new`; then `test` must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


CODISTILL = "tests/methods/test_codistill.py::"
TSALLIS = "tests/methods/test_tsallis.py::"
GRPO, RANKS = "tests/methods/test_grpo.py::", "tests/dist/test_two_ranks.py::"
FAULTS, VLLM = "tests/faults/test_engine_faults.py::", "tests/contracts/test_vllm_engine.py::TestVLLMEngine::"
SPLITS = "tests/methods/test_split_invariance.py::test_grpo_has_the_same_gradient_in_any_micro_batches"
BREAKS = (
    Break(
        "world size dropped",
        "modules/base.py",
        "self.manual_backward(loss * self.trainer.world_size)",
        "self.manual_backward(loss)",
        RANKS + "test_two_processes_take_the_same_updates[grpo-fsdp2]",
    ),
    Break(
        "prompts of one length are taken for one",
        "models/packing.py",
        "beginnings.setdefault(row[:begin].tobytes(), number)",
        "beginnings.setdefault(begin, number)",
        "tests/test_packing.py::test_packed_rows_give_the_numbers_of_rows_apart[0-False-qwen2-whole]",
    ),
    Break(
        "a packed completion sees what comes after",
        "models/packing.py",
        "position <= own[:, :, None]",
        "position <= own[:, :, None] + 1",
        "tests/test_packing.py::test_each_token_is_laid_out_once_and_asks_what_is_before_it_in_its_row[0-parted]",
    ),
    Break(
        "packed state one token late",
        "models/packing.py",
        "asked.places[keep[used, 1 : len(position) + 1]]",
        "(asked.places[keep[used, 1 : len(position) + 1]] + 1) % size",
        "tests/test_packing.py::test_each_token_is_laid_out_once_and_asks_what_is_before_it_in_its_row[0-parted]",
    ),
    Break(
        "a cache that grows forgets",
        "engines/kv_cache.py",
        "self._write(old, 0, start)",
        "pass",
        "tests/contracts/test_transformers_engine.py::test_long_rows_that_end_at_all_times_are_scored_as_by_a_fresh_pass",
    ),
    Break(
        "local denominator",
        "modules/base.py",
        "loss = compose(values, components, rows.denominators)",
        "loss = compose(values, components, {name: float(c.denominator(part)) for name, c in components.items()})",
        SPLITS + "[token_mean-None]",
    ),
    Break(
        "gradients synchronised too early",
        "modules/base.py",
        "self._gradient_sync(last=i == len(parts) - 1)",
        "self._gradient_sync(last=i == 0)",
        RANKS + "test_two_processes_take_the_same_updates[kl-ddp]",
    ),
    Break(
        "not finite and taken",
        "modules/base.py",
        "finite = bool(torch.isfinite(torch.stack([loss, *norms.values()])).all())",
        "finite = True",
        GRPO + "test_an_update_that_is_not_finite_is_skipped_and_counted",
    ),
    Break(
        "empty and taken",
        "modules/base.py",
        "if not read:",
        "if False:",
        GRPO + "test_momentum_moves_nothing_in_an_empty_update",
    ),
    Break(
        "mask shifted by one",
        "models/causal_lm.py",
        "return states[keep[:, 1:]]",
        "return states[keep[:, 1:].roll(-1, 1)]",
        SPLITS + "[seq_mean_token_mean-k3]",
    ),
    Break(
        "temperature ignored",
        "models/scoring.py",
        "yield rows, logits if temperature == 1.0 else logits.div_(temperature)",
        "yield rows, logits",
        SPLITS + "[seq_mean_token_mean-None]",
    ),
    Break(
        "degrees of freedom",
        "credit/group.py",
        'ddof = int(scale == "sample_std")',
        'ddof = int(scale == "pop_std")',
        GRPO + "test_the_mean_gradient_over_all_groups_is_kappa_times_that_of_the_success_rate[enumerated_1_G3]",
    ),
    Break(
        "eps inside the root",
        "credit/group.py",
        "advantages = centred / (std + adv_eps)[index]",
        "advantages = centred / (std.square() + adv_eps).sqrt()[index]",
        "tests/test_credit.py::test_eps_is_added_to_the_standard_deviation",
    ),
    Break(
        "gradient through the credit",
        "credit/group.py",
        "reward = rewards.detach().double()",
        "reward = rewards.double()",
        "tests/test_credit.py::test_advantages_carry_no_gradient",
    ),
    Break(
        "clip sides swapped",
        "losses/policy.py",
        "clipped = ratio.clamp(1 - eps_low, 1 + eps_high)",
        "clipped = ratio.clamp(1 - eps_high, 1 + eps_low)",
        GRPO + "test_the_clip_acts_in_the_second_inner_epoch",
    ),
    Break(
        "old log-probabilities not computed",
        "modules/grpo.py",
        'old = ("old",) if updates_per_round > 1 else ()',
        "old = ()",
        GRPO + "test_the_old_column_is_the_policy_at_the_start_of_the_round",
    ),
    Break(
        "importance of what is learned",
        "modules/grpo.py",
        "self.importance(raw_weight(old, engine,",
        "self.importance(raw_weight(scores.logprobs.detach(), engine,",
        "tests/methods/test_importance.py::test_in_the_second_inner_epoch_the_weight_is_that_of_the_first",
    ),
    Break(
        "mismatch of one rank",
        "modules/base.py",
        "gather_over_ranks(self.trainer, values)",
        "[values] * self.trainer.world_size",
        RANKS + "test_two_processes_take_the_same_updates[grpo-ddp]",
    ),
    Break(
        "seed ignored",
        "engines/transformers_engine.py",
        "generator.manual_seed(address(spec.seed, *where))",
        "generator.manual_seed(address(*where))",
        "tests/contracts/test_transformers_engine.py::TestTransformersEngine::test_draws_are_addressed",
    ),
    Break(
        "stale engine weights",
        "data/task_datamodule.py",
        "if engine.version == int(module.updates):",
        "if engine.version is not None:",
        RANKS + "test_two_processes_train_on_the_same_rows[grpo-fsdp2]",
    ),
    Break(
        "weights not checked",
        "data/task_datamodule.py",
        "if engine.copies:",
        "if False:",
        FAULTS + "test_a_faulty_engine_stops_the_run_and_is_named[Ignoring]",
    ),
    Break(
        "checksums not compared",
        "guards/engine_weights.py",
        "if not equal]",
        "if False]",
        FAULTS + "test_one_wrong_element_is_seen",
    ),
    Break(
        "prefix cache not reset",
        "engines/vllm_engine.py",
        "self._forget()",
        "pass",
        FAULTS + "test_vllm[None]",
    ),
    Break(
        "tied head not sent",
        "engines/vllm_engine.py",
        "untied(weights, self.tied)",
        "iter(weights)",
        VLLM + "test_greedy_equals_generate[qwen2]",
    ),
    Break(
        "temperature not passed to vLLM",
        "engines/vllm_engine.py",
        "temperature=spec.temperature,",
        "temperature=1.0,",
        VLLM + "test_samples_follow_the_distribution[0.5-1-0]",
    ),
    Break(
        "draw not in the seed",
        "engines/requests.py",
        "address(spec.seed, prompt.id, prompt.draw)",
        "address(spec.seed, prompt.id)",
        VLLM + "test_draws_are_addressed",
    ),
    Break(
        "the same round again",
        "data/rollout_datamodule.py",
        "if self.held is None or self.held.number != epoch:",
        "if self.held is None:",
        GRPO + "test_each_epoch_is_a_round_of_further_prompts",
    ),
    Break(
        "the same prompts again",
        "data/rollout_datamodule.py",
        "order[epoch * per_step * self.steps_per_round + place]",
        "order[place]",
        GRPO + "test_each_epoch_is_a_round_of_further_prompts",
    ),
    Break(
        "weights of rewards ignored",
        "data/rewards.py",
        "change * values.get(name, 0.0)",
        "values.get(name, 0.0)",
        "tests/test_rewards.py::test_the_reward_is_the_weighted_sum_of_the_tasks_own_and_the_further_ones",
    ),
    Break(
        "breaking a penalty pays",
        "data/rewards.py",
        "named[i][name] = lowest if one.failure else one.value",
        "named[i][name] = 0.0 if one.failure else one.value",
        "tests/test_rewards.py::test_breaking_a_penalty_is_never_worth_while",
    ),
    Break(
        "a killed grader counts as wrong",
        "tasks/grading.py",
        '("ungradable", "") if one.failure',
        '("wrong", "") if one.failure',
        "tests/test_tasks.py::test_a_killed_grader_is_ungradable_and_counted_and_never_wrong",
    ),
    Break(
        "equal answers vote apart",
        "rewards/math_vote.py",
        "return compact(text) if number is None else str(number)",
        "return compact(text)",
        "tests/test_tasks.py::test_equal_answers_vote_together_however_they_are_written",
    ),
    Break(
        "benchmarks of an earlier config lost",
        "config_parser.py",
        "{**named, **now}",
        "now",
        "tests/test_eval_configs.py::test_overlays_add_up_and_a_later_one_of_the_same_name_wins",
    ),
    Break(
        "a row lost to rounding",
        "selection/prune.py",
        "math.floor(rows * (1 - rate) + 1e-9)",
        "math.floor(rows * (1 - rate))",
        "tests/methods/test_cppo.py::test_one_of_ten_stays_at_nine_tenths",
    ),
    Break(
        "divisors of pruning swapped",
        "callbacks/pruning.py",
        'if self.divisor == "retained"',
        'if self.divisor == "group"',
        "tests/methods/test_cppo.py::test_losses_by_hand[settings2--0.25]",
    ),
    Break(
        "counted rows computed too",
        "losses/compose.py",
        "return read & torch.stack",
        "return torch.stack",
        "tests/methods/test_cppo.py::test_losses_by_hand[settings2--0.25]",
    ),
    Break(
        "rows counted only are scored",
        "modules/base.py",
        "read = held.read_rows().nonzero().flatten()",
        "read = torch.arange(len(held))",
        "tests/methods/test_cppo.py::test_no_old_reference_or_policy_pass_sees_a_pruned_row[settings1]",
    ),
    Break(
        "one pass for all prompts of an allocation lost",
        "data/rollout_datamodule.py",
        "max(self.prompts_per_step, self.groups_per_step or 0)",
        "self.prompts_per_step",
        "tests/methods/test_cppo.py::test_an_update_is_filled_with_pruned_groups_of_further_prompts_sampled_at_once",
    ),
    Break(
        "own weight in the baseline",
        "credit/tsallis.py",
        ".masked_fill(torch.eye(count, dtype=torch.bool), -torch.inf)",
        ".clone()",
        TSALLIS + "test_the_mean_gradient_of_garl_over_all_pools[tabular_0_q0.75-True]",
    ),
    Break(
        "baseline of the answer, too",
        "credit/tsallis.py",
        "torch.where(log_p == -torch.inf, 0.0, b - baseline), b",
        "torch.where(log_p == -torch.inf, 0.0, b - baseline), b - baseline",
        TSALLIS + "test_the_mean_gradient_of_garl_over_all_pools[tabular_0_q0.75-True]",
    ),
    Break(
        "reasoning divided by its length",
        "modules/latent_reasoning.py",
        'aggregation="seq_mean_token_sum"',
        'aggregation="seq_mean_token_mean"',
        TSALLIS + "test_the_gradient_of_a_round_is_that_of_its_own_likelihoods[garl]",
    ),
    Break(
        "forced tokens taken for sampled ones",
        "data/gold.py",
        "return Ending(sampled, forced, (*gold, tokenizer.eos_token_id))",
        "return Ending(sampled, (), (*forced, *gold, tokenizer.eos_token_id))",
        TSALLIS + "test_forced_tokens_and_dropped_answers_have_no_credit",
    ),
    Break(
        "gold answer without its end",
        "data/gold.py",
        "(*gold, tokenizer.eos_token_id)",
        "(*gold,)",
        TSALLIS + "test_forced_tokens_and_dropped_answers_have_no_credit",
    ),
    Break(
        "the same draws every round",
        "callbacks/tsallis.py",
        'address(self.seed, "paft", held.number, prompt.id, prompt.draw)',
        'address(self.seed, "paft", prompt.id, prompt.draw)',
        TSALLIS + "test_rows_are_drawn_in_proportion_to_their_weights[multinomial]",
    ),
    Break(
        "normaliser left out",
        "callbacks/tsallis.py",
        "if self.normalise else 1.0",
        "if not self.normalise else 1.0",
        TSALLIS + "test_the_loss_is_the_surrogate_and_its_gradient_the_explicit_formula[True-0.75-garl]",
    ),
    Break(
        "a group that teaches stops the run",
        "guards/all_equal_groups.py",
        "credited[sampled.group_index[sampled.coefficients[name] != 0]] = True",
        "pass",
        "tests/faults/test_guards.py::test_equal_rewards_are_no_fault_where_there_is_credit",
    ),
    Break(
        "credit of one model hides that the other has none",
        "guards/all_equal_groups.py",
        "max(equal, key=equal.__getitem__)",
        "min(equal, key=equal.__getitem__)",
        "tests/faults/test_guards.py::test_every_trained_model_needs_credit",
    ),
    Break(
        "cut reasoning stops a run that answers it",
        "guards/truncation.py",
        'completion.finish_reason == "length" and not ended',
        'completion.finish_reason == "length"',
        "tests/faults/test_guards.py::test_reasoning_that_a_gold_answer_ends_is_no_fault",
    ),
    Break(
        "gold answers trained against",
        "callbacks/downsampling.py",
        "if self.recentre and owner.streams and not owner.centred:",
        "if False:",
        TSALLIS + "test_gold_answers_are_never_trained_against",
    ),
    Break(
        "seconds of validation counted as cost",
        "compare/readings.py",
        'for phase, s in seconds[kind].items() if phase != "validate")',
        "for phase, s in seconds[kind].items())",
        "tests/test_compare.py::test_readings_are_costs_without_validation_and_outcomes_by_prompt",
    ),
    Break(
        "cost of the first stage forgotten",
        "compare/readings.py",
        "before = rows[-1]",
        "pass",
        "tests/test_compare.py::test_the_cost_of_a_second_stage_is_added_to_that_of_the_first",
    ),
    Break(
        "other settings mixed into a run",
        "compare/runner.py",
        "if held == job.asked or (held is None",
        "if held or (held is None",
        "tests/test_compare.py::test_other_settings_are_not_mixed_into_a_run",
    ),
    Break(
        "the worst rate chosen",
        "commands/compare.py",
        "rates[arm] = max(sorted(scores)",
        "rates[arm] = min(sorted(scores)",
        "tests/test_compare.py::test_rates_are_chosen_on_the_tuning_seeds_and_then_hold",
    ),
    Break(
        "a stopped run sets the budget",
        "compare/statistics.py",
        'if state == "finished" and x > 0',
        "if x > 0",
        "tests/test_compare_statistics.py::test_a_stopped_run_does_not_lower_the_budget_and_keeps_its_last_outcomes[failed]",
    ),
    Break(
        "on par by one end of the interval",
        "compare/bootstrap.py",
        "if -margin <= low and high <= margin:",
        "if -margin <= low or high <= margin:",
        "tests/test_compare_bootstrap.py::test_a_verdict_at_its_edges[-0.05-0.051-undecided]",
    ),
    Break(
        "names of a report not escaped",
        "compare/html.py",
        "></i>{escape(name)}</span>'",
        "></i>{name}</span>'",
        "tests/test_compare_report.py::test_hostile_texts_are_only_texts",
    ),
    Break(
        "large model paid for its own likelihood",
        "callbacks/codistillation.py",
        "for rewards in (effective, held.rewards)",
        "for rewards in (effective, effective)",
        CODISTILL + "test_the_mean_gradients_over_all_groups[theorem1_0_G2_alpha1.0]",
    ),
    Break(
        "ratio of the large model to itself",
        "modules/codistill.py",
        'rows.keep(*COMPLETION), rows.columns["small"]',
        "rows.keep(*COMPLETION), rows.columns[model]",
        CODISTILL + "test_the_mean_gradients_over_all_groups[theorem1_0_G2_alpha1.0]",
    ),
    Break(
        "away from the large model",
        "credit/kd_reward.py",
        "large.detach().double() - small.detach().double()",
        "small.detach().double() - large.detach().double()",
        CODISTILL + "test_the_mean_gradients_over_all_groups[theorem1_0_G2_alpha1.0]",
    ),
    Break(
        "kept rows not centred",
        "callbacks/downsampling.py",
        "if not self.recentre:",
        "if self.recentre:",
        CODISTILL + "test_rows_are_dropped_before_any_gradient_and_centred_again[True]",
    ),
    Break(
        "hints left out of the ratios",
        "modules/codistill.py",
        "COMPLETION = (Segment.HINT, Segment.SAMPLED)",
        "COMPLETION = (Segment.SAMPLED,)",
        CODISTILL + "test_the_large_model_begins_the_completions_of_the_first_rounds",
    ),
    Break(
        "the small model writes its own hints",
        "data/rollout_datamodule.py",
        'of="the hints", engine=self.engine_of(module.hint_writer))',
        'of="the hints", engine=self.engine)',
        CODISTILL + "test_the_large_model_begins_the_completions_of_the_first_rounds",
    ),
    Break(
        "one model evaluated under both names",
        "data/task_datamodule.py",
        "engine = self.data.sync_weights(self.model)",
        "engine = self.data.sync_weights()",
        CODISTILL + "test_each_models_completions_are_its_own",
    ),
    Break(
        "other tokenizers taken",
        "guards/vocabulary.py",
        "if mine != other:",
        "if None not in (mine, other) and False:",
        CODISTILL + "test_other_tokenizers_are_refused_with_the_first_token_that_differs",
    ),
    Break(
        "SIGTERM saves nothing",
        "callbacks/checkpoint.py",
        "stops = told or trainer.should_stop or",
        "stops = trainer.should_stop or",
        "tests/fit/test_resume.py::test_a_killed_run_resumes_to_the_same_bytes[SIGTERM]",
    ),
    Break(
        "a resumed round asks an engine that has not started",
        "callbacks/guards.py",
        "max_gap_of(self.max_gap_nats, trainer, self.engine_dtype)",
        "max_gap_of(self.max_gap_nats, trainer, trainer.datamodule.engine.dtype)",
        "tests/fit/test_resume.py::test_a_killed_run_resumes_to_the_same_bytes[2x2 save every third update]",
    ),
    Break(
        "a torn checkpoint taken",
        "callbacks/checkpoint_files.py",
        "while found and (fault := fault_of(found[-1])):",
        "while found and (fault := None):",
        "tests/test_cli.py::test_a_torn_checkpoint_is_seen_and_the_one_before_taken",
    ),
    Break(
        "other settings taken on resume",
        "guards/changed_settings.py",
        "if changes := changed_settings(before, now):",
        "if changes := []:",
        "tests/test_cli.py::test_a_run_leaves_config_environment_results_and_refuses_to_be_overwritten",
    ),
    Break(
        "a short round taken for whole",
        "data/rollout_loader.py",
        "check_whole_round(done, len(self))",
        "check_whole_round(len(self), len(self))",
        "tests/faults/test_run_faults.py::test_a_loader_that_ends_early_stops_the_run",
    ),
    Break(
        "adapters merged without their scale",
        "models/adapters.py",
        "layer.scaling[NAME] * (b @ a)",
        "(b @ a)",
        "tests/test_adapters.py::test_a_whole_copy_with_merged_weights_computes_the_same",
    ),
    Break(
        "what is outside the layers not loaded",
        "models/causal_lm.py",
        "fill(outside.values())",
        "pass",
        "tests/dist/test_sharded_loading.py::test_the_weights_are_those_of_the_folder",
    ),
    Break(
        "activations for nothing",
        "models/memory.py",
        "return self.layers * FLOAT32 * self.hidden + layer if checkpointing else self.layers * layer",
        "return self.layers * layer",
        "tests/test_explain.py::test_the_bytes_of_one_process_by_hand",
    ),
)


def occurrences(item: Break) -> int:
    return (SOURCE / item.file).read_text(encoding="utf-8").count(item.old)


def run_tests(folder: Path, *tests: str) -> int:
    """The exit status of pytest with the package in `folder` before any installed one."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    where = [sys.executable, "-c", "import fulgurite; print(fulgurite.__file__)"]
    found = subprocess.run(where, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    if not Path(found.strip()).is_relative_to(folder):
        raise RuntimeError(f"the tests would import {found.strip()}; expected the copy in {folder}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True).returncode


def outcome(item: Break, folder: Path) -> str:
    """`red` if the test notices the break; else what happened instead."""
    if occurrences(item) != 1:
        return f"the line is there {occurrences(item)} times"
    whole = (SOURCE / item.file).read_text(encoding="utf-8")
    broken = folder / "fulgurite" / item.file
    broken.write_text(whole.replace(item.old, item.new), encoding="utf-8")
    status = run_tests(folder, item.test)
    broken.write_text(whole, encoding="utf-8")
    return {ALL_PASSED: "green", SOME_FAILED: "red"}.get(status, f"pytest ended with {status}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Break the sources line by line and see the tests fail.")
    parser.add_argument("--only", choices=[item.name for item in BREAKS], metavar="NAME", help="one break")
    only = parser.parse_args().only
    chosen = [item for item in BREAKS if only in (None, item.name)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        shutil.copytree(SOURCE, folder / "fulgurite")
        if run_tests(folder, *sorted({item.test for item in chosen})) != ALL_PASSED:
            print("a test fails without any break")
            return 1
        results = []
        for item in chosen:
            results.append(outcome(item, folder))
            print(f"{item.name:36} | {results[-1]}", flush=True)
    return int(set(results) != {"red"})


if __name__ == "__main__":
    sys.exit(main())
