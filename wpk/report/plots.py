"""Pictures of tuning logs: how fast searches got good, where in the space they looked, how well a cost model knew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wpk.core.errors import StorageError, UsageError

Floats = NDArray[np.float64]
#: The times of one search of one task, in the order measured: seconds, infinity for a failure.
Run = Sequence[float]

#: Colour-blind safe (Okabe and Ito), then by line style.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")
#: Values of a knob that a picture has room for.
_VALUES = 14


@dataclass(frozen=True)
class Curve:
    """One series: the runs that it summarizes, each with the best time known of its task."""

    name: str
    runs: tuple[tuple[Run, float], ...]


@dataclass(frozen=True)
class Coverage:
    """Where a search looked: for each knob its values, and of each value how often it was tried and its best time (seconds)."""

    title: str
    knobs: Mapping[str, Sequence[tuple[str, int, float]]]
    tried: int
    of: str


@dataclass(frozen=True)
class Calibration:
    """Predicted and measured seconds of the same candidates."""

    predicted: Sequence[float]
    measured: Sequence[float]
    title: str


def draw(path: Path, curves: Sequence[Curve], coverage: Coverage | None = None, calibration: Calibration | None = None) -> None:
    """Write a picture, PNG or SVG by the name's ending. Raises UsageError for another ending, StorageError."""
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"{path}: expected a name that ends in .png or .svg")
    import matplotlib
    from matplotlib.figure import Figure

    parts = [p for p in (curves, coverage, calibration) if p]
    with matplotlib.rc_context({"svg.hashsalt": "wpk", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        rows = len(coverage.knobs) if coverage else 0
        figure: Any = Figure(figsize=(6.8 * len(parts) + 0.4, max(5.0, 1.4 + 0.36 * rows)), layout="constrained")
        axes = iter(np.atleast_1d(figure.subplots(1, len(parts), width_ratios=[1.0] * len(parts))))
        if curves:
            _curves(next(axes), curves)
        if coverage is not None:
            _coverage(figure, next(axes), coverage)
        if calibration is not None:
            _calibration(next(axes), calibration)
        _save(figure, path)


def best_so_far(run: Run, length: int) -> Floats:
    """The best seconds after 1, 2, …, ``length`` measurements; a shorter run stays where it ended."""
    found = np.minimum.accumulate(np.array([*run, *[inf] * (length - len(run))][:length], float))
    return np.asarray(found, float)


def bands(curve: Curve) -> tuple[Floats, Floats, Floats]:
    """Median and quartiles over a curve's runs of (best so far / best known), after 1, 2, … measurements.

    A run that ended stays where it was; the curve ends where less than a quarter of the runs go on.

    Infinity while at least half (or a quarter, or three quarters) of the runs have nothing that works.
    """
    lengths = sorted(len(run) for run, _ in curve.runs)
    length = lengths[(3 * (len(lengths) - 1) + 3) // 4]
    ratios = np.array([best_so_far(run, length) / best for run, best in curve.runs])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75), axis=0, method="inverted_cdf")
    return middle, low, high


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, 0 where either is constant."""
    x, y = (_ranks(v) for v in (a, b))
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: Sequence[float]) -> Floats:
    """Ranks from 0; equal values share their mean rank."""
    array = np.asarray(values, float)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[inverse], float)


def _curves(axes: Any, curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    top = 1.05
    for i, curve in enumerate(curves):
        middle, low, high = bands(curve)
        x = np.arange(1, len(middle) + 1)
        colour, style = _COLOURS[i % len(_COLOURS)], _STYLES[(i // len(_COLOURS)) % len(_STYLES)]
        label = f"{curve.name} ({len(curve.runs)} {'run' if len(curve.runs) == 1 else 'runs'})"
        shown = np.where(np.isfinite(middle), middle, np.nan)
        axes.plot(x, shown, style, color=colour, label=label, linewidth=1.8, drawstyle="steps-post")
        axes.plot(x[-1:], shown[-1:], "o", color=colour, markersize=4)
        if len(curve.runs) > 1:
            edges = (np.where(np.isfinite(low), low, np.nan), np.where(np.isfinite(high), high, 1e9))
            axes.fill_between(x, *edges, color=colour, alpha=0.12, linewidth=0, step="post")
        finite = middle[np.isfinite(middle)]
        top = max(top, float(np.quantile(finite, 0.98)) if len(finite) else top)
    axes.set_yscale("log")
    axes.set_ylim(0.98, min(top * 1.25, 30.0))
    longest = max(len(bands(curve)[0]) for curve in curves)
    axes.set_xlim(1 - 0.02 * longest, max(longest, 2) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}×"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:.3g}×" if top < 4 or v in (2, 3, 5) else ""))
    axes.grid(True, which="both", alpha=0.25)
    axes.set_xlabel("measurements of a task (count)")
    axes.set_ylabel("best time so far / best time known (ratio)")
    axes.set_title("Best so far: median over tasks, band: quartiles")
    axes.legend(loc="upper right", fontsize=8, framealpha=0.9)


def _coverage(figure: Any, axes: Any, coverage: Coverage) -> None:
    names = list(coverage.knobs)
    widest = min(max((len(v) for v in coverage.knobs.values()), default=1), _VALUES)
    times = np.full((len(names), widest), np.nan)
    best = min((t for rows in coverage.knobs.values() for _, _, t in rows), default=inf)
    for row, name in enumerate(names):
        for column, (value, count, seconds) in enumerate(coverage.knobs[name][:_VALUES]):
            worth = best / seconds if isfinite(seconds) and isfinite(best) else np.nan
            times[row, column] = worth
            colour = "0.5" if not count else "black" if worth >= 0.55 or not isfinite(worth) else "white"
            size = min(7.0, 7.0 * 14 / widest * 6 / max(len(value), 6))  # what fits into the cell
            text = f"{value}\n{count or '–'}"
            axes.text(column, row, text, ha="center", va="center", fontsize=max(size, 4.0), color=colour, linespacing=0.95)
    image = axes.imshow(np.ma.masked_invalid(times), cmap="viridis", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_facecolor("0.93")
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks([])
    axes.set_xlabel("values of each knob, in its order; below each: times tried (count)")
    axes.set_title(f"{coverage.title}\n{coverage.tried} of {coverage.of} configs tried", fontsize=10)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("best time of all / best with this value (ratio, 1 = best)")


def _calibration(axes: Any, calibration: Calibration) -> None:
    x, y = np.array(calibration.measured) * 1e6, np.array(calibration.predicted) * 1e6
    rank = rank_correlation(calibration.measured, calibration.predicted)
    axes.scatter(x, y, s=10, alpha=0.5, color=_COLOURS[0], linewidths=0)
    low, high = min(x.min(), y.min()) * 0.9, max(x.max(), y.max()) * 1.1
    axes.plot([low, high], [low, high], color="0.5", linewidth=1, linestyle="--", label="exact")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.grid(True, which="both", alpha=0.2)
    axes.set_xlabel("measured (µs)")
    axes.set_ylabel("predicted (µs)")
    axes.set_title(f"{calibration.title}\n{len(x)} candidates, rank correlation {rank:.2f}")
    axes.legend(loc="upper left", fontsize=8)


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error
