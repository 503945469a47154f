"""The table of breaks still fits the sources and the tests; running it is for `python tests/mutations.py`."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from mutations import BREAKS, ROOT, occurrences


@pytest.mark.parametrize("item", BREAKS, ids=lambda item: item.name)
def test_the_line_to_break_is_there_once(item):
    assert occurrences(item) == 1 and item.old != item.new


def test_every_named_test_exists():
    tests = {b.test for b in BREAKS if find_spec("vllm") or "vllm" not in b.test}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *sorted(tests)]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert collected.returncode == 0, collected.stdout[-2000:]
    assert set(collected.stdout.splitlines()) >= tests


def test_names_are_unique():
    assert len({item.name for item in BREAKS}) == len(BREAKS)
