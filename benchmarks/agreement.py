"""Two independent tuning runs of the same model: the share of nodes on which their plans agree, and how their times differ.

    python -m benchmarks.agreement MODEL.onnx... [--budget 60s] [--threads 2] [--json FILE]

Each run has its own log and its own seed. A node agrees when both plans run it with the same provider; with the same config too
is told apart. The two artifacts are then timed in turns; times are lower quartiles, for whatever disturbs a run only ever adds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean, quantiles
from time import perf_counter, sleep
from typing import Any

import wpk
from wpk.core.result import config_key
from wpk.measure.calm import Calm
from wpk.report.engines import random_feeds
from wpk.runtime.plan import Plan
from wpk.runtime.runner import Runner, load

#: Seconds between two runs of different runners.
_PAUSE = 0.01
#: Seconds of running before a run is timed: a thread wakes beside the one that woke it, and is moved after milliseconds.
_WARM = 0.02


def choices(plan: Plan) -> dict[str, tuple[str, str]]:
    """Node of the model → (provider, config)."""
    return {node: (c.provider, config_key(dict(c.config))) for c in plan.choices for node in c.origin or (c.node,)}


def agreement(one: Plan, two: Plan) -> dict[str, float]:
    """Shares of the nodes that both plans have."""
    a, b = choices(one), choices(two)
    both = sorted(set(a) & set(b))
    return {
        "nodes": len(both),
        "same_provider": sum(a[n][0] == b[n][0] for n in both) / max(len(both), 1),
        "same_config": sum(a[n] == b[n] for n in both) / max(len(both), 1),
    }


def in_turns(runners: Sequence[Runner], rounds: int) -> list[list[float]]:
    """Seconds of a run of each, in turns: after a pause, in which the threads of the last one go to sleep, and untimed runs."""
    feeds = random_feeds(runners[0].plan.inputs)
    for runner in runners:
        runner.run(None, feeds)
        runner.run(None, feeds)
    times: list[list[float]] = [[] for _ in runners]
    calm = [Calm(r.speed) for r in runners]
    for i in range(rounds):
        for j in range(len(runners)):
            k = (i + j) % len(runners)
            sleep(_PAUSE)
            calm[k].settle()
            begun = perf_counter()
            while perf_counter() - begun < _WARM:
                runners[k].run(None, feeds)
            begun = perf_counter()
            runners[k].run(None, feeds)
            times[k].append(perf_counter() - begun)
    return times


def typical(seconds: Sequence[float]) -> float:
    """The lower quartile."""
    return quantiles(seconds, n=4)[0]


def compare(model: Path, budget: str, threads: int, rounds: int) -> dict[str, Any]:
    """Tune twice, compare, time."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{seed}.wpk" for seed in (0, 1)]
        for seed, path in enumerate(paths):
            wpk.compile(model, output=path, log=path.with_suffix(".jsonl"), budget=budget, threads=threads, seed=seed).close()
        runners = [load(p) for p in paths]
        one, two = in_turns(runners, rounds)
        found: dict[str, Any] = {"model": model.name, **agreement(runners[0].plan, runners[1].plan)}
        for runner in runners:
            runner.close()
    halves = [typical(one[0::2]) / typical(one[1::2]), typical(two[0::2]) / typical(two[1::2])]
    noise = max(abs(h - 1) for h in halves)
    difference = typical(two) / typical(one) - 1
    return {**found, "ms": [1e3 * typical(one), 1e3 * typical(two)], "difference": difference, "noise": noise}


def main() -> None:
    """Every model; 1 when fewer than 90% of the nodes agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/search/agreement.json"))
    args = parser.parse_args()
    rows = [compare(m, args.budget, args.threads, args.rounds) for m in args.models]
    for r in rows:
        print(
            f"{r['model']}: {r['nodes']} nodes, same provider {r['same_provider']:.1%}, same config {r['same_config']:.1%}; "
            f"{r['ms'][0]:.3f} ms and {r['ms'][1]:.3f} ms: {r['difference']:+.1%} (halves of a run differ by {r['noise']:.1%})"
        )
    share = geometric_mean([max(r["same_provider"], 1e-9) for r in rows])
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"budget": args.budget, "same_provider": share, "models": rows}, indent=1) + "\n")
    sys.exit(share < 0.9)


if __name__ == "__main__":
    main()
