"""Running a model side by side: wpk's Runner, ONNX Runtime and OpenVINO behind one call, timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from wpk.core.errors import UsageError
from wpk.measure.calm import Calm
from wpk.runtime.plan import Port

Feeds = Mapping[str, np.ndarray]

#: Thread pools of one engine spin for a while after a run and would take cores from the next one.
SETTLE = 0.05
#: Runs and seconds before the timed ones of a block: the other engines' weights have taken the caches, and a thread wakes beside
#: the one that woke it and is moved after milliseconds.
WARM_RUNS, WARM_SECONDS = 2, 0.02


@dataclass(frozen=True)
class Engine:
    """A named way to run one model: feeds → all outputs, in the model's order."""

    name: str
    run: Callable[[Feeds], list[np.ndarray]]


@dataclass(frozen=True)
class Timing:
    """Seconds of each timed run of one engine, all rounds together."""

    name: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.samples)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, high = np.percentile(self.samples, [25, 75])
        return float((high - low) / self.median)


def onnxruntime_engine(model: Path | bytes, threads: int) -> Engine:
    """ONNX Runtime on the CPU with its default optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return Engine("onnxruntime", lambda feeds: session.run(None, dict(feeds)))


def openvino_engine(model: Path | bytes, threads: int, shapes: Mapping[str, Sequence[int]]) -> Engine:
    """OpenVINO on the CPU in float32, for latency, with static ``shapes`` (input name → shape). Raises UsageError when absent."""
    try:
        import openvino as ov
    except ImportError:
        raise UsageError("openvino is not installed: pip install 'wpk[bench]'") from None
    read = ov.Core().read_model(model if isinstance(model, bytes) else str(model))
    read.reshape({name: list(shape) for name, shape in shapes.items()})
    compiled = ov.Core().compile_model(read, "CPU", {
        "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
    })  # fmt: skip
    request = compiled.create_infer_request()

    def run(feeds: Feeds) -> list[np.ndarray]:
        request.infer(dict(feeds))
        return [request.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    return Engine("openvino", run)


def runner_engine(runner: Any, name: str = "wpk") -> Engine:
    """A wpk Runner as an engine."""
    return Engine(name, lambda feeds: runner.run(None, dict(feeds)))


def rival_engine(name: str, model: Path | bytes, threads: int, inputs: Sequence[Port]) -> Engine:
    """The engine called ``name``. Raises UsageError, naming those there are, for another name."""
    if name == "onnxruntime":
        return onnxruntime_engine(model, threads)
    if name == "openvino":
        return openvino_engine(model, threads, {p.name: p.shape for p in inputs})
    raise UsageError(f"cannot compare against {name!r}: expected onnxruntime or openvino")


def in_turns(
    engines: Sequence[Engine], feeds: Feeds, rounds: int = 8, block: float = 0.2, settle: float = SETTLE, calm: Calm | None = None
) -> list[Timing]:
    """Time engines in turns: ``rounds`` times, each runs for about ``block`` seconds (five runs at least) after a pause.

    The order rotates from round to round, so no engine always runs after the same other one. ``calm``: waits until the
    machine is at its speed before each block.
    """
    calm = calm or Calm()
    samples: dict[str, list[float]] = {e.name: [] for e in engines}
    for turn in range(rounds):
        shift = turn % len(engines)
        for engine in (*engines[shift:], *engines[:shift]):
            time.sleep(settle)
            calm.settle()
            samples[engine.name] += _block(engine, feeds, block)
    return [Timing(e.name, tuple(samples[e.name])) for e in engines]


def _block(engine: Engine, feeds: Feeds, seconds: float) -> list[float]:
    begun, runs = time.perf_counter(), 0
    while runs < WARM_RUNS or time.perf_counter() - begun < min(WARM_SECONDS, seconds):
        engine.run(feeds)
        runs += 1
    taken: list[float] = []
    while len(taken) < 5 or sum(taken) < seconds:
        start = time.perf_counter()
        engine.run(feeds)
        taken.append(time.perf_counter() - start)
    return taken


def random_feeds(inputs: Sequence[Port], seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded inputs: standard normal floats, 0 or 1 for integers and booleans (safe as indices)."""
    rng = np.random.default_rng(seed)

    def one(port: Port) -> np.ndarray:
        if port.dtype.startswith(("float", "bfloat")):
            return rng.standard_normal(port.shape, np.float32).astype(port.dtype)
        return rng.integers(0, 2, port.shape).astype(port.dtype)

    return {p.name: one(p) for p in inputs}


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    """``|found - expected| / |expected|`` in float64; infinite where one is not finite and the other differs."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if a.shape != b.shape:
        return float("inf")
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if not (same | (np.isfinite(a) & np.isfinite(b))).all():
        return float("inf")
    norm = float(np.linalg.norm(b[np.isfinite(b)]))
    wrong = float(np.linalg.norm(a[~same] - b[~same]))
    return wrong / norm if norm else wrong
