"""``wpk run``, ``explain``, ``show``: what needs only an artifact."""

from __future__ import annotations

import json as json_text
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from wpk.commands.common import find_row, profile, table, write_text
from wpk.core.errors import ArtifactError, DeviceError, UsageError
from wpk.core.target import host_target
from wpk.measure.emulated import emulated_runner
from wpk.report import explain as explaining
from wpk.report.arrays import read_feeds, write_results
from wpk.report.engines import random_feeds
from wpk.report.explain import Row, duration
from wpk.report.html import page
from wpk.report.peaks import Peaks, peaks
from wpk.runtime import artifact
from wpk.runtime.cuda.runner import is_cuda, made_for
from wpk.runtime.native_api import RUNTIME
from wpk.runtime.parts import Parts
from wpk.runtime.plan import Plan, Step
from wpk.runtime.runner import Runner, open_runner
from wpk.settings import load_settings

_SLOWEST = 20


def run_artifact(
    file: Path,
    feeds: Sequence[Path],
    output: Path | None,
    random: bool,
    seed: int,
    threads: int | None,
    emulate: bool,
    out: Console,
) -> None:
    """Run once; print what comes out, and write it to ``output`` when given."""
    if bool(feeds) == random:
        raise UsageError("expected input files (.npy or .npz) or --random, and not both")
    parts = artifact.load(file)
    with emulated_runner(parts) if emulate else open_runner(parts, threads) as runner:
        arrays = random_feeds(runner.plan.inputs, seed) if random else read_feeds(feeds, runner.plan.inputs)
        names = [p.name for p in runner.plan.outputs]
        results = dict(zip(names, runner.run(None, arrays), strict=True))
    if output is not None:
        write_results(output, results)
    out.print(_results_table(results))


def _results_table(results: dict[str, np.ndarray]) -> Table:
    grid = table("output", "type", "min", "mean", "max")
    for name, a in results.items():
        numbers = (
            [f"{x:.4g}" for x in (a.min(), a.mean(), a.max())]
            if a.size and a.dtype.kind in "fiub"
            else ["–"] * 3
        )
        grid.add_row(Text(name), f"{a.dtype}[{'x'.join(map(str, a.shape))}]", *numbers)
    return grid


def explain_artifact(
    file: Path, node: str | None, everything: bool, html: Path | None, threads: int | None, out: Console
) -> None:
    """Profile the model here, when it is made for this machine, and print a table, one node's facts, or a page."""
    parts = artifact.read(file)
    found, roof, total = _profiled(parts, threads)
    if node is not None:
        out.print(explaining.detail(find_row(found, node)))
        return
    plan = parts.plan
    if html is not None:
        write_text(html, page(plan, found, roof, list(parts.sources.items())))
    where = made_for(plan) if is_cuda(plan) else f"{plan.target.get('threads')} threads"
    headline = f"{plan.model}: {len(plan.steps)} steps, {duration(total)}, {where}, plan {plan.hash}"
    out.print(explaining.table(found, headline, None if everything else _SLOWEST, everything))
    if contract := (plan.meta or {}).get("contract"):
        out.print(Text(f"contract: {contract['winner']} is taken: {contract['reason']}"), soft_wrap=True)
    for name, steps, share in explaining.summary(found):
        out.print(Text(f"{name}: {steps} steps" + ("" if share is None else f", {share:.1%} of the time")))


def _profiled(parts: Parts, threads: int | None) -> tuple[list[Row], Peaks | None, float | None]:
    """Rows with times where this machine can run the plan; else rows with what the plan remembers."""
    if is_cuda(parts.plan):
        return explaining.rows(parts.plan, _gpu_times(parts)), None, None
    target = host_target(int(parts.plan.target["threads"]))
    if target.fingerprint != parts.plan.fingerprint:
        return explaining.rows(parts.plan), None, None
    with Runner(parts, threads) as runner:
        times = profile(runner)
    roof = peaks(parts.binaries[RUNTIME], target, load_settings().cache)
    return explaining.rows(parts.plan, times, roof), roof, sum(times.values())


def _gpu_times(parts: Parts) -> dict[str, float] | None:
    """Seconds by step where there is such a GPU."""
    try:
        with open_runner(parts) as runner:
            return profile(runner)
    except (DeviceError, ArtifactError):
        return None


def show_node(file: Path, node: str, source_only: bool, out: Console) -> None:
    """Print a step: its call, its buffers and the C it was generated from."""
    parts = artifact.read(file)
    row = find_row(explaining.rows(parts.plan), node)
    step = next(s for s in parts.plan.steps if s.name == row.node)
    text = parts.sources.get(step.symbol)
    if source_only:
        if text is None:
            raise UsageError(f"{row.node} has no generated source: it runs through {row.provider}")
        print(text, end="" if text.endswith("\n") else "\n")
        return
    out.print(explaining.detail(row))
    out.print(_step_table(parts.plan, step))
    if text is not None:
        out.print(Syntax(text, "cuda" if is_cuda(parts.plan) else "c", background_color="default"))
    elif step.spec:
        out.print(Text(json_text.dumps(step.spec)))


def _step_table(plan: Plan, step: Step) -> Table:
    grid = table("argument", "buffer", "kind", "bytes", "where")
    for i, arg in enumerate(step.args):
        buffer = plan.buffers[arg.buffer]
        where = buffer.key if buffer.kind != "arena" else f"offset {buffer.offset}"
        extra = f" + {arg.offset}" if arg.offset else ""
        grid.add_row(str(i), str(arg.buffer), buffer.kind, str(buffer.nbytes), Text(where + extra))
    return grid
