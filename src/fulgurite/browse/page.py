"""Writes the page: `index.html` with the numbers of all rounds, and a script per round with its completions.

What a model or a data set wrote stands in these files as ASCII JSON without `<`, never as markup; the page shows it as text.
It may only run its own script, named by its hash, and what that script loads.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from string import Template

from ..callbacks.evaluation import read_rows
from ..types import ConfigError
from .rows import groups_of, round_files, summary

ASSETS = Path(__file__).with_name("assets")
OURS = re.compile(r"index\.html|round-\d{6,}\.js")


def write_page(run: Path, out: Path) -> Path:
    """Writes the rounds of a run into the folder `out`, which then holds nothing else; returns the path of `index.html`.

    Raises:
        ConfigError: `run` is not a run with completions, or `out` holds something that is no such page.
    """
    files = round_files(run)
    _clear(out)
    numbers = []
    for number, of_round in files.items():
        groups = groups_of(of_round)
        (out / f"round-{number:06d}.js").write_text(f"fulguriteRound({number}, {_json(groups)});\n", newline="\n")
        numbers.append(summary(number, groups, read_rows(run / "rounds" / f"{number:06d}.updates.jsonl")))
    page = out / "index.html"
    page.write_text(_html({"name": "/".join(run.resolve().parts[-2:]), "rounds": numbers}), encoding="utf-8", newline="\n")
    return page


def _clear(out: Path) -> None:
    """Makes the folder, or empties it of the page that is in it."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; expected a folder, give another one with --out")
    out.mkdir(parents=True, exist_ok=True)
    strange = sorted(path.name for path in out.iterdir() if not OURS.fullmatch(path.name))
    if strange:
        raise ConfigError(
            f"{out} holds {strange[0]}, which is not of such a page; expected a new folder or one with an older page, "
            "give another one with --out"
        )
    for path in out.iterdir():
        path.unlink()


def _html(data: dict) -> str:
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("browse.css", "browse.js"))
    template = Template((ASSETS / "index.html").read_text(encoding="utf-8"))
    return template.substitute(style=style, script=script, style_hash=_hash(style), script_hash=_hash(script), data=_json(data))


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _json(value: object) -> str:
    """ASCII JSON that no parser of HTML takes for a tag."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
