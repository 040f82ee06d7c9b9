"""Timing when the machine is itself: what a slow probe before or after a measurement leads to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from wpk.measure.calm import Calm


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
