"""Why the plan is what it is: Plan + step times + peaks → rows, and rows → a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wpk.core.result import Config, config_key
from wpk.report.peaks import Peaks
from wpk.runtime.plan import Choice, Plan

#: How a provider rejects workloads that are not its business.
_OTHER_OP = ("op is ", "only ")


@dataclass(frozen=True)
class Row:
    """One step of the plan. ``seconds`` is its time in the whole program; ``alone`` its time when tuned, if known.

    ``share`` is of the sum of all rows; ``roof`` the fraction of the roofline reached (can pass 1 with Winograd, whose
    work is counted as the direct algorithm's), None where unknown. ``rivals`` are best first, rejections last.
    """

    node: str
    op: str
    origin: tuple[str, ...]
    provider: str
    config: Config
    workload: str
    seconds: float | None
    alone: float | None
    share: float | None
    roof: float | None
    rivals: tuple[tuple[str, float | str], ...] = ()

    @property
    def shape(self) -> str:
        """The shape of the first output, as the workload says it: ``1x64x56x56``; empty where there is no workload."""
        match = re.search(r"->\([a-z0-9]+\[([0-9x]*)", self.workload)
        return match.group(1) if match else ""


def rows(plan: Plan, times: Mapping[str, float] | None = None, peaks: Peaks | None = None) -> list[Row]:
    """One row a step, in plan order. ``times``: step name → seconds measured in the whole program."""
    choices = {c.node: c for c in plan.choices}
    total = sum(times.values()) if times else 0.0
    return [_row(step.name, step.kind, choices.get(step.name), times, total, peaks) for step in plan.steps]


def _row(
    name: str,
    kind: str,
    choice: Choice | None,
    times: Mapping[str, float] | None,
    total: float,
    peaks: Peaks | None,
) -> Row:
    seconds = times.get(name) if times else None
    share = seconds / total if seconds is not None and total else None
    if choice is None:
        return Row(name, kind, (), kind, {}, "", seconds, None, share, None)
    spent = seconds if seconds is not None else choice.seconds
    known = peaks is not None and spent and choice.flops + choice.nbytes > 0
    roof = peaks.floor(choice.flops, choice.nbytes) / spent if known and peaks and spent else None
    return Row(
        name, choice.op, choice.origin, choice.provider, choice.config, choice.workload, seconds, choice.seconds,
        share, roof, sorted_rivals(choice.rivals),
    )  # fmt: skip


def sorted_rivals(rivals: Sequence[tuple[str, float | str]]) -> tuple[tuple[str, float | str], ...]:
    """Timed rivals from fast to slow, then the rejected ones in their order."""
    timed = sorted((r for r in rivals if not isinstance(r[1], str)), key=lambda r: float(r[1]))
    return (*timed, *(r for r in rivals if isinstance(r[1], str)))


def duration(seconds: float | None) -> str:
    """Three digits and a unit: ``412 µs``, ``17.8 ms``; a dash for None."""
    if seconds is None:
        return "–"
    value, unit = (
        (seconds * 1e6, "µs") if seconds < 1e-3 else (seconds * 1e3, "ms") if seconds < 1 else (seconds, "s")
    )
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"


def telling(rivals: Sequence[tuple[str, float | str]]) -> tuple[list[tuple[str, float | str]], int]:
    """The rivals worth reading, and how many others only say that they compute other ops."""
    kept = [r for r in rivals if not (isinstance(r[1], str) and r[1].startswith(_OTHER_OP))]
    return kept, len(rivals) - len(kept)


def rival_text(rival: tuple[str, float | str], best: float | None) -> str:
    """``onednn 123 µs (1.42×)`` or ``openblas: only gemm``; the ratio is to the chosen implementation."""
    name, found = rival
    if isinstance(found, str):
        return f"{name}: {found}"
    return f"{name} {duration(found)}" + (f" ({found / best:.2f}×)" if best else "")


def table(
    found: Sequence[Row], title: str = "", limit: int | None = None, every_rival: bool = False
) -> RenderableType:
    """The rows as a table; with ``limit``, only that many of the slowest, and a line saying what was left out."""
    shown = list(found)
    if limit is not None and len(shown) > limit:
        keep = {id(r) for r in sorted(shown, key=lambda r: -(r.seconds or r.alone or 0.0))[:limit]}
        shown = [r for r in shown if id(r) in keep]
    grid = Table(
        title=title or None, title_justify="left", title_style="bold", header_style="bold", expand=False
    )
    for name, right in (
        ("node", 0),
        ("op", 0),
        ("output", 0),
        ("implementation", 0),
        ("time", 1),
        ("share", 1),
        ("roof", 1),
        ("rivals", 0),
    ):
        grid.add_column(name, justify="right" if right else "left", no_wrap=bool(right), overflow="fold")
    for row in shown:
        grid.add_row(*_cells(row, every_rival))
    return Group(grid, *_left_out(found, shown))


def _left_out(found: Sequence[Row], shown: Sequence[Row]) -> list[Text]:
    if len(shown) == len(found):
        return []
    known = all(r.share is not None for r in found)
    share = f", {1.0 - sum(r.share or 0.0 for r in shown):.0%} of the time" if known else ""
    return [Text(f"{len(found) - len(shown)} more steps{share} (wpk explain --all shows them)", style="dim")]


def _cells(row: Row, every: bool) -> tuple[str | Text, ...]:
    return (
        Text(row.node),
        row.op,
        row.shape,
        Text(row.provider),
        duration(row.seconds if row.seconds is not None else row.alone),
        "–" if row.share is None else f"{row.share:.1%}",
        "–" if row.roof is None else f"{row.roof:.0%}",
        Text("\n".join(_rival_lines(row)) if every else rivals_short(row), style="dim"),
    )


def rivals_short(row: Row) -> str:
    """One line: the fastest rival, and how many more there are, slower, not measured or not fit."""
    timed = [rival_text(r, row.alone) for r in row.rivals if not isinstance(r[1], str)]
    more = len(telling(row.rivals)[0]) - len(timed[:1])
    return " ".join((*timed[:1], *([f"+{more}"] if more else [])))


def _rival_lines(row: Row) -> list[str]:
    """All that is worth reading, one line each."""
    kept, others = telling(row.rivals)
    lines = [rival_text(r, row.alone) for r in kept]
    return lines + ([f"{others} more compute other ops"] if others else [])


def detail(row: Row) -> RenderableType:
    """Everything about one row: workload, config, origin, all rivals."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    facts = [
        ("node", row.node),
        ("op", row.op),
        ("stands for", ", ".join(row.origin) or "–"),
        ("workload", row.workload or "–"),
        ("implementation", row.provider),
        ("config", config_key(row.config) or "–"),
        ("time in the program", duration(row.seconds)),
        ("time when tuned", duration(row.alone)),
        ("share of the total", "–" if row.share is None else f"{row.share:.1%}"),
        ("fraction of roofline", "–" if row.roof is None else f"{row.roof:.0%}"),
        ("rivals", "\n".join(_rival_lines(row)) or "none"),
    ]
    for name, value in facts:
        grid.add_row(Text(name, style="bold"), Text(value))
    return grid


def summary(found: Sequence[Row]) -> list[tuple[str, int, float | None]]:
    """(provider, steps, share of the time) from the largest share down; configs of one provider count together."""
    groups: dict[str, list[Row]] = {}
    for row in found:
        groups.setdefault(row.provider.split(":")[0], []).append(row)
    total = [(name, len(g), _share(g)) for name, g in groups.items()]
    return sorted(total, key=lambda t: -(t[2] or 0.0))


def _share(group: Sequence[Row]) -> float | None:
    return None if any(r.share is None for r in group) else sum(r.share or 0.0 for r in group)
