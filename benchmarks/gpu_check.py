"""Everything that needs a GPU, in one command: the tests marked ``gpu``, tuning, measuring, peers; figures and a table.

    python -m benchmarks.gpu_check --out DIR [--resume DIR] [--time 25m] [--only tests,resnet50/fp32 …]

Items are done in the order of :func:`plan`, each with its share of the time; each is written to ``DIR/items.jsonl`` as soon as it
is known, and the tuning log is ``DIR/tuning.jsonl``. A later run that is given the folder of an earlier one (``--resume``)
repeats nothing that was finished and measures no candidate again. Nothing is downloaded.

An item of a model gives: seconds of our plan, of the plan of NVIDIA's libraries, of PyTorch (eager in a CUDA graph, and
``torch.compile`` where it compiles in time), errors against ONNX Runtime in float32; for each convolution the best generated
kernel beside cuDNN's best engine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks import encoder, zoo
from wpk import api
from wpk.core.errors import WpkError
from wpk.graph.onnx_io import load_model
from wpk.passes import default_pipeline, run_pipeline
from wpk.planner.layouts import variants
from wpk.runtime.cuda.driver import open_device
from wpk.settings import known_gpu, parse_budget
from wpk.stages import Options
from wpk.tuning.log import read_log
from wpk.tuning.results import ResultTable

#: Models whose every convolution is compared with cuDNN's best engine.
SINGLE = ("resnet50", "vgg19", "inception_v2")
BERT = "bert-base-s128"
#: What the project promises, seconds at batch 1.
GOALS = {
    ("resnet50", "fp32", 1): 0.8e-3, ("resnet50", "tf32", 1): 0.5e-3, ("resnet50", "fp16", 1): 0.35e-3,
    (BERT, "fp16", 1): 0.65e-3,
}  # fmt: skip
_COMPILE_LIMIT = 150.0


@dataclass(frozen=True)
class Item:
    """Something to check. ``share``: of the whole time, for tuning."""

    name: str
    precision: str = ""
    batch: int = 1
    share: float = 0.0

    @property
    def key(self) -> str:
        """For people and ``--only``."""
        parts = [self.name, *([self.precision] if self.precision else []), *([f"b{self.batch}"] if self.batch > 1 else [])]
        return "/".join(parts)


def plan() -> tuple[Item, ...]:
    """The items in the order of what matters. The shares leave a third of the time for tests and peers."""
    first = [Item("tests"), *(Item("resnet50", p, 1, s) for p, s in (("fp32", 0.10), ("fp16", 0.06), ("tf32", 0.05)))]
    single = [Item(m, p, 1, 0.03) for p in ("fp32", "fp16", "tf32") for m in SINGLE if m != "resnet50"]
    large = [Item("gemm4096", "bf16", 1, 0.02), Item(BERT, "fp16", 1, 0.04)]
    batches = [Item(m, "fp16", 32, 0.03) for m in ("resnet50", "vgg19")]
    others = [m for m in zoo.NAMES if m not in SINGLE]
    rest = [Item(m, p, 1, 0.01) for p in ("fp32", "fp16", "tf32") for m in others]
    return (*first, *single, *large, *batches, *rest)


@dataclass(frozen=True)
class Desk:
    """Where things are. ``deadline``: of :func:`time.monotonic`."""

    out: Path
    models: Path
    total: float
    deadline: float

    @property
    def log(self) -> Path:
        """The tuning log of all items."""
        return self.out / "tuning.jsonl"

    @property
    def items(self) -> Path:
        """The figures, a line an item."""
        return self.out / "items.jsonl"

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - monotonic()


# Items


def run_tests(desk: Desk) -> dict[str, Any]:
    """pytest on everything marked ``gpu``."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
    limit = max(min(300.0, desk.left), 1.0)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as late:
        return {"failed": f"not done after {limit:.0f} s", "output": str(late.stdout)[-2000:]}
    (desk.out / "gpu-tests.txt").write_text(done.stdout + done.stderr)
    return {"exit": done.returncode, "summary": done.stdout.strip().splitlines()[-1:]}


def run_model(item: Item, desk: Desk) -> dict[str, Any]:
    """Tune within the item's share, then the whole plans, the peers, the single convolutions."""
    path = model_file(item, desk.models)
    budget = min(item.share * desk.total, max(desk.left - 20, 5))
    begun = monotonic()
    made = api.build(path, Options(budget=budget, target="cuda", precision=item.precision, trials=400), None, desk.log)
    took = monotonic() - begun
    times = {n: m.time if m.ok else m.detail or m.failure for n, m in made.measured.items()}
    figures = {
        "tuning_s": took, "plans": times, "winner": made.verdict.winner, "error": made.error, "plan": made.parts.plan.hash,
        "steps": len(made.parts.plan.steps), "precision": (made.parts.plan.meta or {}).get("precision"),
        "slowest": slowest(made.parts.plan.choices), "torch": peer(path, item, desk),
    }  # fmt: skip
    made.runner.close()
    return {**figures, "convolutions": singles(path, item, desk)} if item.name in SINGLE and item.batch == 1 else figures


def run_gemm(item: Item, desk: Desk) -> dict[str, Any]:
    """One large product: generated code beside cuBLASLt."""
    path = desk.models / "gemm4096.onnx"
    if not path.exists():
        large_product(path, 4096)
    options = Options(budget=item.share * desk.total, target="cuda", precision=item.precision, max_error=0.05, trials=400)
    made = api.build(path, options, None, desk.log)
    made.runner.close()
    (workload,) = {c.workload for c in made.parts.plan.choices if c.op in ("gemm", "matmul")}
    best = next(_rows(desk, [workload]))
    ours = min((s for n, s in best.items() if n.startswith("generated")), default=None)
    share = best["cublaslt"] / ours if ours and "cublaslt" in best else None
    return {"seconds": best, "tflops": {n: 2 * 4096**3 / s / 1e12 for n, s in best.items()}, "share_of_cublaslt": share}


def large_product(path: Path, n: int) -> None:
    """x·W with constant W."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save_model

    w = (np.random.default_rng(0).standard_normal((n, n), np.float32) / np.float32(n) ** 0.5).astype(np.float32)
    ends = [helper.make_tensor_value_info(v, TensorProto.FLOAT, [n, n]) for v in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], path.stem, ends[:1], ends[1:], [
        numpy_helper.from_array(w, "w"),
    ])  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def model_file(item: Item, folder: Path) -> Path:
    """The ONNX file of an item."""
    return encoder.build(folder) if item.name == BERT else zoo.build(item.name, folder, batch=item.batch)


def peer(path: Path, item: Item, desk: Desk) -> dict[str, Any]:
    """PyTorch, in a process of its own."""
    limit = _COMPILE_LIMIT if item.key in ("resnet50/fp32", "resnet50/fp16", f"{BERT}/fp16") else 0.0
    command = [sys.executable, "-m", "benchmarks.torch_peer", str(path), "--precision", item.precision]
    command += ["--compile-limit", str(min(limit, max(desk.left - 60, 0.0)))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit + 120)
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def singles(path: Path, item: Item, desk: Desk) -> list[dict[str, Any]]:
    """Each convolution of the graph that was tuned: the best generated kernel and cuDNN's best engine, in any layout."""
    from wpk.stages import find_target, open_shop, read_source  # after the first item, all is loaded anyway

    options = Options(target="cuda", precision=item.precision)
    shop = open_shop(options)
    (graph, *_) = read_source(path, options, shop).graphs if item.precision != "fp32" else [
        run_pipeline(load_model(path), default_pipeline())
    ]
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for node in (n for n in graph.nodes if n.op == "conv"):
        keys = tuple(graph.workload(node, v).key for v in variants(graph, node, find_target("cuda")))
        if keys in found:
            found[keys]["count"] += 1
            continue
        rows: dict[str, float] = {}
        for more in _rows(desk, keys):
            rows.update({n: min(s, rows.get(n, s)) for n, s in more.items()})
        ours = {n: s for n, s in rows.items() if n.startswith("generated")}
        best = min(ours, key=lambda n: ours[n], default="")
        found[keys] = {
            "workload": keys[0], "count": 1, "generated": ours.get(best), "by": best, "cudnn": rows.get("cudnn"),
        }  # fmt: skip
    return list(found.values())


def _rows(desk: Desk, keys: Sequence[str]) -> Iterator[dict[str, float]]:
    """The best seconds of each provider for workloads, by their keys."""
    table = ResultTable(read_log(desk.log).records)
    by_key = {w.key: w for w in table.workloads()}
    for key in keys:
        if key in by_key:
            yield {name: m.time for name, _, m in table.best(by_key[key]) if m.ok}


def slowest(choices: Sequence[Any], most: int = 8) -> list[dict[str, Any]]:
    """The steps that take longest, with their floor on this GPU."""
    peak = known_gpu(open_device().target)
    assert peak.gpu is not None
    timed = sorted((c for c in choices if c.seconds), key=lambda c: -c.seconds)[:most]
    return [
        {"node": c.node, "workload": c.workload, "provider": c.provider, "seconds": c.seconds,
         "floor": max(c.flops / (256.0 * peak.gpu.sms * peak.gpu.clock_hz), c.nbytes / peak.gpu.memory_bandwidth)}
        for c in timed
    ]  # fmt: skip


# The run


def run(desk: Desk, only: Sequence[str]) -> None:
    """All items that are not done, until the time is over."""
    done = finished(desk.items)
    for item in plan():
        if item.key in done or (only and item.key not in only):
            continue
        if desk.left < 15:
            print(f"out of time before {item.key}", flush=True)
            break
        begun = monotonic()
        figures = attempt(runner_of(item), item, desk)
        line = {"item": item.key, **asdict(item), "took_s": monotonic() - begun, "figures": figures}
        with desk.items.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{item.key}: {monotonic() - begun:.0f} s: {summary(figures)}", flush=True)
        write_report(desk)


def runner_of(item: Item) -> Callable[[Item, Desk], dict[str, Any]]:
    """What does an item."""
    if item.name == "tests":
        return lambda _, desk: run_tests(desk)
    return run_gemm if item.name == "gemm4096" else run_model


def attempt(do: Callable[[Item, Desk], dict[str, Any]], item: Item, desk: Desk) -> dict[str, Any]:
    """What failed is a figure too: the other items go on."""
    try:
        return do(item, desk)
    except WpkError as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    except Exception as error:  # whatever a library throws must not end the run
        return {"failed": f"{type(error).__name__}: {error}"}


def finished(path: Path) -> dict[str, dict[str, Any]]:
    """The newest figures of each item that did not fail."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {line["item"]: line for line in lines if "failed" not in line["figures"]}


def summary(figures: Mapping[str, Any]) -> str:
    """One line."""
    if "plans" in figures:
        ours = figures["plans"].get("tuned")
        rival = figures["torch"].get("eager_s")
        return f"tuned {_ms(ours)}, torch {_ms(rival)}, error {figures['error']:.1e}"
    return str({k: v for k, v in figures.items() if k != "output"})[:200]


# The report


def write_report(desk: Desk) -> None:
    """``results.json`` and ``results.md`` from the items."""
    items = finished(desk.items)
    device = open_device().name
    (desk.out / "results.json").write_text(json.dumps({"device": device, "items": list(items.values())}, indent=1) + "\n")
    (desk.out / "results.md").write_text(table(items, device))


def table(items: Mapping[str, Mapping[str, Any]], device: str) -> str:
    """Markdown: whole models, then single convolutions. ``libraries`` is our plan with cuDNN and cuBLASLt wherever they can."""
    lines = [
        f"Measured on one {device}. Milliseconds a run; errors are relative L2 against ONNX Runtime in float32.", "",
        "| model | precision | batch | wpk | libraries | torch eager | torch.compile | over the best peer | goal | error |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    ratios = []
    for line in items.values():
        if "plans" not in line["figures"]:
            continue
        row, ratio = _row(line)
        lines.append(row)
        ratios += [ratio] if ratio else []
    if ratios:
        lines += ["", f"Geometric mean over the best peer: {_geomean(ratios):.2f}."]
    return "\n".join([*lines, "", *_single_table(items), "", *_products(items)])


def _row(line: Mapping[str, Any]) -> tuple[str, float | None]:
    figures = line["figures"]
    plans, rival = figures["plans"], figures["torch"]
    ours = plans[figures["winner"]]
    peers = [s for s in (plans.get("libraries"), rival.get("eager_s"), rival.get("compiled_s")) if isinstance(s, float)]
    ratio = min(peers) / ours if peers else None
    goal = GOALS.get((line["name"], line["precision"], line["batch"]))
    cells = [
        line["name"], line["precision"], str(line["batch"]), _ms(ours), _ms(plans.get("libraries")), _ms(rival.get("eager_s")),
        _ms(rival.get("compiled_s")), "–" if ratio is None else f"{ratio:.2f}",
        "" if goal is None else f"{_ms(goal)}: {'yes' if ours <= goal else 'no'}", f"{figures['error']:.1e}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |", ratio


def _single_table(items: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "| single convolutions, batch 1 | pairs | generated over cuDNN's best engine, geometric mean | least | most |"
    yield "|---|---|---|---|---|"
    for precision in ("fp32", "tf32", "fp16"):
        pairs = [
            c["cudnn"] / c["generated"]
            for line in items.values() if line["precision"] == precision
            for c in line["figures"].get("convolutions", ()) if c["cudnn"] and c["generated"]
        ]  # fmt: skip
        if pairs:
            yield f"| {precision} | {len(pairs)} | {_geomean(pairs):.2f} | {min(pairs):.2f} | {max(pairs):.2f} |"


def _products(items: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line for each large product."""
    for line in items.values():
        if line["name"] == "gemm4096":
            figures = line["figures"]
            rates = ", ".join(f"{name} {rate:.0f}" for name, rate in sorted(figures["tflops"].items(), key=lambda x: -x[1]))
            share = figures["share_of_cublaslt"]
            said = "cuBLASLt was not measured" if share is None else f"generated code reaches {share:.0%} of cuBLASLt"
            yield f"Product of 4096³, {line['precision']}: {said}. TFLOP/s: {rates}.\n"


def _geomean(ratios: Sequence[float]) -> float:
    return exp(sum(map(log, ratios)) / len(ratios))


def _ms(seconds: object) -> str:
    return f"{seconds * 1e3:.3f}" if isinstance(seconds, float) else "–"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, take over what an earlier run left, go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="the folder of an earlier run")
    parser.add_argument("--time", type=parse_budget, default=1500.0, help="wall clock of this run, such as 9m")
    parser.add_argument("--total", type=parse_budget, default=1500.0, help="of all runs together: shares are of this")
    parser.add_argument("--only", default="", help="keys of items, comma-separated")
    parser.add_argument("--models", type=Path, default=Path("build/zoo"))
    parser.add_argument("--list", action="store_true", help="print the items' keys and end")
    args = parser.parse_args(arguments)
    if args.list:
        print("\n".join(item.key for item in plan()))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("items.jsonl", "tuning.jsonl") if args.resume is not None else ():
        if (args.resume / name).exists() and not (args.out / name).exists():
            shutil.copyfile(args.resume / name, args.out / name)
    open_device()  # without a GPU there is nothing to do: say so at once
    desk = Desk(args.out, args.models, args.total, monotonic() + args.time)
    run(desk, [k for k in args.only.split(",") if k])


if __name__ == "__main__":
    try:
        main()
    except WpkError as problem:
        sys.exit(f"gpu_check: {problem}")
