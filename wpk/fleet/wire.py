"""What goes between client and workers: plain data (numbers, text, bytes, lists, dicts), and names of what a worker offers.

    build request    {"workload", "provider", "config", "target"}                          → built
    built            {"code" or None, "library" (bytes or None), "file", "failure", "detail", "seconds"}
    measure request  {"workload", "provider", "config", "limit"} and its built             → measurement
    again request    {"workload", "candidates": [[provider, config]], "rounds"} and builts → [measurement]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

from wpk.core.result import Config, Measurement
from wpk.core.target import Gpu, Target
from wpk.core.workload import Workload
from wpk.providers.protocol import Code, Source

Data = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What a worker says of itself, and what a client asks for. ``providers``: name → version. ``measures``: not only builds."""

    wpk: str
    compiler: str
    providers: Mapping[str, str]
    fingerprint: str
    machine: str
    measures: bool = True

    def offers(self, builds: int) -> dict[str, float]:
        """The Dask resources of a worker with these facts that builds so many at once and measures one at a time."""
        common = {resource("builds", self.wpk, self.compiler): float(builds)}
        if self.measures:
            common[self.measuring] = 1.0
        return {**common, **{resource("provider", n, v): float(builds) for n, v in self.providers.items()}}

    def building_needs(self, provider: str) -> dict[str, float]:
        """The resources that building a candidate takes."""
        needs = {resource("builds", self.wpk, self.compiler), resource("provider", provider, self.providers[provider])}
        return dict.fromkeys(needs, 1.0)

    @property
    def measuring(self) -> str:
        """The resource of a machine whose measurements count: of that wpk, compiler and fingerprint."""
        return resource("measures", self.wpk, self.compiler, self.fingerprint)

    def measuring_needs(self, providers: set[str]) -> dict[str, float]:
        """The resources that measuring candidates of these providers takes."""
        return dict.fromkeys({self.measuring, *(resource("provider", p, self.providers[p]) for p in providers)}, 1.0)

    def differences(self, theirs: Facts) -> list[str]:
        """How a worker differs from what this client expects, one text a field; whether fingerprints match is another matter."""
        facts = [("wpk", self.wpk, theirs.wpk), ("compiler", self.compiler, theirs.compiler)]
        facts += [(name, version, theirs.providers.get(name, "nothing")) for name, version in self.providers.items()]
        return [f"{name}: expected {want!r}, found {found!r}" for name, want, found in facts if want != found]

    def to_data(self) -> Data:
        """Plain data; :func:`facts_from` inverts it."""
        return {**asdict(self), "providers": dict(self.providers)}


def facts_from(data: Data) -> Facts:
    """The inverse of :meth:`Facts.to_data`. Raises TypeError for data of another form."""
    return Facts(**data)


def resource(kind: str, *facts: str) -> str:
    """A resource's name: readable, and equal only for equal facts."""
    return f"wpk-{kind}-{blake2b(chr(0).join(facts).encode(), digest_size=6).hexdigest()}"


def built_data(code: Code | None, library: bytes | None, file: str, failure: str, detail: str, seconds: float) -> Data:
    """What building gave: the code with its library, or a failure."""
    plain = None if code is None else asdict(code)
    return {"code": plain, "library": library, "file": file, "failure": failure, "detail": detail, "seconds": seconds}


def code_from(data: Data) -> Code:
    """The inverse of ``asdict`` of a Code."""
    source = None if data["source"] is None else Source(**data["source"])
    return Code(**{**data, "source": source, "inplace": tuple(data["inplace"])})


def workload_data(workload: Workload) -> Data:
    """As plain data."""
    return dict(workload.to_json())


def workload_from(data: Data) -> Workload:
    """The inverse of :func:`workload_data`."""
    return Workload.from_json(data)


def target_from(data: Data) -> Target:
    """The inverse of :meth:`Target.to_json`."""
    gpu = None if data.get("gpu") is None else Gpu(**data["gpu"])
    return Target(**{**data, "isas": tuple(data["isas"]), "gpu": gpu})


def measurement_from(data: Data) -> Measurement:
    """The inverse of ``asdict`` of a Measurement."""
    return Measurement(**{**data, "samples": tuple(data["samples"])})


def config_data(config: Config) -> Data:
    """As plain data."""
    return dict(config)
