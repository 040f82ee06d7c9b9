"""What the commands of the command line do: files in, tables out. Options are parsed in :mod:`wpk.cli`."""

from __future__ import annotations

import json as json_text
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic

import numpy as np
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from wpk import api
from wpk.core.errors import StorageError, ToolchainError, UsageError
from wpk.core.target import Target, host_target
from wpk.measure.toolchain import find_compiler
from wpk.providers.registry import providers as named_providers
from wpk.report import explain as explaining
from wpk.report.arrays import read_feeds, write_results
from wpk.report.doctor import Finding, examine
from wpk.report.engines import (
    Engine,
    Timing,
    in_turns,
    random_feeds,
    relative_l2,
    rival_engine,
    runner_engine,
)
from wpk.report.explain import Row, duration
from wpk.report.html import page
from wpk.report.peaks import Peaks, peaks
from wpk.report.progress import progress_observer
from wpk.runtime import artifact
from wpk.runtime.native_api import RUNTIME
from wpk.runtime.parts import Parts
from wpk.runtime.plan import Plan, Step
from wpk.runtime.runner import Runner
from wpk.settings import load_settings
from wpk.tuning.log import collect_garbage, read_log, write_log
from wpk.tuning.log import merge_logs as merging
from wpk.tuning.record import Record, Versions, stale_reason
from wpk.tuning.tuner import versions_of

_PROFILES = 7
_SLOWEST, _SLOWEST_SHORT = 20, 12


def compile_model(
    model: Path,
    options: api.Options,
    output: Path | None,
    log: Path | None,
    trace: bool,
    html: Path | None,
    out: Console,
) -> None:
    """Compile, showing progress; then what was chosen, how right it is and how fast."""
    target = output or Path(model.name).with_suffix(".wpk")
    records = log or target.with_suffix(".jsonl")
    fusions: list[str] | None = [] if trace else None
    say = Stages(out)
    made = api.build(model, options, target, records, progress_observer(out), say, fusions)
    for line in fusions or ():
        out.print(Text(line), soft_wrap=True)
    report(made, target, html, out)
    out.print(Text(f"saved {target} ({target.stat().st_size / 1e6:.1f} MB); log {records}"))


def replay_log(
    log: Path, model: Path, options: api.Options, output: Path | None, strict: bool, out: Console
) -> None:
    """Replay; then the same report."""
    target = output or Path(model.name).with_suffix(".wpk")
    made = api.rebuild(log, model, options, target, strict, Stages(out))
    report(made, target, None, out)
    out.print(Text(f"saved {target} ({target.stat().st_size / 1e6:.1f} MB); nothing was measured"))


class Stages:
    """Prints the stages of a compile as they begin, with the seconds since the start."""

    def __init__(self, out: Console) -> None:
        self._out, self._start = out, monotonic()

    def __call__(self, stage: str) -> None:
        self._out.print(Text(f"[{monotonic() - self._start:5.1f} s] {stage}", style="dim"))


def report(made: api.Compiled, target: Path, html: Path | None, out: Console) -> None:
    """Choices, accuracy, verdict and notes of a compiled model."""
    found = explaining.rows(made.parts.plan, profile(made.runner))
    headline = f"{made.parts.plan.model}: {len(found)} steps, plan {made.parts.plan.hash}"
    out.print(explaining.table(found, headline, _SLOWEST_SHORT))
    for name, steps, share in explaining.summary(found):
        out.print(Text(f"{name}: {steps} steps" + ("" if share is None else f", {share:.1%} of the time")))
    out.print(Text(f"error against ONNX Runtime: {made.error:.1e} (relative L2)"))
    times = ", ".join(f"{n} {t if isinstance(t, str) else duration(t)}" for n, t in made.verdict.times)
    out.print(Text(f"whole plans: {times}; {made.verdict.winner} is taken: {made.verdict.reason}"))
    for note in made.notes:
        out.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    if html is not None:
        write_text(html, page(made.parts.plan, found, None, list(made.parts.sources.items())))


def run_artifact(
    file: Path,
    feeds: Sequence[Path],
    output: Path | None,
    random: bool,
    seed: int,
    threads: int | None,
    out: Console,
) -> None:
    """Run once; print what comes out, and write it to ``output`` when given."""
    if bool(feeds) == random:
        raise UsageError("expected input files (.npy or .npz) or --random, and not both")
    with Runner(artifact.load(file), threads) as runner:
        arrays = random_feeds(runner.plan.inputs, seed) if random else read_feeds(feeds, runner.plan.inputs)
        names = [p.name for p in runner.plan.outputs]
        results = dict(zip(names, runner.run(None, arrays), strict=True))
    if output is not None:
        write_results(output, results)
    out.print(_results_table(results))


def _results_table(results: dict[str, np.ndarray]) -> Table:
    grid = _table("output", "type", "min", "mean", "max")
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
    headline = f"{plan.model}: {len(plan.steps)} steps, {duration(total)}, {plan.target.get('threads')} threads, plan {plan.hash}"
    out.print(explaining.table(found, headline, None if everything else _SLOWEST, everything))
    for name, steps, share in explaining.summary(found):
        out.print(Text(f"{name}: {steps} steps" + ("" if share is None else f", {share:.1%} of the time")))
    if html is not None:
        write_text(html, page(plan, found, roof, list(parts.sources.items())))


def _profiled(parts: Parts, threads: int | None) -> tuple[list[Row], Peaks | None, float | None]:
    """Rows with times where this machine can run the plan; else rows with what the plan remembers."""
    target = host_target(int(parts.plan.target["threads"]))
    if target.fingerprint != parts.plan.fingerprint:
        return explaining.rows(parts.plan), None, None
    with Runner(parts, threads) as runner:
        times = profile(runner)
    roof = peaks(parts.binaries[RUNTIME], target, load_settings().cache)
    return explaining.rows(parts.plan, times, roof), roof, sum(times.values())


def profile(runner: Runner, repeats: int = _PROFILES) -> dict[str, float]:
    """Step name → median seconds over ``repeats`` runs on random inputs, after a warm-up."""
    feeds = random_feeds(runner.plan.inputs)
    runner.profile(feeds)
    taken = [runner.profile(feeds) for _ in range(repeats)]
    return {name: float(np.median([p[i][1] for p in taken])) for i, (name, _) in enumerate(taken[0])}


def find_row(rows: Sequence[Row], node: str) -> Row:
    """The row of a step, or of a node of the ONNX model that it stands for. Raises UsageError with near names."""
    for row in rows:
        if node == row.node or node in row.origin:
            return row
    near = [r.node for r in rows if node.lower() in r.node.lower()][:5] or [r.node for r in rows[:5]]
    raise UsageError(f"no node {node!r} in the plan; there is {', '.join(near)}, …")


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
        out.print(Syntax(text, "c", background_color="default"))
    elif step.spec:
        out.print(Text(json_text.dumps(step.spec)))


def _step_table(plan: Plan, step: Step) -> Table:
    grid = _table("argument", "buffer", "kind", "bytes", "where")
    for i, arg in enumerate(step.args):
        buffer = plan.buffers[arg.buffer]
        where = buffer.key if buffer.kind != "arena" else f"offset {buffer.offset}"
        extra = f" + {arg.offset}" if arg.offset else ""
        grid.add_row(str(i), str(arg.buffer), buffer.kind, str(buffer.nbytes), Text(where + extra))
    return grid


def bench_model(
    model: Path, against: str, onnx: Path | None, rounds: int, threads: int | None, budget: str, log: Path | None,
    json: Path | None, out: Console,
) -> None:  # fmt: skip
    """Time the model in turns with the engines of ``against``; print and perhaps write medians, spreads, ratios, errors."""
    names = [a for a in against.split(",") if a]
    source = onnx if model.suffix == ".wpk" else model
    if names and source is None:
        raise UsageError(f"--against needs the model that {model} was made from: --onnx MODEL.onnx")
    if model.suffix == ".wpk":
        runner = Runner(artifact.load(model), threads)
    else:
        runner = api.compile(model, budget=budget, log=log, threads=threads)
    inputs = runner.plan.inputs
    rivals = [rival_engine(name, source, runner.threads, inputs) for name in names if source is not None]
    engines = [runner_engine(runner), *rivals]
    feeds = random_feeds(inputs)
    timings = in_turns(engines, feeds, rounds)
    errors = differences(engines, feeds)
    out.print(timing_table(timings, errors))
    if json is not None:
        write_text(
            json,
            json_text.dumps([{**asdict(t), "median": t.median, "spread": t.spread} for t in timings]) + "\n",
        )


def differences(engines: Sequence[Engine], feeds: Mapping[str, np.ndarray]) -> list[float]:
    """For each engine, the largest relative L2 distance of its outputs to the first engine's."""
    own, *others = [[np.array(a) for a in e.run(feeds)] for e in engines]
    return [0.0, *(max(relative_l2(a, b) for a, b in zip(own, other, strict=True)) for other in others)]


def timing_table(timings: Sequence[Timing], errors: Sequence[float]) -> Table:
    """One engine a row; the ratio is its median over the first engine's."""
    grid = _table("engine", "median", "spread", "runs", "ratio", "difference")
    for t, error in zip(timings, errors, strict=True):
        ratio = f"{t.median / timings[0].median:.2f}×"
        grid.add_row(
            t.name, duration(t.median), f"±{t.spread / 2:.1%}", str(len(t.samples)), ratio, f"{error:.1e}"
        )
    return grid


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
    versions = _versions()
    records = read_log(log).records
    reasons = [r for r in (stale_reason(x, target, versions) for x in records) if r is not None]
    if not reasons:
        return Finding("log", f"{log}: all {len(records)} entries hold")
    common, count = Counter(reasons).most_common(1)[0]
    return Finding(
        "log", f"{log}: {len(reasons)} of {len(records)} entries are stale; {count}: {common}", None
    )


def _versions() -> Versions:
    """The versions in force; the providers' own and those of whole plans."""
    try:
        compiler = find_compiler(load_settings().cc).version
    except ToolchainError:
        compiler = ""
    providers = named_providers()
    versions = versions_of(providers, compiler)
    return replace(versions, providers={**versions.providers, **api.plan_versions(providers)})


def list_log(log: Path, out: Console) -> None:
    """One row a task: entries, failures, best time and by what."""
    contents = read_log(log)
    grid = _table("task", "entries", "failed", "best", "by", "stale")
    target, versions = host_target(load_settings().threads), _versions()
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
    before, after = collect_garbage(output, target, _versions(), keep=1)
    out.print(Text(f"{output}: {after} of {before} entries"))


def merge_logs(inputs: Sequence[Path], output: Path, out: Console) -> None:
    """Join logs."""
    out.print(Text(f"{output}: {merging(inputs, output)} entries"))


def clean_log(log: Path, out: Console) -> None:
    """Drop what no longer counts."""
    before, after = collect_garbage(log, host_target(load_settings().threads), _versions())
    out.print(Text(f"{log}: {after} of {before} entries kept"))


def copy_log(log: Path, output: Path) -> None:
    """An equal log in another file. Raises LogError, StorageError."""
    contents = read_log(log)
    write_log(output, contents.records, contents.seals)


def _table(*columns: str) -> Table:
    grid = Table(header_style="bold")
    for name in columns:
        grid.add_column(
            name,
            overflow="fold",
            justify="right"
            if name
            in (
                "min",
                "mean",
                "max",
                "bytes",
                "runs",
                "entries",
                "failed",
                "best",
                "stale",
                "median",
                "spread",
                "ratio",
                "difference",
            )
            else "left",
        )
    return grid


def write_text(path: Path, text: str) -> None:
    """Write a small file. Raises StorageError."""
    try:
        path.write_text(text)
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error
