"""Peak memory of loading and running a model, each engine in a process of its own.

    python -m benchmarks.memory MODEL.wpk MODEL.onnx [--runs 5] [--threads 2] [--json FILE]

The peak is the process's ``VmHWM``: the most resident memory it ever had, Python and libraries included. Ours must be at most
that of an ONNX Runtime session.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_SAYS = """
def status():
    rows = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return {k: int(rows[k].split()[0]) / 1024 for k in ("VmHWM", "VmRSS", "RssAnon", "RssFile")}
"""
_OURS = """
import json, sys
from wpk.runtime.runner import load
import numpy as np
imported = status()
runner = load(sys.argv[1], threads=int(sys.argv[3]))
loaded = status()
rng = np.random.default_rng(0)
feeds = {p.name: rng.random(p.shape, np.float32).astype(p.dtype) for p in runner.plan.inputs}
for _ in range(int(sys.argv[2])):
    runner.run(None, feeds)
print(json.dumps({"imported": imported, "loaded": loaded, "ran": status()}))
"""
_THEIRS = """
import json, sys
import onnxruntime
import numpy as np
imported = status()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
loaded = status()
rng = np.random.default_rng(0)
feeds = {i.name: rng.random([d if isinstance(d, int) else 1 for d in i.shape], np.float32) for i in session.get_inputs()}
for _ in range(int(sys.argv[2])):
    session.run(None, feeds)
print(json.dumps({"imported": imported, "loaded": loaded, "ran": status()}))
"""


def peak(text: str, path: Path, runs: int, threads: int) -> dict[str, Any]:
    """What a process says of its memory, MiB: after imports, after loading, after running."""
    command = [sys.executable, "-c", _SAYS + text, str(path), str(runs), str(threads)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def main() -> None:
    """Both engines; 1 when ours takes more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/memory.json"))
    args = parser.parse_args()
    found = {
        "wpk": peak(_OURS, args.artifact, args.runs, args.threads),
        "onnxruntime": peak(_THEIRS, args.model, args.runs, args.threads),
    }
    for engine, stages in found.items():
        texts = (f"{stage}: peak {m['VmHWM']:.1f}, anonymous {m['RssAnon']:.1f};" for stage, m in stages.items())
        print(f"{engine:12}", *texts, "MiB")
    ratio = found["wpk"]["ran"]["VmHWM"] / found["onnxruntime"]["ran"]["VmHWM"]
    print(f"ours / theirs: {ratio:.2f}")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"model": args.model.name, "unit": "MiB", "ratio": ratio, **found}, indent=1) + "\n")
    sys.exit(ratio > 1.0)


if __name__ == "__main__":
    main()
