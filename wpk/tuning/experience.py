"""What earlier logs teach: the configs that won on equal or similar workloads, and who is worth trying first.

Experience is advice, never a result: its configs are built, checked and timed here before they count, so logs from another
machine or version may be used. wpk ships some (``configs/tuned/*.jsonl``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from math import inf, log2
from pathlib import Path

from wpk.core.result import Config
from wpk.core.workload import Workload
from wpk.tuning.log import Contents, read_log
from wpk.tuning.record import Record, is_library
from wpk.tuning.results import ResultTable

#: A provider that took this many times the best of all layouts elsewhere is tried late.
_LIKELY = 1.25
#: Libraries with good code for whatever they can compute.
_VERSED = ("onednn", "cudnn", "cublaslt")
#: Similar workloads whose configs are worth a try.
_NEAREST = 3


class Experience:
    """Records of earlier tunings, of this machine or of others."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._table = ResultTable(
            r for r in records if r.measurement.ok and not r.provider.startswith("plan:")
        )
        self._by_op: dict[tuple[str, str], list[Workload]] = {}
        for workload in self._table.workloads():
            for provider in {r.provider for r in self._table.records(workload)}:
                self._by_op.setdefault((workload.op, provider), []).append(workload)

    def configs(self, workload: Workload, provider: str, most: int = 2) -> list[Config]:
        """The best configs of ``provider`` on this workload; where it was never tuned, on the most similar ones."""
        exact = [c for _, c, _ in self._table.ranked(workload, provider)[:most]]
        if exact:
            return exact
        near = sorted(
            self._by_op.get((workload.op, provider), ()), key=lambda w: (distance(w, workload), w.key)
        )
        return [c for w in near[:_NEAREST] for _, c, _ in self._table.ranked(w, provider)[:1]]

    def seconds(self, workload: Workload, provider: str | None = None) -> float:
        """The best time known of a workload, of one provider or of any; infinity where there is none."""
        rows = self._table.ranked(workload, provider)
        return rows[0][2].time if rows else inf

    def likely(self, workload: Workload, provider: str, rivals: Sequence[Workload]) -> bool:
        """Whether ``provider`` may well be chosen for ``workload``, whose nodes could run as one of ``rivals`` instead.

        By what was measured, else by rule: blocked layouts before others, generated code and vendors' libraries before the rest.
        """
        best = min((self.seconds(w) for w in (workload, *rivals)), default=inf)
        mine = self.seconds(workload, provider)
        if best < inf and mine < inf:
            return mine <= _LIKELY * best
        plain = not any(_blocked(w) for w in (workload, *rivals))
        return (_blocked(workload) or plain) and (not is_library(provider) or provider in _VERSED)


def shipped() -> Experience:
    """What the logs that come with wpk teach."""
    return Experience(r for log in shipped_logs() for r in log.records)


def shipped_logs() -> list[Contents]:
    """The logs that come with wpk."""
    folder = Path(str(files("wpk.configs"))) / "tuned"
    return [read_log(path, index=False) for path in sorted(folder.glob("*.jsonl"))]


def distance(a: Workload, b: Workload) -> float:
    """How unlike the operands of two workloads are: the difference of their extents, in doublings."""
    pairs = zip((*a.inputs, *a.outputs), (*b.inputs, *b.outputs), strict=False)
    shapes = [(*zip(p.shape, q.shape, strict=False),) for p, q in pairs]
    layouts = sum(
        p.layout != q.layout for p, q in zip((*a.inputs, *a.outputs), (*b.inputs, *b.outputs), strict=False)
    )
    return (
        sum(abs(log2((x + 1) / (y + 1))) for shape in shapes for x, y in shape)
        + (a.attrs != b.attrs)
        + 4 * layouts
    )


def _blocked(workload: Workload) -> bool:
    return all(t.layout not in ("ROW", "NHWC") for t in workload.outputs)
