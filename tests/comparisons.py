"""Made-up reports of a comparison, and what a page shows."""

from __future__ import annotations

from collections import Counter
from functools import reduce
from html.parser import HTMLParser
from itertools import cycle, pairwise

import numpy as np

AXES = {"prompts": 32000.0, "sampled_tokens": 4123456.0, "gpu_seconds": 77.7}
INTERVAL = ("value", "low", "high")
HOSTILE = "<script>alert(\"1\")</script> & 'x' <img src=http://x onerror=y> $\\frac{1$ _^"


def example(names=("GRPO 32 x 16", "2-GRPO", "CPPO"), seeds=(0, 1, 2)) -> dict:
    """A report with no two numbers alike. The last curve uses no GPU, and its second run was stopped, its third failed."""
    rng = np.random.default_rng(0)
    verdicts = cycle(("better", "undecided", "worse", "on par"))

    def run(seed, place, last):
        state = "finished" if place == 0 or not last else ("stopped by a guard", "failed")[place - 1]
        counts = {"finished": 5, "stopped by a guard": 3, "failed": 0}
        points = [
            {
                "accuracy": rng.random(),
                **{axis: budget * (i / 4 + (i > 0) * 0.1 * rng.random()) for axis, budget in AXES.items()},
            }
            for i in range(counts[state])
        ]
        return {"seed": seed, "state": state, "note": "" if state == "finished" else f"{state}: why", "points": points}

    def interval():
        return dict(zip(INTERVAL, rng.uniform(-1, 1, 3).tolist(), strict=True))

    def on(axis, name):
        found = {"name": name, **{part: rng.random(41).tolist() for part in ("mean", "low", "high")}}
        found |= {"end": interval(), "area": interval()}
        by_seed = [{"seed": seed, "value": AXES[axis] * rng.random()} for seed in seeds]
        return found | {"cost_to_target": {"median": AXES[axis] * rng.random(), "reached": 2, "of": 3, "by_seed": by_seed}}

    def pair(axis, first, second):
        found = {"first": first, "second": second, "budget": AXES[axis] * rng.random()}
        return found | {part: interval() | {"verdict": next(verdicts)} for part in ("end", "area")}

    curves = [
        {
            "name": name,
            "benchmark": f"benchmark {place}",
            "settings": {"learning rate": f"0.00{place}", **({"keep rate": "0.25"} if place == 2 else {})},
            "phases": {"sample": 500 * rng.random(), "train/step~1": rng.random(), **({"sync": 4.0} if place else {})},
            "runs": [run(seed, i, name == names[-1] and len(names) > 1) for i, seed in enumerate(seeds)],
        }
        for place, name in enumerate(names)
    ]
    moving = {axis: names[:-1] if axis == "gpu_seconds" and len(names) > 1 else names for axis in AXES}
    axes = [
        {
            "axis": axis,
            "budget": budget,
            "grid": np.linspace(0, budget, 41).tolist(),
            "curves": [on(axis, name) for name in moving[axis]],
            "pairs": [pair(axis, second, first) for first, second in pairwise(moving[axis])],
        }
        for axis, budget in AXES.items()
    ]
    return {
        "title": "main",
        "seeds": list(seeds),
        "target": 0.6125,
        "margin": 0.05,
        "command": "fulgurite compare --config x.yaml",
        "made_with": {"fulgurite": "0.1.0", "commit": None},
        "curves": curves,
        "axes": axes,
        "notes": ["Measured beside other programs."],
    }


def hostile(report: dict) -> dict:
    """Every text of the report, keys of settings and phases too, is hostile; names stay distinct."""
    names = {curve["name"]: f"{HOSTILE} {place}" for place, curve in enumerate(report["curves"])}
    report |= {"title": HOSTILE, "command": HOSTILE, "notes": [HOSTILE], "made_with": {HOSTILE: HOSTILE}}
    for curve in report["curves"]:
        curve |= {"name": names[curve["name"]], "benchmark": HOSTILE, "settings": {HOSTILE: HOSTILE}, "phases": {HOSTILE: 1.0}}
        for run in curve["runs"]:
            run |= {"state": HOSTILE, "note": HOSTILE}
    for axis in report["axes"]:
        for curve in axis["curves"]:
            curve["name"] = names[curve["name"]]
        for pair in axis["pairs"]:
            pair |= {"first": names[pair["first"]], "second": names[pair["second"]]}
            for part in ("end", "area"):
                pair[part]["verdict"] = HOSTILE
    return report


def without(report: dict) -> dict:
    """The same report where everything that may be null is null."""
    for axis in report["axes"]:
        for curve in axis["curves"]:
            curve["cost_to_target"] |= {"median": None, "reached": 0}
            curve["low"] = curve["high"] = [None] * 41
        for item in (*axis["curves"], *axis["pairs"]):
            for part in ("end", "area"):
                item[part] |= {"low": None, "high": None}
    return report


REPORTS = {
    "three curves": example(),
    "one curve": example(names=("only",)),
    "one seed": example(seeds=(7,)),
    "nulls": without(example()),
    "no axis": example() | {"axes": []},
}


class Page(HTMLParser):
    """What a page shows: its numbers, its tables cell by cell, its sections, its images and all its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes = Counter(), Counter()
        self.numbers: list[tuple[str, str, str]] = []
        self.tables: list[list[list[dict]]] = []
        self.images: list[dict] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.number: tuple[str, str] | None = None
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags[tag] += 1
        self.attributes.update(values.keys())
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(values)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append({"text": "", "pointers": []})
        if "data-json" in values:
            self.number = values["data-json"], values["data-unit"]
            if "td" in self.open:
                self.tables[-1][-1][-1]["pointers"].append(values["data-json"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.number:
            self.numbers.append((*self.number, data))
            self.number = None
        if "th" in self.open or "td" in self.open:
            self.tables[-1][-1][-1]["text"] += data
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def table(self, *columns: str) -> list[list[list[dict]]]:
        """The rows below the head of every table whose head begins with these columns."""
        return [rows for head, *rows in self.tables if tuple(cell["text"] for cell in head)[: len(columns)] == columns]


def resolve(report: dict, pointer: str):
    """RFC 6901."""
    assert pointer.startswith("/")
    steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
    return reduce(lambda node, step: node[int(step)] if isinstance(node, list) else node[step], steps, report)


def summary_pointers(report: dict) -> set[str]:
    """Every number that the page must show."""
    found = {"/target", "/margin"}
    for a, axis in enumerate(report["axes"]):
        found.add(f"/axes/{a}/budget")
        for c in range(len(axis["curves"])):
            found |= {f"/axes/{a}/curves/{c}/{part}/{bound}" for part in ("end", "area") for bound in INTERVAL}
            found |= {f"/axes/{a}/curves/{c}/cost_to_target/{part}" for part in ("median", "reached", "of")}
        for p in range(len(axis["pairs"])):
            found.add(f"/axes/{a}/pairs/{p}/budget")
            found |= {f"/axes/{a}/pairs/{p}/{part}/{bound}" for part in ("end", "area") for bound in INTERVAL}
    for c, curve in enumerate(report["curves"]):
        found |= {f"/curves/{c}/phases/" + phase.replace("~", "~0").replace("/", "~1") for phase in curve["phases"]}
        for r, run in enumerate(curve["runs"]):
            found.add(f"/curves/{c}/runs/{r}/seed")
            if run["points"]:
                last = f"/curves/{c}/runs/{r}/points/{len(run['points']) - 1}/"
                found |= {last + key for key in ("accuracy", *(axis["axis"] for axis in report["axes"]))}
    return found | {f"/seeds/{s}" for s in range(len(report["seeds"]))}
