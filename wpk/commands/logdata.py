"""``wpk log export|train|plot``: what a log is good for besides replaying it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf, isfinite
from pathlib import Path

from rich.console import Console
from rich.text import Text

from wpk.commands.common import write_text
from wpk.core.errors import LogError, UsageError
from wpk.core.result import config_key
from wpk.core.target import Target, host_target
from wpk.core.workload import Workload
from wpk.dsl.features import NAMES
from wpk.providers.protocol import Provider
from wpk.providers.registry import providers as named_providers
from wpk.report.plots import Coverage, Curve, draw
from wpk.search import cost_model
from wpk.search.cost_model import HOW_TO_INSTALL, available
from wpk.search.space import Config
from wpk.search.train import Lesson, train_policy
from wpk.settings import load_settings
from wpk.tuning.log import read_log
from wpk.tuning.record import Record, is_library
from wpk.tuning.screening import examples_of

#: The columns of an export: their names and order stay.
COLUMNS: Mapping[str, Callable[[Record], object]] = {
    "task": lambda r: r.workload.key,
    "op": lambda r: r.workload.op,
    "provider": lambda r: r.provider,
    "provider_version": lambda r: r.provider_version,
    "config": lambda r: config_key(r.config),
    "stage": lambda r: r.stage,
    "number": lambda r: r.number,
    "time": lambda r: r.time,
    "ok": lambda r: r.measurement.ok,
    "failure": lambda r: r.measurement.failure or "",
    "detail": lambda r: r.measurement.detail,
    "seconds": lambda r: _finite(r.measurement.time),
    "spread": lambda r: r.measurement.spread,
    "samples": lambda r: len(r.measurement.samples),
    "error": lambda r: _finite(r.measurement.error),
    "tolerance": lambda r: r.measurement.tolerance,
    "build_s": lambda r: r.measurement.build_s,
    "measure_s": lambda r: r.measurement.measure_s,
    "cache_state": lambda r: r.measurement.cache_state,
    "accuracy": lambda r: r.measurement.accuracy,
    "fingerprint": lambda r: r.fingerprint,
    "compiler": lambda r: r.compiler,
    "generator": lambda r: r.generator,
    "seed": lambda r: r.seed,
}
FORMATS = ("csv", "json")


def export_log(log: Path, output: Path | None, form: str | None, out: Console) -> None:
    """All records as a table: one row each, columns as in :data:`COLUMNS`; to ``output``, or printed."""
    form = form or (output.suffix.removeprefix(".") if output else "csv")
    if form not in FORMATS:
        raise UsageError(f"format {form!r}: expected one of {', '.join(FORMATS)}")
    records = read_log(log).records
    text = as_csv(records) if form == "csv" else as_json(records)
    if output is None:
        out.file.write(text)
        return
    write_text(output, text)
    out.print(Text(f"{output}: {len(records)} entries"))


def as_csv(records: Iterable[Record]) -> str:
    """Comma-separated, quoted where needed, with a header; what does not exist is empty."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(["" if v is None else v for v in (f(r) for f in COLUMNS.values())] for r in records)
    return text.getvalue()


def as_json(records: Iterable[Record]) -> str:
    """A list of objects; what does not exist is null, and ``config`` and ``samples`` are as the log has them."""
    rows = []
    for r in records:
        row = {name: f(r) for name, f in COLUMNS.items()}
        rows.append({**row, "config": r.config, "samples": list(r.measurement.samples)})
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


# Training


def train(logs: Sequence[Path], output: Path, seed: int, what: Sequence[str], out: Console) -> None:
    """Train the RL policy (``policy.npz``) and the cost model (``cost_model.json``) on logs, into a folder."""
    if unknown := [w for w in what if w not in ("policy", "cost-model")]:
        raise UsageError(f"cannot train {unknown[0]!r}: expected policy or cost-model")
    target = host_target(load_settings().threads)
    lessons = list(lessons_of([r for log in logs for r in read_log(log).records], named_providers(), target))
    if not lessons:
        raise LogError(f"{', '.join(map(str, logs))}: no task with two measured configs of a space that this wpk has")
    total = sum(len(x.results) for x in lessons)
    out.print(Text(f"{len(lessons)} spaces, {total} measured configs"))
    output.mkdir(parents=True, exist_ok=True)
    if "policy" in what:
        train_policy(lessons, seed).save(output / "policy.npz")
        out.print(Text(f"policy: {output / 'policy.npz'}"))
    if "cost-model" in what:
        out.print(Text(f"cost model: {_train_cost_model(lessons, output, seed)}"))


def lessons_of(records: Iterable[Record], providers: Sequence[Provider], target: Target) -> Iterator[Lesson]:
    """What generated kernels' records teach: of each workload, provider and machine, all configs that its space here has.

    The machines of other fingerprints are taken to be like ``target``: a log names its machine, and does not describe it.
    """
    known = {p.name: p for p in providers}
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for r in records:
        if r.provider in known and not is_library(r.provider):
            groups.setdefault((r.workload.key, r.provider, r.fingerprint), []).append(r)
    for (_, name, _), group in groups.items():
        workload = group[0].workload
        if known[name].supports(workload, target):
            space = known[name].space(workload, target)
            results = _results(r for r in group if space.valid(r.config))
            if sum(isfinite(s) for _, s in results) > 1:
                yield Lesson(space, workload, target, results, name)


def _results(records: Iterable[Record]) -> tuple[tuple[Config, float], ...]:
    latest = {config_key(r.config): (r.config, r.measurement.time) for r in records}
    return tuple(latest.values())


def _train_cost_model(lessons: Sequence[Lesson], output: Path, seed: int) -> Path | str:
    if not available():
        return HOW_TO_INSTALL
    path = output / "cost_model.json"
    cost_model.train(examples_of(lessons, named_providers()), NAMES, seed).save(path)
    return path


# Pictures


def plot(logs: Sequence[Path], output: Path, by: str, task: str | None, out: Console) -> None:
    """Draw best-so-far curves of all tasks, one for each provider, log or seed, and the coverage of one task's space."""
    if by not in ("provider", "log", "seed"):
        raise UsageError(f"--by {by!r}: expected provider, log or seed")
    contents = [(path.stem, list(_searched(path))) for path in logs]
    records = [r for _, rs in contents for r in rs]
    if not any(r.measurement.ok for r in records):
        raise LogError(f"{', '.join(map(str, logs))}: nothing to draw: no measurement of a kernel or library")
    draw(output, curves(contents, by), coverage(records, task))
    out.print(Text(f"{output}: {len(records)} measurements"))


def _searched(path: Path) -> Iterator[Record]:
    """Measurements made while searching; re-timings of finalists and whole plans are no steps of a search."""
    return (r for r in read_log(path).records if r.stage == "search" and not r.provider.startswith("plan:"))


def curves(contents: Sequence[tuple[str, Sequence[Record]]], by: str, most: int = 7) -> list[Curve]:
    """Best-so-far curves; a run is what one log has of one task (and provider) with one seed. The longest ``most`` of them."""
    best: dict[str, float] = {}
    runs: dict[str, dict[tuple[str, ...], list[float]]] = {}
    for name, records in contents:
        for r in records:
            key, seconds = r.workload.key, r.measurement.time
            best[key] = min(best.get(key, inf), seconds)
            series = {"provider": r.provider, "log": name, "seed": f"seed {r.seed}"}[by]
            run = (name, key, str(r.seed), r.provider if by == "provider" else "")
            runs.setdefault(series, {}).setdefault(run, []).append(seconds)
    made = [
        Curve(name, tuple((run, best[key]) for (_, key, _, _), run in sorted(found.items()) if isfinite(best[key])))
        for name, found in runs.items()
    ]
    made = sorted((c for c in made if c.runs), key=lambda c: -max(len(run) for run, _ in c.runs))[:most]
    return sorted(made, key=lambda c: c.name)


def coverage(records: Sequence[Record], task: str | None) -> Coverage | None:
    """Where the search looked in the most measured space, of the tasks whose key contains ``task``. Raises UsageError."""
    groups: dict[tuple[Workload, str], list[Record]] = {}
    for r in records:
        if r.config and (task is None or task in r.workload.key) and not is_library(r.provider):
            groups.setdefault((r.workload, r.provider), []).append(r)
    if not groups:
        if task is not None:
            raise UsageError(f"--task {task!r}: no generated kernel was measured on a task with that in its name")
        return None
    (workload, provider), group = max(groups.items(), key=lambda item: len(item[1]))
    values, size = _known_values(workload, provider)
    knobs = {name: _tried(group, name, values.get(name, ())) for name in group[0].config}
    varied = {name: rows for name, rows in knobs.items() if len(rows) > 1}
    tried = len({config_key(r.config) for r in group})
    return Coverage(f"{provider} on {_short(workload)}", varied or knobs, tried, size)


def _tried(group: Sequence[Record], knob: str, values: Sequence[object]) -> list[tuple[str, int, float]]:
    """Each value of a knob, how often it was tried and the best time with it."""
    found: dict[str, tuple[int, float]] = {str(v): (0, inf) for v in values}
    rest = sorted({r.config[knob] for r in group if knob in r.config}, key=lambda v: (isinstance(v, str), v))
    found.update({str(v): found.get(str(v), (0, inf)) for v in rest})
    for r in group:
        if knob in r.config:
            count, best = found[str(r.config[knob])]
            found[str(r.config[knob])] = (count + 1, min(best, r.measurement.time))
    return [(value, count, best) for value, (count, best) in found.items()]


def _known_values(workload: Workload, provider: str) -> tuple[dict[str, tuple[object, ...]], str]:
    """The values that the space has here for each knob, and its size as text; nothing where it is not at hand."""
    target = host_target(load_settings().threads)
    for p in named_providers():
        if p.name == provider and p.supports(workload, target):
            space = p.space(workload, target)
            size = space.size(_COUNTED)
            return {k.name: tuple(k.values) for k in space.knobs}, f"{size:,}" if size < _COUNTED else f"more than {size:,}"
    return {}, "an unknown number of"


#: Configs of a space that are counted for a picture.
_COUNTED = 20_000


def _short(workload: Workload) -> str:
    shapes = " ".join("x".join(map(str, t.shape)) for t in workload.inputs[:2])
    return f"{workload.op} {shapes}"
