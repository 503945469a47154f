"""Tasks: what a prompt looks like and what an answer is worth."""

import json

import pytest

from fulgurite.rewards.pool import Returned
from fulgurite.tasks import grading
from fulgurite.tasks.addition import Addition
from fulgurite.tasks.grading import Grader
from fulgurite.tasks.gsm8k import GSM8K
from fulgurite.tasks.math import Math
from fulgurite.tasks.prompting import PromptStyle
from fulgurite.tasks.qa import QA
from fulgurite.tasks.sources import Source
from fulgurite.types import Completion, ConfigError


def said(text: str, finish_reason: str = "stop") -> Completion:
    return Completion((1,), (0.0,), finish_reason, text)


def test_addition_splits_by_unordered_pair_of_operands():
    task = Addition(digits=2)
    train, held_out = ({p.id for p in task.prompts(split)} for split in ("train", "held_out"))
    assert train.isdisjoint(held_out) and len(train) + len(held_out) == 10_000
    assert 900 < len(held_out) < 1100
    for question in held_out:
        a, b = question.rstrip("=").split("+")
        assert f"{b}+{a}=" in held_out
    with pytest.raises(ConfigError, match="no split 'test'; expected train or held_out"):
        task.prompts("test")


def test_addition_is_judged_by_the_sum_after_the_only_mark():
    task = Addition(digits=2)
    prompt = next(p for p in task.prompts("train") + task.prompts("held_out") if p.id == "47+86=")
    assert (prompt.text, prompt.answer, task.solution(prompt)) == ("47+86=", "133", "#133")
    outcomes = {
        "#133": "correct",
        "1#133": "correct",
        "#132": "wrong",
        "#0133": "wrong",
        "133": "ungradable",
        "#1#33": "ungradable",
    }
    assert {text: task.judge(prompt, said(text)).outcome for text in outcomes} == outcomes
    assert task.judge(prompt, said("#133", "length")).outcome == "ungradable"
    assert task.judge(prompt, said("#133")).reward == 1.0 and task.judge(prompt, said("#132")).reward == 0.0


def test_small_sums_are_padded_to_equal_width():
    small = next(p for p in Addition(digits=2).prompts("train") if p.answer == "012")
    assert len(small.text) == 6 and small.text.endswith("=")


# Graded questions


@pytest.fixture
def rows(tmp_path):
    """Writes rows into a file, and gives a source of them."""

    def source(*written: dict, **settings) -> Source:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in written))
        return Source(str(path), **settings)

    return source


def outcomes(task, prompt, *texts: str) -> list[tuple[str, str | None]]:
    return [(v.outcome, v.answer) for v in task.judge_all([(prompt, said(text)) for text in texts])]


def test_gsm8k_reads_solution_and_number_of_one_column_or_of_two(rows):
    one = {"question": "Half of 144?", "answer": "144/2 = <<144/2=72>>72\n#### 72"}
    (prompt,) = GSM8K({"train": rows(one)}).prompts("train")
    assert prompt.text == "Half of 144?\nReason step by step. End with #### and the answer, a number.\n"
    assert (prompt.id, prompt.answer) == ("train/0", "72")
    assert prompt.metadata == {"question": "Half of 144?", "solution": "144/2 = <<144/2=72>>72\n"}
    two = {"question": "Half of 144?", "answer": "72", "reasoning": "144/2 = <<144/2=72>>72"}
    for source in (rows(one), rows(one, columns={"solution": "answer"}), rows(two, columns={"solution": "reasoning"})):
        task = GSM8K({"train": source})
        assert task.solution(task.prompts("train")[0]) == "144/2 = 72\n#### 72"
    task = GSM8K({"train": rows(two)})
    with pytest.raises(ConfigError, match="the prompt 'train/0' of .* has no solution to learn from; name the column"):
        task.solution(task.prompts("train")[0])
    with pytest.raises(ConfigError, match="no split 'test'; expected one of train"):
        task.prompts("test")


def test_gsm8k_comes_from_the_hub_where_no_splits_are_given():
    assert GSM8K().splits == {split: Source("openai/gsm8k", name="main", split=split) for split in ("train", "test")}


def test_gsm8k_is_judged_by_the_number_after_the_mark_in_a_box_or_between_tags(rows):
    task = GSM8K({"train": rows({"question": "?", "answer": "1,072"})})
    (prompt,) = task.prompts("train")
    texts = ("so #### 1072", "#### 71 #### $1,072.00", r"\boxed{1072}", "<answer>1072</answer>", "#### 1073", "it is 1072", "")
    assert outcomes(task, prompt, *texts) == [("correct", "1,072")] * 4 + [("wrong", "1073")] + [("ungradable", None)] * 2
    loose = GSM8K({"train": rows({"question": "?", "answer": "1,072"})}, read="any")
    assert outcomes(loose, prompt, "So in the end it is 1072.")[0][0] == "correct"


def test_equal_answers_vote_together_however_they_are_written(rows):
    task = Math({"test": rows({"question": "?", "answer": r"We get \boxed{\frac{3}{4}}."})})
    (prompt,) = task.prompts("test")
    assert prompt.answer == r"\frac{3}{4}"
    right = (r"\boxed{0.75}", r"\boxed{\dfrac34}", r"\boxed{3/4}")
    assert set(outcomes(task, prompt, *right)) == {("correct", r"\frac{3}{4}")}
    assert set(outcomes(task, prompt, r"\boxed{0.5}", r"\boxed{\frac{1}{2}}", r"\boxed{1 / 2}")) == {("wrong", "1/2")}
    assert set(outcomes(task, prompt, r"\boxed{x+ 1}", r"\boxed{x + 1}")) == {("wrong", "x+1")}
    assert outcomes(task, prompt, "3/4", "#### 3/4") == [("ungradable", None)] * 2


def test_one_of_several_answers_is_enough(rows):
    source = rows({"question": "?", "answer": ["9.6", "9.60"]}, {"question": "??", "answer": ["x"]})
    task = Math({"test": source}, several_answers=True)
    prompts = task.prompts("test")
    assert [prompt.answer for prompt in prompts] == ['["9.6", "9.60"]', '["x"]']
    assert outcomes(task, prompts[0], r"\boxed{9.60}", r"\boxed{9.7}") == [("correct", "9.6"), ("wrong", "97/10")]
    for bad in ("9.6", [], [""], [1]):
        with pytest.raises(ConfigError, match="the answer of prompt 'test/0' is .*; expected a list of texts"):
            Math({"test": rows({"question": "?", "answer": bad})}, several_answers=True).prompts("test")
    with pytest.raises(ConfigError, match="the answer of prompt 'test/0' is ''; expected a text that is not empty"):
        Math({"test": rows({"question": "?", "answer": ""})}).prompts("test")


def test_qa_shows_its_context_and_fills_in_nothing_else(rows):
    row = {"question": "How much is {table}?", "answer": 5.5, "table": "a | {text}", "text": "Sums."}
    style = PromptStyle("{text}\n{table}\n{question} {other} {}")
    task = QA({"dev": rows(row)}, style, context=["text", "table"])
    (prompt,) = task.prompts("dev")
    assert prompt.text == "Sums.\na | {text}\nHow much is {table}? {other} {}" and prompt.answer == "5.5"
    assert prompt.metadata == {"question": "How much is {table}?"}
    with pytest.raises(ConfigError, match="context names the column 'page', and the template does not show {page}"):
        QA({"dev": rows(row)}, style, context=["page"])
    with pytest.raises(ConfigError, match="relative_tolerance is 1; expected 0 or more and less than 1"):
        QA({"dev": rows(row)}, relative_tolerance=1)


@pytest.mark.parametrize(
    ("match", "gold", "right", "wrong"),
    [
        ("numeric", "86.5", ("86.5", "$86.50 million", "86.53", "US$86.5"), ("86.6", "-86.5", "8.65", "86.5 or 87")),
        ("numeric", "0.14464", ("14.464%", "0.1446", "14.46 percent"), ("14.464", "1.4464%", "14.2%")),
        ("numeric", "5%", ("5", "0.05", "5.00 %"), ("500%", "50%", "0.5")),
        ("numeric", "-466", ("(466)", "-$466"), ("466", "(467)")),
        ("numeric", "2019", ("2019", "2,019"), ("2018", "2020")),
        ("numeric", "yes", ("Yes.", "yes"), ("no", "1")),
        ("exact", "The Beatles", ("beatles", "the Beatles!"), ("The Beatles band", "Beat les")),
        ("contains", "Paris", ("Paris, France", "It is Paris."), ("Parisian", "Pari s")),
    ],
)
def test_short_answers(rows, match, gold, right, wrong):
    task = QA({"dev": rows({"question": "?", "answer": gold})}, match=match)
    (prompt,) = task.prompts("dev")
    said_right = [f"So.\nThe answer is: {text}\n" for text in right]
    said_wrong = [f"So.\nThe answer is: {text}\n" for text in wrong]
    assert [o for o, _ in outcomes(task, prompt, *said_right)] == ["correct"] * len(right)
    assert [o for o, _ in outcomes(task, prompt, *said_wrong)] == ["wrong"] * len(wrong)
    assert outcomes(task, prompt, "I do not know") == [("ungradable", None)]


# The grader


def test_a_killed_grader_is_ungradable_and_counted_and_never_wrong(rows, monkeypatch):
    task = Math({"test": rows({"question": "?", "answer": "1"})})
    (prompt,) = task.prompts("test")
    returned = [Returned(("correct", "1", "")), Returned(failure="no answer within 5 s", killed=True)]
    monkeypatch.setattr(Grader, "map", lambda *_: returned)
    fine, killed = task.judge_all([(prompt, said("a")), (prompt, said("b"))])
    assert (fine.outcome, fine.failure) == ("correct", "")
    assert (killed.outcome, killed.reward, killed.answer) == ("ungradable", 0.0, None)
    assert killed.failure == "no answer within 5 s"


def test_a_function_that_fails_on_everything_is_an_error_and_on_some_is_not():
    grader = Grader(workers=1, time_limit_s=1.0)
    grader_calls = [("x",)] * 8
    with pytest.raises(ConfigError, match="sums cannot be judged: the function fails on each of 8 comp.* first TypeError"):
        grader.map("math:sqrt", grader_calls, "sums")
    some = grader.map("math:sqrt", [*grader_calls, (4,)], "sums")
    assert some[-1].value == 2 and all(one.failure.startswith("TypeError") for one in some[:-1])
    assert len(grader.map("math:sqrt", grader_calls[:7], "sums")) == 7
    with pytest.raises(ConfigError, match="sums cannot be judged: workers cannot load no.such:function"):
        grader.map("no.such:function", [(1,)], "sums")
    with pytest.raises(ConfigError, match="a grader has workers 0"):
        Grader(workers=0)


def test_graders_with_equal_settings_share_their_processes():
    first, second, other = Grader(time_limit_s=3.0), Grader(time_limit_s=3.0), Grader(time_limit_s=4.0)
    assert grading._pool(first) is grading._pool(second) is not grading._pool(other)
    grading._pool(other).close()
