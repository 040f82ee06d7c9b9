"""Everything that needs a GPU, in one command: the tests marked ``gpu``, tuning, measuring, peers; figures and tables.

    python -m benchmarks.gpu_check --out DIR [--resume DIR] [--time 25m] [--only tests/device,resnet50/fp32 …]

Items are done in the order of :func:`plan`, each with its share of the time, each in a process of its own: what crashes, hangs
or spoils the GPU for its process ends that item alone. Each is written to ``DIR/items.jsonl`` as soon as it is known, and the
tuning log is ``DIR/tuning.jsonl``, compressed after every item. A later run that is given the folder of an earlier one
(``--resume``) repeats nothing that was finished and measures no candidate again. Nothing is downloaded.

An item of a model gives: seconds of our plan and of the plan of NVIDIA's libraries, errors against ONNX Runtime in float32; for
each convolution the best generated kernel beside cuDNN's best engine. Its peer is an item too: PyTorch, eager in a CUDA graph,
and later ``torch.compile``, which takes minutes. Tables: :mod:`benchmarks.gpu_report`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks import encoder, zoo
from benchmarks.gpu_report import BERT, settled, summary, write_report
from wpk import api
from wpk.core.errors import WpkError
from wpk.graph.onnx_io import load_model
from wpk.passes import default_pipeline, run_pipeline
from wpk.planner.layouts import variants
from wpk.providers.registry import providers
from wpk.runtime.cuda.driver import open_device
from wpk.settings import known_gpu, parse_budget
from wpk.stages import Options, find_target, open_shop, read_source
from wpk.tuning.log import read_log
from wpk.tuning.results import ResultTable

#: Models whose every convolution is compared with cuDNN's best engine.
SINGLE = ("resnet50", "vgg19", "inception_v2")
#: Files of tests: the first two before all else, the others when the figures that matter most are known.
TESTS = ("device", "instructions", "cublaslt", "cudnn", "models", "families")
EAGER, COMPILED = "torch", "compile"
#: Seconds for ``torch.compile``, for a file of tests, and for what an item does besides tuning.
_COMPILE, _TESTS, _AROUND = 150.0, 240.0, 75.0
#: Seconds below which no item is begun, by what it is.
_LEAST = {"tests": 20.0, EAGER: 30.0, COMPILED: 90.0, "": 90.0}


@dataclass(frozen=True)
class Item:
    """Something to check. ``share``: of the whole time, for tuning. ``peer``: EAGER or COMPILED, "" for our own figures."""

    name: str
    precision: str = ""
    batch: int = 1
    share: float = 0.0
    peer: str = ""

    @property
    def key(self) -> str:
        """For people and ``--only``."""
        batch = f"b{self.batch}" if self.batch > 1 else ""
        return "/".join(x for x in (self.name, self.precision, batch, self.peer) if x)

    @property
    def least(self) -> float:
        """Seconds that must be left to begin it."""
        return _LEAST["tests" if self.name.startswith("tests") else self.peer]


def plan() -> tuple[Item, ...]:
    """The items in the order of what matters. The shares leave a third of the time for tests and peers."""
    tests = [Item(f"tests/{name}") for name in TESTS]
    others = [m for m in zoo.NAMES if m not in SINGLE]
    resnet = {p: _with_peer(Item("resnet50", p, 1, s)) for p, s in (("fp32", 0.10), ("fp16", 0.06), ("tf32", 0.05))}
    single = {p: [x for m in SINGLE[1:] for x in _with_peer(Item(m, p, 1, 0.03))] for p in resnet}
    large, bert = Item("gemm4096", "bf16", 1, 0.02), _with_peer(Item(BERT, "fp16", 1, 0.04))
    batches = [x for m in ("resnet50", "vgg19") for x in _with_peer(Item(m, "fp16", 32, 0.03))]
    rest = [x for p in resnet for m in others for x in _with_peer(Item(m, p, 1, 0.01))]
    last = [x for m in zoo.NAMES for x in _with_peer(Item(m, "bf16", 1, 0.005))]
    compiled = [Item(m, p, 1, 0.0, COMPILED) for m, p in (("resnet50", "fp32"), ("resnet50", "fp16"), (BERT, "fp16"))]
    return (
        *tests[:2], *resnet["fp32"], *resnet["fp16"], large, *resnet["tf32"], *single["fp32"], *bert, *single["fp16"],
        *single["tf32"], *batches, *tests[2:], *rest, *compiled, *last,
    )  # fmt: skip


def _with_peer(item: Item) -> list[Item]:
    return [item, Item(item.name, item.precision, item.batch, 0.0, EAGER)]


@dataclass(frozen=True)
class Desk:
    """Where things are. ``total``: seconds of all runs together; ``deadline``: of :func:`time.monotonic`."""

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


def run_tests(item: Item, desk: Desk) -> dict[str, Any]:
    """pytest on a file of tests; those that there was no time for are said to be missing."""
    command = [sys.executable, "-m", "pytest", f"tests/gpu/test_{item.name.split('/')[1]}.py", "-m", "gpu", "-rfE", "--tb=short"]
    command += ["-vv", "-p", "no:cacheprovider"]  # a line for each test: the configuration has -q
    status, said = heard(command, max(min(_TESTS, desk.left - 5), 1.0))
    with (desk.out / "gpu-tests.txt").open("a") as file:
        file.write(said)
    words = {"passed": "PASSED", "failed_tests": "FAILED", "errors": "ERROR", "skipped": "SKIPPED"}
    counts = {k: sum(f" {word}" in x for x in said.splitlines() if x.startswith("tests/")) for k, word in words.items()}
    return {"exit": status, "late": status is None, **counts, "summary": said.strip().splitlines()[-1:]}


def run_model(item: Item, desk: Desk) -> dict[str, Any]:
    """Tune within the item's share, then the whole plans and the single convolutions."""
    path = model_file(item, desk.models)
    budget = max(min(item.share * desk.total, desk.left - _AROUND), 5.0)
    begun = monotonic()
    made = api.build(path, Options(budget=budget, target="cuda", precision=item.precision, trials=400), None, desk.log)
    took = monotonic() - begun
    times = {n: m.time if m.ok else m.detail or m.failure for n, m in made.measured.items()}
    figures = {
        "tuning_s": took, "plans": times, "winner": made.verdict.winner, "error": made.error, "plan": made.parts.plan.hash,
        "steps": len(made.parts.plan.steps), "precision": (made.parts.plan.meta or {}).get("precision"),
        "slowest": slowest(made.parts.plan.choices), "notes": list(made.notes), "device": open_device().name,
        "health": health(desk.log),
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
    rates = {n: 2 * 4096**3 / s / 1e12 for n, s in best.items()}
    return {"seconds": best, "tflops": rates, "share_of_cublaslt": share, "health": health(desk.log)}


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


def run_peer(item: Item, desk: Desk) -> dict[str, Any]:
    """PyTorch: what it said last counts, even when it did not come to its end."""
    limit = min(_COMPILE, max(desk.left - 60, 1.0)) if item.peer == COMPILED else 0.0
    command = [sys.executable, "-m", "benchmarks.torch_peer", str(model_file(item, desk.models))]
    command += ["--precision", item.precision, "--compile-limit", str(limit)]
    status, said = heard(command, max(min(limit + 120, desk.left - 3), 1.0))
    found = last_json(status, said)
    return {**found, "late": True} if status is None else found


def singles(path: Path, item: Item, desk: Desk) -> list[dict[str, Any]]:
    """Each convolution of the graph that was tuned: the best generated kernel and cuDNN's best engine, in any layout."""
    options = Options(target="cuda", precision=item.precision)
    (graph, *_) = read_source(path, options, open_shop(options)).graphs if item.precision != "fp32" else [
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


def health(log: Path) -> dict[str, dict[str, Any]]:
    """Of each provider: how many of its candidates were right, and what most of the others died of; why a library has none."""
    target, found = find_target("cuda"), dict[str, Counter[str]]()
    records, versions = read_log(log).records, dict[str, str]()
    for record in records:
        m = record.measurement
        found.setdefault(record.provider, Counter())["" if m.ok else f"{m.failure}: {m.detail[:200]}"] += 1
    products = {r.workload.op: r.workload for r in records if r.workload.op in ("conv", "gemm", "matmul")}
    for library in (p for p in providers(None, target) if not p.name.startswith("generated")):
        versions[library.name] = library.version
        if library.name not in found:
            found[library.name] = Counter(library.supports(w, target).reason for w in products.values())
    return {
        name: {"ok": n.pop("", 0), "failed": n.total(), "mostly": dict(n.most_common(4)), "version": versions.get(name)}
        for name, n in found.items()
    }  # fmt: skip


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


def run(desk: Desk, only: Sequence[str], do: Callable[[Item, Desk], dict[str, Any]]) -> None:
    """All items that are not done and that there is time for."""
    left_out = []
    for item in plan():
        if item.key in settled(desk.items) or (only and item.key not in only):
            continue
        if desk.left < item.least:
            left_out.append(item.key)
            continue
        begun = monotonic()
        figures = do(item, desk)
        line = {"item": item.key, **asdict(item), "took_s": monotonic() - begun, "figures": figures}
        with desk.items.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{item.key}: {monotonic() - begun:.0f} s: {summary(figures)}", flush=True)
        write_report(desk.out, desk.items)
        compress(desk.log)
    print(f"no time for {', '.join(left_out) or 'nothing: all is done'}", flush=True)


def apart(item: Item, desk: Desk) -> dict[str, Any]:
    """An item's figures; those of models come from a process of their own, which has until the deadline."""
    if item.name.startswith("tests"):
        return run_tests(item, desk)
    if item.peer:
        return run_peer(item, desk)
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(desk.out), "--models", str(desk.models)]
    command += ["--total", str(desk.total), "--time", f"{desk.left - 5:.0f}s", "--item", item.key]
    return last_json(*heard(command, max(min(item.share * desk.total + 4 * _AROUND, desk.left - 3), 1.0)))


def attempt(item: Item, desk: Desk) -> dict[str, Any]:
    """The figures of a model or a product, in this process. What failed is a figure too."""
    try:
        return run_gemm(item, desk) if item.name == "gemm4096" else run_model(item, desk)
    except Exception as error:  # whatever a library throws is told to the one who asked
        return {"failed": f"{type(error).__name__}: {error}"}


def heard(command: Sequence[str], limit: float) -> tuple[int | None, str]:
    """A command's exit status, None when it took longer than ``limit`` seconds, and what it said until then.

    All processes that it started end with it.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # what a killed process had not written yet would be lost
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment)
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        file.seek(0)
        return status, file.read().decode(errors="replace")


def last_json(status: int | None, said: str) -> dict[str, Any]:
    """The last line that is an object, or what went wrong."""
    lines = said.strip().splitlines()
    for line in reversed(lines):
        if line.startswith("{") and line.endswith("}"):
            return dict(json.loads(line))
    how = "not done in time" if status is None else f"ended with {status}"
    return {"failed": " | ".join([how, *lines[-3:]])}


def compress(log: Path) -> None:
    """The log beside itself, compressed: the whole may be too long to be carried."""
    if log.exists():
        scratch = log.with_suffix(".tmp")
        with log.open("rb") as plain, gzip.open(scratch, "wb", 6) as small:
            shutil.copyfileobj(plain, small)
        scratch.replace(log.with_suffix(".jsonl.gz"))


def take_over(earlier: Path, desk: Desk) -> None:
    """Go on from the folder of an earlier run."""
    for path in (desk.items, desk.log):
        plain, small = earlier / path.name, earlier / f"{path.name}.gz"
        if path.exists():
            continue
        if plain.exists():
            shutil.copyfile(plain, path)
        elif small.exists():
            with gzip.open(small, "rb") as file:
                path.write_bytes(file.read())


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, take over what an earlier run left, go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="the folder of an earlier run")
    parser.add_argument("--time", type=parse_budget, default=1500.0, help="wall clock of this run, such as 9m")
    parser.add_argument("--total", type=parse_budget, default=1500.0, help="of all runs together: shares are of this")
    parser.add_argument("--only", default="", help="keys of items, comma-separated")
    parser.add_argument("--models", type=Path, default=Path("build/zoo"))
    parser.add_argument("--item", help="one item, in this process: its figures are printed")
    parser.add_argument("--list", action="store_true", help="print the items' keys and end")
    args = parser.parse_args(arguments)
    if args.list:
        print("\n".join(item.key for item in plan()))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    desk = Desk(args.out, args.models, args.total, monotonic() + args.time)
    if args.item:
        print(json.dumps(attempt(next(i for i in plan() if i.key == args.item), desk)))
        return
    if args.resume is not None:
        take_over(args.resume, desk)
    open_device()  # without a GPU there is nothing to do: say so at once
    run(desk, [k for k in args.only.split(",") if k], apart)


if __name__ == "__main__":
    try:
        main()
    except WpkError as problem:
        sys.exit(f"gpu_check: {problem}")
