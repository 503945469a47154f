"""Tasks: what a prompt looks like and what an answer is worth."""

import json

import pytest

from fulgurite.tasks.addition import Addition
from fulgurite.tasks.marked_answer import MarkedAnswer, normalise
from fulgurite.tasks.prompting import PromptStyle
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


@pytest.mark.parametrize(
    ("given", "same"),
    [("1,234", "1234"), (" $72. ", "72"), ("72.0", "72"), ("1e3", "1000"), ("-0.50", "-0.5"), ("Paris.", "Paris")],
)
def test_answers_are_compared_without_commas_signs_and_zeros(given, same):
    assert normalise(given) == normalise(same)


def test_numbers_of_absurd_size_stay_text():
    assert normalise("1e999999999") == "1e999999999" and normalise("nan") == "nan"
    assert normalise("7") != normalise("8")


def test_marked_answers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "Half of {144}?", "answer": "144/2 = 72\n#### 72"}) + "\n")
    task = MarkedAnswer({"train": Source(str(path))}, PromptStyle("Q: {question} Use {marker}\n"))
    (prompt,) = task.prompts("train")
    assert prompt.text == "Q: Half of {144}? Use ####\n" and prompt.answer == "72" and prompt.id == "train/0"
    assert prompt.source == str(path) and prompt.metadata == {"question": "Half of {144}?"}
    outcomes = {"so #### 72": "correct", "#### 71 #### 72.00": "correct", "#### 71": "wrong", "72": "ungradable"}
    assert {text: task.judge(prompt, said(text)).outcome for text in outcomes} == outcomes
    answers = {"so #### 72": "72", "#### 71 #### 72.00": "72", "#### $1,071.": "1071", "72": None}
    assert {text: task.judge(prompt, said(text)).answer for text in answers} == answers
    with pytest.raises(ConfigError, match="no split 'test'; expected one of train"):
        task.prompts("test")
    chat = MarkedAnswer({"train": Source(str(path))}, PromptStyle(chat=True, system="Be brief."), marker="=>")
    assert chat.prompts("train")[0].messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Half of {144}?"},
    )
    assert chat.prompts("train")[0].answer == "144/2 = 72\n#### 72"
