"""All figures about the search, from one command, and a table of what was wanted and what is reached.

    python -m benchmarks.search_goals [--only strategies,fleet] [--table]

Parts run one after the other, each in a process of its own; nothing else should run on the machine. One that fails is named and
the others go on. ``--table`` only reads what is in benchmarks/results/search and writes goals.md there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.zoo import build

RESULTS, MODELS = Path("benchmarks/results/search"), Path("build/zoo")

#: Part → arguments of its module, in the order in which they run; ``MODEL`` stands for resnet50, ``MODELS`` for three of the zoo.
PARTS: dict[str, tuple[str, ...]] = {
    "strategies": (),
    "cost_model": (),
    "log_load": ("--json", str(RESULTS / "log_load.json")),
    "fleet": (),
    "kill_nine": (),
    "convergence": ("MODEL", "--json", str(RESULTS / "convergence.json")),
    "agreement": ("MODELS", "--json", str(RESULTS / "agreement.json")),
}
AGREEING = ("resnet50", "inception_v1", "squeezenet")


@dataclass(frozen=True)
class Goal:
    """``what`` should be no more than ``limit``, or no less where ``least``; ``find`` reads it from the results of ``part``."""

    what: str
    part: str
    limit: float
    find: Callable[[Any], float]
    least: bool = False

    def line(self) -> str:
        """A row of the table."""
        path = RESULTS / f"{self.part}.json"
        sign = "≥" if self.least else "≤"
        if not path.exists():
            return f"| {self.what} | {sign} {self.limit:g} | not measured | |"
        try:
            found = self.find(json.loads(path.read_text()))
        except (KeyError, TypeError, IndexError, StopIteration):
            return f"| {self.what} | {sign} {self.limit:g} | not measured | |"
        good = found >= self.limit if self.least else found <= self.limit
        return f"| {self.what} | {sign} {self.limit:g} | {found:.4g} | {'yes' if good else '**no**'} |"


def _final(start: str, strategy: str) -> Callable[[Any], float]:
    return lambda d: float(d[start]["strategies"][strategy]["final"][0])


def _early(start: str, strategy: str) -> Callable[[Any], float]:
    return lambda d: float(d[start]["strategies"][strategy]["early"][0])


def _fewer(ours: tuple[str, str], theirs: tuple[str, str]) -> Callable[[Any], float]:
    """How many times as many measurements the second (start, strategy) takes to come within 5%."""
    return lambda d: _to_near(d, *theirs) / _to_near(d, *ours)


def _to_near(d: Any, start: str, strategy: str) -> float:
    figures = d[start]["strategies"][strategy]
    median = figures["to_near"][0]
    return float(d[start]["trials"] + 1 if median is None else median)


def _compile(shipped: bool, field: str) -> Callable[[Any], float]:
    return lambda d: float(next(c for c in d if c["shipped_logs"] == shipped)[field])


GOALS = (
    Goal("auto with transfer, best after 100 over the optimum", "strategies", 1.03, _final("transfer", "auto")),
    Goal("auto from a random config, the same", "strategies", 1.03, _final("nothing", "auto")),
    Goal("genetic from a random config, the same", "strategies", 1.06, _final("nothing", "genetic")),
    Goal("rl, trained on other tasks, the same", "strategies", 1.06, _final("nothing", "rl")),
    Goal("rl, untrained, the same", "strategies", 1.10, _final("nothing", "rl-cold")),
    Goal("random over auto with transfer, measurements to within 5%", "strategies", 5.0,
         _fewer(("transfer", "auto"), ("nothing", "random")), least=True),
    Goal("random over auto, both from a random config", "strategies", 5.0,
         _fewer(("nothing", "auto"), ("nothing", "random")), least=True),
    Goal("TPE over auto with transfer", "strategies", 2.0, _fewer(("transfer", "auto"), ("nothing", "tpe")), least=True),
    Goal("TPE over auto, both from a random config", "strategies", 2.0,
         _fewer(("nothing", "auto"), ("nothing", "tpe")), least=True),
    Goal("TPE over genetic, both from a random config", "strategies", 1.0,
         _fewer(("nothing", "genetic"), ("nothing", "tpe")), least=True),
    Goal("TPE over genetic with its screen, the same", "strategies", 1.0,
         _fewer(("nothing", "genetic-screened"), ("nothing", "tpe")), least=True),
    Goal("TPE over rl, both from a random config", "strategies", 1.0, _fewer(("nothing", "rl"), ("nothing", "tpe")), least=True),
    Goal("auto with transfer, best after 10 over the optimum", "strategies", 1.15, _early("transfer", "auto")),
    Goal("resnet50, seconds to within 3% of 10 minutes, shipped logs", "convergence", 90, _compile(True, "reached")),
    Goal("the same, no later plan being worse", "convergence", 90, _compile(True, "to_within")),
    Goal("resnet50, seconds to within 3% of 10 minutes, from nothing", "convergence", 180, _compile(False, "reached")),
    Goal("the same, no later plan being worse", "convergence", 180, _compile(False, "to_within")),
    Goal("share of the wall clock that the search takes", "convergence", 0.10, lambda d: max(c["searching"] for c in d)),
    Goal("cost model, held-out tasks: Spearman", "cost_model", 0.8,
         lambda d: float(d["means"]["counted"]["ways"]["task held out"]["spearman"]), least=True),
    Goal("cost model, held-out tasks: recall@10 of the top 1%", "cost_model", 0.6,
         lambda d: float(d["means"]["counted"]["ways"]["task held out"]["recall"]), least=True),
    Goal("4 loopback workers over one", "fleet", 3.5,
         lambda d: float(next(s["speedup"] for s in d["speed"] if s["workers"] == 4)), least=True),
    Goal("records lost or doubled by ten kills", "fleet", 0, lambda d: float(d["kills"]["lost"] + d["kills"]["doubled"])),
    Goal("seconds to open a log of 100,000 records", "log_load", 2.0, lambda d: float(d["open_with_index_s"])),
    Goal("share of the nodes on which two tunings agree, three models", "agreement", 0.9,
         lambda d: float(d["same_provider"]), least=True),
)  # fmt: skip


def table() -> str:
    """Goals and figures as Markdown."""
    return "\n".join(["| what | wanted | measured | reached |", "|---|---|---|---|", *(g.line() for g in GOALS)]) + "\n"


def run(parts: Sequence[str]) -> list[str]:
    """Run parts; those that failed."""
    paths = {name: str(build(name, MODELS)) for name in AGREEING}
    stands = {"MODEL": [paths["resnet50"]], "MODELS": [paths[n] for n in AGREEING]}
    failed = []
    for part in parts:
        arguments = [a for x in PARTS[part] for a in stands.get(x, [x])]
        print(f"== {part}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{part}", *arguments]).returncode:
            failed.append(part)
    return failed


def main() -> None:
    """Run, write the table; 1 when a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda s: s.split(","), default=list(PARTS))
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    failed = [] if args.table else run(args.only)
    (RESULTS / "goals.md").write_text(table())
    print(table())
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
