"""Measurements by workload: what the planner chooses from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wpk.core.result import Config, Measurement
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.tuning.record import Record, Versions, stale_reason

#: (provider, config, measurement)
Row = tuple[str, Config, Measurement]


class ResultTable:
    """The newest record of every (workload, provider, config).

    Where finalists of a provider were re-timed in turns, only they stand for it: the fastest of many single timings is
    partly luck.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._latest: dict[str, dict[tuple[str, str, str], Record]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Take in a record newer than all before. A search's timing does not replace a finalist's."""
        rows = self._latest.setdefault(record.workload.key, {})
        known = rows.get(record.key)
        if known is None or known.stage == "search" or record.stage == "final":
            rows[record.key] = record

    def records(self, workload: Workload) -> list[Record]:
        """The newest record of each candidate."""
        return list(self._latest.get(workload.key, {}).values())

    def best(self, workload: Workload) -> list[Row]:
        """The best of each provider, fastest first; a provider all of whose candidates failed gives a failure."""
        best: dict[str, Record] = {}
        for record in self.records(workload):
            known = best.get(record.provider)
            if known is None or _rank(record) < _rank(known):
                best[record.provider] = record
        return _rows(sorted(best.values(), key=lambda r: (r.measurement.time, r.provider)))

    def ranked(self, workload: Workload, provider: str | None = None) -> list[Row]:
        """All that ran, of one provider or of all, fastest first."""
        return _rows(sorted(self._that_ran(workload, provider), key=lambda r: (r.measurement.time, r.key)))

    def failures(self, workload: Workload) -> list[Row]:
        """All that failed, in the order measured."""
        return _rows(r for r in self.records(workload) if not r.measurement.ok)

    def workloads(self) -> list[Workload]:
        """Those that have records, in the order first seen."""
        return [next(iter(rows.values())).workload for rows in self._latest.values()]

    def _that_ran(self, workload: Workload, provider: str | None) -> list[Record]:
        return [r for r in self.records(workload) if r.measurement.ok and provider in (None, r.provider)]


def fresh_table(records: Sequence[Record], target: Target, versions: Versions) -> ResultTable:
    """A table of the records that still hold on ``target``."""
    return ResultTable(r for r in records if stale_reason(r, target, versions) is None)


def _rank(record: Record) -> tuple[int, float]:
    """Failures last, finalists first, then by time."""
    return (0 if record.stage == "final" and record.measurement.ok else 1, record.measurement.time)


def _rows(records: Iterable[Record]) -> list[Row]:
    return [(r.provider, r.config, r.measurement) for r in records]
