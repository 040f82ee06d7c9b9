"""Progress of a tuning run: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite
from time import monotonic

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from wpk.report.explain import duration
from wpk.tuning.events import Began, Ended, Event, Forecast, Measured, Note, Observer, Phase
from wpk.tuning.record import is_library
from wpk.tuning.tasks import Task

#: Rows of the live table: the tasks that cost most.
_ROWS = 12
#: Seconds between redraws of the live table, and between plain lines.
_REDRAW, _LINE = 0.25, 10.0


@dataclass
class TaskState:
    """One row: the best time of libraries and of generated kernels, who leads, how many candidates."""

    task: Task
    library: float = inf
    generated: float = inf
    leader: str = ""
    trials: int = 0
    failures: int = 0

    @property
    def best(self) -> float:
        """Seconds of the leader."""
        return min(self.library, self.generated)

    @property
    def share(self) -> float:
        """Seconds in one inference, 0 when unknown."""
        return self.best * self.task.weight if isfinite(self.best) else 0.0

    def take(self, event: Measured) -> None:
        """Count a result in."""
        seconds = event.measurement.time
        self.trials += 1
        self.failures += not event.measurement.ok
        if seconds < self.best:
            self.leader = event.provider
        if is_library(event.provider):
            self.library = min(self.library, seconds)
        else:
            self.generated = min(self.generated, seconds)


@dataclass
class Tally:
    """What is known of a run so far."""

    tasks: dict[str, TaskState] = field(default_factory=dict)
    budget: float | None = None
    trials: int = 0
    phase: str = ""
    measured: int = 0
    reused: int = 0
    start: float = field(default_factory=monotonic)
    end: float = inf

    def take(self, event: Event) -> None:
        """Count an event in."""
        if isinstance(event, Began):
            self.tasks = {t.workload.key: TaskState(t) for t in event.tasks}
            self.budget, self.trials = event.budget, event.trials
        elif isinstance(event, Phase):
            self.phase = event.name
        elif isinstance(event, Measured):
            self.reused += event.reused
            self.measured += not event.reused
            self.tasks[event.task.workload.key].take(event)
        elif isinstance(event, Forecast):
            self.end = monotonic() - self.start + event.left

    def headline(self) -> str:
        """One line: phase, candidates, rate, gain over libraries, time left."""
        elapsed = monotonic() - self.start
        parts = [f"{len(self.tasks)} tasks", self.phase, f"{self.measured} candidates"]
        if self.reused:
            parts.append(f"{self.reused} from the log")
        if elapsed > 1 and self.measured:
            parts.append(f"{self.measured / elapsed:.1f}/s")
        if (gain := self.gain()) is not None:
            parts.append(f"{gain:.2f}x over libraries")
        return " · ".join(p for p in (*parts, self.remaining(elapsed)) if p)

    def gain(self) -> float | None:
        """Sum of the libraries' times over the sum of the best, where a library is known; None where none is."""
        known = [s for s in self.tasks.values() if isfinite(s.library)]
        best = sum(s.best * s.task.weight for s in known)
        return sum(s.library * s.task.weight for s in known) / best if best else None

    def remaining(self, elapsed: float) -> str:
        """Time used and an estimate of the time left: the budget's end, or what the tuner foresees if sooner."""
        left = inf if self.budget is None else max(self.budget - elapsed, 0.0)
        if isfinite(self.end):
            left = min(left, max(self.end - elapsed, 0.0))
        elif self.measured:
            left = min(left, max(self.trials - self.measured - self.reused, 0) * elapsed / self.measured)
        return f"{_clock(elapsed)}, ETA {_clock(left)}" if isfinite(left) else _clock(elapsed)


class LiveProgress:
    """A table that is redrawn in place."""

    def __init__(self, console: Console, every: float = _REDRAW) -> None:
        self._tally, self._every, self._drawn = Tally(), every, -inf
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def on(self, event: Event) -> None:
        """See :class:`wpk.tuning.events.Observer`."""
        self._tally.take(event)
        if isinstance(event, Began):
            self._live.start()
        if isinstance(event, Note):
            self._live.console.print(Text(event.text), soft_wrap=True)
        last = isinstance(event, Ended)
        if last or monotonic() - self._drawn >= self._every:
            self._live.update(table(self._tally), refresh=True)
            self._drawn = monotonic()
        if last:
            self._live.stop()


class LineProgress:
    """A line now and then, and the table's rows at the end."""

    def __init__(self, console: Console, every: float = _LINE) -> None:
        self._console, self._tally, self._every, self._said = console, Tally(), every, monotonic()

    def on(self, event: Event) -> None:
        """See :class:`wpk.tuning.events.Observer`."""
        self._tally.take(event)
        if isinstance(event, Ended):
            why = "" if event.why == "done" else f" ({event.why})"
            self._say(f"tuned{why}: {self._tally.headline()}")
            for state in _costliest(self._tally):
                self._say(_line(state))
        elif isinstance(event, Note):
            self._say(event.text)
        elif isinstance(event, Phase) or monotonic() - self._said >= self._every:
            self._say(self._tally.headline())

    def _say(self, text: str) -> None:
        self._said = monotonic()
        self._console.print(Text(text), soft_wrap=True)


def progress_observer(console: Console, every: float | None = None) -> Observer:
    """The observer that suits ``console``: a live table in a terminal, lines elsewhere. ``every``: seconds between updates."""
    if console.is_terminal:
        return LiveProgress(console, _REDRAW if every is None else every)
    return LineProgress(console, _LINE if every is None else every)


def table(tally: Tally) -> Table:
    """The tasks that cost most: best so far against the best library."""
    grid = Table(title=Text(tally.headline()), title_justify="left", box=None, pad_edge=False)
    grid.add_column("task", overflow="ellipsis", no_wrap=True)
    for name in ("runs", "library", "best", "gain", "tried"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("by", no_wrap=True)
    for state in _costliest(tally):
        tried = f"{state.trials}" + (f" ({state.failures} failed)" if state.failures else "")
        cells = (str(state.task.weight), _time(state.library), _time(state.best), _gain(state), tried, state.leader)
        grid.add_row(Text(state.task.name), *cells)
    return grid


def _costliest(tally: Tally) -> list[TaskState]:
    tried = (s for s in tally.tasks.values() if s.trials)
    return sorted(tried, key=lambda s: -s.share)[:_ROWS]


def _line(state: TaskState) -> str:
    leader = state.leader or "nobody"
    return f"  {state.task.name}: {_time(state.best)} by {leader}, library {_time(state.library)}, {state.trials} tried"


def _gain(state: TaskState) -> str:
    return f"{state.library / state.best:.2f}×" if isfinite(state.library) and isfinite(state.best) else ""


def _time(seconds: float) -> str:
    return duration(seconds) if isfinite(seconds) else "–"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
