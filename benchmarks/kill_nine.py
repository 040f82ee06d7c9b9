"""A real compile killed (SIGKILL) at random moments: the log loads each time, and resuming re-measures none of what it holds.

    python -m benchmarks.kill_nine [--rounds 10] [--model MODEL.onnx] [--json FILE]

Each round goes on from the log that the last one left. A torn last line is reported; the last round runs to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from wpk.tuning.log import read_log


def small_model(path: Path) -> Path:
    """A model of a few layers, as the tests use it."""
    import onnx

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from small import small_model as make

    onnx.save_model(make(16), str(path))
    return path


def command(model: Path, log: Path, budget: str) -> list[str]:
    """A compile that resumes from the log."""
    rest = ["--budget", budget, "--threads", "2", "--log", str(log), "-o", str(log.with_suffix(".wpk")), "--quiet"]
    return [sys.executable, "-m", "wpk", "compile", str(model), *rest]


def searched(log: Path) -> Counter[tuple[object, ...]]:
    """How often each candidate was measured while searching."""
    return Counter(r.key for r in read_log(log).records if r.stage == "search")


def round_of(model: Path, log: Path, rng: random.Random) -> dict[str, Any]:
    """Start, kill once it measures, look at the log."""
    before = searched(log) if log.exists() else Counter()
    size = log.stat().st_size if log.exists() else 0
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command(model, log, "60s"), **quiet, start_new_session=True)
    deadline = monotonic() + 60
    while (not log.exists() or log.stat().st_size == size) and process.poll() is None and monotonic() < deadline:
        sleep(0.01)
    sleep(rng.uniform(0.0, 1.5))
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[1].decode(errors="replace")
    contents = read_log(log)
    after = searched(log)
    torn = not log.read_bytes().endswith(b"\n")
    again = sum(after[key] - n for key, n in before.items())
    killed, once = process.returncode == -signal.SIGKILL, not again and all(n == 1 for n in after.values())
    ok = killed and once and torn == bool(contents.warnings)
    return {
        "ok": ok, "records": len(contents.records), "new": len(contents.records) - sum(before.values()), "measured_again": again,
        "torn": torn, "reported": list(contents.warnings), "said": "" if killed else said,
    }  # fmt: skip


def torn_line(model: Path, log: Path) -> dict[str, Any]:
    """As a power cut leaves it: the last line cut. It is reported, and what follows is whole."""
    data = log.read_bytes()
    os.truncate(log, len(data) - 40)
    held, warnings = searched(log), read_log(log).warnings
    done = subprocess.run(command(model, log, "4s"), capture_output=True, text=True)
    after = searched(log)
    again = sum(after[key] - n for key, n in held.items())
    ok = done.returncode == 0 and len(warnings) == 1 and not again and not read_log(log).warnings
    return {"ok": ok, "records": sum(after.values()), "measured_again": again, "reported": list(warnings), "said": done.stderr}


def show(name: object, found: Mapping[str, Any]) -> None:
    """One line a round."""
    verdict = "PASS" if found["ok"] else "FAIL"
    print(f"round {name}: {verdict}: {found['records']} records, {found['measured_again']} measured again", *found["reported"])


def main() -> None:
    """All rounds; 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/search/kill_nine.json"))
    args = parser.parse_args()
    rng, rounds = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as folder:
        model, log = args.model or small_model(Path(folder) / "small.onnx"), Path(folder) / "log.jsonl"
        for i in range(args.rounds):
            rounds.append(round_of(model, log, rng))
            show(i + 1, rounds[-1])
        rounds.append(torn_line(model, log))
        show("with a torn line", rounds[-1])
    passed = all(r["ok"] for r in rounds)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"pass": passed, "rounds": rounds}, indent=1).replace(folder, "…") + "\n")
    print("PASS" if passed else "FAIL")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
