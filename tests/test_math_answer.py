"""The grader of mathematical answers against pairs of known truth, and each convention by name."""

import json
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from fulgurite.rewards.extract import final_answer
from fulgurite.rewards.math_answer import grade
from fulgurite.rewards.units import read_unit

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "grading_pairs.jsonl").read_text().split("\n") if line]
KNOWN_MISSES = {(r"$576\pi\;m^{2}$", r"576\pi")}  # a single letter in a gold is never read as a unit


def outcome(gold, answer, where="any"):
    return grade(gold, answer, where).outcome


def test_the_pairs_cover_much_and_are_not_one_sided():
    kinds, expected = Counter(row["kind"] for row in PAIRS), Counter(row["expected"] for row in PAIRS)
    assert len(PAIRS) >= 1_200 and len(kinds) >= 25 and min(expected.values()) >= 500


@pytest.mark.parametrize("kind", sorted({row["kind"] for row in PAIRS}))
def test_every_pair_of_known_truth(kind):
    rows = [row for row in PAIRS if row["kind"] == kind]
    wrong = [
        (row["gold"], row["answer"], row["expected"])
        for row in rows
        if (outcome(row["gold"], row["answer"]) == "correct") != row["expected"]
    ]
    assert [pair for pair in wrong if pair[:2] not in KNOWN_MISSES] == []


@pytest.mark.parametrize(
    "text, boxed, marked, anywhere",
    [
        (r"so \boxed{7}", "7", "7", "7"),
        (r"\boxed{\frac{1}{2}} is it", r"\frac{1}{2}", r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"\boxed{1}, no: \boxed{2}", "2", "2", "2"),
        (r"\boxed{1} and \boxed{2}", "1, 2", "1, 2", "1, 2"),
        (r"\boxed{\boxed{3}}", "3", "3", "3"),
        (r"\boxed 42", "42", "42", "42"),
        (r"A: 5 \boxed{", None, None, None),
        (r"A: 5 \boxed{}", None, None, None),
        ("#### 1,000", None, "1,000", "1,000"),
        ("2+2=<<2+2=4>>4\nA: 4 apples\n\nNext: 9", None, "4 apples", "4 apples"),
        ("The answer is 5. I am sure.", None, "5", "5"),
        ("First 3, then 4, so it makes 12 of them.", None, None, "12"),
        ("We find $x = 3$ and are done with it now", None, None, "x = 3"),
        ("x^2+1", None, None, "x^2+1"),
        (
            "Nothing can be said of this one at all. " * 4 + "",
            None,
            None,
            None,
        ),
        ("A: 7\n<answer>\\boxed{6}", "6", "6", "6"),
        ("A: 7\n\n<answer>6", None, "7", "7"),
        ("", None, None, None),
    ],
)
def test_extraction(text, boxed, marked, anywhere):
    assert [final_answer(text, where) for where in ("boxed", "marked", "any")] == [boxed, marked, anywhere]


@pytest.mark.parametrize(
    "text, boxed, marked, anywhere",
    [
        ("</think> <answer>72</answer>", None, "72", "72"),
        (r"<answer>\boxed{\frac12}</answer> \boxed{3}", r"\frac12", r"\frac12", r"\frac12"),
        ("so <answer> The answer is 72. </answer>", None, "72", "72"),
        (r"<answer>5</answer> or \boxed{6}", None, "5", "5"),
        (r"\boxed{6} <answer>5</answer> \boxed{7} <ANSWER>8</ANSWER> 9", None, "8", "8"),
        ("<answer>3 <answer>4 apples</answer>", None, "4 apples", "4 apples"),
        (r"<answer>5</answer> and then <answer>\boxed{6}", None, "5", "5"),
        ("A: 7 <answer></answer>", None, None, None),
        (r"<answer>\boxed{}</answer> \boxed{7}", None, None, None),
    ],
)
def test_what_a_complete_answer_tag_encloses_is_the_answer(text, boxed, marked, anywhere):
    assert [final_answer(text, where) for where in ("boxed", "marked", "any")] == [boxed, marked, anywhere]


def test_money_does_not_open_a_formula():
    assert final_answer("He pays $60/60 = $1 for each of them at last") == "$1"


def test_where_is_a_limit_on_what_is_read():
    assert [outcome("42", "A: 42", where) for where in ("boxed", "marked", "any")] == ["ungradable", "correct", "correct"]
    assert [outcome("42", "42", where) for where in ("boxed", "marked", "any")] == ["ungradable", "ungradable", "correct"]


def test_one_of_several_golds_is_enough():
    assert outcome(["1/3", "0.33"], "0.33") == "correct"
    assert outcome(["1/3", "0.33"], "0.34") == "wrong"
    assert grade(["1/3", "0.33"], "0.34").reason == "not equal to 1/3 or 0.33"


def test_the_extracted_answer_is_reported():
    assert grade("7", r"hence \boxed{7}") == ("correct", "7", "")
    assert grade("7", r"hence \boxed{8}") == ("wrong", "8", "not equal to 7")
    assert grade("7", "no") == ("wrong", "no", "not equal to 7")
    assert grade("7", "") == ("ungradable", "", "the text gives no answer")


@pytest.mark.parametrize(
    "answer, reason",
    [
        ("1+" * 600 + "1", "an answer of 1201 characters; at most 1000 are read"),
        ("(" * 41 + "1" + ")" * 41, "brackets nested 41 deep; at most 40 are read"),
        ("9^{9^{9^{9}}}", "cannot be computed: a large power"),
        ("10^{-999999999}", "cannot be computed: a large power"),
        ("((9!)!)!", "cannot be computed: a large factorial"),
        (r"\cosh(10^{50000})", "cannot be computed: a large power"),
    ],
)
def test_what_would_take_long_is_refused_with_a_reason(answer, reason):
    assert grade("7", rf"\boxed{{{answer}}}")[::2] == ("ungradable", reason)


@pytest.mark.parametrize(
    "answer",
    [
        r"\boxed{" + r"\angle A " * 100 + "}",
        r"\boxed{" + r"A \cap B" * 110 + "}",
        "<answer>" * 2_000,
        "answer is then, " * 1_000,
    ],
)
def test_repeated_openings_take_no_time(answer):
    started = time.perf_counter()
    assert outcome("7", answer) != "correct" and time.perf_counter() - started < 2


def test_a_large_value_that_is_written_like_the_gold_is_right():
    assert (
        outcome("9^{9^{9}}", r"\boxed{9^{9^9}}") == "correct" or grade("9^{9^{9}}", r"\boxed{9^{9^{9}}}").outcome == "correct"
    )


@pytest.mark.parametrize(
    "text, dimensions, factor",
    [
        ("cm^2", (("length", 2),), Fraction(1, 10_000)),
        ("square inches", (("length", 2),), Fraction("0.0254") ** 2),
        ("km/h", (("length", 1), ("time", -1)), Fraction(1000, 3600)),
        ("feet per second", (("length", 1), ("time", -1)), Fraction("0.3048")),
        ("apples", (("apple", 1),), Fraction(1)),
        ("cents", (("money", 1),), Fraction(1, 100)),
    ],
)
def test_units(text, dimensions, factor):
    assert read_unit(text) == (dimensions, factor)


def test_no_unit_in_words_that_change_the_number():
    assert read_unit("halves") is None and read_unit("over") is None and read_unit("3 m") is None


@pytest.mark.parametrize("digits, expected", [(5, "wrong"), (6, "correct"), (12, "correct")])
def test_rounded_decimals_need_six_places(digits, expected):
    assert outcome(r"\frac{2}{7}", f"{2 / 7:.{digits}f}") == expected


def test_identities_hold_at_every_point_and_near_misses_do_not():
    assert outcome(r"\sin 3x", r"3\sin x - 4\sin^3 x") == "correct"
    assert outcome(r"\sin 3x", r"3\sin x - 4\sin^3 x + 10^{-30}x") == "wrong"
    assert outcome("(x+1)^{20}", r"(x+1)^{19}(x+1)") == "correct"
    assert outcome("(x+1)^{20}", r"(x+1)^{20}+10^{-30}") == "wrong"
    assert outcome("|x|", "x") == "wrong" and outcome("|x|", r"\sqrt{x^2}") == "correct"


def test_letters_keep_their_case_and_their_place():
    assert outcome("AB", "ab") == "wrong" and outcome("x_1", "x_2") == "wrong" and outcome("x'", "x") == "wrong"


def test_lone_surrogates_and_control_characters_are_no_error():
    assert outcome("7", "\ud800\x00") == "wrong"
    assert outcome("7", "\x007\u202e") == "correct"
