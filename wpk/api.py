"""The whole way from an ONNX model to a Runner.

    load → optimize → tasks → tune (the budget) → plan → check → contract (never slower than a library) → artifact

:func:`compile` and :func:`replay` are the package's front; :func:`build` and :func:`rebuild` give all that is known besides.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

import numpy as np
import onnx

from wpk import __version__
from wpk.core.errors import LogError, ModelError, StorageError, UsageError
from wpk.core.result import Config, Measurement
from wpk.core.target import Target, host_target
from wpk.graph.graph import Graph
from wpk.graph.onnx_io import export_model, export_region, load_model
from wpk.measure.measurer import MeasureOptions, Measurer
from wpk.measure.toolchain import Compiler, find_compiler
from wpk.passes import default_pipeline, run_pipeline
from wpk.planner.contract import OURS, Verdict, candidate_plans, decide, measure_plans, model_workload
from wpk.planner.demand import unmeasured, wanted
from wpk.planner.emit import Tools
from wpk.planner.plan import make_tools
from wpk.providers.protocol import Provider
from wpk.providers.registry import providers as named_providers
from wpk.report.accuracy import output_errors
from wpk.report.engines import onnxruntime_engine, random_feeds
from wpk.runtime import artifact
from wpk.runtime.parts import Parts
from wpk.runtime.plan import Port
from wpk.runtime.runner import Runner, load
from wpk.settings import load_settings, parse_budget
from wpk.tuning.events import Observer
from wpk.tuning.experience import shipped
from wpk.tuning.log import Contents, TuningLog, read_log
from wpk.tuning.record import Record, Versions
from wpk.tuning.replay import replay as replay_log
from wpk.tuning.results import ResultTable
from wpk.tuning.tasks import Task, tasks_of
from wpk.tuning.tuner import Tuned, TuneOptions, tune, versions_of

Model = str | os.PathLike[str] | bytes | onnx.ModelProto
Say = Callable[[str], None]

#: Share of the budget for the layout conversions that the plan turns out to need.
_CONVERSIONS = 0.06
#: Candidates tried for each conversion.
_CONVERSION_TRIALS = 12
#: Rounds of asking which conversions the best plan needs and measuring them.
_ROUNDS = 4
#: Ops whose results no reference can predict.
_RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}


@dataclass(frozen=True)
class Options:
    """What a user can ask of a compile. ``budget``: seconds of wall clock for tuning. ``trials``: most candidates a task.

    ``providers``: names as in :mod:`wpk.providers.registry`, all that are installed for None. ``max_error``: relative L2 error
    of the whole model's outputs, before a last softmax. ``shapes`` and ``batch`` settle symbolic dimensions of inputs.
    """

    budget: float = 60.0
    strategy: str = "genetic"
    providers: tuple[str, ...] | None = None
    threads: int | None = None
    batch: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0
    trials: int = 200
    max_error: float = 1e-4

    def __post_init__(self) -> None:
        TuneOptions(strategy=self.strategy)  # raises UsageError for an unknown one
        if not self.max_error > 0:
            raise UsageError(f"max_error {self.max_error}: expected a positive number")


@dataclass(frozen=True)
class Compiled:
    """A compiled model and what is known of it.

    ``measured``: whole plans by name, as the contract saw them; ``tuned`` is None after a replay; ``notes`` are worth a user's
    attention.
    """

    parts: Parts
    runner: Runner
    measured: Mapping[str, Measurement]
    verdict: Verdict
    tuned: Tuned | None
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
    strategy: str = "genetic",
    providers: Sequence[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    trials: int = 200,
    max_error: float = 1e-4,
    observer: Observer | None = None,
) -> Runner:
    """The fastest correct program for ``model`` on this machine that tuning for ``budget`` finds, ready to run.

    ``model``: a path, serialized bytes or a ModelProto. With ``log``, measurements are appended to that file and those it holds
    are not made again. With ``output``, the artifact is saved there. Ctrl-C ends the tuning, not the compile.

    Raises ModelError, UsageError, ToolchainError, StorageError, LogError: all subclasses of WpkError.
    """
    options = Options(
        parse_budget(budget), strategy, None if providers is None else tuple(providers), threads, batch,
        {k: tuple(v) for k, v in (shapes or {}).items()}, seed, trials, max_error,
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
) -> Runner:
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
    tuned = tune_graph(source.graph, shop, records, options, observer)
    say("planning")
    plans = candidate_plans(
        source.graph, source.session, tuned.results, shop.target, shop.providers, shop.tools
    )
    say("checking and timing whole plans")
    measured = measure_plans(
        plans, source.feeds, source.expected, options.max_error, distance=source.distance
    )
    remember(records, source.graph, plans, measured, shop, options.seed)
    notes = (*records.warnings, *source.notes, *_complaints(measured))
    return _finish(plans, measured, tuned, notes, output)


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
    versions = shop.versions
    found = replay_log(
        _logged_tasks(source.graph, shop.target, contents), contents, shop.target, versions, strict
    )
    say("planning")
    plans = candidate_plans(
        source.graph, source.session, found.results, shop.target, shop.providers, shop.tools
    )
    measured = recall(contents, source.graph, plans, shop, strict)
    notes = (*contents.warnings, *source.notes, *found.notes)
    return _finish(plans, measured, None, notes, output)


@dataclass(frozen=True)
class Shop:
    """What compiling needs from this machine."""

    target: Target
    compiler: Compiler
    cache: Path
    providers: tuple[Provider, ...]
    tools: Tools

    @property
    def versions(self) -> Versions:
        """What records of the tuning log must agree with."""
        return versions_of(self.providers, self.compiler.version, __version__)


def open_shop(options: Options) -> Shop:
    """Find compiler, cache and providers. Raises ToolchainError, StorageError, UsageError."""
    settings = load_settings()
    providers = named_providers(options.providers)
    target = host_target(options.threads or settings.threads)
    compiler = find_compiler(settings.cc)
    return Shop(
        target,
        compiler,
        settings.cache,
        providers,
        make_tools(target, compiler, settings.cache, export_region),
    )


@dataclass(frozen=True)
class Source:
    """The model in its forms: the optimized graph to compile, and the one for ONNX Runtime (``session``), with what that gives.

    ``expected`` are its outputs on ``feeds``; ``random`` when no reference can predict them.
    """

    graph: Graph
    session: bytes
    feeds: Mapping[str, np.ndarray]
    expected: Sequence[np.ndarray]
    random: bool

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the model."""
        return ("the model draws random numbers: its outputs were not checked",) if self.random else ()

    def distance(self, found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
        """The largest relative L2 error over the outputs; 0 for a model that draws random numbers."""
        return 0.0 if self.random else max(output_errors(self.graph, found, expected), default=0.0)


def read_source(model: Model, options: Options, shop: Shop, trace: list[str] | None = None) -> Source:
    """Load, optimize, and run the reference. Raises ModelError for a model that is wrong or that ONNX Runtime cannot run."""
    with _as_file(model) as path:
        raw = load_model(path, options.shapes, options.batch)
        session = _session_model(path, raw, changed=bool(options.shapes) or options.batch is not None)
        name = path.name if isinstance(model, str | os.PathLike) else raw.name
    graph = run_pipeline(raw, default_pipeline(), trace)
    ports = [Port(v, raw.types[v].dtype, raw.types[v].shape) for v in raw.inputs]
    feeds = random_feeds(ports, options.seed)
    try:
        expected = onnxruntime_engine(session, shop.target.threads).run(feeds)
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise ModelError(f"{name}: ONNX Runtime cannot run it: {error}") from error
    return Source(graph, session, feeds, expected, any(_draws(n.op, dict(n.attrs)) for n in raw.nodes))


def tune_graph(
    graph: Graph, shop: Shop, log: TuningLog, options: Options, observer: Observer | None = None
) -> Tuned:
    """Tune all that the planner may choose from, then what its choice rests on; the log is sealed at the end."""
    start = monotonic()
    tasks = tasks_of(wanted(graph, shop.target))
    everything = list(tasks)
    asked = TuneOptions(options.budget * (1 - _CONVERSIONS), options.trials, options.strategy, options.seed)
    how = MeasureOptions(seed=options.seed)
    with Measurer(shop.target, shop.cache, shop.compiler, options=how) as measurer:
        tuned = tune(tasks, shop.providers, measurer, log, shop.versions, asked, observer, shipped())
        for _ in range(_ROUNDS):
            more = _still_open(graph, shop, tuned.results, everything)
            left = options.budget - (monotonic() - start)
            if not more or left <= 0 or tuned.why == "interrupted":
                break
            everything += more
            few = replace(asked, budget=left, trials=_CONVERSION_TRIALS)
            tuned = _joined(tuned, tune(more, shop.providers, measurer, log, shop.versions, few, None))
    log.seal(t.workload for t in everything)
    return tuned


def _still_open(graph: Graph, shop: Shop, results: ResultTable, known: Sequence[Task]) -> list[Task]:
    done = {t.workload for t in known}
    return [
        t for t in tasks_of(unmeasured(graph, results, shop.target, shop.providers)) if t.workload not in done
    ]


def _joined(first: Tuned, second: Tuned) -> Tuned:
    for workload in second.results.workloads():
        for record in second.results.records(workload):
            first.results.add(record)
    return Tuned(first.results, first.measured + second.measured, first.reused + second.reused, first.why)


def remember(
    log: TuningLog,
    graph: Graph,
    plans: Mapping[str, Parts],
    measured: Mapping[str, Measurement],
    shop: Shop,
    seed: int,
) -> None:
    """Append the measurements of whole plans to the log, so that a replay decides as this compile did."""
    workload, versions = model_workload(graph), plan_versions(shop.providers)
    for name, measurement in measured.items():
        config: Config = {"plan": plans[name].plan.hash, "rival": plans[OURS].plan.hash}
        log.append(Record(
            workload, f"plan:{name}", versions[f"plan:{name}"], config, shop.target.fingerprint, "", __version__, seed,
            measurement, "final",
        ))  # fmt: skip


def recall(
    contents: Contents, graph: Graph, plans: Mapping[str, Parts], shop: Shop, strict: bool
) -> dict[str, Measurement]:
    """The newest measurements of exactly these plans; with ``strict``, raises LogError when there are none."""
    workload, ours = model_workload(graph), plans[OURS].plan.hash
    found: dict[str, Measurement] = {}
    for record in contents.records:
        name = record.provider.removeprefix("plan:")
        same = record.workload == workload and name in plans and record.config["rival"] == ours
        if same and record.provider_version == plan_versions(shop.providers)[record.provider]:
            found[name] = record.measurement
    if OURS in found:
        return found
    if strict:
        raise LogError(
            f"task model {graph.name}: the log has no measurement of the plan {ours} that its other entries give"
        )
    return {OURS: Measurement((1.0,), detail="not measured")}


def plan_versions(providers: Sequence[Provider]) -> dict[str, str]:
    """The versions of whole plans, as the log names them: a library's plan has its version, ours that of wpk."""
    return {f"plan:{OURS}": __version__, **{f"plan:{p.name}": p.version for p in providers}}


def _finish(
    plans: Mapping[str, Parts], measured: Mapping[str, Measurement], tuned: Tuned | None, notes: tuple[str, ...],
    output: Path | None,
) -> Compiled:  # fmt: skip
    """Decide, save, and open a runner: from the file where there is one, for then the weights are mapped."""
    verdict = decide(measured)
    parts = plans[verdict.winner]
    parts = replace(
        parts, plan=replace(parts.plan, meta={**(parts.plan.meta or {}), "contract": verdict.to_json()})
    )
    if output is None:
        return Compiled(parts, Runner(parts), measured, verdict, tuned, notes)
    save(parts, output)
    return Compiled(parts, load(output), measured, verdict, tuned, notes)


def save(parts: Parts, path: Path) -> None:
    """Write the artifact. Raises StorageError; the old file stays then."""
    artifact.save(path, parts.plan, parts.binaries, parts.weights, parts.models, parts.sources)


def _complaints(measured: Mapping[str, Measurement]) -> Iterator[str]:
    for name, m in measured.items():
        if not m.ok:
            yield f"the {name} plan was dropped: {m.detail or m.failure}"


def _logged_tasks(graph: Graph, target: Target, contents: Contents) -> list[Task]:
    """The tasks of a graph, and the conversions that the log has."""
    tasks = tasks_of(wanted(graph, target))
    known = {t.workload for t in tasks}
    return [*tasks, *(Task(w) for w in contents.workloads.values() if w.op == "convert" and w not in known)]


def _session_model(path: Path, graph: Graph, changed: bool) -> bytes:
    """The model for a session made from bytes: the file itself, unless shapes changed or its weights lie elsewhere."""
    if not changed and not any(
        p.external_data for p in onnx.load(str(path), load_external_data=False).graph.initializer
    ):
        return path.read_bytes()
    return export_model(graph)


def _draws(op: str, attrs: Mapping[str, object]) -> bool:
    return op in ("onnx", "region") and attrs.get("onnx_op") in _RANDOM


@contextmanager
def _as_file(model: Model) -> Iterator[Path]:
    if isinstance(model, str | os.PathLike):
        yield Path(model)
        return
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with tempfile.TemporaryDirectory(prefix="wpk-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(data)
        yield path


def _check_folder(output: Path | None) -> None:
    """Fail before the work, not after it. Raises StorageError."""
    if output is not None and not output.parent.is_dir():
        raise StorageError(f"cannot write {output}: {output.parent} is no folder")
    if output is not None and output.is_dir():
        raise StorageError(f"cannot write {output}: it is a folder")


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value)
