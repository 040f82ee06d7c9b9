"""``wpk bench``."""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from wpk.commands.common import table, write_text
from wpk.core.errors import UsageError
from wpk.measure.calm import Calm
from wpk.report.engines import (
    Engine,
    Timing,
    in_turns,
    random_feeds,
    relative_l2,
    rival_engine,
    runner_engine,
)
from wpk.report.explain import duration
from wpk.runtime.runner import load


def bench_model(
    model: Path, against: str, onnx: Path | None, rounds: int, threads: int | None, budget: str, log: Path | None,
    json: Path | None, out: Console,
) -> None:  # fmt: skip
    """Time the model in turns with the engines of ``against``; print and perhaps write medians, spreads, ratios, errors."""
    names = [a for a in against.split(",") if a]
    source = onnx if model.suffix == ".wpk" else model
    if names and source is None:
        raise UsageError(f"--against needs the model that {model} was made from: --onnx MODEL.onnx")
    if model.suffix == ".wpk":
        runner = load(model, threads)
    else:
        from wpk import api  # pulls in the compiler

        runner = api.compile(model, budget=budget, log=log, threads=threads)
    inputs = runner.plan.inputs
    rivals = [rival_engine(name, source, runner.threads, inputs) for name in names if source is not None]
    engines = [runner_engine(runner), *rivals]
    feeds = random_feeds(inputs)
    timings = in_turns(engines, feeds, rounds, calm=Calm(runner.speed))
    errors = differences(engines, feeds)
    out.print(timing_table(timings, errors))
    if json is not None:
        write_text(
            json,
            json_text.dumps([{**asdict(t), "median": t.median, "spread": t.spread} for t in timings]) + "\n",
        )


def differences(engines: Sequence[Engine], feeds: Mapping[str, np.ndarray]) -> list[float]:
    """For each engine, the largest relative L2 distance of its outputs to the first engine's."""
    own, *others = [[np.array(a) for a in e.run(feeds)] for e in engines]
    return [0.0, *(max(relative_l2(a, b) for a, b in zip(own, other, strict=True)) for other in others)]


def timing_table(timings: Sequence[Timing], errors: Sequence[float]) -> Table:
    """One engine a row; the ratio is its median over the first engine's."""
    grid = table("engine", "median", "spread", "runs", "ratio", "difference")
    for t, error in zip(timings, errors, strict=True):
        ratio = f"{t.median / timings[0].median:.2f}×"
        grid.add_row(
            t.name, duration(t.median), f"±{t.spread / 2:.1%}", str(len(t.samples)), ratio, f"{error:.1e}"
        )
    return grid
