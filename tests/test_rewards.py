"""Several rewards: plain functions by dotted path, their weights, what happens where one fails, and the shapes they pay for."""

import os
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback

import fulgurite.trainer_cli  # noqa: F401 - here, so that its loggers do not bind to the stream of one test
from fulgurite.callbacks.round_metrics import round_metrics, round_sums
from fulgurite.callbacks.samples import completion_rows
from fulgurite.credit.group import group_advantages
from fulgurite.data.rewards import Reward, add_rewards
from fulgurite.rewards.shaping import contains, length, matches, soft_overlong
from fulgurite.tasks.grading import Grader
from fulgurite.tasks.knights_knaves import Generator, KnightsKnaves
from fulgurite.types import Completion, ConfigError, Prompt, Verdict
from reward_functions import digits
from tiny import EvenDigits, tiny_data, tiny_grpo, tiny_trainer

HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def workers_find_the_functions(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", HERE, prepend=os.pathsep)


PROMPT = Prompt("q", "3+4=", answer="7", metadata={"kind": "sum"})
VERDICT = Verdict("correct", {"accuracy": 1.0}, 1.0, answer="7")
QUICK = Grader(workers=1, time_limit_s=0.5)


def said(text: str, tokens: int = 3) -> Completion:
    return Completion((1,) * tokens, (0.0,) * tokens, "stop", text)


def judged(rewards: dict[str, Reward], *texts: str, verdict: Verdict = VERDICT) -> list[Verdict]:
    return add_rewards([(PROMPT, said(text)) for text in texts], [verdict] * len(texts), rewards, QUICK)


# The sum


def test_the_reward_is_the_weighted_sum_of_the_tasks_own_and_the_further_ones():
    rewards = {"accuracy": Reward(weight=2.0), "digits": Reward(0.5, "reward_functions.digits")}
    first, second = judged(rewards, "a1b23", "none")
    assert (first.rewards, first.reward) == ({"accuracy": 1.0, "digits": 3.0}, 2.0 + 1.5)
    assert (second.rewards, second.reward) == ({"accuracy": 1.0, "digits": 0.0}, 2.0)
    assert (first.outcome, first.answer, first.failure) == ("correct", "7", "")
    (own_only,) = judged({"digits": Reward(0.0, "reward_functions.digits")}, "123")
    assert (own_only.rewards["digits"], own_only.reward) == (3.0, 1.0)


def test_the_sum_that_a_task_makes_of_its_own_rewards_is_its_own_affair():
    halved = Verdict("correct", {"format": 1.0, "accuracy": 1.0}, 1.25)  # the task counts its format a quarter
    assert judged({}, "1", verdict=halved) == [halved]
    assert judged({"digits": Reward(0.5, "reward_functions.digits")}, "12", verdict=halved)[0].reward == 2.25
    assert judged({"accuracy": Reward(3.0)}, "1", verdict=halved)[0].reward == 3.25


def test_a_function_gets_the_facts_it_names_and_the_arguments_of_the_config():
    path = "reward_functions.everything"
    assert judged({"all": Reward(1, path, {"factor": 4})}, "say 7")[0].rewards["all"] == 4.25
    assert judged({"all": Reward(1, path, {"factor": 4, "bonus": 1})}, "say 7")[0].rewards["all"] == 5.0
    assert judged({"all": Reward(1, path, {"factor": 4, "outcome": "wrong"})}, "say 7")[0].rewards["all"] == 0.0


def test_the_signs_and_zeros_of_several_rewards_of_a_task_are_kept():
    task = KnightsKnaves(Generator(people=2, count=1, held_out=1))
    assert task.reward_names == ("format", "answer")
    prompt = task.prompts("train")[0]
    completion = said(task.solution(prompt))
    verdict = task.judge(prompt, completion)
    (again,) = add_rewards([(prompt, completion)], [verdict], {"format": Reward(0.5)}, QUICK)
    assert (verdict.reward, again.reward, again.rewards) == (3.0, 2.5, {"format": 1.0, "answer": 2.0})


# What cannot work


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"function": "no.such.place"},
            "no reward function at no.such.place: No module named 'no'; .* PYTHONPATH=. is",
        ),
        ({"function": "reward_functions.nothing"}, "no reward function at reward_functions.nothing: "),
        ({"function": "reward_functions.SEVEN"}, "no reward function at reward_functions.SEVEN: .* is not a callable object"),
        (
            {"function": "reward_functions.everything"},
            "reward_functions.everything needs the argument 'factor'; set it",
        ),
        (
            {"function": "reward_functions.digits", "arguments": {"limit": 3}},
            "reward_functions.digits has no argument 'limit'; it has text",
        ),
        ({"arguments": {"limit": 3}}, "a reward has arguments {'limit': 3} and no function"),
    ],
)
def test_rewards_that_cannot_work_are_refused_before_anything_else(settings, words):
    with pytest.raises(ConfigError, match=words):
        Reward(**settings)


def test_names_are_checked_against_the_tasks_own():
    with pytest.raises(
        ConfigError, match="rewards has 'accurracy' without a function, and the task's own are even; give it one"
    ):
        tiny_data(rewards={"accurracy": Reward(2.0)})
    with pytest.raises(ConfigError, match="rewards has a function for 'even', which is a reward of the task itself"):
        tiny_data(rewards={"even": Reward(2.0, "reward_functions.digits")})


# Where a function fails


def test_breaking_a_penalty_is_never_worth_while():
    texts = ("good", "bad", "hang", "raise", "nan")
    verdicts = judged({"penalty": Reward(1.0, "reward_functions.penalty")}, *texts)
    assert [v.rewards["penalty"] for v in verdicts] == [-1.0, -2.0, -2.0, -2.0, -2.0]
    assert [v.outcome for v in verdicts] == ["correct"] * 2 + ["ungradable"] * 3
    assert [v.failure for v in verdicts] == [
        "",
        "",
        "penalty: no answer within 0.5 s",
        "penalty: ValueError: cannot read this",
        "penalty: it returned 'nan'; expected a finite number",
    ]
    (alone,) = judged({"digits": Reward(1.0, "reward_functions.words")}, "1 2")
    assert (alone.rewards["digits"], alone.failure) == (
        0.0,
        "digits: it returned \"['1', '2']\"; expected a finite number",
    )


def test_a_function_that_always_fails_stops_the_run():
    with pytest.raises(ConfigError, match="the reward 'penalty' cannot be judged: the function fails on each of 8 comp"):
        judged({"penalty": Reward(1.0, "reward_functions.penalty")}, *["raise"] * 8)


def test_a_module_that_does_not_fit_into_a_worker_stops_the_run():
    with pytest.raises(ConfigError, match="the reward 'torch' cannot be judged: workers cannot load tiny:require_vllm_cpu: "):
        judged({"torch": Reward(1.0, "tiny.require_vllm_cpu")}, "a")


def test_a_failed_grading_stays_failed_beside_further_rewards():
    failed = Verdict("ungradable", {"accuracy": 0.0}, 0.0, failure="no answer within 5 s")
    (verdict,) = judged({"digits": Reward(1.0, "reward_functions.digits")}, "12", verdict=failed)
    assert (verdict.outcome, verdict.failure, verdict.reward) == ("ungradable", "no answer within 5 s", 2.0)


# In a run


class Keep(Callback):
    def __init__(self):
        self.sampled = []

    def on_round(self, trainer, module, sampled, kept):
        self.sampled.append(sampled)


def test_credit_curves_and_files_have_the_further_rewards():
    keep = Keep()
    data = tiny_data(
        task=EvenDigits(digits=1),
        rewards={"digits": Reward(0.25, "reward_functions.digits"), "even": Reward(2.0)},
        prompts_per_step=4,
    )
    tiny_trainer(max_epochs=1, enable_checkpointing=False, callbacks=[keep]).fit(tiny_grpo(), datamodule=data)
    (sampled,) = keep.sampled
    sums = [0.25 * digits(c.text) + 2 * v.rewards["even"] for c, v in zip(sampled.completions, sampled.verdicts, strict=True)]
    assert sampled.rewards.tolist() == pytest.approx(sums, abs=1e-6) and len(set(sums)) > 3
    expected = group_advantages(sampled.rewards, sampled.group_index, scale="pop_std", baseline="mean")
    assert sampled.coefficients["policy"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    metrics = round_metrics(round_sums(sampled, sampled))
    mean = sum(digits(c.text) for c in sampled.completions) / len(sampled)
    assert metrics["reward/digits"] == pytest.approx(mean) and metrics["reward/failed"] == 0.0
    row = completion_rows(sampled, sampled)[0]
    assert row["rewards"] == dict(sampled.verdicts[0].rewards) and row["extracted"] == sampled.verdicts[0].answer


# Shapes


@pytest.mark.parametrize(
    ("tokens", "value"), [(1, 0.0), (384, 0.0), (385, -1 / 128), (448, -0.5), (511, -127 / 128), (512, -1.0), (9000, -1.0)]
)
def test_soft_overlong_falls_linearly_over_its_buffer(tokens, value):
    assert soft_overlong(tokens, limit=512, buffer=128) == value


def test_length_costs_every_token_the_same():
    assert [length(tokens, limit=4) for tokens in (1, 2, 4, 5)] == [-0.25, -0.5, -1.0, -1.0]


def test_format_is_a_pattern_or_words_that_stand_once():
    pattern = r"^<think>.*</think>\s*<answer>.*</answer>$"
    assert matches("<think>a\nb</think>\n<answer>7</answer>", pattern) == 1.0
    assert matches("x<think>a</think><answer>7</answer>", pattern) == 0.0
    assert [contains(text, "</think>") for text in ("a</think>b", "ab", "a</think></think>")] == [1.0, 0.0, 0.0]


def test_a_pattern_that_never_ends_costs_one_completion_its_verdict():
    bait = Reward(1.0, "fulgurite.rewards.shaping.matches", {"pattern": "^(a+)+$"})
    fine, hung = judged({"format": bait}, "aaa", "a" * 60 + "!")
    assert (fine.rewards["format"], fine.failure) == (1.0, "")
    assert (hung.rewards["format"], hung.outcome, hung.failure) == (0.0, "ungradable", "format: no answer within 0.5 s")
