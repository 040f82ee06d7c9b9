"""``wpk log ls|best|merge|gc`` and ``wpk doctor``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wpk.commands.common import table
from wpk.core.errors import ToolchainError
from wpk.core.target import Target, host_target
from wpk.measure.toolchain import find_compiler
from wpk.providers.registry import providers as named_providers
from wpk.report.doctor import Finding, examine
from wpk.report.explain import duration
from wpk.settings import load_settings
from wpk.stages import plan_versions
from wpk.tuning.log import Contents, collect_garbage, read_log, write_log
from wpk.tuning.log import merge_logs as merging
from wpk.tuning.record import Versions
from wpk.tuning.tuner import versions_of

#: Reasons that the doctor names, the commonest first.
_REASONS = 5


def examine_machine(log: Path | None, threads: int | None, out: Console) -> int:
    """Print the findings; 1 when something that wpk needs does not work."""
    settings = load_settings()
    target = host_target(threads or settings.threads)
    found = examine(target, settings.cache, settings.cc)
    found += [] if log is None else stale_entries(log, target, versions_here())
    grid = Table.grid(padding=(0, 2))
    for f in found:
        mark = (
            Text("ok", style="green")
            if f.ok
            else Text("–", style="yellow")
            if f.ok is None
            else Text("no", style="red")
        )
        grid.add_row(mark, Text(f.name, style="bold"), Text(f.found))
    out.print(grid)
    return 1 if any(f.ok is False for f in found) else 0


def stale_entries(log: Path, target: Target, versions: Versions) -> list[Finding]:
    """How many entries of a log hold, and of those that do not, which field is stale, how, and how many that concerns."""
    contents = read_log(log)
    total, counts = len(contents.records), _reasons(contents, target, versions)
    warned = [Finding("log", w, None) for w in contents.warnings]
    stale = sum(counts.values())
    if not stale:
        return [*warned, Finding("log", f"{log}: all {total} entries hold")]
    found = [Finding("log", f"{log}: {stale} of {total} entries are stale", None)]
    found += [Finding("", f"{n} entries: stale {reason}", None) for reason, n in counts.most_common(_REASONS)]
    if rest := counts.most_common()[_REASONS:]:
        found.append(Finding("", f"{sum(n for _, n in rest)} entries: stale for {len(rest)} other reasons", None))
    return [*warned, *found]


def _reasons(contents: Contents, target: Target, versions: Versions) -> Counter[str]:
    reasons = contents.records.reasons(target, versions)
    counts: Counter[str] = Counter()
    for origin, count in Counter(contents.records.columns["origins"]).items():
        if (reason := reasons[origin]) is not None:
            counts[reason] += count
    return counts


def versions_here() -> Versions:
    """The versions in force; the providers' own and those of whole plans."""
    try:
        compiler = find_compiler(load_settings().cc).version
    except ToolchainError:
        compiler = ""
    providers = named_providers()
    versions = versions_of(providers, compiler)
    return replace(versions, providers={**versions.providers, **plan_versions(providers)})


@dataclass
class _Group:
    """What a log has of one task, or of one provider on it: the best that holds, else the best there is."""

    entries: int = 0
    failed: int = 0
    stale: int = 0
    best: tuple[bool, float, str] = field(default=(True, inf, "–"))

    def add(self, provider: str, seconds: float, failure: str | None, stale: bool) -> None:
        """Count an entry in."""
        self.entries += 1
        self.failed += failure is not None
        self.stale += stale
        if failure is None:
            self.best = min(self.best, (stale, seconds, provider))

    @property
    def cells(self) -> tuple[str, ...]:
        """Of the table: entries, failed, best, by, stale."""
        _, seconds, provider = self.best
        fast = duration(seconds if isfinite(seconds) else None)
        return str(self.entries), str(self.failed), fast, provider, str(self.stale or "–")


def _groups(contents: Contents, by_provider: bool) -> dict[tuple[str, str], _Group]:
    """By task, and by provider if wanted, in the order first seen."""
    reasons = contents.records.reasons(host_target(load_settings().threads), versions_here())
    groups: dict[tuple[str, str], _Group] = {}
    rows = zip(contents.records.summary(), contents.records.columns["origins"], strict=True)
    for (key, provider, seconds, failure, _), origin in rows:
        group = groups.setdefault((key, provider if by_provider else ""), _Group())
        group.add(provider, seconds, failure, reasons[origin] is not None)
    return groups


def list_log(log: Path, out: Console) -> None:
    """One row a task: entries, failures, best time and by what."""
    contents = read_log(log)
    grid = table("task", "entries", "failed", "best", "by", "stale")
    groups = _groups(contents, by_provider=False)
    for (key, _), group in groups.items():
        grid.add_row(Text(key), *group.cells)
    out.print(grid)
    out.print(Text(f"{len(contents.records)} entries, {len(groups)} tasks"))
    for warning in contents.warnings:
        out.print(Text(f"note: {warning}", style="yellow"))


def show_best(log: Path, out: Console) -> None:
    """One row a task and provider, the fastest first: the best time that holds."""
    contents = read_log(log)
    grid = table("task", "entries", "failed", "best", "by", "stale")
    order = {key: i for i, key in enumerate(contents.records.keys)}
    groups = sorted(_groups(contents, by_provider=True).items(), key=lambda g: (order[g[0][0]], g[1].best))
    last = ""
    for (key, provider), group in groups:
        cells = group.cells
        grid.add_row(Text("" if key == last else key), *cells[:3], provider, cells[4])
        last = key
    out.print(grid)


def best_of_log(log: Path, output: Path | None, out: Console) -> None:
    """The newest finals and the best of each task and provider, in a file of their own; without one, shown."""
    if output is None:
        show_best(log, out)
        return
    copy_log(log, output)
    target = host_target(load_settings().threads)
    before, after = collect_garbage(output, target, versions_here(), keep=1)
    out.print(Text(f"{output}: {after} of {before} entries"))


def merge_logs(inputs: Sequence[Path], output: Path, out: Console) -> None:
    """Join logs."""
    out.print(Text(f"{output}: {merging(inputs, output)} entries"))


def clean_log(log: Path, out: Console) -> None:
    """Drop what no longer counts."""
    read_log(log)  # a log that is not there is not made
    before, after = collect_garbage(log, host_target(load_settings().threads), versions_here())
    out.print(Text(f"{log}: {after} of {before} entries kept"))


def copy_log(log: Path, output: Path) -> None:
    """An equal log in another file. Raises LogError, StorageError."""
    contents = read_log(log)
    write_log(output, contents.records, contents.seals)
