"""The pool of killable workers: order, limits, replacement, protocol, ends. And what no answer may do to it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hostile
from fulgurite.rewards.pool import GraderPool

HERE = str(Path(__file__).parent)
GRADE = "fulgurite.rewards.math_answer:grade"


@pytest.fixture(autouse=True)
def workers_find_the_functions(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", HERE, prepend=os.pathsep)


@pytest.fixture
def pool():
    with GraderPool(workers=2, time_limit_s=1.0, memory_limit_mib=512) as made:
        yield made


def values(results):
    assert not [one for one in results if one.failure]
    return [one.value for one in results]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def soon(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.05)
    return condition()


def test_results_stand_in_the_order_of_the_calls_though_later_ones_end_first(pool):
    calls = [(0.3,)] + [(0.0,)] * 40 + [(0.2,)] + [(0.01 * i,) for i in range(5)]
    assert values(pool.map("hostile:sleep", calls)) == [seconds for (seconds,) in calls]


def test_both_workers_work_and_no_calls_need_none(pool):
    pids = set(values(pool.map("hostile:process_id", [(0.02,)] * 40)))
    assert len(pids) == 2 and os.getpid() not in pids
    assert pool.map("hostile:process_id", []) == []


def test_workers_import_no_torch(pool):
    pool.map(GRADE, [("1", "1")])
    assert values(pool.map("hostile:imported", [()] * 8)) == [[]] * 8


def test_a_hang_that_ignores_signals_is_killed_and_the_rest_is_answered(pool):
    started = time.monotonic()
    calls = [(i,) for i in range(30)]
    first = set(values(pool.map("hostile:process_id", [()] * 100)))
    hung = pool.map("hostile:spin", [(), ()])
    assert [(one.value, one.failure, one.killed) for one in hung] == [(None, "no answer within 1 s", True)] * 2
    assert pool.kills == 2
    assert values(pool.map("hostile:square", calls)) == [i * i for i in range(30)]
    assert not first & set(values(pool.map("hostile:process_id", [()] * 100)))
    assert soon(lambda: not any(alive(pid) for pid in first))
    assert time.monotonic() - started < 30


def test_only_the_hanging_call_among_many_fails(pool):
    calls = [(0.0,)] * 20
    calls[7] = (60,)
    results = pool.map("hostile:sleep", calls)
    assert [i for i, one in enumerate(results) if one.failure] == [7]
    assert [one.value for i, one in enumerate(results) if i != 7] == [0.0] * 19


def test_time_is_counted_for_each_answer_alone(pool):
    assert values(pool.map("hostile:sleep", [(0.4,)] * 8)) == [0.4] * 8


def test_too_much_memory_is_stopped_with_its_reason():
    with GraderPool(workers=1, time_limit_s=60, memory_limit_mib=512) as pool:
        eaten, fine = pool.map("hostile:swallow", [(800,)])[0], pool.map("hostile:echo", [(1,)])[0]
    assert (eaten.failure, eaten.killed, fine.value) == ("more than 512 MiB of memory", True, 1)


def test_a_crash_costs_one_answer(pool):
    results = pool.map("hostile:crash", [(3,)])
    assert (results[0].failure, results[0].killed) == ("the worker ended with exit code 3", True)
    assert values(pool.map("hostile:echo", [("still here",)])) == ["still here"]


def test_an_exception_is_a_reason_and_keeps_the_worker(pool):
    (result,) = pool.map("hostile:fail", [()])
    assert (result.failure, result.killed, pool.kills) == ("KeyError: 'a reason'", False, 0)


def test_prints_do_not_reach_the_protocol(pool, capfd):
    assert values(pool.map("hostile:chatter", [(i,) for i in range(6)])) == list(range(6))
    assert capfd.readouterr() == ("", "")


def test_a_forged_reply_costs_the_forger_its_answer_and_nothing_else(pool):
    (result,) = pool.map("hostile:forge", [()])
    assert result.killed and result.value is None and "it answers call 12345" in result.failure
    assert values(pool.map("hostile:echo", [(5,)])) == [5]


@pytest.mark.parametrize(
    "text",
    ["\x00", "\ud800 lone", "a\nb\r\n", "\u2028", "é𝟙", "x" * 3_000_000],
    ids=["nul", "surrogate", "lines", "separator", "wide", "megabytes"],
)
def test_every_text_passes_unchanged(pool, text):
    assert values(pool.map("hostile:echo", [(text,), (1,), (text,)])) == [text, 1, text]


@pytest.mark.parametrize("how", ["file", "system", "process", "fork", "network"])
def test_a_worker_can_write_no_file_and_start_nothing(pool, how, tmp_path):
    (result,) = pool.map("hostile:escape", [(how, str(tmp_path / "canary"))])
    assert result.failure.startswith("PermissionError: a grader may not do this")
    assert not list(tmp_path.iterdir())


def test_close_ends_the_workers(pool):
    pids = set(values(pool.map("hostile:process_id", [()] * 50)))
    pool.close()
    pool.close()
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        pool.map("hostile:echo", [(1,)])


PARENT = """
import sys, time
from fulgurite.rewards.pool import GraderPool
pool = GraderPool(workers=2, time_limit_s=2.0)
pool.map("hostile:sleep", [(0.1,)] * 4)
print(*[worker.process.pid for worker in pool._workers], flush=True)
"""


@pytest.mark.parametrize("busy", ["idle", "sleep"])
def test_workers_end_when_the_parent_is_killed(busy):
    code = PARENT + ("time.sleep(99)" if busy == "idle" else 'pool.map("hostile:sleep", [(99,), (99,)])')
    parent = subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    time.sleep(1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert len(pids) == 2 and soon(lambda: not any(alive(pid) for pid in pids))


def test_workers_end_when_the_parent_ends_without_closing():
    ran = subprocess.run([sys.executable, "-P", "-c", PARENT], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert soon(lambda: not any(alive(int(pid)) for pid in ran.stdout.split()))


def test_a_fork_of_the_owner_leaves_its_workers_alone(pool):
    code = (
        PARENT
        + "import os\nif os.fork() == 0: sys.exit()\nos.wait()\nprint(pool.map('hostile:echo', [(8,)])[0].value, pool.kills)"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout.splitlines()[-1] == "8 0"


def test_no_fork_of_this_process(pool):
    pool.map("hostile:sleep", [(0.1,)] * 4)
    commands = [Path(f"/proc/{one.process.pid}/cmdline").read_bytes().split(b"\0") for one in pool._workers]
    assert all(command[1:5] == [b"-P", b"-B", b"-m", b"fulgurite.rewards.worker"] for command in commands)


@pytest.mark.parametrize("path", ["no.such.module:name", "hostile:nothing"])
def test_a_function_that_cannot_be_loaded_is_an_error_of_the_caller(pool, path):
    with pytest.raises(RuntimeError, match=f"workers cannot load {path}: .*Error"):
        pool.map(path, [(1,)])
    with pytest.raises(RuntimeError, match="cannot load"):
        pool.map(path, [(1,)])
    assert values(pool.map("hostile:echo", [(2,)])) == [2]


@pytest.mark.parametrize("setting", ["workers", "time_limit_s", "memory_limit_mib"])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting} is 0; expected more than 0"):
        GraderPool(**{setting: 0})


def test_trivial_answers_are_fast():
    with GraderPool(workers=2) as pool:
        pool.map("hostile:square", [(1,)])
        started = time.monotonic()
        assert values(pool.map("hostile:square", [(i,) for i in range(5_000)])) == [i * i for i in range(5_000)]
        assert time.monotonic() - started < 5_000 / 1_000  # measured: 5 to 20 times as fast, on two cores


@pytest.mark.parametrize(
    ("function", "settings"),
    [
        (GRADE, []),
        ("fulgurite.rewards.math_vote:judge", ["any"]),
        ("fulgurite.rewards.qa_match:grade", ["numeric", "any", 0.001]),
        ("fulgurite.rewards.qa_match:grade", ["exact", "marked", 0.0]),
    ],
)
def test_hostile_answers_cannot_hang_crash_escape_or_slow(tmp_path, function, settings):
    canary = tmp_path / "canary"
    texts = hostile.answers(str(canary)) + hostile.huge_answers()
    assert len(texts) >= 1_000
    honest = [("0.5", r"so \boxed{0.5}", "correct"), ("72", "A: 72", "correct"), ("72", "A: 73", "wrong")]
    calls, expected = [], []
    for i, text in enumerate(texts):
        gold, answer, outcome = honest[i % 3]
        calls += [([gold], text, *settings), ([gold], answer, *settings)]
        expected.append(outcome)
    with GraderPool(workers=2, time_limit_s=5.0) as pool:
        pool.map(function, calls[1:2])
        started = time.monotonic()
        results = pool.map(function, calls)
        seconds = time.monotonic() - started
        assert pool.kills == 0
    assert [one.value[0] for one in results[1::2]] == expected
    outcomes = [one.value[0] if one.value else "killed" for one in results[::2]]
    assert outcomes.count("correct") == 0, [calls[2 * i] for i, one in enumerate(outcomes) if one == "correct"]
    assert seconds < 30
    assert not list(tmp_path.iterdir())


def test_hostile_answers_repeat(tmp_path):
    assert json.dumps(hostile.answers("c", 1)) == json.dumps(hostile.answers("c", 1)) != json.dumps(hostile.answers("c", 2))
