"""A Dask worker that builds and measures. One thread: nothing is built beside a candidate that is being timed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from wpk.core.errors import FleetError, WpkError
from wpk.fleet.bench import Bench
from wpk.fleet.security import Tls, need_distributed
from wpk.fleet.wire import Data

#: Dask's housekeeping in a worker would disturb what is timed beside it: no profiler, rare ticks and statistics.
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.tick.limit": "60s",
    "distributed.admin.system-monitor.interval": "60s",
}


def serve(
    address: str, bench: Bench, jobs: int = 1, tls: Tls | None = None, patience: float = 60.0, name: str | None = None
) -> None:
    """Work for the scheduler at ``address`` until it or a signal ends that. ``jobs``: builds at once, for one that only builds.

    Raises FleetError when no scheduler answers for ``patience`` seconds.
    """
    need_distributed()
    import dask

    with dask.config.set(QUIET):
        asyncio.run(_serve(address, bench, 1 if bench.facts.measures else jobs, tls or Tls(), patience, name))


async def _serve(address: str, bench: Bench, threads: int, tls: Tls, patience: float, name: str | None) -> None:
    from distributed.worker import DEFAULT_STARTUP_INFORMATION, Worker

    def facts(_: Any) -> Data:
        return bench.facts.to_data()

    worker: Any = Worker(
        address, nthreads=threads, name=name, resources=bench.facts.offers(threads), memory_limit=0, death_timeout=patience,
        startup_information={**DEFAULT_STARTUP_INFORMATION, "wpk": facts}, security=tls.security("worker"),
        dashboard=False, silence_logs=logging.WARNING,
    )  # fmt: skip
    worker.wpk_bench = bench
    try:
        await worker
    except (TimeoutError, OSError) as error:
        raise FleetError(f"no scheduler answers at {address} ({error})") from error
    for one in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(one, lambda: asyncio.ensure_future(worker.close()))
    try:
        await worker.finished()
    finally:
        bench.close()


# Tasks: what the scheduler sends, by name


def build_candidate(request: Data) -> Data:
    """Lower and compile. Raises FleetError."""
    with _named() as bench:
        return bench.build(request)


def measure_candidate(request: Data, built: Data) -> Data:
    """Check and time. Raises FleetError."""
    with _named() as bench:
        return bench.measure(request, built)


def measure_rivals(request: Data, builts: Sequence[Data]) -> list[Data]:
    """Time in turns. Raises FleetError."""
    with _named() as bench:
        return bench.again(request, builts)


@contextlib.contextmanager
def _named() -> Iterator[Bench]:
    """The bench of the worker we are in; its errors name the worker."""
    from distributed import get_worker

    worker: Any = get_worker()
    try:
        yield worker.wpk_bench
    except (WpkError, OSError) as error:
        raise FleetError(f"worker {worker.address}: {error}") from None
