"""Never slower than the best single library: whole plans are checked, timed in turns, and ours is taken only if it wins.

The measurements are ordinary data: kept in the tuning log under :func:`model_workload`, they give the same decision in a
replay, which measures nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep

import numpy as np

from wpk.core.errors import ModelError, WpkError
from wpk.core.result import Config, Measurement
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.graph.graph import Graph
from wpk.measure.calm import Calm
from wpk.measure.check import relative_error
from wpk.planner.candidates import ResultTable
from wpk.planner.emit import Tools
from wpk.planner.plan import plan_model, session_plan
from wpk.providers.protocol import Provider
from wpk.runtime.cuda.runner import CudaRunner
from wpk.runtime.parts import Parts
from wpk.runtime.runner import Runner, open_runner

#: Found and expected outputs → error.
Distance = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], float]

#: The plan of all providers together; every other plan is of a single library.
OURS = "tuned"

#: Libraries for GPUs.
VENDOR = frozenset(("cudnn", "cublaslt"))

_RESAMPLES = 400
#: Seconds between the runs of two plans.
_SETTLE = 0.02
#: Seconds of running before a run is timed: a thread wakes beside the one that woke it, and is moved after milliseconds.
_WARM = 0.02


@dataclass(frozen=True)
class TimingOptions:
    """At least ``rounds`` rounds of one run of each plan, more until ``seconds`` are over, at most ``most``.

    While it is open whether ours wins, up to ``patience`` seconds.
    """

    rounds: int = 11
    most: int = 201
    seconds: float = 3.0
    patience: float = 9.0


@dataclass(frozen=True)
class Verdict:
    """The plan to take, why, and the median seconds or the failure of each."""

    winner: str
    reason: str
    times: tuple[tuple[str, float | str], ...]

    def to_json(self) -> dict[str, object]:
        """Plain JSON data, for the plan's ``meta``."""
        return {"winner": self.winner, "reason": self.reason, "times": [list(t) for t in self.times]}


def candidate_plans(
    graph: Graph,
    model: bytes,
    results: ResultTable | None,
    target: Target,
    providers: Sequence[Provider],
    tools: Tools,
    plain: Graph | None = None,
) -> dict[str, Parts]:
    """Ours, and a plan of each library among ``providers``; plans equal to an earlier one are left out.

    ``model`` is the model as ONNX Runtime is to run it; ``plain`` the graph in operators that libraries have, if it
    is another. What oneDNN lacks runs in ONNX Runtime in its plan too. On a GPU no library has all operators: there the plan of
    NVIDIA's libraries takes them wherever they can, generated code elsewhere.
    """
    plans = {OURS: plan_model(graph, results, target, providers, tools)}
    by_name = {p.name: p for p in providers}
    if results is not None and by_name.keys() & VENDOR:
        plans["libraries"] = plan_model(graph, LibrariesFirst(results), target, providers, tools)
    if "onnxruntime" in by_name:
        plans["onnxruntime"] = session_plan(graph, model, target, tools)
    if "onednn" in by_name:
        plans["onednn"] = plan_model(plain or graph, results, target, [by_name["onednn"]], tools)
    return {
        n: p for i, (n, p) in enumerate(plans.items()) if _hash(p) not in map(_hash, list(plans.values())[:i])
    }


@dataclass(frozen=True)
class LibrariesFirst:
    """Results in which generated code is known only where no library was measured and right."""

    results: ResultTable

    def best(self, workload: Workload) -> Sequence[tuple[str, Config, Measurement]]:
        """See :class:`wpk.planner.candidates.ResultTable`."""
        rows = self.results.best(workload)
        libraries = [r for r in rows if r[0] in VENDOR and r[2].ok]
        return libraries or rows


def model_workload(graph: Graph) -> Workload:
    """The whole model as a workload: what measurements of whole plans are kept under."""
    text = "\n".join(
        f"{graph.workload(n).key} {','.join(n.inputs)} {','.join(n.outputs)}" for n in graph.nodes
    )
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    inputs, outputs = (tuple(graph.types[v] for v in values) for values in (graph.inputs, graph.outputs))
    return Workload("model", inputs, outputs, (("digest", digest), ("name", graph.name)))


def measure_plans(
    plans: Mapping[str, Parts],
    feeds: Mapping[str, np.ndarray],
    expected: Sequence[np.ndarray],
    max_error: float,
    options: TimingOptions | None = None,
    distance: Distance | None = None,
) -> dict[str, Measurement]:
    """Each plan's error against ``expected`` (all outputs in order) and its times, sample i of each from the same round.

    ``distance``: how far outputs are from the expected ones; by default the largest relative L2 error. A plan that fails, or
    whose error exceeds ``max_error``, is a failure, not an exception.
    """
    failed: dict[str, Measurement] = {}
    runners: dict[str, Runner | CudaRunner] = {}
    errors: dict[str, float] = {}
    with ExitStack() as stack:
        for name, parts in plans.items():
            try:
                runner = open_runner(parts)
                stack.callback(runner.close)
                errors[name] = (distance or _error)(runner.run(None, feeds), expected)
            except WpkError as error:
                failed[name] = Measurement(failure="launch", detail=str(error))
                continue
            if not errors[name] <= max_error:
                detail = f"relative error {errors[name]:.2e}, allowed {max_error:.1e}"
                failed[name] = Measurement(
                    failure="wrong", detail=detail, error=errors[name], tolerance=max_error
                )
                continue
            runners[name] = runner
        samples = _interleaved(runners, feeds, options or TimingOptions())
    right = {n: Measurement(tuple(s), error=errors[n], tolerance=max_error) for n, s in samples.items()}
    return {n: right[n] if n in right else failed[n] for n in plans}


def decide(measured: Mapping[str, Measurement]) -> Verdict:
    """Ours if it beats the fastest single-library plan beyond noise, or if there is none; else that plan.

    Raises ModelError when no plan ran and was right. A pure function of the measurements.
    """
    times = tuple(
        (n, m.time if m.ok else (m.detail or m.failure or "not measured")) for n, m in measured.items()
    )
    right = {n: m for n, m in measured.items() if m.ok}
    libraries = {n: m for n, m in right.items() if n != OURS}
    if not right:
        raise ModelError("no plan of the model is right: " + "; ".join(f"{n}: {t}" for n, t in times))
    if not libraries:
        return Verdict(OURS, "no single library computes the model", times)
    rival = min(libraries, key=lambda n: (libraries[n].time, n))
    if OURS not in right:
        return Verdict(rival, f"the tuned plan failed: {dict(times).get(OURS, 'it is the same')}", times)
    ratio, low, high = compare(right[OURS].samples, right[rival].samples)
    said = f"tuned takes {ratio:.3f} of {rival}'s time (interval {low:.3f}–{high:.3f})"
    if high < 1.0:
        return Verdict(OURS, said, times)
    return Verdict(rival, f"{said}: no win beyond noise", times)


def compare(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of our time to theirs, and its 95% interval.

    Times are lower quartiles: what else runs on the machine only ever adds. The interval is a bootstrap over rounds, whose
    samples belong together, so that a drift of the machine meets both. Deterministic.
    """
    pairs = np.array(list(zip(ours, theirs, strict=False)))
    rounds = np.random.default_rng(0).integers(0, len(pairs), (_RESAMPLES, len(pairs)))
    quartiles = np.quantile(pairs[rounds], 0.25, axis=1)
    low, high = np.quantile(quartiles[:, 0] / quartiles[:, 1], (0.025, 0.975))
    whole = np.quantile(pairs, 0.25, axis=0)
    return float(whole[0] / whole[1]), float(low), float(high)


def _interleaved(
    runners: Mapping[str, Runner | CudaRunner], feeds: Mapping[str, np.ndarray], options: TimingOptions
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {n: [] for n in runners}
    calm = {n: Calm(r.speed) for n, r in runners.items()}  # each by its own threads: a shared probe would wake only one's
    start, count = perf_counter(), 0
    while runners and not _enough(samples, count, perf_counter() - start, options):
        # Both directions in turn, so that no plan always follows the same other one.
        for name in list(runners)[:: 1 if count % 2 else -1]:
            samples[name].append(_timed(runners[name], feeds, calm[name]))
        count += 1
    return samples


def _enough(samples: Mapping[str, list[float]], count: int, seconds: float, options: TimingOptions) -> bool:
    if count >= options.most:
        return True
    if count < options.rounds or seconds < options.seconds:
        return False
    return seconds >= options.patience or not _open(samples)


def _open(samples: Mapping[str, list[float]]) -> bool:
    """True while 1 lies in the interval of ours against the fastest other."""
    others = [s for n, s in samples.items() if n != OURS]
    if OURS not in samples or not others:
        return False
    _, low, high = compare(samples[OURS], min(others, key=median))
    return low <= 1.0 <= high


def _timed(runner: Runner | CudaRunner, feeds: Mapping[str, np.ndarray], calm: Calm) -> float:
    """Seconds of a run with the machine at its speed. On a GPU its own clock counts.

    Before it a pause: the threads of another plan's session spin for a while after its run.
    """
    if isinstance(runner, CudaRunner):
        return min(runner.seconds(feeds) for _ in range(3))
    sleep(_SETTLE)
    return calm.timed(lambda: _faster_of_two(runner, feeds), float)


def _faster_of_two(runner: Runner, feeds: Mapping[str, np.ndarray]) -> float:
    """After runs that wake threads, let the system move them apart, and bring the plan's data back into the cache."""
    begun = perf_counter()
    runner.run(None, feeds)
    while perf_counter() - begun < _WARM:
        runner.run(None, feeds)
    seconds = []
    for _ in range(2):
        start = perf_counter()
        runner.run(None, feeds)
        seconds.append(perf_counter() - start)
    return min(seconds)


def _error(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    return max((relative_error(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)


def _hash(parts: Parts) -> str:
    return parts.plan.hash
