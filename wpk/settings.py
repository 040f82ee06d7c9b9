"""The one place that reads environment variables and the user's configuration file; everything else gets values.

Order, later wins: built-in defaults, the configuration file (``$WPK_CONFIG``, else ``wpk/config.toml`` in the user's
configuration folder), environment variables. Command-line options and API arguments win over all of them.

| variable | key in the file | meaning |
|---|---|---|
| ``WPK_CACHE`` | ``cache`` | folder of built binaries and measured peaks |
| ``WPK_CC`` | ``cc`` | C compiler command |
| ``WPK_THREADS`` | ``threads`` | threads of compiled models; default: the cores this process may use |
| ``WPK_DEBUG`` | ``debug`` | tracebacks |
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from math import inf
from pathlib import Path
from typing import Any

from wpk.core.errors import UsageError
from wpk.core.target import Gpu, Target
from wpk.search.prior import ScreenOptions
from wpk.search.rl import RlOptions

_KEYS = ("cache", "cc", "threads", "debug")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Settings:
    """What the user's machine says. ``cc`` and ``threads`` are None when nothing is said."""

    cache: Path
    cc: str | None = None
    threads: int | None = None
    debug: bool = False


@dataclass(frozen=True)
class Effort:
    """How much work a compile may do. ``budget``: seconds of wall clock for tuning; ``trials``: most candidates a task.

    ``rl``: hyper-parameters of the strategies ``rl`` and ``auto``; ``screen``: how kernels are looked at before they are built.
    """

    name: str
    budget: float
    trials: int
    strategy: str
    rl: RlOptions
    screen: ScreenOptions


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in force. Raises UsageError for an unreadable file, an unknown key or a value of the wrong kind."""
    environ = os.environ if environ is None else environ
    values = {
        **_file_values(environ),
        **{k: environ[f"WPK_{k.upper()}"] for k in _KEYS if environ.get(f"WPK_{k.upper()}")},
    }
    return Settings(
        Path(str(values.get("cache") or _user_folder(environ, "cache"))).expanduser(),
        None if values.get("cc") is None else str(values["cc"]),
        None if values.get("threads") is None else _positive("threads", values["threads"]),
        str(values.get("debug", "")).lower() in ("1", "true", "yes"),
    )


def parse_budget(text: str | float) -> float:
    """Seconds from ``60``, ``"60s"``, ``"2m"``, ``"1.5h"``; infinity from ``"none"``.

    Raises UsageError for anything else, or a negative time.
    """
    if str(text).strip() == "none":
        return inf
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h)?\s*", str(text))
    if match is None:
        raise UsageError(f"budget {text!r}: expected seconds, or a number with ms, s, m or h, such as 60s, or none")
    return float(match.group(1)) * _UNITS[match.group(2) or "s"]


def effort(name: str) -> Effort:
    """The effort level ``name``. Raises UsageError, naming the levels there are, for another name."""
    data = _shipped("effort", name)
    rl, screen = RlOptions(**data["rl"]), ScreenOptions(**data["screen"])
    return Effort(name, parse_budget(data["budget"]), int(data["trials"]), str(data["strategy"]), rl, screen)


def shipped_target(name: str) -> Target:
    """A target described in ``configs/targets``: for generating code for machines that are not at hand. Raises UsageError."""
    data = _shipped("targets", name)
    gpu = Gpu(**data["gpu"]) if "gpu" in data else None
    return Target(**{**data, "isas": tuple(data["isas"]), "gpu": gpu})


def gpu_target(capability: str) -> Target:
    """The shipped GPU of that compute capability, such as ``sm_90a``. Raises UsageError, naming those there are."""
    known = [shipped_target(name) for name in shipped_names("targets")]
    gpus = {t.isa: t for t in known if t.gpu is not None}
    if capability not in gpus:
        raise UsageError(f"target cuda:{capability}: expected one of {', '.join(f'cuda:{c}' for c in sorted(gpus))}")
    return gpus[capability]


def known_gpu(found: Target) -> Target:
    """The shipped description of the GPU ``found``, whose bandwidth and clock were measured; itself where none is shipped."""
    known = [shipped_target(name) for name in shipped_names("targets")]
    return next((t for t in known if t.fingerprint == found.fingerprint), found)


def shipped_names(folder: str) -> tuple[str, ...]:
    """Names of the ``effort`` levels or ``targets`` that come with wpk, sorted."""
    entries = files("wpk.configs").joinpath(folder).iterdir()
    return tuple(sorted(e.name.removesuffix(".toml") for e in entries if e.name.endswith(".toml")))


def _shipped(folder: str, name: str) -> dict[str, Any]:
    if name not in shipped_names(folder):
        raise UsageError(f"{folder} {name!r}: expected one of {', '.join(shipped_names(folder))}")
    return tomllib.loads(files("wpk.configs").joinpath(folder, f"{name}.toml").read_text())


def _file_values(environ: Mapping[str, str]) -> dict[str, Any]:
    path = Path(environ.get("WPK_CONFIG") or _user_folder(environ, "config") / "config.toml")
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        if environ.get("WPK_CONFIG"):
            raise UsageError(f"{path}: no such file (named by WPK_CONFIG)") from None
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error
    if unknown := sorted(set(values) - set(_KEYS)):
        raise UsageError(f"{path}: unknown key {unknown[0]!r}: expected {', '.join(_KEYS)}")
    return values


def _user_folder(environ: Mapping[str, str], kind: str) -> Path:
    home = Path(environ.get("HOME") or Path.home())
    if sys.platform == "darwin":
        return home / "Library" / {"cache": "Caches", "config": "Application Support"}[kind] / "wpk"
    return Path(environ.get(f"XDG_{kind.upper()}_HOME") or home / f".{kind}") / "wpk"


def _positive(name: str, value: object) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise UsageError(f"{name} {value!r}: expected a positive whole number")
    return number
