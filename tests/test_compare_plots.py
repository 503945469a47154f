"""The pictures of a comparison draw the numbers of the report, and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from comparisons import REPORTS, example
from fulgurite.compare import plots
from fulgurite.compare.plots import axis_label, curve_color, figure, human, phases_png, png

SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.125, "0.125"),
        (7.0, "7"),
        (999.4, "999"),
        (999.6, "1k"),
        (32000, "32k"),
        (999_600, "1M"),
        (4_123_456, "4.12M"),
        (2.5e9, "2.5B"),
    ],
)
def test_human_numbers(number, text):
    assert human(number) == text


def test_axes_in_words():
    assert [axis_label(axis) for axis in ("trained_tokens", "cpu_seconds")] == ["trained tokens", "CPU seconds"]


@pytest.mark.parametrize("name", REPORTS)
def test_a_png_is_one_row_of_panels(name):
    report = REPORTS[name]
    file = png(report)
    width, height = (int.from_bytes(file[at : at + 4]) for at in (16, 20))
    assert file.startswith(SIGNATURE) and len(file) > 10_000
    assert width == 840 * max(1, len(report["axes"])) and 500 < height < 900
    axes = figure(report).axes
    assert [panel.get_xlabel() for panel in axes] == [
        f"{axis_label(axis['axis'])}, to the common budget of {human(axis['budget'])}" for axis in report["axes"]
    ]


def test_a_panel_draws_the_mean_the_band_the_runs_and_the_target():
    report = REPORTS["three curves"]
    drawn = figure(report)
    drawn.canvas.draw()
    assert isinstance(drawn.canvas, FigureCanvasAgg)
    for panel, axis in zip(drawn.axes, report["axes"], strict=True):
        counter, lines = axis["axis"], panel.get_lines()
        assert panel.get_xlim() == (0, axis["budget"]) and panel.get_ylim() == drawn.axes[0].get_ylim()
        (target,) = [line for line in lines if line.get_linestyle() == "--"]
        assert list(target.get_ydata()) == [report["target"]] * 2
        assert len(panel.collections) == len(axis["curves"])
        for band, curve in zip(panel.collections, axis["curves"], strict=True):
            index = [c["name"] for c in report["curves"]].index(curve["name"])
            color = curve_color(index)
            own = [line for line in lines if to_hex(line.get_color()) == color]
            (mean,) = [line for line in own if line.get_linewidth() > 2]
            assert list(mean.get_xdata()) == axis["grid"] and list(mean.get_ydata()) == curve["mean"]
            thin = [line for line in own if line.get_linewidth() < 1]
            runs = report["curves"][index]["runs"]
            assert [list(line.get_ydata()) for line in thin] == [[p["accuracy"] for p in run["points"]] for run in runs]
            assert [list(line.get_xdata()) for line in thin] == [[p[counter] for p in run["points"]] for run in runs]
            crosses = [line for line in own if line.get_marker() == "x"]
            stopped = [run["points"][-1:] for run in runs if run["state"] != "finished"]
            assert [list(line.get_xdata()) for line in crosses] == [[p[counter] for p in points] for points in stopped]
            assert [list(line.get_ydata()) for line in crosses] == [[p["accuracy"] for p in points] for points in stopped]
            corners = {(x, y) for x, y in band.get_paths()[0].vertices.tolist()}
            assert corners == {*zip(axis["grid"], curve["low"], strict=True), *zip(axis["grid"], curve["high"], strict=True)}
            assert to_hex(band.get_facecolor()[0]) == color and band.get_facecolor()[0][3] < 0.3
        assert panel.get_ylabel() == "accuracy" and all(label.get_text().endswith("%") for label in panel.get_yticklabels())
    assert "5k" in [label.get_text() for label in drawn.axes[0].get_xticklabels()]
    assert "1M" in [label.get_text() for label in drawn.axes[1].get_xticklabels()]


def test_the_legend_names_every_line_in_its_colour_and_style():
    report = example(names=tuple(f"curve {i}" for i in range(8)))
    (legend,) = figure(report).legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [*(f"curve {i}" for i in range(8)), "target 61.3%", "a run was stopped or failed"]
    looks = [(line.get_color(), line.get_linestyle()) for line in legend.get_lines()]
    assert len(set(looks)) == 10
    for panel in figure(report).axes:
        means = [line for line in panel.get_lines() if line.get_linewidth() > 2]
        assert [(line.get_color(), line.get_linestyle()) for line in means] == looks[: len(means)]
    (legend,) = figure(REPORTS["one curve"]).legends
    assert [text.get_text() for text in legend.get_texts()] == ["only", "target 61.3%"]


def test_a_long_legend_stands_below_the_panels_and_takes_nothing_from_them():
    heights = []
    for count in (3, 12):
        drawn = figure(example(names=tuple(f"curve {i}" for i in range(count))))
        drawn.canvas.draw()
        (legend,) = drawn.legends
        assert all(legend.get_window_extent().y1 < panel.get_tightbbox().y0 for panel in drawn.axes)
        heights.append(drawn.axes[0].get_window_extent().height)
    assert heights[1] == pytest.approx(heights[0], rel=0.05)


def test_bars_are_the_seconds_of_a_curve_one_after_another(monkeypatch):
    assert phases_png(REPORTS["three curves"]).startswith(SIGNATURE)
    monkeypatch.setattr(plots, "_png", lambda drawn: drawn)
    drawn = phases_png(REPORTS["three curves"])
    (axes,) = drawn.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["GRPO 32 x 16", "2-GRPO", "CPPO"]
    assert axes.yaxis_inverted() and axes.get_xlabel() == "seconds, mean over runs"
    assert axes.xaxis.get_major_formatter()(12500) == "12.5k" and axes.get_axisbelow() is True
    drawn.canvas.draw()
    (legend,) = drawn.legends
    assert legend.get_window_extent().y1 < axes.get_tightbbox().y0
    phases = [text.get_text() for text in legend.get_texts()]
    assert phases == ["sample", "train/step~1", "sync"]
    for place, curve in enumerate(REPORTS["three curves"]["curves"]):
        bars, left = [container[place] for container in axes.containers], 0.0
        for phase, bar in zip(phases, bars, strict=True):
            seconds = curve["phases"].get(phase, 0.0)
            assert (bar.get_x(), bar.get_width()) == pytest.approx((left, seconds))
            assert bar.get_y() < place < bar.get_y() + bar.get_height()
            left += seconds


def test_labels_are_one_short_line_and_no_formula(monkeypatch):
    monkeypatch.setattr(plots, "_png", lambda drawn: drawn)
    report = example(names=("$x^$ a\nb", "n" * 80))
    for drawn in (figure(report), phases_png(report)):
        drawn.canvas.draw()
    first, second = (label.get_text() for label in drawn.axes[0].get_yticklabels())
    assert first == r"\$x^\$ a b" and second == "n" * 47 + "…"
    (legend,) = figure(report).legends
    assert [text.get_text() for text in legend.get_texts()][:2] == [first, second]


def test_pyplot_is_not_used():
    code = "import sys, fulgurite.compare.html; print('matplotlib.pyplot' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
