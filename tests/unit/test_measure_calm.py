"""Timing when the machine is itself: what a slow probe before or after a measurement leads to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.measure.calm import Calm
from wpk.measure.check import Verdict
from wpk.measure.timer import Timing
from wpk.measure.worker import Server, request_of


class Machine:
    """A clock that goes on by a millisecond a probe and ten a measurement; slow while ``slow`` says so."""

    def __init__(self, slow: Callable[[float], bool]) -> None:
        self.now, self.slow = 0.0, slow
        self.calm = Calm(self.speed, lambda: self.now)

    def speed(self) -> float:
        self.now += 0.001
        return 50.0 if self.slow(self.now) else 100.0

    def measure(self) -> list[float]:
        """Twice as long if the machine is slow at the end."""
        self.now += 0.01
        return [2e-3 if self.slow(self.now) else 1e-3]

    def timed(self) -> float:
        return self.calm.timed(self.measure, min)[0]


def test_a_quiet_machine_is_measured_once() -> None:
    machine = Machine(lambda t: False)
    assert machine.timed() == 1e-3
    assert round(machine.now, 6) == 0.012  # a probe before, one after


def test_it_waits_until_the_machine_is_back() -> None:
    machine = Machine(lambda t: 0.1 < t < 0.2)
    machine.timed()
    machine.now = 0.11
    assert machine.timed() == 1e-3 and machine.now > 0.2


def test_a_measurement_that_was_disturbed_is_made_again() -> None:
    machine = Machine(lambda t: 0.105 < t < 0.12)
    machine.timed()
    machine.now = 0.1
    assert machine.timed() == 1e-3 and machine.now > 0.12


def test_the_least_counts_where_no_measurement_is_undisturbed() -> None:
    answers: Iterator[float] = iter([3.0, 2.0, 4.0])
    speeds: Iterator[float] = iter([100.0, 100.0, 10.0, 100.0, 10.0, 100.0, 10.0])
    calm = Calm(lambda: next(speeds))
    assert calm.now()
    assert calm.timed(lambda: [next(answers)], min) == [2.0]


def test_a_machine_that_stays_slow_is_believed_after_a_while() -> None:
    machine = Machine(lambda t: t > 0.1)
    machine.timed()
    machine.now = 1.0
    for _ in range(5):
        machine.timed()
    start = machine.now
    assert machine.timed() == 2e-3
    assert machine.now - start < 0.02


class Candidate:
    """Slow whenever the bench is."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def run(self) -> None:
        """Nothing to compute."""

    def time(self, how: Timing, cold: bool = True) -> list[float]:
        self.bench.timings += 1
        return [2e-3 if self.bench.timings == self.bench.slow else 1e-3]

    def close(self) -> None:
        """Nothing to free."""


class Bench:
    """A bench that is slow during its timing number ``slow`` and at once after it."""

    def __init__(self, slow: int) -> None:
        self.slow, self.timings, self.told = slow, 0, -1

    def operands(self, *_: object) -> Bench:
        return self

    def candidate(self, *_: object) -> Candidate:
        return Candidate(self)

    def poison(self) -> None:
        """No outputs."""

    def check(self, tolerance: float) -> Verdict:
        return Verdict(0.0, tolerance)

    def close(self) -> None:
        """No memory."""

    def speed(self) -> float:
        """Low once after the slow timing."""
        disturbed, self.told = self.timings == self.slow != self.told, self.timings
        return 50.0 if disturbed else 100.0


@pytest.mark.parametrize(("slow", "timings"), [(0, 1), (1, 2)])
def test_a_worker_times_a_disturbed_candidate_again(slow: int, timings: int, tmp_path: Path) -> None:
    bench = Bench(slow)
    server = Server(bench)
    kind = TensorType("float32", (1,))
    workload = Workload("eltwise", (), (kind,)).to_json()
    np.save(tmp_path / "expected.npy", np.zeros(1, np.float32))
    expected = [str(tmp_path / "expected.npy")]
    server.answer({"op": "workload", "workload": workload, "inputs": [], "expected": expected})
    reply = server.answer(request_of(timing=asdict(Timing())))
    assert reply["failure"] is None, reply["detail"]
    assert reply["samples"] == [1e-3] and bench.timings == timings
