"""Pictures of a comparison: learning curves with their bands, and where the seconds went."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

# Distinct for the colour-blind too: Okabe and Ito, "Color Universal Design", 2008, without its black and yellow.
CURVE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
CURVE_LINES = ("-", "-.", ":")
PHASE_COLORS = ("#4e79a7", "#f28e2b", "#5aa6a0", "#e15759", "#59a14f", "#c9a227", "#b07aa1", "#8c8c8c")
GRAY = "#595959"
SHOWN_CHARACTERS = 48
DPI = 150


def human(number: float) -> str:
    """Three significant digits and k, M or B: 32000 is "32k"."""
    rounded = float(f"{number:.3g}")
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(rounded) >= size:
            return f"{rounded / size:.3g}{letter}"
    return f"{rounded:g}"


def axis_label(axis: str) -> str:
    """The words for an axis: "cpu_seconds" is "CPU seconds"."""
    return axis.replace("_", " ").replace("cpu", "CPU").replace("gpu", "GPU")


def curve_color(index: int) -> str:
    """The colour of the curve at this place in the report, the same in every picture and table."""
    return CURVE_COLORS[index % len(CURVE_COLORS)]


def phase_names(report: dict) -> list[str]:
    """Every phase that some curve has, in the order in which they first appear."""
    return list(dict.fromkeys(phase for curve in report["curves"] for phase in curve["phases"]))


def figure(report: dict) -> Figure:
    """Accuracy against each axis of the report, one panel per axis in one row, up to the axis's common budget.

    Each curve is its mean over seeds with a 95% band, each of its runs a thin line that ends in a cross where the run was
    stopped or failed. The target is a dashed line.
    """
    panels = max(1, len(report["axes"]))
    entries = len(report["curves"]) + 2
    drawn = _blank(5.6 * panels, 3.7 + 0.22 * -(-entries // panels))
    shared = None
    for place, axis in enumerate(report["axes"], start=1):
        shared = drawn.add_subplot(1, panels, place, sharey=shared)
        _panel(shared, axis, report)
    handles = [_handle(index) for index in range(len(report["curves"]))]
    labels = [_label(curve["name"]) for curve in report["curves"]]
    handles.append(Line2D([], [], color=GRAY, linestyle="--", linewidth=1.2))
    labels.append(f"target {report['target']:.1%}")
    if any(run["state"] != "finished" for curve in report["curves"] for run in curve["runs"]):
        handles.append(Line2D([], [], color=GRAY, linestyle="", marker="x"))
        labels.append("a run was stopped or failed")
    drawn.legend(handles, labels, loc="outside lower center", ncols=panels, frameon=False)
    return drawn


def png(report: dict) -> bytes:
    """`figure` as a PNG file."""
    return _png(figure(report))


def phases_png(report: dict) -> bytes:
    """A PNG file with one horizontal bar per curve: seconds by phase, means over the curve's runs."""
    curves = report["curves"]
    drawn = _blank(7, 1.5 + 0.42 * len(curves))
    axes = drawn.add_subplot()
    left = np.zeros(len(curves))
    phases, bars = phase_names(report), []
    for index, phase in enumerate(phases):
        seconds = np.array([curve["phases"].get(phase, 0.0) for curve in curves])
        color = PHASE_COLORS[index % len(PHASE_COLORS)]
        bars.append(axes.barh(range(len(curves)), seconds, left=left, height=0.62, color=color))
        left += seconds
    axes.set_yticks(range(len(curves)), [_label(curve["name"]) for curve in curves])
    axes.invert_yaxis()
    _bare(axes, grid="x")
    axes.set_xlabel("seconds, mean over runs")
    axes.xaxis.set_major_formatter(lambda x, _: human(x))
    labels = [_label(phase) for phase in phases]
    drawn.legend(bars, labels, loc="outside lower center", ncols=4, frameon=False)
    return _png(drawn)


def _panel(axes: Axes, axis: dict, report: dict) -> None:
    grid = np.array(axis["grid"])
    places = {curve["name"]: index for index, curve in enumerate(report["curves"])}
    for curve in axis["curves"]:
        index = places[curve["name"]]
        color = curve_color(index)
        # A band that is not known is null in the report, and as a number not a number: nothing is drawn.
        low, mean, high = (np.array(curve[part], dtype=float) for part in ("low", "mean", "high"))
        axes.fill_between(grid, low, high, color=color, alpha=0.16, linewidth=0)
        for run in report["curves"][index]["runs"]:
            _run(axes, axis["axis"], run, color)
        axes.plot(grid, mean, color=color, linestyle=_style(index), linewidth=2.2)
    axes.axhline(report["target"], color=GRAY, linestyle="--", linewidth=1.2)
    axes.set_xlim(0, axis["budget"])
    axes.set_xlabel(f"{axis_label(axis['axis'])}, to the common budget of {human(axis['budget'])}")
    axes.set_ylabel("accuracy")
    axes.xaxis.set_major_formatter(lambda x, _: human(x))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _bare(axes, grid="y")


def _run(axes: Axes, counter: str, run: dict, color: str) -> None:
    xs = [point[counter] for point in run["points"]]
    ys = [point["accuracy"] for point in run["points"]]
    axes.plot(xs, ys, color=color, linewidth=0.7, alpha=0.55)
    if run["state"] != "finished":
        axes.plot(xs[-1:], ys[-1:], color=color, linestyle="", marker="x", markersize=7)


def _handle(index: int) -> Line2D:
    return Line2D([], [], color=curve_color(index), linestyle=_style(index), linewidth=2.2)


def _style(index: int) -> str:
    return CURVE_LINES[index // len(CURVE_COLORS) % len(CURVE_LINES)]


def _label(text: str) -> str:
    """On one line, cut where it is long, and with no dollar sign that would start a formula."""
    line = " ".join(text.split())
    short = line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"
    return short.replace("$", r"\$")


def _blank(width: float, height: float) -> Figure:
    drawn = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn


def _bare(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)


def _png(drawn: Figure) -> bytes:
    file = BytesIO()
    drawn.savefig(file, format="png")
    return file.getvalue()
