"""The stages of a compile, each a function: what is at hand → the model's forms → tuning → the log's memory of whole plans."""

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
from wpk.core.errors import LogError, ModelError, UsageError
from wpk.core.result import Config, Measurement
from wpk.core.target import Target, host_target
from wpk.core.workload import Workload
from wpk.cuda import nvrtc
from wpk.fleet.bench import facts_of
from wpk.fleet.client import Fleet, FleetOptions
from wpk.fleet.security import Tls
from wpk.graph.graph import Graph
from wpk.graph.onnx_io import export_model, export_region, load_model
from wpk.measure.builder import build_runtime
from wpk.measure.measurer import MeasureOptions, Measurer, cpu_measurer, cuda_measurer
from wpk.measure.toolchain import Compiler, find_compiler
from wpk.ops import work
from wpk.passes import default_pipeline, run_pipeline
from wpk.planner.candidates import MOVES, Catalogue
from wpk.planner.choose import choose
from wpk.planner.contract import OURS, model_workload
from wpk.planner.demand import unmeasured, wanted
from wpk.planner.emit import Tools
from wpk.planner.layouts import workload_layouts
from wpk.planner.plan import make_cuda_tools, make_tools
from wpk.planner.precision import MAX_ERROR, Precision, check_precision, choose_precision
from wpk.providers.protocol import Provider
from wpk.providers.registry import providers as named_providers
from wpk.report.accuracy import output_errors
from wpk.report.engines import onnxruntime_engine, random_feeds
from wpk.report.peaks import gpu_peaks, peaks
from wpk.runtime.cuda.driver import open_device
from wpk.runtime.parts import Parts
from wpk.runtime.plan import Port
from wpk.search.prior import ScreenOptions
from wpk.search.rl import RlOptions
from wpk.settings import gpu_target, known_gpu, load_settings
from wpk.tuning.events import Observer
from wpk.tuning.experience import shipped, shipped_logs
from wpk.tuning.log import Contents, TuningLog, read_log
from wpk.tuning.record import Record, Versions, stale_reason
from wpk.tuning.replay import replay
from wpk.tuning.results import ResultTable
from wpk.tuning.tasks import Task, tasks_of
from wpk.tuning.tuner import Tuned, TuneOptions, tune, versions_of

Model = str | os.PathLike[str] | bytes | onnx.ModelProto

#: Share of the budget for the layout conversions that the plan turns out to need.
_CONVERSIONS = 0.06
#: Configs of a library that are measured for a task: oneDNN has a handful of layouts, cuDNN tens of engines; on a CPU, on a GPU.
_LIBRARY_CONFIGS = (6, 12)
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
    ``cluster``: the address of a Dask scheduler whose workers measure, None for this machine; ``tls``: files for its connections.
    ``rl``: hyper-parameters of the strategies ``rl`` and ``auto``. ``target``: ``cpu`` (this machine), ``cuda`` (its GPU), or a
    GPU that is not here by its compute capability, such as ``cuda:sm_90a``. ``precision``: fp32 (strict),
    or tf32, fp16, bf16 for as many nodes as ``max_error`` allows; ``max_error`` of None: what is usual for the precision.
    ``screen``: how kernels are looked at before they are built, None for not at all.
    """

    budget: float = 60.0
    strategy: str = "auto"
    providers: tuple[str, ...] | None = None
    threads: int | None = None
    batch: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0
    trials: int = 200
    max_error: float | None = None
    cluster: str | None = None
    tls: Tls = field(default_factory=Tls)
    rl: RlOptions | None = None
    target: str = "cpu"
    precision: str = "fp32"
    screen: ScreenOptions | None = field(default_factory=ScreenOptions)

    def __post_init__(self) -> None:
        TuneOptions(strategy=self.strategy)  # raises UsageError for an unknown one
        check_precision(self.precision)
        if self.max_error is not None and not self.max_error > 0:
            raise UsageError(f"max_error {self.max_error}: expected a positive number")
        if self.precision != "fp32" and not self.target.startswith("cuda"):
            raise UsageError(f"precision {self.precision}: kernels for CPUs compute in fp32 only")

    @property
    def limit(self) -> float:
        """The relative L2 error allowed to the whole model."""
        return MAX_ERROR[self.precision] if self.max_error is None else self.max_error


@dataclass(frozen=True)
class Shop:
    """What compiling needs from this machine. ``compiler`` is that for C, None where the target is a GPU."""

    target: Target
    compiler: Compiler | None
    cache: Path
    providers: tuple[Provider, ...]
    tools: Tools

    @property
    def versions(self) -> Versions:
        """What records of the tuning log must agree with."""
        compiler = f"nvrtc {nvrtc.version()}" if self.compiler is None else self.compiler.version
        return versions_of(self.providers, compiler, __version__)


def open_shop(options: Options) -> Shop:
    """Find compiler, cache and providers. Raises ToolchainError, StorageError, UsageError, DeviceError."""
    settings = load_settings()
    target = find_target(options.target, options.threads or settings.threads)
    providers = named_providers(options.providers, target)
    if target.gpu is not None:
        return Shop(target, None, settings.cache, providers, make_cuda_tools(target, settings.cache, export_region))
    compiler = find_compiler(settings.cc)
    return Shop(
        target,
        compiler,
        settings.cache,
        providers,
        make_tools(target, compiler, settings.cache, export_region),
    )


def find_target(name: str, threads: int | None = None) -> Target:
    """The target that a user names: ``cpu``, ``cuda``, ``cuda:<compute capability>``. Raises UsageError, DeviceError."""
    kind, _, capability = name.partition(":")
    if kind == "cuda" and capability:
        return gpu_target(capability)
    if name == "cuda":
        return known_gpu(open_device().target)
    if name == "cpu":
        return host_target(threads)
    raise UsageError(f"target {name!r}: expected cpu, cuda, or cuda with a compute capability such as cuda:sm_90a")


@dataclass(frozen=True)
class Source:
    """The model in its forms: optimized graphs to choose from, and the one for ONNX Runtime (``session``), with what that gives.

    ``expected`` are its outputs on ``feeds``; ``random`` when no reference can predict them.
    """

    graphs: tuple[Graph, ...]
    session: bytes
    feeds: Mapping[str, np.ndarray]
    expected: Sequence[np.ndarray]
    random: bool
    precision: Precision | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the model."""
        return ("the model draws random numbers: its outputs were not checked",) if self.random else ()

    def plain(self, graph: Graph) -> Graph:
        """A form without attentions, which libraries lack: ``graph`` itself if it has none, or if there is no other."""
        return next((g for g in (graph, *self.graphs) if all(n.op != "attention" for n in g.nodes)), graph)

    def distance(self, found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
        """The largest relative L2 error over the outputs; 0 for a model that draws random numbers."""
        return 0.0 if self.random else max(output_errors(self.graphs[0], found, expected), default=0.0)


def read_source(model: Model, options: Options, shop: Shop, trace: list[str] | None = None) -> Source:
    """Load, optimize, and run the reference. Raises ModelError for a model that is wrong or that ONNX Runtime cannot run."""
    with _as_file(model) as path:
        raw = load_model(path, options.shapes, options.batch)
        session = _session_model(path, raw, changed=bool(options.shapes) or options.batch is not None)
        name = path.name if isinstance(model, str | os.PathLike) else raw.name
    graphs = graph_forms(raw, shop, trace)
    ports = [Port(v, raw.types[v].dtype, raw.types[v].shape) for v in raw.inputs]
    feeds = random_feeds(ports, options.seed)
    try:
        expected = onnxruntime_engine(session, shop.target.threads).run(feeds)
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise ModelError(f"{name}: ONNX Runtime cannot run it: {error}") from error
    source = Source(graphs, session, feeds, expected, any(_draws(n.op, dict(n.attrs)) for n in raw.nodes))
    return source if options.precision == "fp32" else _lowered(source, options, shop)


def graph_forms(raw: Graph, shop: Shop, trace: list[str] | None) -> tuple[Graph, ...]:
    """The graph with every fusion that always pays and attentions where they fit; and with others, or without these."""
    fits = supported_by(shop)
    forms = [first_form(raw, shop, trace), run_pipeline(raw, default_pipeline(True, fits))]
    if any(n.op == "attention" for n in forms[0].nodes):
        forms.append(run_pipeline(raw, default_pipeline()))
    return tuple(g for i, g in enumerate(forms) if i == 0 or len(g.nodes) != len(forms[0].nodes))


def first_form(raw: Graph, shop: Shop, trace: list[str] | None) -> Graph:
    """The graph for a target where nothing is measured. A GPU has room for the wider products in front of attentions."""
    return run_pipeline(raw, default_pipeline(False, supported_by(shop), shop.target.gpu is not None), trace)


def _lowered(source: Source, options: Options, shop: Shop) -> Source:
    """The model's first form in lower precision; horizontal fusion would change which nodes there are to choose among."""
    feeds, expected = source.feeds, source.expected

    graph = source.graphs[0]
    supports = supported_by(shop)
    chosen = choose_precision(graph, options.precision, options.limit, feeds, expected, source.distance, supports)
    return replace(source, graphs=(chosen.graph,), precision=chosen)


def supported_by(shop: Shop) -> Callable[[Workload], bool]:
    """Tells whether some provider makes a workload in some layout; what offsets do needs none."""

    def supports(workload: Workload) -> bool:
        forms = _in_each_layout(workload, shop.target)
        return workload.op in MOVES or any(p.supports(w, shop.target) for w in forms for p in shop.providers)

    return supports


def _in_each_layout(workload: Workload, target: Target) -> Iterator[Workload]:
    for found in workload_layouts(workload, target):
        inputs = tuple(t.with_layout(x) for t, x in zip(workload.inputs, found.inputs, strict=True))
        outputs = tuple(t.with_layout(x) for t, x in zip(workload.outputs, found.outputs, strict=True))
        yield replace(workload, inputs=inputs, outputs=outputs)


def read_graph(model: Model, options: Options, trace: list[str] | None = None, shop: Shop | None = None) -> Graph:
    """Load and optimize, and no more: for a target that is not here, or for any. Raises ModelError."""
    with _as_file(model) as path:
        raw = load_model(path, options.shapes, options.batch)
    return run_pipeline(raw, default_pipeline(), trace) if shop is None else first_form(raw, shop, trace)


def known_results(shop: Shop, log: Path | None = None) -> ResultTable:
    """What ``log`` and the shipped logs have that was measured on such a target and still counts. Raises LogError."""
    contents = [*shipped_logs(), *([] if log is None else [read_log(log)])]
    records = (r for c in contents for r in c.records)
    return ResultTable(r for r in records if stale_reason(r, shop.target, shop.versions) is None)


def tune_graphs(
    graphs: Sequence[Graph], shop: Shop, log: TuningLog, options: Options, observer: Observer | None = None
) -> tuple[Tuned, list[Task]]:
    """Tune all that the planner may choose from, then what its choice rests on. Gives the tasks too."""
    start = monotonic()
    tasks = graph_tasks(graphs, shop.target)
    everything = list(tasks)
    asked = TuneOptions(
        options.budget * (1 - _CONVERSIONS), options.trials, options.strategy, options.seed, rl=options.rl,
        screen=options.screen, library_configs=_LIBRARY_CONFIGS[shop.target.arch == "cuda"],
    )
    roofs = roofs_of(tasks, shop) if options.cluster is None else {}
    with open_measurer(shop, options) as measurer:
        tuned = tune(tasks, shop.providers, measurer, log, shop.versions, asked, observer, shipped(), roofs=roofs)
        for _ in range(_ROUNDS):
            more = _still_open(graphs, shop, tuned.results, everything)
            left = options.budget - (monotonic() - start)
            if not more or left <= 0 or tuned.why == "interrupted":
                break
            everything += more
            few = replace(asked, budget=left, trials=_CONVERSION_TRIALS)
            tuned = _joined(tuned, tune(more, shop.providers, measurer, log, shop.versions, few, None))
    return tuned, everything


def open_measurer(shop: Shop, options: Options) -> Measurer | Fleet:
    """What measures: this machine, or a cluster's workers that are like it. Raises FleetError, ToolchainError, StorageError."""
    if shop.compiler is None:
        if options.cluster is not None:
            raise UsageError("--cluster: fleets measure on CPUs only")
        return cuda_measurer(shop.target, shop.cache, seed=options.seed)
    if options.cluster is None:
        return cpu_measurer(shop.target, shop.cache, shop.compiler, options=MeasureOptions(seed=options.seed))
    facts = facts_of(shop.target, shop.compiler, shop.providers)
    return Fleet(options.cluster, shop.target, facts, FleetOptions(options.tls))


def roofs_of(tasks: Sequence[Task], shop: Shop) -> dict[str, float]:
    """The least seconds this machine can take for each task, by workload key: work over peaks. Raises StorageError."""
    works = {t.workload.key: work(t.workload) for t in tasks}
    if shop.compiler is None:
        peak = gpu_peaks(shop.target)
    else:
        peak = peaks(build_runtime(shop.target.isa, shop.compiler, shop.cache), shop.target, shop.cache)
    return {key: peak.floor(w.flops, w.nbytes) for key, w in works.items()}


def graph_tasks(graphs: Sequence[Graph], target: Target) -> list[Task]:
    """The tasks of all graphs together."""
    return tasks_of(pair for graph in graphs for pair in wanted(graph, target))


def _still_open(
    graphs: Sequence[Graph], shop: Shop, results: ResultTable, known: Sequence[Task]
) -> list[Task]:
    done = {t.workload for t in known}
    found = tasks_of(p for graph in graphs for p in unmeasured(graph, results, shop.target, shop.providers))
    return [t for t in found if t.workload not in done]


def best_graph(graphs: Sequence[Graph], results: ResultTable, shop: Shop) -> Graph:
    """The graph whose best choices take least time, by the results; the first of equals."""
    if len(graphs) == 1:
        return graphs[0]
    catalogue = Catalogue(shop.providers, results, shop.target)
    return min(graphs, key=lambda graph: choose(graph, catalogue).seconds)


def _joined(first: Tuned, second: Tuned) -> Tuned:
    for workload in second.results.workloads():
        for record in second.results.records(workload):
            first.results.add(record)
    measured, reused = first.measured + second.measured, first.reused + second.reused
    return Tuned(first.results, measured, reused, first.why, first.searching + second.searching)


def remember(
    log: TuningLog,
    graph: Graph,
    plans: Mapping[str, Parts],
    measured: Mapping[str, Measurement],
    shop: Shop,
    seed: int,
) -> Workload:
    """Append the measurements of whole plans to the log, so that a replay decides as this compile did."""
    workload, versions = model_workload(graph), plan_versions(shop.providers)
    for name, measurement in measured.items():
        config: Config = {"plan": plans[name].plan.hash, "rival": plans[OURS].plan.hash}
        log.append(Record(
            workload, f"plan:{name}", versions[f"plan:{name}"], config, shop.target.fingerprint, "", __version__, seed,
            measurement, "final",
        ))  # fmt: skip
    return workload


def recall(
    contents: Contents, graph: Graph, plans: Mapping[str, Parts], shop: Shop, strict: bool
) -> dict[str, Measurement]:
    """The newest measurements of exactly these plans; with ``strict``, raises LogError when some are missing or stale."""
    task, versions = Task(model_workload(graph), (graph.name,)), Versions("", plan_versions(shop.providers))
    replay([task], contents, shop.target, versions, strict)
    found: dict[str, Measurement] = {}
    for record in contents.records:
        name = record.provider.removeprefix("plan:")
        same = record.workload == task.workload and record.config["rival"] == plans[OURS].plan.hash
        if same and name in plans and stale_reason(record, shop.target, versions) is None:
            found[name] = record.measurement
    if OURS in found:
        return found
    if strict:
        given = plans[OURS].plan.hash
        raise LogError(f"task {task.name}: the log has no measurement of the plan {given} that its other entries give")
    return {OURS: Measurement((1.0,), detail="not measured")}


def plan_versions(providers: Sequence[Provider]) -> dict[str, str]:
    """The versions of whole plans, as the log names them: a library's plan has its version, ours that of wpk."""
    return {f"plan:{OURS}": __version__, **{f"plan:{p.name}": p.version for p in providers}}


def logged_tasks(graphs: Sequence[Graph], target: Target, contents: Contents) -> list[Task]:
    """The tasks of the graphs, and the conversions that the log has."""
    tasks = graph_tasks(graphs, target)
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
