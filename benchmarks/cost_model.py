"""How well kernels are ranked before they are measured: the analytic estimate and the cost model, on recorded spaces.

    python -m benchmarks.cost_model                 JSON, Markdown and a picture in benchmarks/results/search
    python -m benchmarks.cost_model --ship          train on all recorded spaces and write configs/cost_model/cost_model.json

Figures of a task: Spearman's rank correlation with the recorded times; recall@10, the share of the ten configs ranked best that
are among the truly fastest 1%; the share of the ten within 5% of the optimum; the best of the ten over the optimum. Of

    prior           the analytic estimate alone
    held out        a model trained without the task and its relatives (RELATIVES: the same operator and kernel size)
    task held out   a model trained without the task only, and on the lessons: relatives of those that are hardest to rank
    within a run    the first model after 50 random measurements of the task, judged on the rest

and, where the recorder's log of repeated measurements is at hand (``--logs``), of the machine against itself: what a perfect
model of one measurement would score on the next. Features of the spaces are kept under build/, by the code they depend on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import ceil
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import matplotlib
import numpy as np

from wpk.core.result import config_key
from wpk.dsl.features import NAMES
from wpk.providers.registry import providers
from wpk.search.cost_model import Adapted, CostModel, Examples, centre_of, train
from wpk.search.recorded import SUFFIX, RecordedSpace, load_space

matplotlib.use("Agg")

#: Tasks with fewer configs are shown, and not counted, as in benchmarks/strategies.py.
COUNTED = 500
TOP, BEST, NEAR, OWN = 0.01, 10, 1.05, 50
#: Random draws of the measurements within a run.
_DRAWS = 5
#: Kernels that take less than this are timed with errors as large as their differences.
_SHORT = 100e-6
_TICKS = (0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20)
SUBJECTS_FOLDER = Path("tests/data/spaces")
_LOGS = [Path("build/spaces-short"), Path("build/spaces")]
WAYS = ("prior", "held out", "task held out", "within a run")


@dataclass(frozen=True)
class Ranked:
    """How well costs rank times; see the module."""

    spearman: float
    recall: float
    near: float
    best: float


@dataclass(frozen=True)
class Subject:
    """A recorded task with its features (N, F) and seconds (N,), successes only; ``machine`` is the machine against itself."""

    name: str
    family: str
    features: np.ndarray
    seconds: np.ndarray
    machine: Ranked | None

    @property
    def examples(self) -> Examples:
        """As the cost model wants it."""
        return Examples(self.name, self.features, self.seconds)


def relatives(name: str) -> str:
    """What tasks are called that are near relatives: their operator and kernel size, without extents."""
    return name.split("-")[0]


def ranked(costs: np.ndarray, seconds: np.ndarray, count: int | None = None) -> Ranked:
    """Costs against times of the same configs; ``count``: how many configs the space has, where these are some of them."""
    first = np.argsort(costs, kind="stable")[:BEST]
    fastest = set(np.argsort(seconds, kind="stable")[: ceil(TOP * (count or len(seconds)))].tolist())
    hits = len(fastest & set(first.tolist())) / min(BEST, len(fastest))
    relative = seconds[first] / seconds.min()
    return Ranked(spearman(costs, seconds), hits, float(np.mean(relative <= NEAR)), float(relative.min()))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; zero where one of them is constant."""
    x, y = _ranks(a), _ranks(b)
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[inverse], np.float64)


# What is known of the tasks


def load(folder: Path, cache: Path, logs: Sequence[Path]) -> list[Subject]:
    """All recorded tasks; lowers every config the first time, which takes minutes."""
    return [_subject(path, cache, logs) for path in sorted(folder.glob(f"*{SUFFIX}"))]


def _subject(path: Path, cache: Path, logs: Sequence[Path]) -> Subject:
    space = load_space(path)
    features, seconds = features_of_space(space, path, cache), np.array([space.seconds(c) for c in space.space.listed or ()])
    ran = np.isfinite(seconds)
    family = space.provider.removeprefix("generated:")
    return Subject(space.name, family, features[ran], seconds[ran], _machine(space, logs))


def features_of_space(space: RecordedSpace, path: Path, cache: Path) -> np.ndarray:
    """(N, F), from the cache where they are there."""
    provider = next(p for p in providers((space.provider,), space.target))
    folder = Path(str(files("wpk.dsl")))
    code = b"".join((folder / f"{m}.py").read_bytes() for m in ("features", "footprint", "gridfacts", "estimate"))
    digest = hashlib.sha256(path.read_bytes() + code + provider.version.encode()).hexdigest()[:24]
    kept = cache / f"{space.name}-{digest}.npy"
    if kept.exists():
        return np.asarray(np.load(kept))
    found = np.array([provider.features(space.workload, c, space.target) for c in space.space.listed or ()])  # type: ignore[attr-defined]
    cache.mkdir(parents=True, exist_ok=True)
    np.save(kept, found)
    return found


def _machine(space: RecordedSpace, logs: Sequence[Path]) -> Ranked | None:
    """One half of a task's repeated measurements against the other, of the configs that were measured more than once.

    Where only the near best were, the correlation says little (their times hardly differ), the recall as much as elsewhere.
    """
    times: dict[str, list[float]] = {}
    path = next((p for folder in logs if (p := folder / f"{space.name}.jsonl").exists()), None)
    for row in map(json.loads, path.read_text().splitlines() if path else ()):
        if row["failure"] is None:
            times.setdefault(row["config"], []).append(row["seconds"])
    listed = (times.get(config_key(c), []) for c in space.space.listed or ())
    halves = [_halves(t) for t in listed if len(t) > 1]
    if len(halves) < 2 * BEST:
        return None
    a, b = np.array(halves).T
    return ranked(a, b, len(space.outcomes))


def _halves(times: Sequence[float]) -> tuple[float, float]:
    """As the recorder sums up a task's turns: the least of four, the median of three."""
    of, cut = min if len(times) > 3 else median, len(times) // 2
    return of(times[:cut]), of(times[cut:])


# The ways to rank


def judge(subjects: Sequence[Subject], lessons: Sequence[Subject] = (), seed: int = 0) -> dict[str, dict[str, Ranked]]:
    """Figures by task and way; ``lessons`` are only learned from."""
    everything = (*subjects, *lessons)
    found: dict[str, dict[str, Ranked]] = {}
    models: dict[str, CostModel] = {}
    for s in subjects:
        kin = relatives(s.name)
        if kin not in models:
            models[kin] = trained([x for x in everything if relatives(x.name) != kin], seed)
        alone = models[kin] if sum(relatives(x.name) == kin for x in everything) == 1 else None
        alone = alone or trained([x for x in everything if x.name != s.name], seed)
        found[s.name] = {
            "prior": ranked(s.features[:, 0], s.seconds),
            "held out": ranked(_scores(models[kin], s), s.seconds),
            "task held out": ranked(_scores(alone, s), s.seconds),
            "within a run": _within(models[kin], s, seed),
        }
    return found


def trained(subjects: Sequence[Subject], seed: int) -> CostModel:
    """A model of all that was measured of tasks."""
    return train((s.examples for s in subjects), NAMES, seed)


def _scores(model: CostModel, s: Subject) -> np.ndarray:
    return model.score(s.features, _centre(s, 0))


def _centre(s: Subject, seed: int) -> np.ndarray:
    """Of what a search would look at first: a few configs at random."""
    rows = np.random.default_rng(seed).integers(0, len(s.features), 64)
    return centre_of(s.features[rows])


def _within(model: CostModel, s: Subject, seed: int) -> Ranked:
    """Judged on the configs not measured; the mean of some draws."""
    results = []
    for draw in range(_DRAWS):
        order = np.random.default_rng([seed, draw]).permutation(len(s.seconds))
        own, rest = order[:OWN], order[OWN:]
        if len(rest) < BEST:
            own, rest = order[: len(order) // 2], order[len(order) // 2 :]
        adapted = Adapted(model, _centre(s, draw))
        adapted.fit(s.features[own], s.seconds[own])
        results.append(ranked(adapted.score(s.features[rest]), s.seconds[rest]))
    return _mean(results)


def _mean(results: Sequence[Ranked]) -> Ranked:
    best = float(np.exp(np.mean([np.log(r.best) for r in results])))
    others = (float(np.mean([getattr(r, k) for r in results])) for k in ("spearman", "recall", "near"))
    return Ranked(*others, best)


# What is written


def report(subjects: Sequence[Subject], found: Mapping[str, Mapping[str, Ranked]]) -> dict[str, Any]:
    """Plain data: means over the counted tasks, over those of them that are long enough to be timed well, and each task."""
    counted = [s for s in subjects if len(s.seconds) >= COUNTED]
    groups: Mapping[str, list[Subject]] = {
        "counted": counted,
        "100 µs and more": [s for s in counted if s.seconds.min() >= _SHORT],
        "shorter": [s for s in counted if s.seconds.min() < _SHORT],
    }
    return {
        "definitions": {"top": TOP, "best": BEST, "near": NEAR, "own": OWN, "counted": COUNTED},
        "means": {
            g: {
                "tasks": [s.name for s in members],
                "ways": {w: vars(_mean([found[s.name][w] for s in members])) for w in WAYS},
                "machine": _facts(_mean(m) if (m := [s.machine for s in members if s.machine]) else None),
            } for g, members in groups.items() if members
        },
        "tasks": {
            s.name: {
                "family": s.family, "configs": len(s.seconds), "optimum_s": float(s.seconds.min()),
                "ways": {w: vars(r) for w, r in found[s.name].items()}, "machine": _facts(s.machine),
            } for s in subjects
        },
    }  # fmt: skip


def _facts(r: Ranked | None) -> dict[str, float] | None:
    return None if r is None else dict(vars(r))


def markdown(result: Mapping[str, Any]) -> str:
    """Tables: means, then each task."""
    lines = [
        "## Ranking kernels before measuring them", "",
        "Means over recorded tasks: Spearman's correlation with the recorded times; recall@10 of the true top 1% (the share of "
        "the ten ranked best that are among the fastest 1%); share of the ten within 5% of the optimum; best of the ten over the "
        "optimum.", "",
    ]  # fmt: skip
    for group, facts in result["means"].items():
        lines += [f"{group} ({len(facts['tasks'])} tasks)", "", "| ranked by | Spearman | recall@10 | within 5% | best of ten |"]
        lines += ["|---|---|---|---|---|", *(_row(w, r) for w, r in facts["ways"].items())]
        lines += [_row("the machine, measured again", facts["machine"])] if facts["machine"] else []
        lines += [""]
    lines += [
        "Spearman; recall@10, by task. The last column is one half of the machine's repeated measurements against the other: no "
        "model can be expected to do better. Of tasks of 100 µs and more only the near best configs were measured again, so that "
        "their correlation is one among near equals.", "",
        f"| task | configs | {' | '.join(WAYS)} | machine |", "|---|---|" + "---|" * (len(WAYS) + 1),
    ]  # fmt: skip
    for task, facts in result["tasks"].items():
        cells = [*(_cell(facts["ways"][w]) for w in WAYS), _cell(facts["machine"])]
        lines.append(f"| {task} | {facts['configs']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _row(name: str, r: Mapping[str, float]) -> str:
    return f"| {name} | {r['spearman']:.2f} | {r['recall']:.2f} | {r['near']:.2f} | {r['best']:.3f} |"


def _cell(r: Mapping[str, float] | None) -> str:
    return "" if r is None else f"{r['spearman']:.2f}; {r['recall']:.1f}"


def figure(subjects: Sequence[Subject], model_of: Callable[[Subject], CostModel], path: Path) -> None:
    """Calibration: what a model trained without the task and its relatives says, against what was measured."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    columns = 6
    rows = ceil(len(subjects) / columns)
    drawing, axes = plt.subplots(rows, columns, figsize=(16, 2.8 * rows), layout="constrained", squeeze=False)
    for i, (ax, s) in enumerate(zip(axes.flat, subjects, strict=False)):
        costs = _scores(model_of(s), s)
        said = np.exp(costs - np.median(costs) + np.median(np.log(s.seconds / s.seconds.min())))
        ax.scatter(s.seconds / s.seconds.min(), said, s=3, alpha=0.25, linewidths=0)
        ends = [0.8, float(np.quantile(s.seconds / s.seconds.min(), 0.99))]
        ax.plot(ends, ends, color="grey", linewidth=0.8)
        for axis, scale in ((ax.xaxis, ax.set_xscale), (ax.yaxis, ax.set_yscale)):
            scale("log")
            axis.set_major_locator(FixedLocator(_TICKS))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
        ax.set_title(f"{s.name}: {spearman(costs, s.seconds):.2f}", fontsize=9)
        ax.set_xlabel("measured / optimum" if i >= len(subjects) - columns else "")
        ax.set_ylabel("expected / optimum" if i % columns == 0 else "")
    for ax in axes.flat[len(subjects) :]:
        ax.set_axis_off()
    drawing.suptitle("Cost model on tasks held out with their relatives, scaled to the same median; title: rank correlation")
    drawing.savefig(path, dpi=100)
    plt.close(drawing)


def main() -> None:
    """Judge, print, write; or train what is shipped."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--spaces", type=Path, default=SUBJECTS_FOLDER)
    p.add_argument("--cache", type=Path, default=Path("build/cost_model"))
    p.add_argument("--logs", type=lambda s: [Path(x) for x in s.split(",")], default=_LOGS)
    p.add_argument("--out", type=Path, default=Path("benchmarks/results/search"))
    p.add_argument("--ship", action="store_true")
    args = p.parse_args()
    begun = monotonic()
    subjects, lessons = load(args.spaces, args.cache, args.logs), load(args.spaces / "lessons", args.cache, args.logs)
    if args.ship:
        path = Path(str(files("wpk.configs"))) / "cost_model" / "cost_model.json"
        path.parent.mkdir(exist_ok=True)
        trained([*subjects, *lessons], 0).save(path)
        print(f"{path.name}: {path.stat().st_size} bytes")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    result = report(subjects, judge(subjects, lessons))
    (args.out / "cost_model.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "cost_model.md").write_text(markdown(result) + "\n")
    print(markdown(result), f"\n{monotonic() - begun:.0f} s")
    kin = {relatives(s.name): s for s in subjects}
    models = {k: trained([x for x in (*subjects, *lessons) if relatives(x.name) != k], 0) for k in kin}
    figure(subjects, lambda s: models[relatives(s.name)], args.out / "cost_model.png")


if __name__ == "__main__":
    main()
