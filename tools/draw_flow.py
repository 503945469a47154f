"""Draws which package of `src/fulgurite` may import which, from the table that the import test holds the code to.

    python tools/draw_flow.py        writes docs/images/flow.svg

A line says that the upper package imports the lower one; a line that follows from others is left out. What imports nothing and
has no part in the flow stands in one bar at the bottom, without lines.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "flow.svg"
WIDTH, ROW, BOX, HIGH = 980, 84, 128, 34
BAR = ("types", "seeding", "timing", "parallel", "schedules", "run_record")
STYLE = """
  .box { fill: #eef2fb; stroke: #5b6cb8; } text { font: 14px sans-serif; fill: #1c2340; text-anchor: middle; }
  path { fill: none; stroke: #8a93b8; stroke-width: 1.2; }
  @media (prefers-color-scheme: dark) { .box { fill: #232a45; } text { fill: #e6e9f5; } }
"""


def reduced(table: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports that do not follow from others."""

    def below(room: str) -> set[str]:
        return {deeper for needed in table[room] for deeper in {needed} | below(needed)}

    return {room: {n for n in needs if not any(n in below(other) for other in needs)} for room, needs in table.items()}


def layers(table: dict[str, set[str]]) -> list[list[str]]:
    """Rooms from the lowest layer up, each above all that it imports, each layer ordered by where its imports stand."""
    depth: dict[str, int] = {}
    while len(depth) < len(table):
        for room, needs in table.items():
            if needs <= depth.keys():
                depth.setdefault(room, 1 + max((depth[n] for n in needs), default=-1))
    found = [sorted(room for room in table if depth[room] == level) for level in range(1 + max(depth.values()))]
    needed = {need for needs in table.values() for need in needs}
    middle: dict[str, float] = {}
    for layer in found:
        layer.sort(key=lambda room: (room in needed, sum(middle[n] for n in table[room]) / max(1, len(table[room])), room))
        middle |= {room: (i + 0.5) / len(layer) for i, room in enumerate(layer)}
    return found


def draw(table: dict[str, set[str]]) -> str:
    lines = reduced({room: needs - {*BAR} for room, needs in table.items() if room not in BAR})
    levels = layers(lines)
    height = ROW * len(levels)
    place = {
        room: (WIDTH * (i + 0.5) / len(layer), height - ROW * (level + 0.5))
        for level, layer in enumerate(levels)
        for i, room in enumerate(layer)
    }
    view = f"0 0 {WIDTH} {height + ROW // 2}"
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" role="img">', f"<style>{STYLE}</style>"]
    for room, needs in lines.items():
        for need in sorted(needs):
            (x, y), (u, v) = place[room], place[need]
            y, v = y + HIGH / 2, v - HIGH / 2
            bend = (v - y) / 2
            aside = BOX if x == u and v - y > ROW else 0  # around the boxes between
            parts.append(
                f'<path d="M{x:.0f} {y:.0f} C{x + aside:.0f} {y + bend:.0f} {u + aside:.0f} {v - bend:.0f} {u:.0f} {v:.0f}"/>'
            )
    for room, (x, y) in place.items():
        box = f'x="{x - BOX / 2:.0f}" y="{y - HIGH / 2:.0f}" width="{BOX}" height="{HIGH}" rx="6"'
        parts.append(f'<rect class="box" {box}/><text x="{x:.0f}" y="{y + 5:.0f}">{room}</text>')
    bar = f'x="8" y="{height}" width="{WIDTH - 16}" height="{HIGH}" rx="6"'
    parts.append(f'<rect class="box" {bar}/><text x="{WIDTH / 2:.0f}" y="{height + 22}">{"  ·  ".join(BAR)}</text>')
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    from test_imports import MAY_IMPORT

    PICTURE.write_text(draw(MAY_IMPORT))
