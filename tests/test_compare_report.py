"""The page and the pictures of a comparison: every number is that of the report, every text is only a text."""

from __future__ import annotations

import re
from base64 import b64decode
from collections import Counter
from copy import deepcopy
from functools import cache

import pytest

from comparisons import AXES, HOSTILE, INTERVAL, REPORTS, Page, example, hostile, resolve, summary_pointers
from fulgurite.compare.html import html, shown
from fulgurite.compare.plots import axis_label, curve_color

SHARES = {"%": 100, "pp": 100, "±pp": 100, "s": 1}
SIZES = {"k": 1e3, "M": 1e6, "B": 1e9}


def check(text: str, value: float | None, unit: str) -> None:
    """The text shows the value in its unit, rounded and not cut."""
    if value is None:
        assert text == ("not reached" if unit in AXES else "not known")
    elif unit in SHARES:
        assert text == text.strip() and text.endswith("%") == (unit == "%")
        assert text[0] in {"pp": "+−", "±pp": "±"}.get(unit, "−-0123456789")
        number = float(text.replace("−", "-").strip("±% "))
        assert number == round(SHARES[unit] * value, 1) and len(text.strip("%").split(".")[1]) == 1
    elif unit in ("count", "seed"):
        assert text == str(value)
    else:
        assert unit in AXES
        number = float(text.rstrip("kMB")) * SIZES.get(text[-1], 1)
        assert number == pytest.approx(value, rel=0.005) and number == pytest.approx(float(f"{value:.3g}"))


@cache
def written(name: str) -> str:
    return html(REPORTS[name])


@pytest.fixture(scope="module")
def page():
    return Page(written("three curves"))


@pytest.mark.parametrize("name", REPORTS)
def test_every_number_is_shown_and_is_that_of_the_report(name):
    report = REPORTS[name]
    numbers = Page(written(name)).numbers
    for pointer, unit, text in numbers:
        check(text, resolve(report, pointer), unit)
    assert Counter(pointer for pointer, _, _ in numbers) == Counter(summary_pointers(report))


@pytest.mark.parametrize(
    ("place", "unit"),
    [
        (r"/target|/curves/\d+/runs/\d+/points/\d+/accuracy|/axes/\d+/curves/\d+/(end|area)/\w+", "%"),
        (r"/axes/\d+/pairs/\d+/(end|area)/\w+", "pp"),
        (r"/margin", "±pp"),
        (r"/curves/\d+/phases/.+", "s"),
        (r"/seeds/\d+|/curves/\d+/runs/\d+/seed", "seed"),
        (r"/axes/\d+/curves/\d+/cost_to_target/(reached|of)", "count"),
        (r"/axes/0/((pairs/\d+/)?budget|curves/\d+/cost_to_target/median)|/curves/\d+/runs/\d+/points/\d+/prompts", "prompts"),
        (
            r"/axes/2/((pairs/\d+/)?budget|curves/\d+/cost_to_target/median)|/curves/\d+/runs/\d+/points/\d+/gpu_seconds",
            "gpu_seconds",
        ),
    ],
)
def test_numbers_have_the_unit_of_what_they_measure(page, place, unit):
    for pointer, own, _ in page.numbers:
        assert bool(re.fullmatch(place, pointer)) == (own == unit), pointer


def test_the_summary_has_each_number_in_its_place(page):
    report = REPORTS["three curves"]
    tables = page.table("Curve", "At the budget", "Area under the curve")
    for a, (axis, rows) in enumerate(zip(report["axes"], tables, strict=True)):
        for c, (curve, row) in enumerate(zip(axis["curves"], rows, strict=True)):
            at = f"/axes/{a}/curves/{c}/"
            assert row[0]["text"] == curve["name"]
            assert row[1]["pointers"] == [f"{at}end/{bound}" for bound in INTERVAL]
            assert row[2]["pointers"] == [f"{at}area/{bound}" for bound in INTERVAL]
            assert row[3]["pointers"] == [f"{at}cost_to_target/{part}" for part in ("median", "reached", "of")]
            assert row[3]["text"].endswith("reached by 2 of 3")
    heads = [head[3]["text"] for head, *_ in page.tables if head[0]["text"] == "Curve" and head[1]["text"] == "At the budget"]
    assert heads == [f"Median {axis_label(axis)} to the target" for axis in AXES]


def test_the_pairs_have_each_number_and_verdict_in_its_place(page):
    report = REPORTS["three curves"]
    tables = page.table("Pair", "Budget of the two", "At this budget", "Area under the curve")
    for a, (axis, rows) in enumerate(zip(report["axes"], tables, strict=True)):
        for p, (pair, row) in enumerate(zip(axis["pairs"], rows, strict=True)):
            assert row[0]["text"] == f"{pair['first']}against{pair['second']}"
            assert row[1]["pointers"] == [f"/axes/{a}/pairs/{p}/budget"]
            for cell, part in zip(row[2:], ("end", "area"), strict=True):
                assert cell["pointers"] == [f"/axes/{a}/pairs/{p}/{part}/{bound}" for bound in INTERVAL]
                assert cell["text"].endswith(pair[part]["verdict"])


def test_the_phases_have_each_number_in_its_place(page):
    (rows,) = page.table("Curve", "sample", "train/step~1", "sync")
    assert [row[0]["text"] for row in rows] == ["GRPO 32 x 16", "2-GRPO", "CPPO"]
    for c, row in enumerate(rows):
        pointers = [[f"/curves/{c}/phases/{phase}"] for phase in ("sample", "train~1step~01", "sync")]
        assert [cell["pointers"] for cell in row[1:]] == (pointers if c else [*pointers[:2], []])
    assert rows[0][3]["text"] == "–"


def test_every_run_is_in_its_table_with_its_state_and_note(page):
    report = REPORTS["three curves"]
    (rows,) = page.table("Curve", "Seed", "Final accuracy", "State", "prompts", "sampled tokens", "GPU seconds")
    places = [(c, r, curve["name"], run) for c, curve in enumerate(report["curves"]) for r, run in enumerate(curve["runs"])]
    assert len(places) == 9
    for (c, r, name, run), row in zip(places, rows, strict=True):
        assert row[0]["text"] == name and row[3]["text"] == run["state"] + run["note"]
        assert row[1]["pointers"] == [f"/curves/{c}/runs/{r}/seed"]
        last = f"/curves/{c}/runs/{r}/points/{len(run['points']) - 1}/"
        for cell, key in zip((row[2], *row[4:]), ("accuracy", *AXES), strict=True):
            assert cell["pointers"] == ([last + key] if run["points"] else [])
            assert run["points"] or cell["text"] == "–"
    assert {run["state"] for *_, run in places} == {"finished", "stopped by a guard", "failed"}


def test_what_was_compared_is_told(page):
    (rows,) = page.table("Setting", "GRPO 32 x 16", "2-GRPO", "CPPO")
    assert [[cell["text"] for cell in row] for row in rows] == [
        ["benchmark", "benchmark 0", "benchmark 1", "benchmark 2"],
        ["learning rate", "0.000", "0.001", "0.002"],
        ["keep rate", "–", "–", "0.25"],
    ]
    for text in (
        "main: methods at the same budget",
        "main",
        "fulgurite compare --config x.yaml",
        "fulgurite 0.1.0, commit not known",
        "± 5.0",
        "61.3%",
    ):
        assert text in page.texts
    assert [text for pointer, _, text in page.numbers if pointer.startswith("/seeds")] == ["0", "1", "2"]
    assert "Not here, because it spends no GPU seconds: CPPO." in page.texts and page.text.count("Not here") == 1
    assert "Measured beside other programs." in page.texts


def test_how_to_read_it_says_what_must_be_known(page):
    told = " ".join(page.text.split())
    for words in (
        "hierarchical bootstrap: seeds are drawn with replacement, then prompts within each drawn seed",
        "keeps its last accuracy from there on",
        "too narrow rather than too wide",
        "“On par”: the whole interval of the difference lies within the margin",
        "“Undecided”: these runs cannot tell, which does not mean that the two are alike",
    ):
        assert words in told


def test_a_curve_has_one_colour_everywhere():
    text = written("three curves")
    for index, name in enumerate(("GRPO 32 x 16", "2-GRPO", "CPPO")):
        named = text.count(f"</i>{name}</span>")
        assert named > 3 and text.count(f'<i style="background:{curve_color(index)}"></i>{name}</span>') == named
    assert curve_color(6) == curve_color(0) != curve_color(5)


def test_badges_are_coloured_by_what_they_say():
    text = written("three curves")
    looks = {"better": "good", "worse": "bad", "on par": "same", "undecided": "plain"}
    looks |= {"finished": "plain", "stopped by a guard": "bad", "failed": "bad"}
    for word, look in looks.items():
        assert text.count(f'<em class="{look}">{word}</em>') == text.count(f">{word}</em>") > 0


def test_empty_parts_are_left_out():
    report = example(names=("only",)) | {"notes": []}
    report["curves"][0]["phases"] = {}
    page = Page(html(report))
    assert "Notes" not in page.texts and "Where the seconds went" not in page.texts
    assert not page.table("Pair") and len(page.images) == len(AXES)


# Pictures in the page, and the page without network


def test_pictures_are_in_the_page_with_words_for_them(page):
    assert len(page.images) == len(AXES) + 1
    for image in page.images:
        head, data = image["src"].split(",")
        assert head == "data:image/png;base64" and b64decode(data, validate=True).startswith(b"\x89PNG\r\n\x1a\n")
    assert len({image["src"] for image in page.images}) == len(page.images)
    assert page.images[2]["alt"].startswith("Accuracy against GPU seconds up to 77.7 for GRPO 32 x 16, 2-GRPO: ")
    assert page.images[3]["alt"].startswith("Seconds by phase for GRPO 32 x 16, 2-GRPO, CPPO.")


def test_the_page_needs_nothing_from_outside(page):
    text = written("three curves")
    assert text.isascii() is False and '<meta charset="utf-8">' in text
    for outside in ("http:", "https:", "url(", "@import", "href="):
        assert outside not in text
    assert text.count("src=") == text.count('src="data:image/png;base64,') == len(page.images)
    assert set(page.tags) & {"script", "link", "iframe", "object", "form", "base"} == set()
    assert "prefers-color-scheme: dark" in text and 'name="viewport" content="width=device-width, initial-scale=1"' in text


def test_the_page_is_a_pure_function_of_the_report():
    report = example()
    before = deepcopy(report)
    assert html(report) == html(deepcopy(report)) and report == before


# Hostile texts


def test_hostile_texts_are_only_texts(page):
    report = hostile(example())
    text = html(report)
    attacked = Page(text)
    assert set(attacked.tags) == set(page.tags) and set(attacked.attributes) == set(page.attributes)
    assert attacked.tags["img"] == len(AXES) + 1 and "<script" not in text and "<img src" not in text
    assert all(image["src"].startswith("data:image/png;base64,") for image in attacked.images)
    for pointer, unit, shown_text in attacked.numbers:
        check(shown_text, resolve(report, pointer), unit)
    heading, settings, phases, runs, verdicts = 3, 3 + 3 + 1, 1, 9 * 2, (2 + 2 + 1) * 2
    assert attacked.texts.count(HOSTILE) == heading + settings + phases + runs + verdicts


# Numbers


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.8349, "%", "83.5%"),
        (1.0, "%", "100.0%"),
        (0.0213, "pp", "+2.1"),
        (-0.0213, "pp", "−2.1"),
        (-0.0001, "pp", "+0.0"),
        (0.05, "±pp", "± 5.0"),
        (1234.56, "s", "1234.6"),
        (1234, "count", "1234"),
        (123456, "seed", "123456"),
        (12345.0, "prompts", "12.3k"),
        (None, "cpu_seconds", "not reached"),
        (None, "pp", "not known"),
        (None, "s", "not known"),
    ],
)
def test_a_number_is_shown_in_its_unit(value, unit, text):
    assert shown(value, unit) == text
