"""How long a tuning log of many records takes to open, with its index and without.

    python -m benchmarks.log_load [--records 100000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from wpk.core.result import Config, Measurement
from wpk.core.target import Target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.tuning.index import index_path
from wpk.tuning.log import TuningLog, read_log, write_log
from wpk.tuning.record import Record

TARGET = Target("x86_64", "made up", ("avx512", "scalar"), 2, 32 << 10, 1 << 20, 8 << 20, 2)


def records(count: int) -> Iterator[Record]:
    """Records of 300 convolutions, as a search leaves them: 15 knobs, 12 samples."""
    rng = random.Random(0)
    for i in range(count):
        c = 8 * (1 + i % 300)
        x, w = TensorType("float32", (1, c, 14, 14), "NCHW16c"), TensorType("float32", (c, c, 3, 3))
        attrs = (("dilations", (1, 1)), ("group", 1), ("pads", (1, 1, 1, 1)), ("strides", (1, 1)))
        config: Config = {f"knob{k:02}": rng.choice((1, 2, 4, 8, 16)) for k in range(14)}
        measured = Measurement(tuple(rng.random() * 1e-3 for _ in range(12)), tolerance=1e-6, build_s=rng.random(), measure_s=0.1)
        yield Record(
            Workload("conv", (x, w), (x,), attrs, None, (1,)), "generated:conv_direct", "1", {**config, "serial": i},
            TARGET.fingerprint, "cc 12", "0.1", 0, measured, time="2026-01-01T00:00:00Z",
        )  # fmt: skip


def timed(call: Callable[[], object], repeats: int = 3) -> float:
    """The least seconds of some calls."""
    times = []
    for _ in range(repeats):
        begun = perf_counter()
        call()
        times.append(perf_counter() - begun)
    return min(times)


def main() -> None:
    """Write a log, open it in each way, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        write_log(path, records(args.records))
        found: dict[str, float] = {"records": args.records, "log_mb": path.stat().st_size / 1e6}
        found["open_without_index_s"] = timed(lambda: read_log(path, index=False), 1)
        found["open_and_make_index_s"] = timed(lambda: read_log(path), 1)
        found["index_mb"] = index_path(path).stat().st_size / 1e6
        found["open_with_index_s"] = timed(lambda: read_log(path))
        found["open_to_append_s"] = timed(lambda: TuningLog(path))
        log = TuningLog(path)
        task = next(iter(log.contents.workloads.values()))
        found["records_of_one_task_s"] = timed(lambda: log.of(task), 1)
        one = log.of(task)[0]
        found["append_s"] = timed(lambda: log.append(replace(one, config={"serial": -1})), 20)
    for name, value in found.items():
        print(f"{name:24} {value:.4g}")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({k: float(f"{v:.4g}") for k, v in found.items()}, indent=1) + "\n")
    sys.exit(found["open_with_index_s"] > 2.0)


if __name__ == "__main__":
    main()
