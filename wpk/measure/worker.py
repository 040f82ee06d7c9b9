"""The worker: a process that runs candidates, so that their crashes, hangs and appetite are its own.

``python -m wpk.measure.worker REQUESTS REPLIES LIFE FOLDER KIND …``: three inherited descriptors, the folder of array files, and
``cpu RUNTIME THREADS``, ``cuda INDEX`` or ``emulated TARGET`` (JSON). It ends, and removes the folder, when the other end of
LIFE closes: a killed parent leaves nothing behind, even while a kernel hangs.

Requests (JSON, see :mod:`wpk.measure.frames`), each answered by one reply:

    {"op": "workload", "workload", "inputs": [file or null], "expected": [file]}  → {}
    {"op": "candidate", …: see request_of}       → {"samples", "failure", "detail", "error", "cold"}
                                                                                    and "fatal" when a GPU is of no more use
    {"op": "again", "candidates": [candidate requests], "rounds", "timing"}      → {"results": [replies as above]}
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import shutil
import sys
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from wpk.core.errors import ArtifactError
from wpk.core.workload import Workload
from wpk.measure.calm import Calm
from wpk.measure.candidate import Bench, Checked, DeviceFault, LaunchError, Machine, Timed
from wpk.measure.frames import Closed, Message, receive, send
from wpk.measure.timer import HOPELESS, Timing
from wpk.runtime.cuda.driver import open_device
from wpk.runtime.native_api import Pool, load_native
from wpk.runtime.ports import numpy_dtype


def main(arguments: list[str]) -> None:
    """Serve requests until the parent is gone."""
    requests, replies, life = map(int, arguments[:3])
    _be_the_first_to_die()
    threading.Thread(target=_follow, args=(life, Path(arguments[3])), daemon=True).start()
    server = Server(_machine(arguments[4], arguments[5:]))
    send(replies, {"pid": os.getpid()})
    with contextlib.suppress(Closed):
        while True:
            request = receive(requests)
            send(replies, {**server.answer(request), "id": request.get("id")})


def _machine(kind: str, arguments: list[str]) -> Bench:
    """What candidates run on."""
    if kind == "cpu":
        native, threads = load_native(Path(arguments[0])), int(arguments[1])
        # with cores to spare, the first ones may be two halves of one
        every = threads >= len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else False
        return Machine(native, Pool(native, threads, pin=every), Pool(native, 1))
    from wpk.measure.gpu import GpuMachine, emulated_machine  # with the libraries of a GPU

    return emulated_machine(json.loads(arguments[0])) if kind == "emulated" else GpuMachine(open_device(int(arguments[0])))


class Server:
    """Holds the workload in hand; answers requests."""

    def __init__(self, machine: Bench) -> None:
        self._machine, self._calm = machine, Calm(machine.speed)
        self._operands: Checked | None = None

    def answer(self, request: Message) -> Message:
        """The reply to one request."""
        if request["op"] == "workload":
            return self._workload(request)
        if request["op"] == "again":
            return self._again(request)
        return self._measure(request)

    def _workload(self, request: Message) -> Message:
        if self._operands is not None:
            self._operands.close()
        self._operands = None
        workload = Workload.from_json(request["workload"])
        inputs = [None if path is None else np.load(path, mmap_mode="r") for path in request["inputs"]]
        # NumPy's files do not know bfloat16
        types = [numpy_dtype(t.dtype) for t in workload.outputs]
        expected = [np.load(path).view(t) for path, t in zip(request["expected"], types, strict=True)]
        self._operands = self._machine.operands(workload, inputs, expected)
        return {}

    def _measure(self, request: Message) -> Message:
        """Check, then time."""
        candidate = None
        try:
            candidate, first, reply = self._checked(request)
            if reply["failure"] is not None:
                return reply
            timed = candidate
            samples, cold = self._calm.timed(lambda: _time(timed, first, request), lambda found: min(found[0]))
            return self._rechecked(request, {**reply, "samples": samples, "cold": cold})
        except DeviceFault as error:
            return {**_failure("crash", str(error)), "fatal": True}
        except Exception as error:
            return _failure(*_explain(error))
        finally:
            if candidate is not None:
                candidate.close()
            gc.collect(0)

    def _again(self, request: Message) -> Message:
        """Time several candidates in turns, so that a drift of the machine meets them all."""
        ready: list[tuple[Timed, Message] | Message] = []
        for one in request["candidates"]:
            try:
                candidate, _, reply = self._checked(one)
                ready.append((candidate, reply) if reply["failure"] is None else reply)
            except Exception as error:
                ready.append(_failure(*_explain(error)))
        how = Timing(**request["timing"])
        samples: list[list[float]] = [[] for _ in ready]
        for _ in range(request["rounds"]):
            for i, entry in enumerate(ready):
                if isinstance(entry, tuple):
                    self._calm.settle()
                    samples[i] += entry[0].time(how)
        return {"results": [_closed(e, s) for e, s in zip(ready, samples, strict=True)]}

    def _checked(self, request: Message) -> tuple[Timed, float, Message]:
        """The candidate after one call, the call's seconds, and the reply so far."""
        operands = self._operands
        assert operands is not None, "a workload comes before its candidates"
        candidate = self._machine.candidate(operands, request)
        operands.poison()
        start = perf_counter()
        candidate.run()
        first = perf_counter() - start
        verdict = operands.check(request["tolerance"])
        failure = None if verdict.ok else "wrong"
        return candidate, first, {**_failure(failure, verdict.problem), "error": verdict.error}

    def _rechecked(self, request: Message, reply: Message) -> Message:
        """Wrong after many calls, though right after one, is wrong: a race, or state left behind."""
        assert self._operands is not None
        verdict = self._operands.check(request["tolerance"])
        if verdict.ok:
            return reply
        return {**_failure("wrong", f"after repeated calls: {verdict.problem}"), "error": verdict.error}


def _time(candidate: Timed, first: float, request: Message) -> tuple[list[float], bool]:
    """Samples, and whether constants were cold: few for one that is hopeless even with warm ones, in full for the others."""
    how, limit = Timing(**request["timing"]), request["limit"]
    if limit is not None:
        few = candidate.time(how.glance(limit), cold=False)
        if min(few) > HOPELESS * limit:
            return few, False
        first = min(few)
    return candidate.time(how.in_full(first)), True


def _failure(kind: str | None, detail: str) -> Message:
    return {"samples": [], "failure": kind, "detail": detail, "error": 0.0, "cold": True}


def _closed(entry: tuple[Timed, Message] | Message, samples: list[float]) -> Message:
    if not isinstance(entry, tuple):
        return entry
    entry[0].close()
    return {**entry[1], "samples": samples}


def _explain(error: Exception) -> tuple[str, str]:
    if isinstance(error, MemoryError):
        return "memory", str(error) or "out of memory"
    if isinstance(error, LaunchError | ArtifactError):
        return "launch", str(error)
    return "launch", f"{type(error).__name__}: {error}"


def _be_the_first_to_die() -> None:
    """No core files; when memory runs out, the system takes this process rather than its parent."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _follow(life: int, folder: Path) -> None:
    with contextlib.suppress(OSError):
        os.read(life, 1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def request_of(**fields: Any) -> Message:
    """A candidate request with its defaults: warm constants, no workspace, no limit."""
    empty: Message = {
        "op": "candidate", "kind": "kernel", "binary": "", "symbol": "", "spec": {}, "model": "", "constants": [],
        "workspace": 0, "cold_bytes": 0, "tolerance": 0.0, "limit": None,
    }  # fmt: skip
    return {**empty, **fields}


if __name__ == "__main__":
    main(sys.argv[1:])
