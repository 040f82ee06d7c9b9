"""How long does a config take to become C? Sampled configs of every generated kernel family a model's tasks match.

python -m benchmarks.lowering --model resnet50 --samples 20 --json benchmarks/results/lowering.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from statistics import median, quantiles
from time import perf_counter

from benchmarks import zoo
from wpk import api
from wpk.planner.demand import wanted
from wpk.tuning.record import is_library
from wpk.tuning.tasks import tasks_of


def main() -> None:
    """Time schedule, lowering, verification and printing together, config by config."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="resnet50")
    p.add_argument("--samples", type=int, default=20, help="random configs of each task and family")
    p.add_argument("--zoo", type=Path, default=Path("build/zoo"))
    p.add_argument("--json", type=Path, default=Path("benchmarks/results/lowering.json"))
    args = p.parse_args()
    shop = api.open_shop(api.Options())
    source = api.read_source(zoo.build(args.model, args.zoo), api.Options(), shop)
    times: dict[str, list[float]] = {}
    rng = Random(0)
    for task in tasks_of(wanted(source.graphs[0], shop.target)):
        for provider in shop.providers:
            if is_library(provider.name) or not provider.supports(task.workload, shop.target):
                continue
            space = provider.space(task.workload, shop.target)
            for config in (space.default(), *(space.sample(rng) for _ in range(args.samples))):
                begun = perf_counter()
                provider.build(task.workload, config, shop.target)
                times.setdefault(provider.name, []).append(perf_counter() - begun)
    every = [t for some in times.values() for t in some]
    rows = {name: {"configs": len(t), "median_ms": median(t) * 1e3, "p90_ms": quantiles(t, n=10)[-1] * 1e3}
            for name, t in {**times, "all": every}.items()}  # fmt: skip
    for name, row in rows.items():
        print(
            f"{name:28s} {row['configs']:5d} configs  median {row['median_ms']:.1f} ms  90% within {row['p90_ms']:.1f} ms"
        )
    args.json.write_text(json.dumps({"model": args.model, **rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
