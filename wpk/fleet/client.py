"""The client's side of a fleet: measures as :class:`wpk.measure.measurer.Measurer` does, on whatever workers fit.

Each candidate is two Dask tasks: a build, which may run on any worker of the same wpk and compiler, and a measurement, which
takes the one ``wpk-measures-…`` resource of a worker whose target has the same fingerprint. What a lost worker had is done by
others (Dask sees to builds, :mod:`wpk.fleet.dispatch` to measurements); a candidate has one result, whatever was done twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

from wpk.core.errors import FleetError
from wpk.core.result import Config, Measurement
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.fleet.dispatch import GONE, Dispatcher, Job
from wpk.fleet.security import Tls, need_distributed
from wpk.fleet.wire import Data, Facts, facts_from, measurement_from, workload_data
from wpk.fleet.worker import build_candidate, measure_candidate, measure_rivals
from wpk.providers.protocol import Provider

#: Seconds between looks at who is there.
_LOOK_EVERY = 1.0
#: Seconds in which a scheduler that is there answers.
_CONNECT = 10.0


@dataclass(frozen=True)
class FleetOptions:
    """``patience``: seconds to wait for a scheduler, and for a worker that fits when there is none."""

    tls: Tls = field(default_factory=Tls)
    patience: float = 60.0


class Fleet:
    """Measures on the workers of a Dask cluster. Close it, or use it as a context manager."""

    def __init__(self, address: str, target: Target, facts: Facts, options: FleetOptions | None = None) -> None:
        """``facts``: what workers must agree with. Raises FleetError when no scheduler answers, when a worker has other
        versions, or when none measures for ``target``.
        """
        need_distributed()
        self.target, self._facts, self._options = target, facts, options or FleetOptions()
        self._address, self._looked, self._fitting = address, 0.0, 0
        self._client = _connect(address, self._options)
        self._jobs = Dispatcher(self._client)
        try:
            self._await_workers()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster; what is under way is given up. A second call does nothing."""
        self._client.close(timeout=5)

    @property
    def slots(self) -> int:
        """How many devices measure for us now; at least 1."""
        if monotonic() - self._looked > _LOOK_EVERY:
            self._look()
        return max(self._fitting, 1)

    def measure_each(
        self, workload: Workload, provider: Provider, configs: Sequence[Config], limit: float | None = None
    ) -> Coming:
        """Begin at once; measurements in order, as they come. Raises FleetError while they are awaited."""
        plain, needs = workload_data(workload), self._facts.measuring_needs({provider.name})
        return Coming(self, [self._put(measure_candidate, needs, plain, provider.name, c, limit) for c in configs])

    def measure_again(
        self, workload: Workload, candidates: Sequence[tuple[Provider, Config]], rounds: int = 5
    ) -> list[Measurement]:
        """Rivals in turns, all on one worker. Raises FleetError."""
        plain, pairs = workload_data(workload), [(p.name, dict(c)) for p, c in candidates]
        request = {"workload": plain, "candidates": [list(p) for p in pairs], "rounds": rounds}

        def prepare(number: int) -> tuple[Any, ...]:
            return request, [self._build(plain, name, config, number) for name, config in pairs]

        job = self._job(measure_rivals, self._facts.measuring_needs({name for name, _ in pairs}), prepare)
        found = self.result(job)
        return [_died()] * len(pairs) if found is None else [measurement_from(m) for m in found]

    def result(self, job: Job) -> Any:
        """What a job gave; None when workers kept dying under it. Raises FleetError."""
        lonely = None
        while True:
            try:
                return self._jobs.result(job, _LOOK_EVERY)
            except TimeoutError:
                lonely = self._patient(lonely)
            except GONE:
                raise self._lost() from None

    def drop(self, job: Job) -> None:
        """Give a job up."""
        self._jobs.drop(job)

    def _put(
        self, task: Any, needs: dict[str, float], workload: Data, provider: str, config: Config, limit: float | None
    ) -> Job:
        request = {"workload": workload, "provider": provider, "config": dict(config), "limit": limit}
        return self._job(task, needs, lambda number: (request, self._build(workload, provider, config, number)))

    def _job(self, task: Any, needs: dict[str, float], prepare: Any) -> Job:
        try:
            return self._jobs.put(task, needs, prepare)
        except (*GONE, OSError, RuntimeError) as error:
            raise self._lost() from error

    def _build(self, workload: Data, provider: str, config: Config, number: int) -> Any:
        request = {"workload": workload, "provider": provider, "config": dict(config), "target": self.target.to_json()}
        return self._jobs.submit(build_candidate, self._facts.building_needs(provider), number, request)

    # Who is there

    def _patient(self, lonely: float | None) -> float | None:
        """Since when there has been no worker that fits, or None. Raises FleetError when that is too long ago."""
        self._look()
        if self._fitting:
            return None
        since = lonely or monotonic()
        if monotonic() - since > self._options.patience:
            raise FleetError(
                f"no worker has measured for {self.target.fingerprint} for {self._options.patience:.0f} s; start one with "
                f"`wpk worker {self._address}` and run this command again: the log has what was measured"
            )
        return since

    def _look(self) -> list[tuple[str, Facts | None]]:
        """All workers with what they say; None for one that is not of wpk."""
        try:
            workers = self._client.scheduler_info()["workers"]
        except (*GONE, OSError, RuntimeError, TimeoutError) as error:
            raise self._lost() from error
        found = [(address, _facts(info.get("wpk"))) for address, info in workers.items()]
        fitting = [address for address, f in found if f is not None and self._fits(f)]
        self._fitting = len(fitting)
        self._jobs.workers(fitting)
        self._looked = monotonic()
        return found

    def _fits(self, theirs: Facts) -> bool:
        return theirs.measures and theirs.fingerprint == self.target.fingerprint and not self._facts.differences(theirs)

    def _await_workers(self) -> None:
        begun = monotonic()
        while True:
            found = [(address, facts) for address, facts in self._look() if facts is not None]
            for address, facts in found:
                if problems := self._facts.differences(facts):
                    raise FleetError(f"worker {address} does not match this wpk: {'; '.join(problems)}")
            if self._fitting:
                return
            if monotonic() - begun > self._options.patience:
                raise FleetError(f"{self._address}: {self._missing([f for _, f in found])}")
            sleep(0.1)

    def _missing(self, found: Sequence[Facts]) -> str:
        want = f"this machine ({self.target.fingerprint}: {self.target.model}, {self.target.threads} threads)"
        if not found:
            return f"no wpk worker is there; start one on a machine like {want} with `wpk worker {self._address}`"
        there = sorted({f"{f.fingerprint}: {f.machine}" + ("" if f.measures else ", builds only") for f in found})
        return f"no worker measures for {want}; there is {'; '.join(there)}"

    def _lost(self) -> FleetError:
        return FleetError(
            f"lost the scheduler at {self._address}; the log has what was measured: run the same command again to go on"
        )


class Coming(Iterator[Measurement]):
    """Measurements under way."""

    def __init__(self, fleet: Fleet, jobs: Sequence[Job]) -> None:
        self._fleet, self._left = fleet, list(reversed(jobs))

    def __next__(self) -> Measurement:
        if not self._left:
            raise StopIteration
        found = self._fleet.result(self._left[-1])
        self._left.pop()
        return _died() if found is None else measurement_from(found)

    def close(self) -> None:
        """Give up those that are not there yet."""
        for job in self._left:
            self._fleet.drop(job)
        self._left = []


def _died() -> Measurement:
    return Measurement(failure="crash", detail="every worker that ran it was lost")


def _facts(data: Any) -> Facts | None:
    try:
        return facts_from(data)
    except TypeError:
        return None


def _connect(address: str, options: FleetOptions) -> Any:
    from distributed import Client

    try:
        security = options.tls.security("client")
        make: Any = Client  # untyped
        return make(address, timeout=min(options.patience, _CONNECT), set_as_default=False, security=security, name="wpk")
    except (OSError, TimeoutError, ValueError, RuntimeError, TypeError) as error:
        raise FleetError(f"no scheduler answers at {address}: {' '.join(str(error).split())}") from error

