"""Gives measurements to workers: few ahead for each, in the order asked for, and to another one when a worker is lost.

Dask would give every measurement to a worker at once, the one that built it, and move it later. Here a worker is sent
the next measurement when it is about to need one, so that none waits behind a slow one while others idle.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from threading import Condition
from typing import Any
from uuid import uuid4

#: Measurements that a worker has at once: the one it makes, and the next.
_AHEAD = 2
#: A job during which so many workers were lost is given up: it is the likely cause.
_LOSSES = 4
#: What Dask raises for a future that will never be.
GONE = (concurrent.futures.CancelledError, asyncio.CancelledError)


@dataclass(eq=False)
class Job:
    """A measurement to be made. ``prepare`` makes its arguments, builds among them, anew each time it is sent."""

    task: Callable[..., Any]
    needs: Mapping[str, float]
    prepare: Callable[[int], tuple[Any, ...]]
    number: int
    arguments: tuple[Any, ...]
    worker: str = ""
    future: Any = None
    losses: int = 0


@dataclass
class Dispatcher:
    """Jobs waiting and under way on the workers of ``client``. Safe to use from several threads."""

    client: Any
    _count: Any = field(default_factory=count)
    _changed: Condition = field(default_factory=Condition)
    _queue: list[tuple[int, Job]] = field(default_factory=list)
    _busy: dict[str, set[Job]] = field(default_factory=dict)
    _sent: set[Job] = field(default_factory=set)

    def submit(self, task: Callable[..., Any], needs: Mapping[str, float], number: int, *arguments: Any, **where: Any) -> Any:
        """The future of a Dask task; those of lower ``number`` go first, where Dask alone would shuffle."""
        name = f"{task.__name__}-{uuid4().hex}"
        return self.client.submit(task, *arguments, key=name, resources=needs, pure=False, priority=-number, **where)

    def put(self, task: Callable[..., Any], needs: Mapping[str, float], prepare: Callable[[int], tuple[Any, ...]]) -> Job:
        """A new job. Its builds begin at once."""
        number = next(self._count)
        job = Job(task, needs, prepare, number, prepare(number))
        with self._changed:
            heappush(self._queue, (number, job))
            self._pump()
        return job

    def drop(self, job: Job) -> None:
        """Want a job no more."""
        with self._changed:
            self._queue = sorted((n, j) for n, j in self._queue if j is not job)
            self._release(job)
        for future in (job.future, *job.arguments):
            if hasattr(future, "cancel"):
                future.cancel()

    def result(self, job: Job, seconds: float) -> Any:
        """What the job gave; None when its workers kept dying. Raises TimeoutError after ``seconds``, and what the task did."""
        from distributed.scheduler import KilledWorker

        with self._changed:
            self._changed.wait_for(lambda: job.future is not None or job.losses >= _LOSSES, seconds)
            future = job.future
        if future is None:
            if job.losses >= _LOSSES:
                return None
            raise TimeoutError
        try:
            found = future.result(timeout=seconds)
        except KilledWorker:
            self._again(job, future)
            raise TimeoutError from None
        except GONE:
            if job.future is future and future.client.status != "running":
                raise
            self._again(job, future)
            raise TimeoutError from None
        with self._changed:
            self._release(job)
            self._pump()
        return found

    def workers(self, addresses: Iterable[str]) -> None:
        """The workers that fit, now. Jobs of those that are gone go to others."""
        with self._changed:
            there = set(addresses)
            lost = [j for j in self._sent if j.worker not in there]
            self._busy = {a: self._busy.get(a, set()) for a in sorted(there)}
        for job in lost:
            self._again(job, job.future)
        with self._changed:
            self._pump()

    def _again(self, job: Job, future: Any) -> None:
        """Queue a job whose worker was lost, unless that was done already."""
        with self._changed:
            if job.future is not future or job not in self._sent:
                return
            self._release(job)
            job.future, job.losses = None, job.losses + 1
            if job.losses < _LOSSES:
                job.arguments = job.prepare(job.number)
                heappush(self._queue, (job.number, job))
                self._pump()
            self._changed.notify_all()
        future.cancel()

    def _pump(self) -> None:
        """Send what can be sent."""
        while self._queue and (free := [a for a, jobs in self._busy.items() if len(jobs) < _AHEAD]):
            job = heappop(self._queue)[1]
            job.worker = min(free, key=lambda a: (len(self._busy[a]), a))
            self._busy[job.worker].add(job)
            self._sent.add(job)
            job.future = self.submit(job.task, job.needs, job.number, *job.arguments, workers=[job.worker])
            job.future.add_done_callback(lambda _, job=job, future=job.future: self._done(job, future))
            self._changed.notify_all()

    def _done(self, job: Job, future: Any) -> None:
        """The worker is free for the next; the result is fetched when it is awaited."""
        with self._changed:
            if job.future is future:
                self._busy.get(job.worker, set()).discard(job)
                self._pump()

    def _release(self, job: Job) -> None:
        self._busy.get(job.worker, set()).discard(job)
        self._sent.discard(job)
