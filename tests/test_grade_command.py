"""`fulgurite grade pairs`: its figures, the verdicts it writes, its errors."""

import json
import subprocess
import sys

import pytest

from fulgurite.commands.grade import run, summary

ROWS = [
    {"gold": r"\frac{1}{2}", "answer": r"\boxed{0.5}", "expected": True, "id": 7},
    {"gold": "72", "answer": "A: 73", "expected": False},
    {"gold": "x", "answer": "y", "expected": True},
    {"gold": ["1", "2"], "answer": "2", "expected": False},
    {"gold": "5", "answer": "", "expected": False},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    return path


def test_figures_and_verdicts(file, capsys):
    run(["grade", "pairs", str(file), "--workers", "1"])
    lines = dict(
        line.rsplit(maxsplit=1) if "%" not in line else ("agreement", line.split()[1])
        for line in capsys.readouterr().out.splitlines()
    )
    seconds = float(lines.pop("seconds"))
    out = file.with_name("pairs.verdicts.jsonl")
    assert lines == {
        "pairs": "5",
        "agreement": "60.00",
        "false positives": "1",
        "false negatives": "1",
        "ungradable": "1",
        "verdicts:": str(out),
    }
    assert 0 < seconds < 60
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["verdict"], row["extracted"], row["reason"]) for row in written] == [
        ("correct", "0.5", ""),
        ("wrong", "73", "not equal to 72"),
        ("wrong", "y", "not equal to x"),
        ("correct", "2", ""),
        ("ungradable", "", "the text gives no answer"),
    ]
    assert [row["gold"] for row in written] == [row["gold"] for row in ROWS]


def test_out_names_another_file(file, tmp_path):
    run(
        [
            "grade",
            "pairs",
            str(file),
            "--out",
            str(tmp_path / "elsewhere.jsonl"),
            "--time-limit-s",
            "2",
            "--memory-limit-mib",
            "600",
        ]
    )
    assert len((tmp_path / "elsewhere.jsonl").read_text().splitlines()) == 5
    assert not file.with_name("pairs.verdicts.jsonl").exists()


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 3: expected a JSON object (Expecting property name"),
        ("[1]", "line 3: expected a JSON object, saw [1]; correct or drop the line"),
        ('{"gold": "1", "answer": "1"}', "line 3: no column 'expected'; it has 'answer', 'gold'. Add it"),
        ('{"gold": 1, "answer": "1", "expected": true}', "line 3: gold is 1; expected a text or a list of texts."),
        ('{"gold": [], "answer": "1", "expected": true}', "line 3: gold is []; expected a text or a list of texts."),
        ('{"gold": "1", "answer": null, "expected": true}', "line 3: answer is null; expected a text."),
        ('{"gold": "1", "answer": "1", "expected": "true"}', 'line 3: expected is "true"; expected true or false.'),
    ],
)
def test_errors_name_file_and_line(tmp_path, capsys, line, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n" + line + "\n")
    with pytest.raises(SystemExit) as stopped:
        run(["grade", "pairs", str(path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {path}, {message}")
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_or_empty_file_and_settings_out_of_range(tmp_path, capsys, file):
    (tmp_path / "empty.jsonl").touch()
    for arguments, message in (
        ([str(tmp_path / "none.jsonl")], "No such file"),
        ([str(tmp_path / "empty.jsonl")], "has no rows"),
        ([str(file), "--workers", "0"], "workers is 0; expected more than 0"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(["grade", "pairs", *arguments])
        assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_agreement_counts_ungradable_as_refused():
    grades = [{"verdict": verdict} for verdict in ("ungradable", "ungradable", "correct", "wrong")]
    text = summary([True, False, False, True], grades, 1.0)
    assert [line.split()[-1] for line in text.splitlines()] == ["4", "%", "1", "2", "2", "1.00"] and "25.00 %" in text


def test_the_command_imports_no_torch(file):
    code = "import sys, fulgurite.commands.grade as g; g.run(['grade', 'pairs', sys.argv[1]]); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-P", "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "False"
