"""``make demo``: resnet50 from nothing to a tuned artifact, with everything shown on the way.

build the model → compile with a budget → table of choices → error and speed beside ONNX Runtime → save → load → same answer
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

import wpk
from benchmarks import zoo
from wpk.commands.benching import differences, timing_table
from wpk.commands.compiling import compile_model
from wpk.measure.calm import Calm
from wpk.report.engines import in_turns, onnxruntime_engine, random_feeds, relative_l2, runner_engine
from wpk.settings import parse_budget
from wpk.stages import Options


def main() -> int:
    """Run the demo; 0 when the reloaded program is right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet50", choices=zoo.NAMES)
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--folder", type=Path, default=Path("build/demo"))
    args = parser.parse_args()
    out = Console(width=None if sys.stdout.isatty() else 120, highlight=False)

    heading(out, f"1. {args.model}: the real architecture, weights drawn from a seed")
    model = zoo.build(args.model, args.folder)
    out.print(Text(f"{model} ({model.stat().st_size / 1e6:.0f} MB)"))

    heading(out, f"2. compile for this machine, {args.budget} of tuning")
    artifact, log = args.folder / f"{args.model}.wpk", args.folder / f"{args.model}.jsonl"
    log.unlink(missing_ok=True)  # a demo begins at the beginning
    compile_model(
        model,
        Options(budget=parse_budget(args.budget)),
        artifact,
        log,
        False,
        args.folder / "report.html",
        out,
    )

    heading(out, "3. load the artifact, side by side with ONNX Runtime")
    runner = wpk.load(artifact)
    rival = onnxruntime_engine(model, runner.threads)
    feeds = random_feeds(runner.plan.inputs, seed=7)
    engines = [runner_engine(runner), rival]
    out.print(timing_table(in_turns(engines, feeds, rounds=5, calm=Calm(runner.speed)), differences(engines, feeds)))
    error = max(
        relative_l2(np.asarray(a), b) for a, b in zip(runner.run(None, feeds), rival.run(feeds), strict=True)
    )
    out.print(Text(f"\n{artifact} · {log} · {args.folder / 'report.html'}"))
    out.print(Text(f"next: wpk explain {artifact} · wpk replay {log} {model}"))
    return 0 if error < 1e-3 else 1


def heading(out: Console, text: str) -> None:
    """A line above a part of the demo."""
    out.print(Text(f"\n{text}", style="bold"))


if __name__ == "__main__":
    sys.exit(main())
