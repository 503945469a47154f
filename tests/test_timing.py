"""The clock: every second in one phase, inner phases pause outer ones."""

from __future__ import annotations

import time

import pytest

from fulgurite.timing import PHASES, PhaseClock
from records import FakeTime


def spent(seconds: dict[str, float]) -> dict[str, float]:
    return {phase: value for phase, value in seconds.items() if value}


@pytest.fixture
def wall() -> FakeTime:
    return FakeTime()


@pytest.fixture
def cpu() -> FakeTime:
    return FakeTime()


@pytest.fixture
def clock(wall, cpu) -> PhaseClock:
    return PhaseClock(wall=wall, cpu=cpu)


def test_an_inner_phase_pauses_the_outer(clock, wall, cpu):
    with clock("sample"):
        wall.now += 1
        cpu.now += 10
        with clock("sync"):
            wall.now += 2
            cpu.now += 20
        wall.now += 4
        cpu.now += 40
    wall.now += 8
    with clock("sample"):
        wall.now += 16
    assert spent(clock.wall) == {"sample": 21, "sync": 2, "other": 8}
    assert spent(clock.cpu) == {"sample": 50, "sync": 20}


def test_totals_include_the_running_phase_and_every_name(clock, wall):
    with clock("train"):
        wall.now += 3
        assert spent(clock.wall) == {"train": 3}
        wall.now += 1
    assert spent(clock.wall) == {"train": 4}
    assert set(clock.wall) == {*PHASES, "other"}


def test_phases_inside_validate_count_as_validation(clock, wall):
    with clock("validate"):
        wall.now += 1
        with clock("sample"):
            assert clock.phase == "sample"
            wall.now += 2
        wall.now += 4
    assert spent(clock.wall) == {"validate": 7}


def test_listeners_hear_every_change_once(clock):
    heard = []
    clock.listeners.append(heard.append)
    with clock("sample"):
        with clock("sample"):
            pass
        with clock("judge"):
            assert clock.phase == "judge"
        assert clock.phase == "sample"
    assert clock.phase == ""
    assert heard == ["sample", "judge", "sample", ""]


def test_an_exception_ends_the_phase(clock, wall):
    with pytest.raises(KeyError), clock("judge"):
        wall.now += 2
        raise KeyError
    wall.now += 1
    assert clock.phase == ""
    assert spent(clock.wall) == {"judge": 2, "other": 1}


def test_an_unknown_phase_is_refused(clock):
    with pytest.raises(ValueError, match="'smaple' is unknown; expected one of sample, judge"), clock("smaple"):
        pass


def test_the_default_sources_tell_sleep_from_work():
    clock = PhaseClock()
    with clock("sample"):
        time.sleep(0.2)
    with clock("train"):
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
    # Bounds, not equality: a shared machine may add wall time to either, and the sleep itself costs some work.
    assert clock.wall["sample"] >= 0.2 and clock.cpu["sample"] < 0.1
    assert clock.cpu["train"] >= 0.2 and clock.wall["train"] >= 0.2
