"""What wpk finds on this machine: compiler, ISA, caches, libraries, and whether they work."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from wpk.core.errors import DeviceError, StorageError, ToolchainError, WpkError
from wpk.core.libraries import INSTALL, find_library
from wpk.core.target import Target
from wpk.cuda import nvrtc
from wpk.measure.builder import CompileError, build_runtime
from wpk.measure.toolchain import Compiler, find_compiler
from wpk.report.peaks import peaks
from wpk.runtime.cuda.cublaslt_call import cublaslt_version
from wpk.runtime.cuda.cudnn_call import cudnn_version
from wpk.runtime.cuda.driver import open_device

#: library → the distribution that brings it
_DISTRIBUTIONS = {"onednn": "onednn-cpu-gomp", "openblas": "scipy-openblas64"}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and whether that is good (None: an optional thing is absent)."""

    name: str
    found: str
    ok: bool | None = True


def examine(target: Target, cache: Path, cc: str | None) -> list[Finding]:
    """All findings, in a fixed order. Never raises: what does not work is a finding."""
    return [*_machine(target), *_toolchain(target, cache, cc), *_libraries(), *_gpu()]


def _machine(target: Target) -> Iterator[Finding]:
    yield Finding("wpk", f"{_version('wpk')}, Python {platform.python_version()}")
    yield Finding("processor", f"{target.model}, {target.arch}")
    yield Finding("instructions", ", ".join(target.isas), target.isa != "scalar" or None)
    sizes = f"{target.l1d >> 10} KiB L1d, {target.l2 >> 10} KiB L2, {target.l3 >> 20} MiB L3"
    yield Finding("cores", f"{target.cores}, {sizes}; {target.threads} threads")
    yield Finding("target", target.fingerprint)


def _toolchain(target: Target, cache: Path, cc: str | None) -> Iterator[Finding]:
    yield _cache(cache)
    try:
        compiler = find_compiler(cc)
    except ToolchainError as error:
        yield Finding("compiler", str(error), False)
        return
    yield Finding("compiler", f"{' '.join(compiler.command)}: {compiler.version}")
    yield _runtime(target, cache, compiler)


def _cache(cache: Path) -> Finding:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        return Finding("cache", f"{cache}: cannot write: {error.strerror}", False)
    held = [entry.stat().st_size for entry in cache.rglob("*") if entry.is_file()]
    free = os.statvfs(cache).f_bavail * os.statvfs(cache).f_frsize if hasattr(os, "statvfs") else 0
    return Finding("cache", f"{cache}: {len(held)} files, {sum(held) / 1e6:.0f} MB; {free / 1e9:.0f} GB free")


def _runtime(target: Target, cache: Path, compiler: Compiler) -> Finding:
    try:
        library = build_runtime(target.isa, compiler, cache)
        found = peaks(library, target, cache)
    except CompileError as error:
        return Finding("native runtime", f"does not compile: {error.detail.splitlines()[0]}", False)
    except (WpkError, StorageError) as error:
        return Finding("native runtime", str(error), False)
    return Finding(
        "native runtime", f"works; peak {found.flops / 1e9:.0f} GFLOP/s, {found.bandwidth / 1e9:.0f} GB/s"
    )


def _libraries() -> Iterator[Finding]:
    for name in ("onnxruntime", "onnx", "onnx-ir"):
        yield _package(name, required=True)
    for name, distribution in _DISTRIBUTIONS.items():
        path = find_library(name)
        if path is None:
            yield Finding(name, f"not installed: {INSTALL[name]}", None)
        else:
            yield Finding(name, f"{_version(distribution)}, {path}")
    yield _package("openvino", required=False, hint="pip install 'wpk[bench]', for comparisons only")


def _gpu() -> Iterator[Finding]:
    """What compiling for GPUs needs, and what running there needs besides; all of it is optional."""
    try:
        yield Finding("nvrtc", nvrtc.version())
    except ToolchainError as error:
        yield Finding("nvrtc", str(error), None)
    try:
        device = open_device()
        yield Finding("GPU", f"{device.name}, {device.target.isa}, {device.target.fingerprint}")
    except DeviceError as error:
        yield Finding("GPU", str(error), None)
    for name, version in (("cudnn", cudnn_version), ("cublaslt", cublaslt_version)):
        try:
            yield Finding(name, version())
        except DeviceError as error:
            yield Finding(name, str(error), None)


def _package(name: str, required: bool, hint: str = "") -> Finding:
    found = _version(name)
    if found:
        return Finding(name, found)
    return Finding(name, "not installed" + (f": {hint}" if hint else ""), False if required else None)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
