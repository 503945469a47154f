"""Tasks: what a prompt looks like and what an answer is worth."""

import gzip
import json

import pytest

from fulgurite.tasks.addition import Addition
from fulgurite.tasks.marked_answer import MarkedAnswer, normalise
from fulgurite.tasks.sources import JsonlSource
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


def test_a_source_maps_columns_and_names_file_and_line_in_errors(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(
            json.dumps({"problem": "1+1?", "answer": "so #### 2"}) + "\n\n" + json.dumps({"problem": "x", "answer": 3}) + "\n"
        )
    source = JsonlSource(str(path), columns={"question": "problem"})
    assert source.rows(("question", "answer")) == [
        {"question": "1+1?", "answer": "so #### 2"},
        {"question": "x", "answer": "3"},
    ]
    assert len(JsonlSource(str(path), columns={"question": "problem"}, limit=1).rows(("question",))) == 1
    with pytest.raises(ConfigError, match=r"rows.jsonl.gz, line 1: no column 'question'; it has answer, problem"):
        JsonlSource(str(path)).rows(("question", "answer"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "a", "answer": "b"}\n{"question": \n')
    with pytest.raises(ConfigError, match="bad.jsonl, line 2: expected a JSON object"):
        JsonlSource(str(bad)).rows(("question", "answer"))
    bad.write_text('{"question": "a", "answer": null}\n')
    with pytest.raises(ConfigError, match="bad.jsonl, line 1: answer is null"):
        JsonlSource(str(bad)).rows(("question", "answer"))
    with pytest.raises(ConfigError, match="no file at"):
        JsonlSource(str(tmp_path / "none.jsonl"))


def test_marked_answers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "Half of {144}?", "answer": "144/2 = 72\n#### 72"}) + "\n")
    task = MarkedAnswer({"train": JsonlSource(str(path))}, template="Q: {question} Use {marker}\n")
    (prompt,) = task.prompts("train")
    assert prompt.text == "Q: Half of {144}? Use ####\n" and prompt.answer == "72" and prompt.id == "train/0"
    outcomes = {"so #### 72": "correct", "#### 71 #### 72.00": "correct", "#### 71": "wrong", "72": "ungradable"}
    assert {text: task.judge(prompt, said(text)).outcome for text in outcomes} == outcomes
    with pytest.raises(ConfigError, match="no split 'test'; expected one of train"):
        task.prompts("test")
    (message,) = MarkedAnswer({"train": JsonlSource(str(path))}, template="{question}", chat=True).prompts("train")[0].messages
    assert message == {"role": "user", "content": "Half of {144}?"}
    with pytest.raises(ConfigError, match="chat is false"):
        MarkedAnswer({}, system="Be brief.")
