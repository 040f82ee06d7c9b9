"""How soon a real compile is good: the time until its plan is within 3% of the plan that the whole budget gives.

    python -m benchmarks.convergence MODEL.onnx [--budget 10m] [--threads 2] [--json FILE] [--again]

Two compiles: one starts from the logs that ship with wpk, one without any. Of each log the plans are made that were known at some
moments, and all of them are run in turns: what the search believed at those moments is told too, but a machine drifts by some
percent in ten minutes, and least times fall with their number, so only times taken in turns compare. Conversions between
layouts depend on what the search found and are measured after it; they count at every moment. Logs are kept under
build/convergence, as is a cache for each compile, empty at its start; ``--again`` times the plans of logs that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from math import inf
from pathlib import Path
from time import monotonic
from unittest.mock import patch

from benchmarks.agreement import in_turns, typical
from wpk import stages
from wpk.api import rebuild
from wpk.graph.graph import Graph
from wpk.planner.candidates import OPAQUE, Catalogue
from wpk.planner.choose import choose
from wpk.runtime.runner import Runner
from wpk.settings import parse_budget
from wpk.stages import Options, Shop, best_graph, graph_tasks, open_shop, read_source, tune_graphs
from wpk.tuning.experience import Experience
from wpk.tuning.log import TuningLog, read_log
from wpk.tuning.record import Record
from wpk.tuning.results import ResultTable

#: What counts as good enough; seconds after the start at which plans are made, besides the end.
WITHIN, MOMENTS = 1.03, (15.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0)
FOLDER = Path("build/convergence")


@dataclass(frozen=True)
class Moment:
    """The plan known after ``at`` seconds: what the planner believed, and the lower quartile of its runs, in seconds."""

    at: float
    believed: float
    measured: float


@dataclass(frozen=True)
class Convergence:
    """One compile. ``reached``: the first moment whose plan is within 3% of the last one; ``to_within``: from which on all are.

    ``searching``: share of the wall clock in which strategies made proposals and learned while nothing was built or measured.
    """

    shipped_logs: bool
    seconds: float
    candidates: int
    searching: float
    moments: tuple[Moment, ...]
    reached: float
    to_within: float


@dataclass(frozen=True)
class Known:
    """A log's records as of the moments: those that count at all of them, and those of the search, by time."""

    begun: datetime
    always: tuple[Record, ...]
    searched: tuple[Record, ...]

    def until(self, seconds: float) -> list[Record]:
        """What was known then."""
        return [*self.always, *(r for r in self.searched if self.at(r) <= seconds)]

    def at(self, record: Record) -> float:
        """Seconds from the start to a record."""
        return (datetime.fromisoformat(record.time) - self.begun).total_seconds()


def tuned(model: Path, options: Options, shipped: bool, log: Path) -> tuple[float, float]:
    """Tune into ``log``; (seconds, of those the search's own)."""
    shop = open_shop(options)
    source = read_source(model, options, shop)
    knows = stages.shipped if shipped else Experience
    start = monotonic()
    with patch.object(stages, "shipped", knows):
        done, _ = tune_graphs(source.graphs, shop, TuningLog(log), options)
    return monotonic() - start, done.searching


def known(log: Path, graphs: Sequence[Graph], shop: Shop) -> Known:
    """A log, split. Rivals' times when timed again in turns do not count, so that all moments are comparable."""
    tasks = {t.workload for t in graph_tasks(graphs, shop.target)}
    records = sorted((r for r in read_log(log).records if not r.provider.startswith("plan:")), key=lambda r: r.time)
    of_tasks = tuple(r for r in records if r.workload in tasks and r.stage == "search")
    begun = datetime.fromisoformat(records[0].time)
    return Known(begun, tuple(r for r in records if r.workload not in tasks), of_tasks)


def believed(graph: Graph, records: Sequence[Record], shop: Shop) -> float:
    """The planner's total; infinity while a node has no measurement at all."""
    choices = choose(graph, Catalogue(shop.providers, ResultTable(records), shop.target))
    opaque = {n.name for n in graph.nodes if n.op in OPAQUE}
    whole = all(a.implementation.measured or n in opaque for n, a in choices.nodes.items())
    return choices.seconds if whole else inf


def moments(model: Path, options: Options, log: Path, rounds: int) -> Iterator[Moment]:
    """The plans of a log at its moments, run in turns."""
    shop = open_shop(options)
    source = read_source(model, options, shop)
    facts = known(log, source.graphs, shop)
    graph = best_graph(source.graphs, ResultTable(facts.until(inf)), shop)
    last = facts.at(facts.searched[-1])
    times = [t for t in MOMENTS if t < last] + [last]
    runners = [_runner(model, options, facts.until(t), log.with_suffix(f".{t:.0f}.jsonl")) for t in times]
    try:
        for t, runs in zip(times, in_turns(runners, rounds), strict=True):
            yield Moment(t, believed(graph, facts.until(t), shop), typical(runs))
    finally:
        for runner in runners:
            runner.close()


def _runner(model: Path, options: Options, records: Sequence[Record], path: Path) -> Runner:
    """The program that these records give."""
    path.unlink(missing_ok=True)
    log = TuningLog(path)
    for record in records:
        log.append(record)
    runner = rebuild(path, model, options, strict=False).runner
    assert isinstance(runner, Runner)
    return runner


def first_within(found: Sequence[Moment], limit: float) -> float:
    """The first moment from which on no plan takes more than ``limit`` seconds; infinity when the last one does."""
    good = inf
    for moment in reversed(found):
        if moment.measured > limit:
            break
        good = moment.at
    return good


def compiled(model: Path, options: Options, shipped: bool, again: bool, rounds: int) -> Convergence:
    """Tune, unless that is done, then make and time plans."""
    log = FOLDER / f"{model.stem}-{'shipped' if shipped else 'nothing'}.jsonl"
    summary, cache = log.with_suffix(".json"), log.with_suffix(".cache")
    os.environ["WPK_CACHE"] = str(cache.absolute())
    if not again:
        shutil.rmtree(cache, ignore_errors=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        summary.write_text(json.dumps(tuned(model, options, shipped, log)))
    seconds, searching = json.loads(summary.read_text())
    found = tuple(moments(model, options, log, rounds))
    candidates = sum(r.stage == "search" for r in read_log(log).records)
    limit = WITHIN * found[-1].measured
    reached = next(m.at for m in found if m.measured <= limit)
    return Convergence(shipped, seconds, candidates, searching / seconds, found, reached, first_within(found, limit))


def told(found: Convergence) -> str:
    """For the terminal."""
    start, share = "the shipped logs" if found.shipped_logs else "nothing", found.searching
    plans = ", ".join(f"{m.at:.0f} s {m.measured * 1e3:.2f} ms ({m.believed * 1e3:.2f})" for m in found.moments)
    return (
        f"from {start}: {found.candidates} candidates in {found.seconds:.0f} s, {share:.1%} of the time spent searching\n"
        f"  plans after, measured (and believed): {plans}\n"
        f"  within 3% after {found.reached:.0f} s, for good after {found.to_within:.0f} s"
    )


def main() -> None:
    """Run both; print and perhaps write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--budget", type=parse_budget, default=600.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=60, help="runs of each plan")
    parser.add_argument("--without", action="store_true", help="only the compile that has no shipped logs")
    parser.add_argument("--again", action="store_true", help="from the logs that are there")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    options, found = Options(args.budget, threads=args.threads, trials=10_000), list[Convergence]()
    for shipped in (False,) if args.without else (True, False):
        found.append(compiled(args.model, options, shipped, args.again, args.rounds))
        print(told(found[-1]), flush=True)
        if args.json is not None:
            args.json.write_text(json.dumps([asdict(c) for c in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
