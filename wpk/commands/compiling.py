"""``wpk compile`` and ``wpk replay``."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.text import Text

from wpk import api
from wpk.commands.common import profile, write_text
from wpk.core.target import host_target
from wpk.planner.contract import OURS
from wpk.report import explain as explaining
from wpk.report.explain import duration
from wpk.report.html import page
from wpk.report.peaks import Peaks, gpu_peaks, peaks
from wpk.report.progress import progress_observer
from wpk.runtime.cuda.runner import is_cuda, made_for
from wpk.runtime.native_api import RUNTIME
from wpk.runtime.parts import Parts
from wpk.runtime.plan import Plan
from wpk.settings import load_settings
from wpk.stages import Options, find_target

_SLOWEST_SHORT = 12


def compile_model(
    model: Path,
    options: Options,
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
    report(made, html, out)
    out.print(Text(f"saved {target} ({target.stat().st_size / 1e6:.1f} MB); log {records}"))


def cross_compile(
    model: Path, options: Options, output: Path | None, log: Path | None, trace: bool, out: Console
) -> None:
    """Compile without measuring; then what was chosen, and by which knowledge."""
    target = output or Path(model.name).with_suffix(".wpk")
    fusions: list[str] | None = [] if trace else None
    parts = api.cross(model, options, target, log, Stages(out), fusions)
    for line in fusions or ():
        out.print(Text(line), soft_wrap=True)
    plan = parts.plan
    found = explaining.rows(plan)
    where = made_for(plan) if is_cuda(plan) else str(plan.target["model"])
    out.print(explaining.table(found, f"{plan.model}: {len(found)} steps for {where}, plan {plan.hash}", _SLOWEST_SHORT))
    for name, steps, _ in explaining.summary(found):
        out.print(Text(f"{name}: {steps} steps"))
    made = [c for c in plan.choices if c.provider != "move"]
    known = sum(c.seconds is not None for c in made)
    said = f"{known} of {len(made)} choices rest on measurements, the others on first guesses; nothing was run or checked"
    out.print(Text(said))
    for line in precision_lines(plan):
        out.print(Text(line), soft_wrap=True)
    out.print(Text(f"saved {target} ({target.stat().st_size / 1e6:.1f} MB)"))


def roof_of(parts: Parts, threads: int) -> Peaks:
    """What the machine that the parts are for can do at best."""
    if is_cuda(parts.plan):
        return gpu_peaks(find_target("cuda"))
    return peaks(parts.binaries[RUNTIME], host_target(threads), load_settings().cache)


def precision_lines(plan: Plan) -> list[str]:
    """How much of the plan is in lower precision, and what that costs."""
    facts = (plan.meta or {}).get("precision")
    if facts is None:
        return []
    lower, kept = facts["errors"], facts["kept"]
    whole = f"error of the model {facts['error']:.1e}, computed on the CPU"
    said = f"{facts['mode']}: {len(lower)} nodes, {len(kept)} kept in fp32; {whole}"
    worst = sorted(lower.items(), key=lambda e: -e[1])[:3]
    return [said, "largest errors of single nodes: " + ", ".join(f"{n} {e:.1e}" for n, e in worst)] if worst else [said]


def replay_log(
    log: Path, model: Path, options: Options, output: Path | None, strict: bool, out: Console
) -> None:
    """Replay; then the same report."""
    target = output or Path(model.name).with_suffix(".wpk")
    made = api.rebuild(log, model, options, target, strict, Stages(out))
    report(made, None, out)
    out.print(Text(f"saved {target} ({target.stat().st_size / 1e6:.1f} MB); nothing was measured"))


class Stages:
    """Prints the stages of a compile as they begin, with the seconds since the start."""

    def __init__(self, out: Console) -> None:
        self._out, self._start = out, monotonic()

    def __call__(self, stage: str) -> None:
        self._out.print(Text(f"[{monotonic() - self._start:5.1f} s] {stage}", style="dim"))


def report(made: api.Compiled, html: Path | None, out: Console) -> None:
    """Choices, accuracy, verdict and notes of a compiled model."""
    roof = roof_of(made.parts, made.runner.threads)
    found = explaining.rows(made.parts.plan, profile(made.runner), roof)
    headline = f"{made.parts.plan.model}: {len(found)} steps, plan {made.parts.plan.hash}"
    out.print(explaining.table(found, headline, _SLOWEST_SHORT))
    if made.verdict.winner != OURS:
        lost = f"the tuned plan, which was not taken: plan {made.ours.hash}, each step alone"
        out.print(explaining.table(explaining.rows(made.ours, None, roof), lost, _SLOWEST_SHORT))
    for name, steps, share in explaining.summary(found):
        out.print(Text(f"{name}: {steps} steps" + ("" if share is None else f", {share:.1%} of the time")))
    out.print(Text(f"error against ONNX Runtime: {made.error:.1e} (relative L2)"))
    times = ", ".join(f"{n} {t if isinstance(t, str) else duration(t)}" for n, t in made.verdict.times)
    out.print(Text(f"whole plans: {times}; {made.verdict.winner} is taken: {made.verdict.reason}"))
    for line in precision_lines(made.parts.plan):
        out.print(Text(line), soft_wrap=True)
    for note in made.notes:
        out.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    if html is not None:
        write_text(html, page(made.parts.plan, found, roof, list(made.parts.sources.items())))
