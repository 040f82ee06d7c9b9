"""How soon a real compile is good: the time until the planner's best total is within 3% of what the whole budget reaches.

    python -m benchmarks.convergence MODEL.onnx [--budget 10m] [--threads 2] [--json FILE]

Two compiles: one starts from the logs that ship with wpk, one without any. The curve is read from the log: the total that the
planner would choose by what the search had measured at a moment, infinite while a node had no measurement at all. What is
measured after the search counts at every moment, because it depends on what the search found: conversions between layouts.
Rivals' times when timed again in turns do not count, so that all points are comparable. Logs are kept under build/.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from time import monotonic
from unittest.mock import patch

from wpk import stages
from wpk.graph.graph import Graph
from wpk.planner.candidates import OPAQUE, Catalogue
from wpk.planner.choose import choose
from wpk.settings import parse_budget
from wpk.stages import Options, Shop, best_graph, graph_tasks, open_shop, read_source, tune_graphs
from wpk.tuning.experience import Experience
from wpk.tuning.log import TuningLog, read_log
from wpk.tuning.record import Record
from wpk.tuning.results import ResultTable

#: What counts as good enough, and how many points of the curve are looked at.
WITHIN, POINTS = 1.03, 60


@dataclass(frozen=True)
class Curve:
    """One compile. ``points``: (seconds since the start, total seconds of the plan known then). ``to_within``: the first of them
    from which on all are within 3% of the last one's total. ``searching``: share of the wall clock in which strategies made
    proposals and learned while nothing was built or measured.
    """

    shipped_logs: bool
    seconds: float
    candidates: int
    final: float
    to_within: float
    searching: float
    points: tuple[tuple[float, float], ...]


def compiled(model: Path, options: Options, shipped: bool, log: Path) -> Curve:
    """Tune, then read the log."""
    shop = open_shop(options)
    source = read_source(model, options, shop)
    records = TuningLog(log)
    knows = stages.shipped if shipped else Experience
    begun, start = datetime.now(UTC), monotonic()
    with patch.object(stages, "shipped", knows):
        tuned, _ = tune_graphs(source.graphs, shop, records, options)
    seconds = monotonic() - start
    every = sorted(read_log(log).records, key=lambda r: r.time)
    tasks = {t.workload for t in graph_tasks(source.graphs, shop.target)}
    after = [r for r in every if r.workload not in tasks]
    searched = [r for r in every if r.workload in tasks and r.stage == "search"]
    graph = best_graph(source.graphs, tuned.results, shop)
    points = curve(graph, searched, after, begun, shop)
    final = points[-1][1]
    good = first_within(points, WITHIN * final)
    return Curve(shipped, seconds, len(searched), final, good, tuned.searching / seconds, tuple(points))


def curve(
    graph: Graph, records: Sequence[Record], after: Sequence[Record], begun: datetime, shop: Shop
) -> list[tuple[float, float]]:
    """The planner's total by what was known at ``POINTS`` moments, evenly apart in candidates, and by ``after``."""
    step, found = max(len(records) // POINTS, 1), list[tuple[float, float]]()
    opaque = {n.name for n in graph.nodes if n.op in OPAQUE}
    for count in [*range(step, len(records), step), len(records)]:
        choices = choose(graph, Catalogue(shop.providers, ResultTable([*after, *records[:count]]), shop.target))
        at = (datetime.fromisoformat(records[count - 1].time) - begun).total_seconds()
        known = all(a.implementation.measured or n in opaque for n, a in choices.nodes.items())
        found.append((max(at, 0.0), choices.seconds if known else inf))
    return found


def first_within(points: Sequence[tuple[float, float]], limit: float) -> float:
    """The time of the first point from which on no total is above ``limit``; infinity when the last one is."""
    good = inf
    for at, total in reversed(points):
        if total > limit:
            break
        good = at
    return good


def main() -> None:
    """Run both; print and perhaps write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--budget", type=parse_budget, default=600.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without", action="store_true", help="only the compile that has no shipped logs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    options = Options(args.budget, threads=args.threads, trials=10_000)
    curves = []
    for shipped in (False,) if args.without else (True, False):
        log = Path("build/convergence") / f"{args.model.stem}-{'shipped' if shipped else 'nothing'}.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        found = compiled(args.model, options, shipped, log)
        curves.append(found)
        start = "the shipped logs" if shipped else "nothing"
        print(
            f"from {start}: {found.final * 1e3:.2f} ms after {found.seconds:.0f} s and {found.candidates} candidates; "
            f"within 3% after {found.to_within:.0f} s; {found.searching:.1%} of the time spent searching", flush=True,
        )  # fmt: skip
        if args.json is not None:
            args.json.write_text(json.dumps([asdict(c) for c in curves], indent=1) + "\n")


if __name__ == "__main__":
    main()
