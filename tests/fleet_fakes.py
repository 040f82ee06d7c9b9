"""Simulated workers for tests and benchmarks of fleets: a real scheduler and real Dask workers as processes, no compiler.

``python tests/fleet_fakes.py ADDRESS SECONDS [FIELD=VALUE...]`` runs a worker whose measurements take SECONDS; fields change what
it says of itself.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "unit")]

import dask  # noqa: E402
from tuning_fakes import TARGET, VERSIONS, answer, seconds  # noqa: E402

from wpk.fleet.security import Tls  # noqa: E402
from wpk.fleet.wire import Data, Facts, built_data, workload_from  # noqa: E402
from wpk.fleet.worker import QUIET, _serve, serve  # noqa: E402
from wpk.providers.protocol import Code  # noqa: E402

FACTS = Facts("0.1", VERSIONS.compiler, dict(VERSIONS.providers), TARGET.fingerprint, "simulated")


@dataclass
class SimBench:
    """Answers from :func:`tuning_fakes.seconds` after ``takes`` seconds."""

    facts: Facts = FACTS
    takes: float = 0.1

    def build(self, request: Data) -> Data:
        """At once."""
        return built_data(Code("kernel", spec={}), b"\x7fELF", "", "", "", 0.0)

    def measure(self, request: Data, built: Data) -> Data:
        """After a while."""
        assert built["library"] == b"\x7fELF"
        time.sleep(self.takes)
        workload = workload_from(request["workload"])
        return asdict(answer(seconds(workload, request["provider"], request["config"])))

    def again(self, request: Data, builts: Sequence[Data]) -> list[Data]:
        """After a while."""
        time.sleep(self.takes)
        workload = workload_from(request["workload"])
        return [asdict(answer(1.01 * seconds(workload, p, c))) for p, c in request["candidates"]]

    def close(self) -> None:
        """Nothing to end."""


@dataclass
class Cluster:
    """A scheduler and its workers, all processes of ours."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    tls: Tls = field(default_factory=Tls)

    def start(self, count: int = 1, takes: float = 0.1, **facts: object) -> None:
        """Start workers; they register in their own time."""
        secret = [] if self.tls.ca is None else [str(self.tls.ca), str(self.tls.cert), str(self.tls.key)]
        given = [f"{k}={json.dumps(v)}" for k, v in (*facts.items(), ("tls", secret))]
        command = [sys.executable, str(Path(__file__).resolve()), self.address, str(takes), *given]
        self.workers += [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(count)]

    def kill(self, index: int = 0) -> None:
        """SIGKILL a worker."""
        worker = self.workers.pop(index)
        worker.send_signal(signal.SIGKILL)
        worker.wait()

    def stop(self) -> None:
        """End them all."""
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()
        self.workers = []


@contextmanager
def cluster(tls: Tls | None = None) -> Iterator[Cluster]:
    """A running scheduler."""
    tls = tls or Tls()
    secret = ["--protocol", "tls", "--tls-ca-file", tls.ca, "--tls-cert", tls.cert, "--tls-key", tls.key] if tls.ca else []
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "scheduler.json"
        command = [
            sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
            "--no-show", "--scheduler-file", str(said), *map(str, secret),
        ]  # fmt: skip
        scheduler = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not said.exists() or not said.read_text():
                assert scheduler.poll() is None, "the scheduler does not start"
                time.sleep(0.05)
            time.sleep(0.05)
            made = Cluster(json.loads(said.read_text())["address"], scheduler, tls=tls)
            try:
                yield made
            finally:
                made.stop()
        finally:
            scheduler.kill()
            scheduler.wait()


def main(arguments: list[str]) -> None:
    """A worker."""
    changes = {k: json.loads(v) for k, v in (a.split("=", 1) for a in arguments[2:])}
    tls, count = Tls(*map(Path, changes.pop("tls"))), changes.pop("each", 1)
    benches = [SimBench(replace(FACTS, **changes), float(arguments[1])) for _ in range(count)]
    if count == 1:
        serve(arguments[0], benches[0], tls=tls)
    else:
        asyncio.run(_several(arguments[0], benches, tls))


async def _several(address: str, benches: Sequence[SimBench], tls: Tls) -> None:
    """Many workers in one process: what they do is to sleep."""
    with dask.config.set(QUIET):
        await asyncio.gather(*(_serve(address, bench, 1, tls, 60.0, None) for bench in benches))


if __name__ == "__main__":
    main(sys.argv[1:])
