"""fulgurite browse: a page of every round of a run, with its prompts, completions, rewards and credit."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..browse.page import write_page
from ..command_errors import short_errors


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="fulgurite browse", description=__doc__.split(": ", 1)[1])
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--out", type=Path, help="the folder of the page, RUN/browse by default; an older page is replaced")
    options = parser.parse_args(argv[1:])
    with short_errors():
        print(write_page(options.run, options.out or options.run / "browse"))
