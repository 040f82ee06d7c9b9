"""The whole way from an ONNX model to a Runner.

    load → optimize → tasks → tune (the budget) → plan → check → contract (never slower than a library) → artifact

:func:`compile` and :func:`replay` are the package's front; :func:`build` and :func:`rebuild` give all that is known besides.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wpk import __version__
from wpk.core.errors import StorageError
from wpk.core.result import Measurement
from wpk.planner.contract import OURS, Verdict, candidate_plans, decide, measure_plans
from wpk.planner.plan import plan_model
from wpk.runtime import artifact
from wpk.runtime.cuda.runner import CudaRunner
from wpk.runtime.parts import Parts
from wpk.runtime.plan import Choice, Plan
from wpk.runtime.runner import Runner, load, open_runner
from wpk.settings import parse_budget
from wpk.stages import (
    Model,
    Options,
    Source,
    best_graph,
    known_results,
    logged_tasks,
    open_shop,
    read_graph,
    read_source,
    recall,
    remember,
    tune_graphs,
)
from wpk.tuning.events import Observer
from wpk.tuning.log import TuningLog, read_log
from wpk.tuning.replay import replay as replay_log
from wpk.tuning.results import ResultTable
from wpk.tuning.tuner import Tuned

Say = Callable[[str], None]


@dataclass(frozen=True)
class Compiled:
    """A compiled model and what is known of it.

    ``measured``: whole plans by name, as the contract saw them; ``tuned`` is None after a replay; ``ours`` is the
    tuned plan, taken or not; ``notes`` are worth a user's attention.
    """

    parts: Parts
    runner: Runner | CudaRunner
    measured: Mapping[str, Measurement]
    verdict: Verdict
    tuned: Tuned | None
    ours: Plan
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """Relative L2 error of the outputs, before a last softmax, against ONNX Runtime."""
        return self.measured[self.verdict.winner].error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact. Raises StorageError; the old file stays then."""
        save(self.parts, Path(path))


def compile(
    model: Model,
    *,
    output: str | os.PathLike[str] | None = None,
    budget: float | str = "60s",
    strategy: str = "auto",
    providers: Sequence[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    trials: int = 200,
    max_error: float | None = None,
    target: str = "cpu",
    precision: str = "fp32",
    observer: Observer | None = None,
    cluster: str | None = None,
) -> Runner | CudaRunner:
    """The fastest correct program for ``model`` on this machine that tuning for ``budget`` finds, ready to run.

    ``model``: a path, serialized bytes or a ModelProto. With ``log``, measurements are appended to that file and those it holds
    are not made again. With ``output``, the artifact is saved there. Ctrl-C ends the tuning, not the compile.

    ``target``: ``cpu``, or ``cuda`` for the GPU here. ``precision``: ``fp32`` (strict), or ``tf32``, ``fp16``, ``bf16`` for as
    many nodes as ``max_error`` allows: the relative L2 error of the whole model, None for what is usual for the precision.

    ``cluster``: the address of a Dask scheduler; its workers of this machine's kind measure (``wpk worker`` starts one).

    Raises ModelError, UsageError, ToolchainError, StorageError, LogError, FleetError: all subclasses of WpkError.
    """
    options = Options(
        parse_budget(budget), strategy, None if providers is None else tuple(providers), threads, batch,
        {k: tuple(v) for k, v in (shapes or {}).items()}, seed, trials, max_error, cluster,
        target=target, precision=precision,
    )  # fmt: skip
    return build(model, options, _path(output), _path(log), observer).runner


def replay(
    log: str | os.PathLike[str],
    model: Model,
    *,
    strict: bool = True,
    output: str | os.PathLike[str] | None = None,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Runner | CudaRunner:
    """The program that ``log`` describes; nothing is measured. The same log on the same machine gives the same plan.

    ``strict`` raises LogError for a task with no entry, a lost entry or a stale one; otherwise such tasks get defaults.
    """
    options = Options(
        providers=None if providers is None else tuple(providers), threads=threads, batch=batch,
        shapes={k: tuple(v) for k, v in (shapes or {}).items()},
    )  # fmt: skip
    return rebuild(Path(log), model, options, _path(output), strict).runner


def build(
    model: Model,
    options: Options,
    output: Path | None = None,
    log: Path | None = None,
    observer: Observer | None = None,
    say: Say = lambda text: None,
    trace: list[str] | None = None,
) -> Compiled:
    """Compile, and give all that is known. ``say`` is told each stage as it begins, ``trace`` gets a line for each fusion
    that was made or declined. Raises as :func:`compile`.
    """
    shop = open_shop(options)
    _check_folder(output)
    say("reading the model")
    source = read_source(model, options, shop, trace)
    records = TuningLog(log)
    say("tuning")
    tuned, tasks = tune_graphs(source.graphs, shop, records, options, observer)
    say("planning")
    graph = best_graph(source.graphs, tuned.results, shop)
    plans = candidate_plans(graph, source.session, tuned.results, shop.target, shop.providers, shop.tools, source.plain(graph))
    say("checking and timing whole plans")
    measured = measure_plans(
        plans, source.feeds, source.expected, options.limit, distance=source.distance
    )
    whole = remember(records, graph, plans, measured, shop, options.seed)
    records.seal([*(t.workload for t in tasks), whole])
    notes = (*records.warnings, *source.notes, *_complaints(measured))
    return _finish(plans, measured, tuned.results, tuned, notes, output, source)


def rebuild(
    log: Path,
    model: Model,
    options: Options,
    output: Path | None = None,
    strict: bool = True,
    say: Say = lambda text: None,
) -> Compiled:
    """Replay, and give all that is known. Raises as :func:`replay`."""
    shop = open_shop(options)
    _check_folder(output)
    contents = read_log(log)
    say("reading the model")
    source = read_source(model, options, shop)
    tasks = logged_tasks(source.graphs, shop.target, contents)
    found = replay_log(tasks, contents, shop.target, shop.versions, strict)
    say("planning")
    graph = best_graph(source.graphs, found.results, shop)
    plans = candidate_plans(graph, source.session, found.results, shop.target, shop.providers, shop.tools, source.plain(graph))
    measured = recall(contents, graph, plans, shop, strict)
    notes = (*contents.warnings, *source.notes, *found.notes)
    return _finish(plans, measured, found.results, None, notes, output, source)


def cross(
    model: Model,
    options: Options,
    output: Path,
    log: Path | None = None,
    say: Say = lambda text: None,
    trace: list[str] | None = None,
) -> Parts:
    """Compile for ``options.target`` without measuring, by what ``log`` and the shipped logs know of it and first guesses
    elsewhere; save the artifact. Nothing is run, so nothing is checked: that needs the target, or its emulator.

    Raises ModelError, UsageError, ToolchainError, StorageError, LogError.
    """
    shop = open_shop(options)
    _check_folder(output)
    results = known_results(shop, log)
    say("reading the model")
    meta: dict[str, object] = {"wpk": __version__, "measured": False}
    if options.precision == "fp32":
        graph = read_graph(model, options, trace, shop)
    else:
        source = read_source(model, options, shop, trace)
        assert source.precision is not None
        graph, meta["precision"] = source.graphs[0], source.precision.to_json()
    say("planning")
    parts = plan_model(graph, results, shop.target, shop.providers, shop.tools, meta)
    say("saving")
    save(parts, output)
    return parts


def _finish(
    plans: Mapping[str, Parts],
    measured: Mapping[str, Measurement],
    results: ResultTable,
    tuned: Tuned | None,
    notes: tuple[str, ...],
    output: Path | None,
    source: Source,
) -> Compiled:
    """Decide, save, and open a runner: from the file where there is one, for then the weights are mapped."""
    verdict = decide(measured)
    parts = plans[verdict.winner]
    choices = (
        parts.plan.choices if verdict.winner == OURS else tuple(_with_rivals(parts.plan.choices, results))
    )
    meta = {**(parts.plan.meta or {}), "wpk": __version__, "contract": verdict.to_json()}
    if source.precision is not None:
        meta["precision"] = source.precision.to_json()
    parts = replace(parts, plan=replace(parts.plan, choices=choices, meta=meta))
    if output is None:
        return Compiled(parts, open_runner(parts), measured, verdict, tuned, plans[OURS].plan, notes)
    save(parts, output)
    return Compiled(parts, load(output), measured, verdict, tuned, plans[OURS].plan, notes)


def _with_rivals(choices: Sequence[Choice], results: ResultTable) -> Iterator[Choice]:
    """The choices of a single library's plan, with the times of all other providers for comparison."""
    known = {w.key: results.best(w) for w in results.workloads()}
    for choice in choices:
        rows = [(name, m.time if m.ok else m.failure or "") for name, _, m in known.get(choice.workload, ())]
        yield replace(choice, rivals=tuple(r for r in rows if r[0] != choice.provider) or choice.rivals)


def save(parts: Parts, path: Path) -> None:
    """Write the artifact. Raises StorageError; the old file stays then."""
    artifact.save(path, parts.plan, parts.binaries, parts.weights, parts.models, parts.sources)


def _complaints(measured: Mapping[str, Measurement]) -> Iterator[str]:
    for name, m in measured.items():
        if not m.ok:
            yield f"the {name} plan was dropped: {m.detail or m.failure}"


def _check_folder(output: Path | None) -> None:
    """Fail before the work, not after it. Raises StorageError."""
    if output is not None and not output.parent.is_dir():
        raise StorageError(f"cannot write {output}: {output.parent} is no folder")
    if output is not None and output.is_dir():
        raise StorageError(f"cannot write {output}: it is a folder")


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value)
