"""``wpk log ls|best|merge|gc`` and ``wpk doctor``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
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
from wpk.tuning.log import collect_garbage, read_log, write_log
from wpk.tuning.log import merge_logs as merging
from wpk.tuning.record import Record, Versions, stale_reason
from wpk.tuning.tuner import versions_of


def examine_machine(log: Path | None, threads: int | None, out: Console) -> int:
    """Print the findings; 1 when something that wpk needs does not work."""
    settings = load_settings()
    target = host_target(threads or settings.threads)
    found = examine(target, settings.cache, settings.cc)
    found += [] if log is None else [_stale(log, target)]
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


def _stale(log: Path, target: Target) -> Finding:
    versions = versions_here()
    records = read_log(log).records
    reasons = [r for r in (stale_reason(x, target, versions) for x in records) if r is not None]
    if not reasons:
        return Finding("log", f"{log}: all {len(records)} entries hold")
    common, count = Counter(reasons).most_common(1)[0]
    return Finding(
        "log", f"{log}: {len(reasons)} of {len(records)} entries are stale; {count}: {common}", None
    )


def versions_here() -> Versions:
    """The versions in force; the providers' own and those of whole plans."""
    try:
        compiler = find_compiler(load_settings().cc).version
    except ToolchainError:
        compiler = ""
    providers = named_providers()
    versions = versions_of(providers, compiler)
    return replace(versions, providers={**versions.providers, **plan_versions(providers)})


def list_log(log: Path, out: Console) -> None:
    """One row a task: entries, failures, best time and by what."""
    contents = read_log(log)
    grid = table("task", "entries", "failed", "best", "by", "stale")
    target, versions = host_target(load_settings().threads), versions_here()
    groups: dict[str, list[Record]] = {}
    for record in contents.records:
        groups.setdefault(record.workload.key, []).append(record)
    for key, group in groups.items():
        right = [r for r in group if r.measurement.ok]
        best = min(right, key=lambda r: r.measurement.time, default=None)
        stale = sum(stale_reason(r, target, versions) is not None for r in group)
        cells = (
            str(len(group)),
            str(len(group) - len(right)),
            duration(best.measurement.time if best else None),
        )
        grid.add_row(Text(key), *cells, best.provider if best else "–", str(stale or "–"))
    out.print(grid)
    out.print(Text(f"{len(contents.records)} entries, {len(groups)} tasks"))
    for warning in contents.warnings:
        out.print(Text(f"note: {warning}", style="yellow"))


def best_of_log(log: Path, output: Path, out: Console) -> None:
    """The newest finals and the best of each task and provider, in a file of their own."""
    copy_log(log, output)
    target = host_target(load_settings().threads)
    before, after = collect_garbage(output, target, versions_here(), keep=1)
    out.print(Text(f"{output}: {after} of {before} entries"))


def merge_logs(inputs: Sequence[Path], output: Path, out: Console) -> None:
    """Join logs."""
    out.print(Text(f"{output}: {merging(inputs, output)} entries"))


def clean_log(log: Path, out: Console) -> None:
    """Drop what no longer counts."""
    before, after = collect_garbage(log, host_target(load_settings().threads), versions_here())
    out.print(Text(f"{log}: {after} of {before} entries kept"))


def copy_log(log: Path, output: Path) -> None:
    """An equal log in another file. Raises LogError, StorageError."""
    contents = read_log(log)
    write_log(output, contents.records, contents.seals)
