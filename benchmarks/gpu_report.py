"""Tables of what :mod:`benchmarks.gpu_check` found: the promises, whole models, single convolutions, products."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import exp, log
from pathlib import Path
from typing import Any

BERT = "bert-base-s128"
#: What the project promises, seconds at batch 1.
GOALS = {
    ("resnet50", "fp32", 1): 0.8e-3, ("resnet50", "tf32", 1): 0.5e-3, ("resnet50", "fp16", 1): 0.35e-3,
    (BERT, "fp16", 1): 0.65e-3,
}  # fmt: skip
#: Generated convolutions over cuDNN's best engine: the least geometric mean, and what the best pair must exceed.
SINGLES = {"fp32": (1.6, 5.40), "tf32": (1.3, 0.0), "fp16": (1.3, 0.0)}
#: Over the best peer: each model and the geometric mean at batch 1, each at batch 32; a product's share of cuBLASLt; seconds.
FASTER, GEOMEAN, BATCH, SHARE, TUNING = 1.0, 2.0, 1.2, 0.75, 600.0
#: After so many failures an item is tried no more.
_TRIES = 2

Line = Mapping[str, Any]
Items = Mapping[str, Line]


def finished(path: Path) -> dict[str, dict[str, Any]]:
    """The newest figures of each item that did not fail."""
    return {line["item"]: line for line in _lines(path) if "failed" not in line["figures"]}


def settled(path: Path) -> set[str]:
    """Items that need not be tried again: done, or failed too often."""
    failed = [line["item"] for line in _lines(path) if "failed" in line["figures"]]
    return {*finished(path), *(x for x in failed if failed.count(x) >= _TRIES)}


def summary(figures: Mapping[str, Any]) -> str:
    """One line."""
    if "plans" in figures:
        times = ", ".join(f"{name} {_ms(t)}" for name, t in figures["plans"].items())
        return f"{times}, error {figures['error']:.1e}"
    return str({k: v for k, v in figures.items() if k != "output"})[:300]


def write_report(out: Path, path: Path) -> None:
    """``results.json`` and ``results.md`` in ``out`` from the items of ``path``."""
    items = finished(path)
    device = next((x["figures"]["device"] for x in items.values() if x["figures"].get("device")), "GPU")
    (out / "results.json").write_text(json.dumps({"device": device, "items": list(items.values())}, indent=1) + "\n")
    (out / "results.md").write_text(table(items, device))


def table(items: Items, device: str) -> str:
    """Markdown. ``libraries`` is our plan with cuDNN and cuBLASLt wherever they can."""
    lines = [
        f"Measured on one {device}. Milliseconds a run; errors are relative L2 against ONNX Runtime in float32.", "",
        *_promises(items), "",
        "| model | precision | batch | wpk | libraries | torch eager | torch.compile | over the best peer | goal | error |",
        "|---|---|---|---|---|---|---|---|---|---|", *(_row(items, x) for x in _models(items)), "", *_single_table(items), "",
        *_products(items), *_tests(items), *_health(items),
    ]  # fmt: skip
    return "\n".join(lines)


def ratio(items: Items, line: Line) -> float | None:
    """How many times faster ours is than the best peer."""
    plans, rival = line["figures"]["plans"], _peer(items, line)
    peers = [s for s in (plans.get("libraries"), rival.get("eager_s"), rival.get("compiled_s")) if isinstance(s, float)]
    return min(peers) / _ours(line) if peers and rival else None


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _models(items: Items) -> list[Line]:
    return [x for x in items.values() if "plans" in x["figures"]]


def _ours(line: Line) -> float:
    return float(line["figures"]["plans"][line["figures"]["winner"]])


def _peer(items: Items, line: Line) -> dict[str, Any]:
    """What PyTorch's items of the same model found."""
    same = [items.get(f"{line['item']}/{peer}", {}) for peer in ("torch", "compile")]
    return {k: v for x in same for k, v in x.get("figures", {}).items()}


def _row(items: Items, line: Line) -> str:
    figures, rival, over = line["figures"], _peer(items, line), ratio(items, line)
    goal, ours = GOALS.get((line["name"], line["precision"], line["batch"])), _ours(line)
    cells = [
        line["name"], line["precision"], str(line["batch"]), _ms(ours), _ms(figures["plans"].get("libraries")),
        _ms(rival.get("eager_s")), _ms(rival.get("compiled_s")), "–" if over is None else f"{over:.2f}",
        "" if goal is None else f"{_ms(goal)}: {_yes(ours <= goal)}", f"{figures['error']:.1e}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _promises(items: Items) -> Iterator[str]:
    """What was promised, what was found, on how many."""
    yield "| promised | found | of | kept |"
    yield "|---|---|---|---|"
    for said, found, count, kept in (*_kept_singles(items), *_kept_models(items), *_kept_rest(items)):
        yield f"| {said} | {found} | {count} | {_yes(kept)} |"


def _kept_singles(items: Items) -> Iterator[tuple[str, str, int, bool]]:
    for precision, (mean, most) in SINGLES.items():
        if pairs := _pairs(items, precision):
            said = f"convolutions over cuDNN's best engine, {precision}: {mean}×" + (f", most above {most:.2f}×" if most else "")
            found = f"{_geomean(pairs):.2f}×, most {max(pairs):.2f}×"
            yield said, found, len(pairs), _geomean(pairs) >= mean and max(pairs) > most


def _kept_models(items: Items) -> Iterator[tuple[str, str, int, bool]]:
    models = _models(items)
    for line in models:
        if goal := GOALS.get((line["name"], line["precision"], line["batch"])):
            yield f"{line['name']}, {line['precision']}: {_ms(goal)} ms", f"{_ms(_ours(line))} ms", 1, _ours(line) <= goal
    single = [x for x in models if x["batch"] == 1]
    ones, more = ([r for x in group if (r := ratio(items, x))] for group in (single, [x for x in models if x not in single]))
    if ones:
        found = f"least {min(ones):.2f}×, geometric mean {_geomean(ones):.2f}×"
        kept = min(ones) > FASTER and _geomean(ones) >= GEOMEAN
        yield f"every model faster than the best peer, geometric mean {GEOMEAN}×", found, len(ones), kept
    if more:
        yield f"batch 32: {BATCH}× the best peer", f"least {min(more):.2f}×", len(more), min(more) >= BATCH


def _kept_rest(items: Items) -> Iterator[tuple[str, str, int, bool]]:
    shares = [x["figures"]["share_of_cublaslt"] for x in items.values() if x["figures"].get("share_of_cublaslt")]
    if shares:
        yield f"product of 4096³: {SHARE:.0%} of cuBLASLt", f"{min(shares):.0%}", len(shares), min(shares) >= SHARE
    tuned = [x["figures"]["tuning_s"] for x in _models(items) if x["name"] == "resnet50" and x["batch"] == 1]
    if tuned:
        yield f"resnet50 is tuned in {TUNING:.0f} s", f"most {max(tuned):.0f} s", len(tuned), max(tuned) <= TUNING


def _pairs(items: Items, precision: str) -> list[float]:
    return [
        c["cudnn"] / c["generated"]
        for line in items.values() if line["precision"] == precision
        for c in line["figures"].get("convolutions", ()) if c["cudnn"] and c["generated"]
    ]  # fmt: skip


def _single_table(items: Items) -> Iterator[str]:
    yield "| single convolutions, batch 1 | pairs | generated over cuDNN's best engine, geometric mean | least | most |"
    yield "|---|---|---|---|---|"
    for precision in SINGLES:
        if pairs := _pairs(items, precision):
            yield f"| {precision} | {len(pairs)} | {_geomean(pairs):.2f} | {min(pairs):.2f} | {max(pairs):.2f} |"


def _products(items: Items) -> Iterator[str]:
    """A line for each large product."""
    for line in items.values():
        if line["name"] == "gemm4096":
            figures = line["figures"]
            rates = ", ".join(f"{name} {rate:.0f}" for name, rate in sorted(figures["tflops"].items(), key=lambda x: -x[1]))
            share = figures["share_of_cublaslt"]
            said = "cuBLASLt was not measured" if share is None else f"generated code reaches {share:.0%} of cuBLASLt"
            yield f"Product of 4096³, {line['precision']}: {said}. TFLOP/s: {rates}.\n"


def _tests(items: Items) -> Iterator[str]:
    for line in items.values():
        if line["name"].startswith("tests"):
            f = line["figures"]
            late = ", the rest not in time" if f["late"] else ""
            failed = f"{f['failed_tests']} failed, {f['errors']} errors"
            yield f"{line['name']}: {f['passed']} passed, {failed}, {f['skipped']} skipped{late}.\n"


def _health(items: Items) -> Iterator[str]:
    """Whether candidates were right, as the newest item saw it: a provider that fails altogether shows here first."""
    known = [x["figures"]["health"] for x in items.values() if "health" in x["figures"]]
    for name, of in known[-1].items() if known else ():
        version = f" ({of['version']})" if of["version"] else ""
        failures = "".join(f"; {count} × {why}" for why, count in of["mostly"].items())
        yield f"{name}{version}: {of['ok']} candidates right, {of['failed']} not{failures}\n"


def _geomean(ratios: Sequence[float]) -> float:
    return exp(sum(map(log, ratios)) / len(ratios))


def _yes(kept: bool) -> str:
    return "yes" if kept else "no"


def _ms(seconds: object) -> str:
    return f"{seconds * 1e3:.3f}" if isinstance(seconds, float) else "–"
