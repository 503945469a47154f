"""Rows of files, folders and the hub: the same rows whatever the format, and errors that say where."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fulgurite.tasks.sources import Source, fingerprint
from fulgurite.types import ConfigError

DATA = Path(__file__).parents[2] / "shared" / "data"
real_rows = pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets are not beside this checkout")
ROWS = [
    {"problem": "1+1?", "answer": 2, "level": 1, "extra": {"answers": ["2", "two"]}},
    {"problem": "Is 7 prime?", "answer": True, "level": 3, "extra": {"answers": []}},
    {"problem": "√2 ≈", "answer": 1.5, "level": 3, "extra": {"answers": ["1.4"]}},
]
QUESTION = {"question": "problem"}


def lines(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def written(folder: Path, kind: str) -> str:
    """ROWS in a file of a kind, without the answer, whose type differs from row to row."""
    rows = [{key: value for key, value in row.items() if key != "answer"} for row in ROWS]
    path = folder / f"rows{kind}"
    if kind == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == ".json":
        path.write_text(json.dumps(rows))
    elif kind == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines(rows).encode(), mtime=0))
    else:
        path.write_text(lines(rows), encoding="utf-8")
    return str(path)


KINDS = [".jsonl", ".jsonl.gz", ".json", ".parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_same_in_every_kind_of_file(kind, tmp_path):
    source = Source(
        written(tmp_path, kind), {"question": "problem", "first": "extra.answers.0", "all": "extra.answers"}, limit=1
    )
    assert source.rows(("question", "first", "all")) == [{"question": "1+1?", "first": "2", "all": '["2", "two"]'}]
    every = Source(source.path, QUESTION).rows(("question", "level"))
    assert every == [{"question": row["problem"], "level": str(row["level"])} for row in ROWS]
    hard = Source(source.path, QUESTION, filter={"level": [2, 3]}, limit=1)
    assert hard.rows(("question",)) == [{"question": "Is 7 prime?"}]
    assert Source(source.path, QUESTION, filter={"level": [9]}).rows(("question",)) == []


def test_text_stays_and_everything_else_is_json(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + lines(ROWS) + "\n")
    assert [row["answer"] for row in Source(str(path)).rows(("answer",))] == ["2", "true", "1.5"]
    path.write_text('{"a.b": "its own name", "a": {"b": "inside"}}\n')
    assert Source(str(path), {"x": "a.b"}).rows(("x",)) == [{"x": "its own name"}]


@pytest.mark.parametrize(
    ("kind", "where"), [(".jsonl", "line 2"), (".jsonl.gz", "line 2"), (".json", "row 2"), (".parquet", "row 2")]
)
def test_errors_name_the_file_the_place_and_what_is_there(kind, where, tmp_path):
    source = Source(written(tmp_path, kind), {"first": "extra.answers.0", "question": "text"})
    with pytest.raises(ConfigError, match=rf"rows{kind}, {where}: no column 'extra.answers.0'; it has extra, level, problem"):
        source.rows(("first",))
    with pytest.raises(ConfigError, match=r"1: no column 'text'; it has .*\. Map it with `columns: {question: NAME}`"):
        source.rows(("question",))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"q": "a"}\n{"q": \n', r"a.jsonl, line 2: expected a JSON object \(Expecting value"),
        ("a.jsonl", '["q"]\n', "a.jsonl, line 1: found list; expected a JSON object"),
        (
            "a.jsonl",
            '{"q": "a"}\n\n{"q": null}\n',
            "a.jsonl, line 3: q is null; expected text or a number. Correct the row, or set incomplete: drop",
        ),
        ("a.jsonl", '{"q": NaN}\n', "a.jsonl, line 1: q is null"),
        ("a.jsonl", b"\xff\xfe{", "a.jsonl cannot be read: .*; expected a whole file in UTF-8"),
        ("a.jsonl.gz", b'{"q": 1}', "a.jsonl.gz cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b'{"q": 1}\n' * 999, mtime=0)[:-9], "a.jsonl.gz cannot be read: "),
        ("a.json", '[{"q": 1},\n{"q" 2}]', "a.json, line 2: expected a list of JSON objects"),
        ("a.json", '{"q": 1}', "a.json holds dict; expected a list of JSON objects, or a .jsonl file"),
        ("a.parquet", b"PAR2", "a.parquet cannot be read: .*; expected a parquet file"),
    ],
)
def test_files_that_are_not_what_they_say_are_refused(name, text, words, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=words):
        Source(str(path)).rows(("q",))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": "none.jsonl"}, "no file at none.jsonl .seen from .*; set `path` to a file that is there"),
        ({"path": "./none"}, "no folder at ./none .seen from"),
        ({"path": "openai/gsm8k"}, "openai/gsm8k is a data set with splits, and none is chosen; set `split`"),
        ({"path": "rows.jsonl", "split": "test"}, "rows.jsonl is one file, which has no split 'test'"),
        ({"path": "rows.jsonl", "limit": 0}, "limit of rows.jsonl is 0; expected at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=words):
        Source(**settings)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> str:
    """A folder with a split of parquet and one of JSON lines."""
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    Path(written(tmp_path, ".parquet")).rename(tmp_path / "data-train.parquet")
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "data-train.parquet").rename(folder / "train-00000-of-00001.parquet")
    return str(folder)


def test_a_folder_is_loaded_by_split(folder):
    source = Source(folder, QUESTION, split="train")
    assert source.rows(("question", "level")) == [{"question": r["problem"], "level": str(r["level"])} for r in ROWS]
    with pytest.raises(ConfigError, match=r"set, split train, row 2: no column 'extra.answers.0'"):
        Source(folder, {"first": "extra.answers.0"}, split="train").rows(("first",))
    with pytest.raises(
        ConfigError, match=r"split 'tset' of .*set' cannot be loaded: Unknown split \"tset\".*; expected a folder"
    ):
        Source(folder, split="tset").rows(("question",))


def test_nothing_is_downloaded_offline():
    code = (
        "from fulgurite.tasks.sources import Source\n"
        "from fulgurite.types import ConfigError\n"
        "try: Source('nobody/nothing', name='main', split='test').rows(('question',))\n"
        "except ConfigError as error: print(error)"
    )
    pytest.importorskip("datasets")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout.startswith(
        "split 'test' of 'nobody/nothing' cannot be loaded: Couldn't reach 'nobody/nothing' on the Hub"
    )
    assert ran.stdout.endswith("HF_HUB_OFFLINE is set, so nothing is downloaded: unset it, or set `path` to a file\n")


@pytest.mark.parametrize(("path", "package"), [("openai/gsm8k", "datasets"), ("rows.parquet", "pyarrow")])
def test_a_missing_library_is_named_with_the_command_that_installs_it(path, package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.parquet").touch()
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.parquet", None)
    source = Source(path, split=None if path.endswith(".parquet") else "train")
    with pytest.raises(
        ConfigError, match=rf"{path} needs the package {package}; install it with: pip install 'fulgurite\[data\]'"
    ):
        source.rows(("question",))


def test_a_source_needs_no_library_of_data_sets_for_json(tmp_path):
    code = (
        "import sys\nfrom fulgurite.tasks.sources import Source\n"
        "print(len(Source(sys.argv[1]).rows(('level',))), 'datasets' in sys.modules, 'pyarrow' in sys.modules)"
    )
    command = [sys.executable, "-c", code, written(tmp_path, ".jsonl")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "3 False False\n"


def test_the_fingerprint_is_that_of_the_rows_used_in_their_order(tmp_path):
    # sha256 of the two lines {"answer":"2","question":"1+1?"} and {"answer":"4","question":"2+2?"}, each with a line feed
    known = "8286c64dca2054e2e22bd8cca9f79e232227eda191c8fdabf3ffdb4e7537b035"
    rows = [{"problem": "1+1?", "answer": 2}, {"problem": "2+2?", "answer": 4, "unused": 1}]
    path, again = tmp_path / "rows.jsonl", tmp_path / "again.json"
    path.write_text(lines(rows))
    again.write_text(json.dumps([*rows, {"problem": "3+3?", "answer": 6}]))
    wanted = ("question", "answer")
    assert Source(str(path), QUESTION).fingerprint(wanted) == known
    assert Source(str(again), QUESTION, limit=2).fingerprint(wanted[::-1]) == known
    assert Source(str(again), QUESTION).fingerprint(wanted) != known
    assert fingerprint(reversed(Source(str(path), QUESTION).rows(wanted))) != known


@real_rows
@pytest.mark.parametrize(
    ("file", "columns", "count", "last"),
    [
        ("gsm8k/test.jsonl.gz", {}, 1319, "14"),
        ("math500/test.jsonl", QUESTION, 500, "106^\\circ"),
        ("aime24/test.jsonl", QUESTION, 30, "902"),
        ("minerva/test.jsonl", {"question": "problem", "answer": "answers.0"}, 272, "1.07 \\times 10^{16}"),
        ("knights_knaves/3ppl_test.jsonl", {"question": "quiz", "answer": "solution.0"}, 100, "false"),
    ],
)
def test_real_rows_are_read(file, columns, count, last):
    rows = Source(str(DATA / file), columns).rows(("question", "answer"))
    assert len(rows) == count and all(row["question"].strip() and row["answer"].strip() for row in rows)
    assert rows[-1]["answer"] == last


def test_incomplete_rows_are_left_out_where_asked_and_only_for_columns_that_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "a", "x": null}\n{"q": null, "x": 1}\n{"q": "", "x": 2}\n{"q": "b", "x": NaN}\n{"q": 0, "x": 0}\n')
    dropped = Source(str(path), columns={"question": "q"}, incomplete="drop")
    assert dropped.rows(("question",)) == [{"question": text} for text in ("a", "b", "0")]
    assert dropped.rows(("question", "x")) == [{"question": "0", "x": "0"}]
    with pytest.raises(ConfigError, match="line 2: q is null"):
        Source(str(path), columns={"question": "q"}).rows(("question",))
    with pytest.raises(ConfigError, match="line 1: no column 'y'"):
        Source(str(path), columns={"question": "y"}, incomplete="drop").rows(("question",))
