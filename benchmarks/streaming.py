"""How fast do batch-1 fully connected layers stream their weights? Generated kernels and libraries against the read probe.

    python -m benchmarks.streaming --models bvlc_alexnet,vgg19 --trials 40 --json benchmarks/results/streaming.json

Each layer is searched for --trials candidates of every provider, constants cold. Then the read probe of the native runtime and
the winners are timed in turns, round after round: memory bandwidth drifts, and a share is honest only beside its probe.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from statistics import median

from benchmarks import zoo
from wpk import api
from wpk.core.result import Config
from wpk.measure.builder import build_runtime
from wpk.measure.measurer import Measurer, cpu_measurer
from wpk.planner.demand import wanted
from wpk.providers.protocol import Provider
from wpk.runtime.native_api import Pool, load_native
from wpk.search.strategy import make_strategy
from wpk.tuning.tasks import Task, tasks_of

_BATCH = 8


@dataclass(frozen=True)
class Row:
    """One layer by one provider. ``bandwidth`` in bytes a second; ``share`` of the probe's in the same rounds (medians)."""

    layer: str
    nbytes: int
    provider: str
    config: Config
    seconds: float
    bandwidth: float
    share: float


def layers(model: str, folder: Path, shop: api.Shop) -> list[Task]:
    """The batch-1 fully connected layers of a zoo model with more weights than the last-level cache holds twice."""
    source = api.read_source(zoo.build(model, folder), api.Options(), shop)
    tasks = (t for t in tasks_of(wanted(source.graphs[0], shop.target)) if t.workload.op == "gemm")
    return [t for t in tasks if t.workload.outputs[0].shape[0] == 1 and weight_bytes(t) > shop.target.l3 // 2]


def weight_bytes(task: Task) -> int:
    """Bytes of the layer's matrix."""
    return 4 * prod(task.workload.inputs[1].shape)


def winner(task: Task, provider: Provider, measurer: Measurer, trials: int) -> Config:
    """The best config of a seeded genetic search."""
    agent = make_strategy("genetic", provider.space(task.workload, measurer.target), 0)
    best: tuple[float, Config] | None = None
    asked = 0
    while asked < trials and (configs := agent.ask(min(_BATCH, trials - asked))):
        found = measurer.measure(task.workload, provider, configs, best[0] if best else None)
        agent.tell([(c, m.time) for c, m in zip(configs, found, strict=True)])
        timed = [(m.time, i, c) for i, (c, m) in enumerate(zip(configs, found, strict=True))]
        fastest = min(timed, key=lambda t: t[:2])
        best = min((b for b in (best, (fastest[0], fastest[2])) if b), key=lambda b: b[0])
        asked += len(configs)
    assert best is not None
    return best[1]


def examine(
    task: Task,
    model: str,
    shop: api.Shop,
    measurer: Measurer,
    probe: Callable[[], float],
    trials: int,
    rounds: int,
) -> list[Row]:
    """Every provider's best config on one layer, beside the probe."""
    able = [p for p in shop.providers if p.supports(task.workload, shop.target)]
    rivals = [(p, winner(task, p, measurer, trials)) for p in able]
    probes: list[float] = []
    times: list[list[float]] = [[] for _ in rivals]
    for _ in range(rounds):
        probes.append(probe())
        for seconds, found in zip(times, measurer.measure_again(task.workload, rivals, 1), strict=True):
            seconds += found.samples
    nbytes = weight_bytes(task)
    return [
        Row(
            f"{model} {task.name}",
            nbytes,
            p.name,
            c,
            median(s),
            nbytes / median(s),
            nbytes / median(s) / median(probes),
        )
        for (p, c), s in zip(rivals, times, strict=True)
        if s
    ]


def table(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = ["| layer | MB | provider | ms | GB/s | share of the probe |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r.layer} | {r.nbytes / 1e6:.0f} | {r.provider} | {r.seconds * 1e3:.2f} | {r.bandwidth / 1e9:.1f} | {r.share:.0%} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", type=lambda s: s.split(","), default=["bvlc_alexnet", "vgg19"])
    p.add_argument("--trials", type=int, default=40)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--threads", type=int, default=None)
    p.add_argument("--zoo", type=Path, default=Path("build/zoo"))
    p.add_argument("--json", type=Path, default=Path("benchmarks/results/streaming.json"))
    return p.parse_args(arguments)


def main() -> None:
    """Run what the command line asks for."""
    args = parse()
    shop = api.open_shop(api.Options(threads=args.threads))
    native = load_native(build_runtime(shop.target.isa, shop.compiler, shop.cache))
    pool = Pool(native, shop.target.threads)
    rows: list[Row] = []
    with cpu_measurer(shop.target, shop.cache, shop.compiler) as measurer:
        for model in args.models:
            for task in layers(model, args.zoo, shop):
                rows += examine(
                    task, model, shop, measurer, lambda: native.read_bandwidth(pool), args.trials, args.rounds
                )
    pool.close()
    print(table(rows))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(
        json.dumps({"threads": shop.target.threads, "rows": [asdict(r) for r in rows]}, indent=1) + "\n"
    )
    args.json.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
