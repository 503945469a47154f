"""A run killed at any point and resumed is the uninterrupted run: same rounds, losses, rates, weights, validations and files,
and the hooks after the resume are the exact rest of the uninterrupted run's after the same save."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
SCRIPT = Path(__file__).with_name("killable.py")
CASES = [
    "1x1 save every update",
    "4x1 save every update",
    "2x2 save every third update",
    "4x1 save at round ends only",
    "1x1 save after sampling",
    "1x1 PAFT",
    "1x1 adapters",
    "1x2 CoDistill",
    "two ranks, CoDistill",
    "4x1 save after sampling",
    "2x1 three empty rounds",
    "4x1 estimate",
    "2x1 best",
    "SIGTERM",
    "two ranks, SIGTERM to one",
    "Ctrl-C",
    "Ctrl-C twice while sampling",
    "two ranks, one file",
    "two ranks, shards",
]


@pytest.fixture(scope="module")
def verdicts_of(tmp_path_factory):
    """(case, folder) -> verdicts, of one process for all cases: it imports once and has no threads when it forks."""
    errors = tmp_path_factory.mktemp("killable") / "errors"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        )

    def ask(case: str, folder: Path) -> list[dict]:
        print(json.dumps([case, str(folder)]), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        assert answer, errors.read_text()[-2000:]
        return json.loads(answer)

    yield ask
    process.kill()
    process.communicate()


def test_a_run_killed_at_twenty_moments_drawn_at_random_resumes_to_the_same_bytes(verdicts_of, tmp_path):
    verdicts = verdicts_of("random moments", tmp_path)
    assert len(verdicts) == 21
    assert [v for v in verdicts if v["wrong"]] == []
    assert len({v["place"].split(": ")[1] for v in verdicts[1:]}) > 8, "the moments are spread over what happens in a run"


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_resumes_to_the_same_bytes(case, verdicts_of, tmp_path):
    verdicts = verdicts_of(case, tmp_path)
    assert len(verdicts) > 1
    assert [v for v in verdicts if v["wrong"]] == []
    ledger = (tmp_path / "reference" / "ledger.0").read_text().splitlines()
    rows = [json.loads(line) for line in ledger]
    steps = [row[1] for row in rows]  # optimizer steps taken; the last column is a hash of the weights
    assert len({row[-1] for row in rows}) == len(set(steps)) and steps[-1] > 2 - ("1x1" in case)
    if "empty" in case:
        assert len(rows) == 10 and steps[:6] == [0] * 6
    if case == "4x1 estimate":
        assert (tmp_path / "reference" / "estimate.0").read_text().split() == ["12"]
        events = (tmp_path / "reference" / "events.0").read_text().split()
        assert events.index("train_dataloader") < events.index("on_train_start") < events.index("sampling:0")
        assert events.count("sampling:0") == 1
