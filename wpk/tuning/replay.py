"""Replay: a tuning log → the table of results that the planner chooses from, with no measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wpk.core.errors import LogError
from wpk.core.target import Target
from wpk.tuning.log import Contents
from wpk.tuning.record import Record, Versions, digest, stale_reason
from wpk.tuning.results import ResultTable
from wpk.tuning.tasks import Task


@dataclass(frozen=True)
class Replayed:
    """The table, and what is missing or stale (empty after a strict replay)."""

    results: ResultTable
    notes: tuple[str, ...]


def replay(
    tasks: Sequence[Task], contents: Contents, target: Target, versions: Versions, strict: bool = True
) -> Replayed:
    """The results that a log has for ``tasks``. With ``strict``, raises LogError for the first of these, naming the task:

    a task without an entry, entries that were lost since the log was sealed, or none that still holds (naming the field).
    A task that the log's seal says was never measured is no error: it has its default, now as then.
    """
    records = contents.records
    places = {task.workload.key: records.of(task.workload.key) for task in tasks}
    taken = {key: [records[p] for p in positions] for key, positions in places.items()}
    sealed = {name: count for seal in contents.seals for name, count in seal.items()}
    notes = [
        note
        for task in tasks
        if (note := _complaint(task, taken[task.workload.key], sealed.get(digest(task.workload)), target, versions))
    ]
    if strict and notes:
        raise LogError(notes[0])
    wanted = sorted(p for positions in places.values() for p in positions)
    return Replayed(ResultTable(records.holding(wanted, target, versions)), tuple(notes))


def _complaint(task: Task, records: list[Record], sealed: int | None, target: Target, versions: Versions) -> str | None:
    """What is wrong with a task's entries, or None. ``sealed``: how many there were when the log was last sealed."""
    if not records:
        return None if sealed == 0 else f"task {_label(task)}: no entry in the log"
    lost = _lost(records, sealed)
    if lost:
        return f"task {_label(task)}: {lost}"
    reasons = [stale_reason(r, target, versions) for r in records]
    if all(reasons):
        return f"task {_label(task)}: stale {reasons[-1]}"
    return None


def _lost(records: Sequence[Record], sealed: int | None) -> str:
    """Says which entries are missing from numbered records, or nothing."""
    numbers = {r.number for r in records}
    expected = max(max(numbers) + 1, sealed or 0)
    missing = sorted(set(range(expected)) - numbers)
    if not missing:
        return ""
    return f"entry {missing[0]} of {expected} is missing from the log" + (f" ({len(missing)} in all)" if missing[1:] else "")


def _label(task: Task) -> str:
    return f"{task.name} [{task.workload.key}]"
