"""tools/soak.py: it sees what leaks, and a short run of it has none."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from soak import leaks  # noqa: E402


def rows(**growing) -> list[dict]:
    """25 rounds; of each name what is added in every round."""
    flat = {"memory_mib": 500.0, "threads": 9, "files": 30, "children": 2}
    return [{name: value + i * growing.get(name, 0) for name, value in flat.items()} for i in range(25)]


def test_what_grows_is_named():
    assert leaks(rows()) == []
    assert leaks(rows(memory_mib=1.0)) == [], "within what an allocator does"
    assert leaks(rows(memory_mib=3.0)) == ["memory grew from 521.0 to 566.0 MiB"]
    assert leaks(rows(files=1)) == ["files grew from 39 to 50"]
    assert leaks(rows(threads=1, children=1)) == ["threads grew from 18 to 29", "children grew from 11 to 22"]
    for_a_moment = rows()
    for_a_moment[-2]["files"] += 1
    assert leaks(for_a_moment) == []
    assert leaks(rows()[:4]) == ["there were 4 rounds; expected at least 5: more minutes"]


@pytest.mark.timeout(120)
def test_a_short_run_leaks_nothing(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "soak.py"), "--minutes", "0.15", "--out", str(tmp_path / "soak")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-1000:]
    assert "nothing grew" in ran.stdout and " 2 children" in ran.stdout
