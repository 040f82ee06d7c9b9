"""What a tuning run tells those who watch it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from wpk.core.result import Config, Measurement
from wpk.tuning.tasks import Task


@dataclass(frozen=True)
class Began:
    """The run starts. ``budget`` in seconds, None without one; ``trials``: most new measurements, if nothing else ends it."""

    tasks: Sequence[Task]
    budget: float | None
    trials: int


@dataclass(frozen=True)
class Phase:
    """``baselines`` (libraries and defaults), ``search`` or ``finals`` (rivals in turns)."""

    name: str


@dataclass(frozen=True)
class Measured:
    """A result of a task; ``reused`` when it came from the log. ``improved``: the task has a new best."""

    task: Task
    provider: str
    config: Config
    measurement: Measurement
    improved: bool
    reused: bool = False


@dataclass(frozen=True)
class Ended:
    """The run is over, after ``seconds``; ``why``: ``done``, ``budget`` or ``interrupted``."""

    seconds: float
    why: str


@dataclass(frozen=True)
class Forecast:
    """The run will take about ``left`` more seconds."""

    left: float


@dataclass(frozen=True)
class Note:
    """Something that whoever watches should know, such as an optional part that is missing."""

    text: str


Event = Began | Phase | Measured | Forecast | Note | Ended


class Observer(Protocol):
    """Watches a tuning run."""

    def on(self, event: Event) -> None:
        """Called for each event, in order, from the thread that tunes."""
        ...
