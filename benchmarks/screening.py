"""What screening is worth: the genetic strategy with and without it, on recorded spaces, from a random config.

    python -m benchmarks.screening [--seeds 5]     adds screening.json and screening.md to benchmarks/results/search

The cost model is trained without the task and its relatives (benchmarks/cost_model.py). Of each task: best time over the optimum
after 10, 50 and 100 measurements, and measurements until within 5%.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.cost_model import (
    COUNTED,
    SUBJECTS_FOLDER,
    Subject,
    features_of_space,
    load,
    relatives,
    trained,
)
from benchmarks.strategies import Told, run, started
from wpk.core.result import config_key
from wpk.search.cost_model import CostModel
from wpk.search.prior import Screening
from wpk.search.recorded import SUFFIX, RecordedSpace, load_space
from wpk.search.strategy import Context, make_strategy

TRIALS, NEAR, STEPS = 100, 1.05, (10, 50, 100)
WAYS = ("unscreened", "estimate", "cost model")


def curves(task: RecordedSpace, rows: np.ndarray, model: CostModel, way: str, seeds: int) -> np.ndarray:
    """Best time over the optimum, (seeds, TRIALS)."""
    known = {config_key(c): row for c, row in zip(task.space.listed or (), rows, strict=True)}
    found = []
    for seed in range(seeds):
        begun = started(task, "nothing", seed)
        screen = Screening(lambda c: known[config_key(c)], model if way == "cost model" else None)
        context = Context(task.workload, task.target, None, None if way == "unscreened" else screen, TRIALS)
        found.append(run(begun, Told(make_strategy("genetic", begun.space, seed, (), context), screen), TRIALS))
    return np.array(found) / task.optimum


def figures(found: np.ndarray) -> list[float]:
    """Geometric means at STEPS, and the median of the measurements until near."""
    near = found <= NEAR
    arrived = np.where(near.any(axis=1), near.argmax(axis=1) + 1, TRIALS + 1)
    return [*(float(np.exp(np.log(found[:, n - 1]).mean())) for n in STEPS), float(np.median(arrived))]


def compare(subjects: Sequence[Subject], spaces: Path, cache: Path, seeds: int) -> dict[str, dict[str, list[float]]]:
    """Figures by task and way."""
    result: dict[str, dict[str, list[float]]] = {}
    models = {k: trained([x for x in subjects if relatives(x.name) != k], 0) for k in {relatives(s.name) for s in subjects}}
    for s in subjects:
        path, model = spaces / f"{s.name}{SUFFIX}", models[relatives(s.name)]
        task = load_space(path)
        rows = features_of_space(task, path, cache)
        result[s.name] = {w: figures(curves(task, rows, model, w, seeds)) for w in WAYS}
    return result


def markdown(result: dict[str, dict[str, list[float]]], seeds: int) -> str:
    """Means, then each task."""
    heads = [*(f"best after {n} / optimum" for n in STEPS), "measurements to within 5%"]
    lines = [
        "## The genetic strategy with and without screening", "",
        f"{len(result)} recorded tasks, {seeds} seeds, from a random config; geometric means, and medians of the measurements. "
        "The cost model is trained without the task and its relatives, and learns in the run; the estimate is analytic, "
        "corrected in the run.", "",
        f"| screened by | {' | '.join(heads)} |", "|---|" + "---|" * len(heads),
    ]  # fmt: skip
    for way in WAYS:
        rows = np.array([r[way] for r in result.values()])
        means = [*np.exp(np.log(rows[:, :-1]).mean(axis=0)), float(np.median(rows[:, -1]))]
        lines.append(f"| {way} | {_cells(means)} |")
    lines += ["", f"| task | {' | '.join(WAYS)} |", "|---|" + "---|" * len(WAYS)]
    lines += [f"| {t} | {' | '.join(_cells(r[w], '; ') for w in WAYS)} |" for t, r in result.items()]
    return "\n".join(lines)


def _cells(values: Sequence[float], between: str = " | ") -> str:
    return between.join([*(f"{v:.3f}" for v in values[:-1]), f"{values[-1]:.0f}" if values[-1] <= TRIALS else f"> {TRIALS}"])


def main() -> None:
    """Compare, print, write."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--spaces", type=Path, default=SUBJECTS_FOLDER)
    p.add_argument("--cache", type=Path, default=Path("build/cost_model"))
    p.add_argument("--out", type=Path, default=Path("benchmarks/results/search"))
    args = p.parse_args()
    subjects = [s for s in load(args.spaces, args.cache, []) if len(s.seconds) >= COUNTED]
    result = compare(subjects, args.spaces, args.cache, args.seeds)
    (args.out / "screening.json").write_text(json.dumps({"seeds": args.seeds, "steps": STEPS, "tasks": result}, indent=1) + "\n")
    (args.out / "screening.md").write_text(markdown(result, args.seeds) + "\n")
    print(markdown(result, args.seeds))


if __name__ == "__main__":
    main()
