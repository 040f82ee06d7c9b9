"""The zoo, compiled by wpk and timed in turns with ONNX Runtime and OpenVINO in one process.

    python -m benchmarks.models --models resnet50,vgg19 --against onnxruntime,openvino --budget 120s --threads 2 --json F

Writes F after each model, and a Markdown table beside it. A model's tuning log is kept in --logs, so a second run resumes.
Everything is float32; errors are relative L2 against ONNX Runtime, on the tensor before the last softmax.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from math import exp, log
from pathlib import Path

import numpy as np
import onnx

import wpk
from benchmarks import zoo
from wpk.core.target import host_target
from wpk.measure.calm import Calm
from wpk.report.engines import (
    Engine,
    Timing,
    in_turns,
    onnxruntime_engine,
    random_feeds,
    relative_l2,
    rival_engine,
    runner_engine,
)


@dataclass(frozen=True)
class Result:
    """One model. Seconds are medians; ``ratios``: rival's median over wpk's; ``best_ratio``: the best rival's."""

    model: str
    batch: int
    seconds: dict[str, float]
    spread: dict[str, float]
    runs: dict[str, int]
    ratios: dict[str, float]
    best_ratio: float
    error: float
    plan: str


def measure(name: str, args: argparse.Namespace) -> Result:
    """Compile, check and time one model of the zoo."""
    model = zoo.build(name, args.zoo, batch=args.batch)
    args.logs.mkdir(parents=True, exist_ok=True)
    tag = name if args.batch == 1 else f"{name}-b{args.batch}"
    log_file = args.logs / f"{tag}.jsonl"
    runner = wpk.compile(
        model, budget=args.budget, strategy=args.strategy, threads=args.threads, log=log_file, providers=args.providers,
    )  # fmt: skip
    error = body_error(model, log_file, args)
    rivals = [rival_engine(rival, model, args.threads, runner.plan.inputs) for rival in args.against]
    timings = timed([runner_engine(runner), *rivals], random_feeds(runner.plan.inputs, seed=1), args.rounds, Calm(runner.speed))
    result = summarize(name, args.batch, timings, error, runner.plan.hash)
    runner.close()
    return result


def timed(engines: Sequence[Engine], feeds: dict[str, np.ndarray], rounds: int, calm: Calm) -> list[Timing]:
    """Turns of about a third of a second: long enough to be steady, short enough that all engines see the same machine."""
    return in_turns(engines, feeds, rounds=rounds, block=0.3, settle=0.1, calm=calm)


def body_error(model: Path, log_file: Path, args: argparse.Namespace) -> float:
    """Relative L2 error of the tensor before the last softmax, with the plan that the tuning log gives for it."""
    body = without_last_softmax(onnx.load(str(model)))
    runner = wpk.replay(log_file, body, strict=False, threads=args.threads, providers=args.providers)
    feeds = random_feeds(runner.plan.inputs, seed=2)
    found = runner.run(None, feeds)
    expected = onnxruntime_engine(body.SerializeToString(), args.threads).run(feeds)
    runner.close()
    return max(relative_l2(a, b) for a, b in zip(found, expected, strict=True))


def without_last_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each Softmax that makes a graph output taken off; its input becomes the output."""
    last = {n.output[0]: n for n in model.graph.node if n.op_type == "Softmax"}
    for output in model.graph.output:
        if output.name in last:
            node = last[output.name]
            output.name = node.input[0]
            model.graph.node.remove(node)
    return model


def summarize(name: str, batch: int, timings: Sequence[Timing], error: float, plan: str) -> Result:
    """Medians, spreads and ratios; the first timing is wpk's."""
    own, *others = timings
    ratios = {t.name: t.median / own.median for t in others}
    return Result(
        name, batch, {t.name: t.median for t in timings}, {t.name: t.spread for t in timings},
        {t.name: len(t.samples) for t in timings}, ratios, min(ratios.values(), default=1.0), error, plan,
    )  # fmt: skip


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers; 1 for none."""
    return exp(sum(map(log, values)) / len(values)) if values else 1.0


def document(results: Sequence[Result], args: argparse.Namespace) -> dict[str, object]:
    """What goes into the JSON file."""
    return {
        "machine": {**host_target(args.threads).to_json(), "python": platform.python_version()},
        "versions": {p: metadata.version(p) for p in ("wpk", "onnxruntime", *(a for a in args.against if a == "openvino"))},
        "settings": {"budget": args.budget, "threads": args.threads, "providers": args.providers, "rounds": args.rounds},
        "models": [asdict(r) for r in results],
        "geomean": {
            **{f"vs {rival}": geometric_mean([r.ratios[rival] for r in results]) for rival in args.against},
            "vs best": geometric_mean([r.best_ratio for r in results]),
        },
    }  # fmt: skip


def markdown(results: Sequence[Result], against: Sequence[str]) -> str:
    """The table: milliseconds (spread), how many times faster than each rival, error."""
    engines = ["wpk", *against]
    head = ["model", *(f"{e} ms" for e in engines), *(f"× {rival}" for rival in against), "× best", "error"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r in results:
        times = [f"{1e3 * r.seconds[e]:.2f} ±{50 * r.spread[e]:.0f}%" for e in engines]
        ratios = [f"{r.ratios[rival]:.2f}" for rival in against]
        lines.append(
            "| " + " | ".join([r.model, *times, *ratios, f"{r.best_ratio:.2f}", f"{r.error:.1e}"]) + " |"
        )
    means = [f"{geometric_mean([r.ratios[rival] for r in results]):.2f}" for rival in against]
    best = f"{geometric_mean([r.best_ratio for r in results]):.2f}"
    lines.append("| " + " | ".join(["geometric mean", *[""] * len(engines), *means, best, ""]) + " |")
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="all", help="comma-separated names of the zoo, or all")
    parser.add_argument(
        "--against", default="onnxruntime", help="onnxruntime, openvino or both, comma-separated"
    )
    parser.add_argument("--budget", default="120s", help="tuning time for each model")
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--providers", default=None, help="comma-separated; default: all that are installed")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument(
        "--logs", type=Path, default=Path("build/logs"), help="folder of tuning logs, one a model"
    )
    parser.add_argument("--zoo", type=Path, default=Path("build/zoo"), help="folder of the models")
    args = parser.parse_args(arguments)
    args.models = list(zoo.NAMES) if args.models == "all" else args.models.split(",")
    args.against = [a for a in args.against.split(",") if a]
    args.providers = args.providers.split(",") if args.providers else None
    return args


def main() -> None:
    """Measure each model, writing what is known after each."""
    args = parse()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for name in args.models:
        results.append(measure(name, args))
        args.json.write_text(json.dumps(document(results, args), indent=1) + "\n")
        args.json.with_suffix(".md").write_text(markdown(results, args.against))
        print(markdown(results[-1:], args.against).splitlines()[2], flush=True)
        gc.collect()
    print("\n" + markdown(results, args.against))


if __name__ == "__main__":
    main()
