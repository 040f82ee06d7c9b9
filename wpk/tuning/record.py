"""One line of a tuning log: a measurement with everything that says whether it still holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from math import inf, isfinite
from typing import Any, Protocol

from wpk.core.result import FAILURES, Config, Measurement, config_key
from wpk.core.target import Target
from wpk.core.workload import Workload

#: Version of the lines' form. A reader refuses others.
SCHEMA = 1

#: A record made while searching, or a re-timing of finalists in turns: the latter is believed where there is one.
STAGES = ("search", "final")


def utc_stamp() -> str:
    """The date and time, ISO 8601, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_library(provider: str) -> bool:
    """True for the name of a vendor library's provider; generated kernels need a compiler."""
    return not provider.startswith("generated")


@dataclass(frozen=True)
class Versions:
    """What records must agree with: the compiler's version line, provider versions by name, this wpk."""

    compiler: str
    providers: Mapping[str, str]
    generator: str = ""


@dataclass(frozen=True)
class Record:
    """A measurement of (workload, provider, config) on the machine ``fingerprint``.

    ``compiler`` is empty where none took part. ``number`` counts the records of the workload in their log, from 0, so that
    a lost line is noticed. ``time`` is ISO 8601, UTC.
    """

    workload: Workload
    provider: str
    provider_version: str
    config: Config
    fingerprint: str
    compiler: str
    generator: str
    seed: int
    measurement: Measurement
    stage: str = "search"
    number: int = 0
    time: str = field(default_factory=utc_stamp)

    @property
    def key(self) -> tuple[str, str, str]:
        """What was measured: workload key, provider, config."""
        return (self.workload.key, self.provider, config_key(self.config))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, without infinities."""
        data = {"schema": SCHEMA, "key": self.workload.key}
        for name in ("provider", "provider_version", "config", "fingerprint", "compiler", "generator", "seed"):
            data[name] = getattr(self, name)
        measured = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in asdict(self.measurement).items()}
        rest = {"stage": self.stage, "number": self.number, "time": self.time}
        return {**data, **rest, "measurement": measured, "workload": self.workload.to_json()}


def record_from_json(data: dict[str, Any], workloads: dict[str, Workload]) -> Record:
    """The inverse of :meth:`Record.to_json`; ``workloads`` caches them by key. Raises KeyError, TypeError, ValueError."""
    key = str(data["key"])
    if key not in workloads:
        workload = Workload.from_json(data["workload"])
        if workload.key != key:
            raise ValueError(f"workload {workload.key} does not have the key {key}")
        workloads[key] = workload
    if data["stage"] not in STAGES:
        raise ValueError(f"unknown stage {data['stage']!r}")
    return Record(
        workloads[key], str(data["provider"]), str(data["provider_version"]), dict(data["config"]),
        str(data["fingerprint"]), str(data["compiler"]), str(data["generator"]), int(data["seed"]),
        _measurement(data["measurement"]), data["stage"], int(data["number"]), str(data["time"]),
    )  # fmt: skip


def _measurement(data: dict[str, Any]) -> Measurement:
    fields = {**data, "samples": tuple(float(s) for s in data["samples"])}
    if fields["failure"] not in (None, *FAILURES):
        raise ValueError(f"unknown failure {fields['failure']!r}")
    for name in ("error", "tolerance", "build_s", "measure_s"):
        fields[name] = inf if fields[name] is None else float(fields[name])
    return Measurement(**fields)


class Provenance(Protocol):
    """What must agree for a result to hold."""

    @property
    def provider(self) -> str: ...
    @property
    def provider_version(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def compiler(self) -> str: ...


def stale_reason(record: Provenance, target: Target, versions: Versions) -> str | None:
    """Why a record no longer holds, naming the field, what is expected and what was found; None when it holds."""
    expected = versions.providers.get(record.provider)
    if expected is None:
        return f"provider: {record.provider} is not available"
    facts = [("fingerprint", target.fingerprint, record.fingerprint), ("provider_version", expected, record.provider_version)]
    if record.compiler:
        facts.append(("compiler", versions.compiler, record.compiler))
    for name, want, found in facts:
        if want != found:
            return f"{name}: expected {want!r}, found {found!r}"
    return None


def digest(workload: Workload) -> str:
    """A short name of a workload."""
    return blake2b(workload.key.encode(), digest_size=8).hexdigest()
