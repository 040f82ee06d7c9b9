"""What a comparison of strategies says: figures with intervals, a Markdown page, curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

#: Tasks with fewer configs are nearly exhausted by a search: they are shown, and not counted.
COUNTED = 500
#: A run has arrived when its best is within this factor of the optimum.
NEAR = 1.05
#: Measurements of the first impression.
EARLY = 10
_RESAMPLES = 500
#: What stands for a run without any success, relative to the optimum.
_NEVER = 100.0

Figure = tuple[float, float, float]  # value, and the ends of its 95% interval


@dataclass(frozen=True)
class Outcome:
    """Of one task: best time over the optimum after each measurement, (seeds, measurements), by strategy."""

    task: str
    provider: str
    configs: int
    curves: Mapping[str, np.ndarray]


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Plain data: figures of each strategy over the counted tasks, and of each task."""
    counted = [o for o in outcomes if o.configs >= COUNTED] or list(outcomes)
    names = list(outcomes[0].curves)
    seeds, trials = map(int, outcomes[0].curves[names[0]].shape)
    return {
        "trials": trials, "seeds": seeds, "near": NEAR, "early": EARLY,
        "counted": [o.task for o in counted],
        "strategies": {n: _figures([o.curves[n] for o in counted]) for n in names},
        "tasks": {
            o.task: {
                "provider": o.provider, "configs": o.configs,
                "strategies": {n: _figures([o.curves[n]]) for n in names},
            } for o in outcomes
        },
    }  # fmt: skip


def _figures(curves: Sequence[np.ndarray]) -> dict[str, Any]:
    """Figures of curves by task; None for a median that lies beyond the runs' ends."""
    logs = np.log(np.minimum(np.stack(curves), _NEVER))  # (tasks, seeds, measurements)
    steps = arrivals(np.stack(curves))
    return {
        "final": _interval(logs[:, :, -1], _geomean),
        "early": _interval(logs[:, :, EARLY - 1], _geomean),
        "to_near": [v if np.isfinite(v) else None for v in _interval(steps, _median)],
        "to_near_mean": _interval(np.minimum(steps, logs.shape[2] + 1), np.mean),
        "arrived": float(np.mean(np.isfinite(steps))),
    }


def arrivals(curves: np.ndarray) -> np.ndarray:
    """Measurements until a run is near the optimum, (tasks, seeds); infinity for never."""
    near = curves <= NEAR
    return np.where(near.any(axis=2), near.argmax(axis=2) + 1.0, np.inf)


def _geomean(logs: np.ndarray) -> float:
    return float(np.exp(logs.mean()))


def _median(steps: np.ndarray) -> float:
    return float(np.quantile(steps, 0.5, method="lower"))


def _interval(values: np.ndarray, of: Callable[[np.ndarray], float], seed: int = 0) -> Figure:
    """``of`` (tasks, seeds) values, with a 95% interval from resampling the tasks, and the seeds within."""
    rng = np.random.default_rng(seed)
    tasks, seeds = values.shape
    found = [
        of(values[rng.integers(0, tasks, tasks)[:, None], rng.integers(0, seeds, (tasks, seeds))]) for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(found, [0.025, 0.975], method="nearest")
    return of(values), float(low), float(high)


#: What strategies begin with, in words.
_STARTS = {
    "defaults": "Starting from the families' first configs",
    "nothing": "Starting from a random config",
    "transfer": "Starting from what the logs hold of similar tasks",
}


def markdown(result: Mapping[str, Any], start: str) -> str:
    """Tables: strategies over all counted tasks, then each task."""
    trials, counted = result["trials"], result["counted"]
    head = [
        f"## {_STARTS[start]}", "",
        f"{len(counted)} recorded tasks, {result['seeds']} seeds, {trials} measurements. In brackets: 95% intervals from "
        "resampling tasks and seeds.", "",
        f"| strategy | best after {trials} / optimum | best after {result['early']} / optimum | measurements to within 5%: "
        f"median | mean, capped at {trials + 1} | within 5% after {trials} |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    rows = [_row(name, figures, result["trials"]) for name, figures in result["strategies"].items()]
    return "\n".join([*head, *rows, "", *_task_table(result)])


def _row(name: str, f: Mapping[str, Any], trials: int) -> str:
    steps = _steps(f["to_near"], trials)
    mean = "{:.0f} [{:.0f}, {:.0f}]".format(*f["to_near_mean"])
    return f"| {name} | {_ratio(f['final'])} | {_ratio(f['early'])} | {steps} | {mean} | {f['arrived']:.0%} |"


def _ratio(figure: Figure) -> str:
    return f"{figure[0]:.3f} [{figure[1]:.3f}, {figure[2]:.3f}]"


def _steps(figure: Sequence[float | None], trials: int) -> str:
    value, low, high = (f"> {trials}" if v is None else f"{v:.0f}" for v in figure)
    return f"{value} [{low}, {high}]"


def _task_table(result: Mapping[str, Any]) -> list[str]:
    names, trials = list(result["strategies"]), result["trials"]
    lines = [
        f"Best after {trials} measurements over the optimum, geometric mean of the seeds; measurements to within 5%, median.",
        "Tasks in italics have too few configs to be counted above.", "",
        f"| task | configs | {' | '.join(names)} |", "|---|---|" + "---|" * len(names),
    ]  # fmt: skip
    for task, facts in result["tasks"].items():
        cells = [_cell(facts["strategies"][n], result["trials"]) for n in names]
        label = task if task in result["counted"] else f"*{task}*"
        lines.append(f"| {label} | {facts['configs']} | {' | '.join(cells)} |")
    return lines


def _cell(f: Mapping[str, Any], trials: int) -> str:
    steps = f["to_near"][0]
    return f"{f['final'][0]:.3f}; {f'> {trials}' if steps is None else f'{steps:.0f}'}"


def figure(outcomes: Sequence[Outcome], start: str, path: Path) -> None:
    """Curves over all counted tasks, and one small plot a task."""
    from matplotlib import pyplot as plt

    counted = [o for o in outcomes if o.configs >= COUNTED] or list(outcomes)
    columns = 4
    rows = -(-len(outcomes) // columns)
    drawing = plt.figure(figsize=(13, 5 + 2.5 * rows), layout="constrained")
    drawing.suptitle(_STARTS[start])
    grid = drawing.add_gridspec(rows + 2, columns)
    _together(drawing.add_subplot(grid[:2, :]), counted)
    for i, outcome in enumerate(outcomes):
        axes = drawing.add_subplot(grid[2 + i // columns, i % columns])
        _one(axes, outcome)
        if i % columns == 0:
            axes.set_ylabel("time / optimum")
        if i + columns >= len(outcomes):
            axes.set_xlabel("measurements")
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def _together(axes: Any, outcomes: Sequence[Outcome]) -> None:
    """Geometric mean over tasks of each seed; the line is the median seed, the band holds nine in ten."""
    for name in outcomes[0].curves:
        logs = np.log(np.minimum(np.stack([o.curves[name] for o in outcomes]), _NEVER))
        _band(axes, name, np.exp(logs.mean(axis=0)))
    axes.axhline(1.05, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="measurements", ylabel="best time / optimum of the space", xlim=(1, logs.shape[2]))
    axes.set_title(f"Geometric mean over {len(outcomes)} recorded tasks; bands: nine in ten seeds; dotted: within 5%")
    _readable(axes, (1.0, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0))
    axes.legend(loc="upper right", ncols=2)


def _one(axes: Any, outcome: Outcome) -> None:
    for name, curves in outcome.curves.items():
        _band(axes, name, np.minimum(curves, _NEVER))
    axes.axhline(1.05, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlim=(1, curves.shape[1]))
    axes.set_title(f"{outcome.task} ({outcome.configs} configs)", fontsize=9)
    _readable(axes, (1.0, 1.1, 1.3, 1.6, 2.0))


def _band(axes: Any, name: str, curves: np.ndarray) -> None:
    steps = np.arange(1, curves.shape[1] + 1)
    low, middle, high = np.quantile(curves, [0.05, 0.5, 0.95], axis=0)
    searched = name != "default"
    line = axes.plot(steps, middle, label=name, linewidth=1.6, linestyle="-" if searched else "--")[0]
    if searched:
        axes.fill_between(steps, low, high, alpha=0.13, color=line.get_color(), linewidth=0)


def _readable(axes: Any, ticks: Sequence[float]) -> None:
    """A logarithmic axis of ratios with plain numbers; what is slower than the last tick is of no interest."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_yscale("log")
    axes.set_ylim(1.0, ticks[-1])
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
