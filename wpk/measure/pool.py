"""The parent's side of a worker: start it, ask it, watch its time and memory, replace it when it is gone."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import IO

from wpk.core.errors import InternalError
from wpk.measure.frames import Closed, Message, receive, send

#: How often the watch looks at the worker's memory, seconds: rare enough not to disturb what is timed.
_WATCH_EVERY = 0.03
_START_TIMEOUT = 60.0


@dataclass(frozen=True)
class Limits:
    """What a candidate may take: ``seconds`` of wall clock, ``nbytes`` of resident memory beyond the worker's before it."""

    seconds: float = 10.0
    nbytes: int = 1 << 30


class Died(Exception):
    """The worker is gone. ``kind`` is the failure of the candidate it ran: crash, timeout or memory."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


@dataclass
class Process:
    """A running worker: its process and the parent's ends of the pipes."""

    popen: subprocess.Popen[bytes]
    requests: int
    replies: int
    life: int
    said: IO[bytes]
    answered: int = field(default=0)

    def close(self) -> None:
        """End it, whatever it is doing. A second call does nothing."""
        if self.popen.returncode is None:
            self.popen.kill()
            self.popen.wait()
        for fd in (self.requests, self.replies, self.life):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.requests = self.replies = self.life = -1
        self.said.close()

    def resident(self) -> int:
        """Bytes of resident memory; 0 where the system does not say."""
        try:
            pages = Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGESIZE")


def start(worker: Sequence[str], folder: Path) -> Process:
    """A worker; ``worker`` says of which kind, see :mod:`wpk.measure.worker`. Raises InternalError with what it said when it
    does not start.
    """
    (request_out, request_in), (reply_out, reply_in), (life_out, life_in) = os.pipe(), os.pipe(), os.pipe()
    theirs = (request_out, reply_in, life_out)
    said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
    command = [sys.executable, "-m", "wpk.measure.worker", *map(str, (*theirs, folder)), *worker]
    popen = subprocess.Popen(
        command, pass_fds=theirs, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
        start_new_session=True,
    )  # fmt: skip
    for fd in theirs:
        os.close(fd)
    process = Process(popen, request_in, reply_out, life_in, said)
    try:
        _await(process, Limits(_START_TIMEOUT, 1 << 40), 0)
        receive(process.replies)
    except (Closed, Died) as error:
        said.seek(0)
        text = said.read().decode(errors="replace").strip()
        process.close()
        raise InternalError(f"the measuring worker does not start: {text or error}") from error
    return process


def ask(process: Process, request: Message, limits: Limits) -> Message:
    """Send a request and await its reply. Raises Died, after which the process is closed."""
    try:
        send(process.requests, {**request, "id": process.answered})
        _await(process, limits, process.resident())
        reply = receive(process.replies)
        if reply.pop("id", None) != process.answered:
            raise InternalError(f"the measuring worker answered something else than {request['op']!r}: {sorted(reply)}")
    except Died:
        process.close()
        raise
    except Closed:
        raise _obituary(process) from None
    process.answered += 1
    return reply


def _await(process: Process, limits: Limits, before: int) -> None:
    """Return when a reply, or the end, has come. Raises Died on a limit."""
    deadline = monotonic() + limits.seconds
    while not select.select([process.replies], [], [], _WATCH_EVERY)[0]:
        if monotonic() > deadline:
            raise Died("timeout", f"no result after {limits.seconds:.1f} s")
        if process.resident() - before > limits.nbytes:
            raise Died("memory", f"took more than {limits.nbytes >> 20} MiB")


def _obituary(process: Process) -> Died:
    code = process.popen.wait()
    process.close()
    if code == -signal.SIGKILL:
        return Died("memory", "killed by the system, as it does when memory runs out")
    if code < 0:
        return Died("crash", f"signal {-code} ({signal.strsignal(-code)})")
    return Died("crash", f"the process exited with status {code}")
