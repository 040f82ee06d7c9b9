"""What a fleet gives, measured on loopback with simulated measurements: speed-up, the scheduler's throughput, killed workers.

    python -m benchmarks.fleet [--takes 0.1] [--kills 10] [--out benchmarks/results/search/fleet]

A real Dask scheduler and real workers, each a process; only a measurement is a sleep.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean, median
from time import perf_counter, sleep
from typing import Any

from wpk.fleet.client import Fleet
from wpk.fleet.worker import build_candidate
from wpk.search.recorded import RecordedSpace, load_space
from wpk.search.strategy import make_strategy
from wpk.tuning.log import TuningLog, read_log
from wpk.tuning.tasks import Task
from wpk.tuning.tuner import TuneOptions, tune

#: Recorded spaces of four kinds of convolution.
_SPACES = ("conv3x3-64x56", "conv1x1-1024x14-256", "depthwise-272x14", "stem7x7-3x224")
TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "unit")]

from fleet_fakes import FACTS, Cluster, cluster  # noqa: E402
from tuning_fakes import LIB, TARGET, VERSIONS, Sim, workload  # noqa: E402


def tasks(count: int) -> list[Task]:
    """Some tasks."""
    return [Task(workload(8 * (i + 1)), (f"n{i}",)) for i in range(count)]


def workers(made: Cluster, fleet: Fleet, count: int, takes: float) -> None:
    """Bring a cluster to ``count`` workers."""
    made.start(count - len(made.workers), takes)
    while fleet.slots != count:
        sleep(0.1)


def speed(takes: float, counts: tuple[int, ...] = (1, 2, 4), each: int = 20, many: int = 10) -> list[dict[str, float]]:
    """Seconds of the same tuning run on 1, 2 and 4 workers."""
    rows: list[dict[str, float]] = []
    with cluster() as made:
        made.start(1, takes)
        with Fleet(made.address, TARGET, FACTS) as fleet:
            for count in counts:
                workers(made, fleet, count, takes)
                begun = perf_counter()
                tuned = tune(tasks(many), (Sim(), LIB), fleet, TuningLog(None), VERSIONS, TuneOptions(trials=each))
                seconds = perf_counter() - begun
                first = rows[0]["seconds"] if rows else seconds
                rows.append({"workers": count, "measurements": tuned.measured, "seconds": seconds, "speedup": first / seconds})
    return rows


def throughput(count: int = 2000, size: int = 4) -> dict[str, float]:
    """Tiny tasks a second that one scheduler moves: builds that do nothing, on ``size`` workers."""
    with cluster() as made:
        made.start(size, 0.0)
        with Fleet(made.address, TARGET, FACTS) as fleet:
            workers(made, fleet, size, 0.0)
            jobs = fleet._jobs
            needs = FACTS.building_needs("generated:sim")
            begun = perf_counter()
            futures = [jobs.submit(build_candidate, needs, i, {"i": i}) for i in range(count)]
            fleet._client.gather(futures)
            alone = perf_counter() - begun
            configs = [{"a": i % 14, "b": i // 14} for i in range(count // 8)]
            begun = perf_counter()
            list(fleet.measure_each(workload(8), Sim(), configs))
            whole = perf_counter() - begun
    return {"workers": size, "tiny_tasks_per_s": count / alone, "candidates_per_s": len(configs) / whole}


def many(count: int = 96, takes: float = 2.0, each: int = 5, processes: int = 4) -> dict[str, float]:
    """How much of its time a larger fleet measures: workers that sleep, many in a process."""
    with cluster() as made:
        made.start(processes, takes, each=count // processes)
        with Fleet(made.address, TARGET, FACTS) as fleet:
            while fleet.slots != count:
                sleep(0.2)
            configs = [{"a": i % 14, "b": i // 14} for i in range(count * each)]
            begun = perf_counter()
            list(fleet.measure_each(workload(8), Sim(), configs))
            seconds = perf_counter() - begun
    return {
        "workers": count, "takes": takes, "candidates_per_s": count * each / seconds, "busy": each * takes / seconds,
    }  # fmt: skip


def delay(flights: Sequence[int] = (8, 32, 128), trials: int = 192, seeds: int = 5) -> list[dict[str, float]]:
    """What it costs a search to hear late: the genetic strategy on recorded spaces, with so many candidates under way."""
    spaces = [load_space(TESTS / "data" / "spaces" / f"{name}.json.xz") for name in _SPACES]
    rows = []
    for flight in flights:
        runs = [_delayed(s, seed, flight, trials) for s in spaces for seed in range(seeds)]
        ratio = geometric_mean([min(r) / s.optimum for r, s in zip(runs, (s for s in spaces for _ in range(seeds)), strict=True)])
        firsts = [_first_near(r, s.optimum) for r, s in zip(runs, (s for s in spaces for _ in range(seeds)), strict=True)]
        rows.append({"in_flight": flight, "measurements": trials, "final_ratio": ratio, "to_within_5pc": median(firsts)})
    return rows


def _delayed(space: RecordedSpace, seed: int, flight: int, trials: int) -> list[float]:
    """Seconds in the order told; a batch is told when ``flight`` later ones were asked for."""
    strategy, waiting, times = make_strategy("genetic", space.space, seed), [], []  # type: ignore[var-annotated]
    while len(times) < trials:
        while sum(map(len, waiting)) < flight and (asked := strategy.ask(8)):
            waiting.append(asked)
        if not waiting:
            break
        told = space.tell(waiting.pop(0))
        strategy.tell(told)
        times += [seconds for _, seconds in told]
    return times[:trials]


def _first_near(times: Sequence[float], optimum: float) -> int:
    return next((i + 1 for i, t in enumerate(times) if t <= 1.05 * optimum), len(times) + 1)


def kills(times: int, takes: float) -> dict[str, object]:
    """Workers killed while they measure, each replaced by a new one: what the log has then."""
    with cluster() as made, tempfile.TemporaryDirectory() as folder:
        made.start(3, takes)
        with Fleet(made.address, TARGET, FACTS) as fleet:
            workers(made, fleet, 3, takes)
            done = threading.Event()
            killed = [0]
            killer = threading.Thread(target=_kill, args=(made, times, takes, done, killed))
            killer.start()
            begun = perf_counter()
            log = Path(folder) / "log"
            tune(tasks(8), (Sim(), LIB), fleet, TuningLog(log), VERSIONS, TuneOptions(trials=40))
            seconds = perf_counter() - begun
            done.set()
            killer.join()
        records = read_log(log).records
        counts = Counter(r.key for r in records if r.stage == "search")
        wrong = sum(not r.measurement.ok and int(r.config.get("a", 0)) <= 13 for r in records)
    expected = 8 * 40
    return {
        "killed": killed[0], "expected_records": expected, "records": sum(counts.values()), "lost": expected - len(counts),
        "doubled": sum(n - 1 for n in counts.values()), "failures_made_up": wrong, "seconds": seconds,
    }  # fmt: skip


def _kill(made: Cluster, times: int, takes: float, done: threading.Event, killed: list[int]) -> None:
    while killed[0] < times and not done.wait(0.9):
        made.kill()
        killed[0] += 1
        made.start(1, takes)


def table(found: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    lines = ["# Fleets on loopback", "", f"Simulated measurements of {1e3 * found['takes']:g} ms; 2 cores for everything.", ""]
    lines += ["| workers | measurements | seconds | speed-up |", "|---|---|---|---|"]
    lines += [f"| {r['workers']} | {r['measurements']} | {r['seconds']:.2f} | {r['speedup']:.2f}× |" for r in found["speed"]]
    t, m, k = found["throughput"], found["many"], found["kills"]
    lines += [
        "", f"One scheduler, {t['workers']} workers: {t['tiny_tasks_per_s']:.0f} tiny tasks a second, "
        f"{t['candidates_per_s']:.0f} candidates a second (a build and a measurement each, both empty).", "",
        f"{m['workers']} workers, measurements of {m['takes']:g} s: {m['candidates_per_s']:.0f} candidates a second; the devices "
        f"measure {m['busy']:.0%} of the time.", "",
        *_delays(found["delay"]), "",
        f"{k['killed']} workers killed in the middle of a run of {k['expected_records']} candidates: {k['lost']} lost, "
        f"{k['doubled']} doubled, {k['failures_made_up']} failures made up.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _delays(rows: Sequence[Mapping[str, float]]) -> list[str]:
    lines = ["The genetic strategy on recorded spaces, told late:", ""]
    lines.append(f"| candidates under way | best after {rows[0]['measurements']}, over the optimum | to within 5%, median |")
    lines.append("|---|---|---|")
    return lines + [f"| {r['in_flight']} | {r['final_ratio']:.3f} | {r['to_within_5pc']:.0f} |" for r in rows]


def main() -> None:
    """Measure, print, save; 1 when a record was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--takes", type=float, default=0.1)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--only", default="", help="one part; the others stay as the file has them")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search/fleet"))
    args = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "speed": lambda: speed(args.takes), "throughput": throughput, "many": many, "delay": delay,
        "kills": lambda: kills(args.kills, args.takes),
    }  # fmt: skip
    kept = json.loads(args.out.with_suffix(".json").read_text()) if args.only else {}
    found = {**kept, "takes": args.takes, **{n: f() for n, f in parts.items() if args.only in ("", n)}}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(table(found))
    print(table(found))
    sys.exit(bool(found["kills"]["lost"] or found["kills"]["doubled"]))


if __name__ == "__main__":
    main()
