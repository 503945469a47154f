"""A comparison as one page that opens without network: pictures, tables, every run, and how to read them.

Every number of a table stands in a `span` with `data-json`, where it is in the report (a JSON pointer, RFC 6901), and
`data-unit`, how it is shown.
"""

from __future__ import annotations

from base64 import b64encode
from functools import reduce
from html import escape

from .page import HOW_TO_READ, STYLE
from .plots import axis_label, curve_color, human, phase_names, phases_png, png

NOTHING = "–"
LOOKS = {"better": "good", "worse": "bad", "on par": "same", "stopped by a guard": "bad", "failed": "bad"}
FORMATS = {
    "%": lambda share: f"{100 * share:.1f}%",
    "pp": lambda share: f"{100 * share:+z.1f}".replace("-", "−"),
    "±pp": lambda share: f"± {100 * share:.1f}",
    "s": lambda seconds: f"{seconds:.1f}",
    "count": str,
    "seed": str,
}


def html(report: dict) -> str:
    """The page of a report."""
    title = escape(report["title"])
    sections = [
        _compared(report),
        *(_axis(report, index) for index in range(len(report["axes"]))),
        _phases(report),
        _runs(report),
        f'<section class="guide"><h2>How to read it</h2>{HOW_TO_READ}</section>',
        _notes(report),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}: methods at the same budget</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header><p>Methods side by side at the same budget</p><h1>{title}</h1></header>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def shown(value: float | None, unit: str) -> str:
    """A number of the report as the page shows it.

    Args:
        value: None where the report has no number.
        unit: "%" of a share, "pp" of a difference of shares in percentage points, "±pp" of a margin, "s" of seconds,
            "count", "seed", or the name of an axis.
    """
    if value is None:
        return "not known" if unit in FORMATS else "not reached"
    return FORMATS.get(unit, human)(value)


def _compared(report: dict) -> str:
    facts = {
        "Seeds": ", ".join(_number(report, "seed", "seeds", index) for index in range(len(report["seeds"]))),
        "Target accuracy": _number(report, "%", "target"),
        "On par within": f"{_number(report, '±pp', 'margin')} percentage points",
        "Command": f"<code>{escape(report['command'])}</code>",
        "Made with": ", ".join(f"{escape(key)} {escape(value or 'not known')}" for key, value in report["made_with"].items()),
    }
    listed = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in facts.items())
    curves = report["curves"]
    keys = dict.fromkeys(key for curve in curves for key in curve["settings"])
    rows = [["benchmark", *(escape(curve["benchmark"]) for curve in curves)]]
    rows += [[escape(key), *(escape(curve["settings"].get(key, NOTHING)) for curve in curves)] for key in keys]
    names = [_name(report, curve["name"]) for curve in curves]
    return f"<section><h2>What was compared</h2><dl>{listed}</dl>{_table('Settings', ['Setting', *names], rows)}</section>"


def _axis(report: dict, index: int) -> str:
    axis, label = report["axes"][index], escape(axis_label(report["axes"][index]["axis"]))
    names = [curve["name"] for curve in axis["curves"]]
    still = [curve["name"] for curve in report["curves"] if curve["name"] not in names]
    absent = f"<p>Not here, because it spends no {label}: {escape(', '.join(still))}.</p>" if still else ""
    alt = (
        f"Accuracy against {axis_label(axis['axis'])} up to {human(axis['budget'])} for {', '.join(names)}: "
        "means over seeds with 95% bands, single runs, and the target. The tables have the numbers."
    )
    budget = _number(report, axis["axis"], "axes", index, "budget")
    return (
        f"<section><h2>By {label}</h2><p>Common budget: {budget} {label}.</p>{absent}"
        f'<div class="beside">{_picture(png({**report, "axes": [axis]}), alt)}'
        f"<div>{_summary(report, index)}{_pairs(report, index)}</div></div></section>"
    )


def _summary(report: dict, index: int) -> str:
    axis = report["axes"][index]
    rows = []
    for place, curve in enumerate(axis["curves"]):
        at = ("axes", index, "curves", place)
        cost = (*at, "cost_to_target")
        reached, runs = (_number(report, "count", *cost, part) for part in ("reached", "of"))
        rows.append(
            [
                _name(report, curve["name"]),
                _interval(report, "%", *at, "end"),
                _interval(report, "%", *at, "area"),
                f"<b>{_number(report, axis['axis'], *cost, 'median')}</b><small>reached by {reached} of {runs}</small>",
            ]
        )
    head = ["Curve", "At the budget", "Area under the curve", f"Median {escape(axis_label(axis['axis']))} to the target"]
    return _table("Accuracy, with 95% intervals", head, rows)


def _pairs(report: dict, index: int) -> str:
    rows = []
    for place, pair in enumerate(report["axes"][index]["pairs"]):
        cells = []
        for part in ("end", "area"):
            difference = _interval(report, "pp", "axes", index, "pairs", place, part)
            cells.append(f"{difference}{_badge(pair[part]['verdict'])}")
        budget = _number(report, report["axes"][index]["axis"], "axes", index, "pairs", place, "budget")
        rows.append([f"{_name(report, pair['first'])}<small>against</small>{_name(report, pair['second'])}", budget, *cells])
    head = ["Pair", "Budget of the two", "At this budget", "Area under the curve"]
    return _table("Paired differences in percentage points, first minus second", head, rows) if rows else ""


def _phases(report: dict) -> str:
    phases = phase_names(report)
    if not phases:
        return ""
    rows = [
        [
            _name(report, curve["name"]),
            *(_number(report, "s", "curves", i, "phases", p) if p in curve["phases"] else NOTHING for p in phases),
        ]
        for i, curve in enumerate(report["curves"])
    ]
    alt = f"Seconds by phase for {', '.join(curve['name'] for curve in report['curves'])}. The table has the numbers."
    table = _table("Seconds, mean over the runs of a curve", ["Curve", *map(escape, phases)], rows)
    picture = f'<div class="bars">{_picture(phases_png(report), alt)}</div>'
    return f"<section><h2>Where the seconds went</h2>{picture}{table}</section>"


def _runs(report: dict) -> str:
    axes = [axis["axis"] for axis in report["axes"]]
    rows = []
    for i, curve in enumerate(report["curves"]):
        for j, run in enumerate(curve["runs"]):
            accuracy = _last(report, i, j, "accuracy", "%")
            spent = [_last(report, i, j, axis, axis) for axis in axes]
            seed = _number(report, "seed", "curves", i, "runs", j, "seed")
            state = f"{_badge(run['state'])}<small>{escape(run['note'])}</small>"
            rows.append([_name(report, curve["name"]), seed, accuracy, state, *spent])
    head = ["Curve", "Seed", "Final accuracy", "State", *(escape(axis_label(axis)) for axis in axes)]
    return f'<section class="runs"><h2>Every run</h2>{_table("Each run at its own last evaluation", head, rows)}</section>'


def _last(report: dict, curve: int, run: int, key: str, unit: str) -> str:
    count = len(report["curves"][curve]["runs"][run]["points"])
    return _number(report, unit, "curves", curve, "runs", run, "points", count - 1, key) if count else NOTHING


def _notes(report: dict) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in report["notes"])
    return f"<section><h2>Notes</h2><ul>{notes}</ul></section>" if notes else ""


def _number(report: dict, unit: str, *path: str | int) -> str:
    value = reduce(lambda node, step: node[step], path, report)
    pointer = "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)
    return f'<span data-json="{escape(pointer)}" data-unit="{escape(unit)}">{escape(shown(value, unit))}</span>'


def _interval(report: dict, unit: str, *path: str | int) -> str:
    value, low, high = (_number(report, unit, *path, part) for part in ("value", "low", "high"))
    return f"<b>{value}</b><small>{low} to {high}</small>"


def _name(report: dict, name: str) -> str:
    color = curve_color([curve["name"] for curve in report["curves"]].index(name))
    return f'<span class="name"><i style="background:{color}"></i>{escape(name)}</span>'


def _badge(text: str) -> str:
    return f'<em class="{LOOKS.get(text, "plain")}">{escape(text)}</em>'


def _picture(file: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{b64encode(file).decode()}">'


def _table(caption: str, head: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are HTML already; the first of a row is its heading."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
