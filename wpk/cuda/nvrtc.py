"""CUDA text → cubin by NVRTC, with what each kernel takes of the device. Needs no GPU and no CUDA toolkit.

NVRTC and its Python bindings come with the extra ``cuda-compile`` and are imported on first use only.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from wpk.core.errors import ToolchainError

HEADERS = ("wpk_device.cuh", "wpk_hopper.cuh")

#: Strict float32: no fast-math; products and sums are fused as the CPU compilers do it. ptxas says what a kernel takes.
OPTIONS = (
    "--std=c++17", "-default-device", "--fmad=true", "--ftz=false", "--prec-div=true", "--prec-sqrt=true",
    "--ptxas-options=-v", "--no-source-include",
)  # fmt: skip

_ERROR_LINES = 8


class CudaCompileError(Exception):
    """NVRTC refused a source. ``detail`` holds its first error lines, with line numbers of the generated text.

    Inside the search this is a value (kind ``compile``): :func:`compile_many` returns it in place of a result.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


@dataclass(frozen=True)
class Resources:
    """What one ``__global__`` function takes: registers a thread; static shared bytes a block; local bytes a thread, which
    are stack and spills together; bytes of spill stores and loads in its code."""

    registers: int
    shared_bytes: int
    local_bytes: int
    spill_bytes: int = 0


@dataclass(frozen=True)
class Compiled:
    """A cubin, what the compiler said, and the resources of each ``__global__`` function by name."""

    cubin: bytes
    log: str
    resources: dict[str, Resources]


def compile(text: str, arch: str) -> Compiled:
    """Compile one translation unit for ``arch`` (``sm_80``, ``sm_90a``, ``sm_100`` ...); equal inputs give equal bytes.

    Raises CudaCompileError, and ToolchainError when the extra is not installed or NVRTC does not know ``arch``.
    """
    nvrtc = _bindings()
    headers = tuple((name, source.encode()) for name, source in _headers())
    program = _checked(
        nvrtc.nvrtcCreateProgram(
            text.encode(), b"kernel.cu", len(headers), [s for _, s in headers], [n.encode() for n, _ in headers]
        )
    )
    try:
        options = [o.encode() for o in options_for(arch)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
        _refuse(nvrtc, status, log, arch)
        cubin = _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Compiled(cubin, _without_times(log), parse_resources(log))


def compile_cached(text: str, arch: str, folder: Path) -> Compiled:
    """:func:`compile`, kept in ``folder`` by :func:`cache_key`. Safe to call from many processes at once."""
    path = folder / f"{cache_key(text, arch)}.cubin"
    notes = path.with_suffix(".json")
    if path.exists() and notes.exists():
        return _from_json(path.read_bytes(), notes.read_text())
    compiled = compile(text, arch)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(notes, _to_json(compiled).encode())
    _replace(path, compiled.cubin)
    return compiled


def open_pool(jobs: int) -> Executor:
    """Processes to compile in: NVRTC compiles one program at a time in each, whatever its threads. Close it when done."""
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def compile_many(
    sources: Sequence[tuple[str, str]], pool: Executor | None = None, folder: Path | None = None
) -> list[Compiled | CudaCompileError]:
    """Compile (text, arch) pairs, in the processes of ``pool`` or here; results in order, a CudaCompileError where a source
    is refused. With ``folder``, as :func:`compile_cached`. Raises ToolchainError.
    """
    _bindings()
    texts, archs = [text for text, _ in sources], [arch for _, arch in sources]
    each = map if pool is None else pool.map
    return list(each(_attempt, texts, archs, [folder] * len(sources)))


def cache_key(text: str, arch: str) -> str:
    """Equal keys mean equal cubins: a hash of NVRTC's version, the options, the headers and the text."""
    parts = (version(), *options_for(arch), *(source for _, source in _headers()), text)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def options_for(arch: str) -> tuple[str, ...]:
    """NVRTC's options for one compute capability."""
    return (f"--gpu-architecture={arch}", *OPTIONS)


def version() -> str:
    """NVRTC's version, such as ``13.0``. Raises ToolchainError when the extra is not installed."""
    _, major, minor = _bindings().nvrtcVersion()
    return f"{major}.{minor}"


def available() -> bool:
    """True when NVRTC can be loaded."""
    try:
        version()
    except ToolchainError:
        return False
    return True


def parse_resources(log: str) -> dict[str, Resources]:
    """The resources of every kernel from what ``ptxas -v`` says."""
    found: dict[str, Resources] = {}
    for part in re.split(r"(?=Compiling entry function)", log)[1:]:
        name = re.match(r"Compiling entry function '([^']+)'", part)
        properties = part.split("Function properties for", 1)[-1]
        if name is not None:
            found[name[1]] = Resources(
                _number(r"Used (\d+) registers", properties), _number(r"(\d+) bytes smem", properties),
                max(_number(r"(\d+) bytes stack frame", properties), _number(r"(\d+) bytes cumulative stack", properties)),
                _number(r"(\d+) bytes spill stores", properties) + _number(r"(\d+) bytes spill loads", properties),
            )  # fmt: skip
    return found


def losses(log: str) -> list[str]:
    """What ptxas says of products that wait for each other (wgmma) and of registers that stay where they are (setmaxnreg).

    It calls these information, not warnings; each has a number, such as C7510.
    """
    return [line for line in log.splitlines() if re.search(r"\(C\d{4}\)|Potential Performance Loss", line)]


def _without_times(log: str) -> str:
    return "\n".join(line for line in log.strip("\0").splitlines() if "Compile time" not in line)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else 0


def _attempt(text: str, arch: str, folder: Path | None) -> Compiled | CudaCompileError:
    try:
        return compile(text, arch) if folder is None else compile_cached(text, arch, folder)
    except CudaCompileError as error:
        return error


def _refuse(nvrtc: Any, status: Any, log: str, arch: str) -> None:
    if status == nvrtc.nvrtcResult.NVRTC_SUCCESS:
        return
    if status == nvrtc.nvrtcResult.NVRTC_ERROR_INVALID_OPTION:
        raise ToolchainError(f"NVRTC {version()} cannot compile for {arch!r}: {log.strip() or status.name}")
    lines = [line.strip("\0") for line in log.splitlines()]
    errors = [line for line in lines if "error" in line.lower() or "fatal" in line] or [status.name, *filter(None, lines)]
    raise CudaCompileError("\n".join(errors[:_ERROR_LINES]))


@cache
def _bindings() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise ToolchainError(f"NVRTC cannot be loaded: {error}; `pip install 'wpk[cuda-compile]'`") from error
    return nvrtc


@cache
def _headers() -> tuple[tuple[str, str], ...]:
    folder = files("wpk.cuda")
    return tuple((name, (folder / name).read_text()) for name in HEADERS)


def _checked(answer: tuple[Any, ...]) -> Any:
    status, *values = answer
    if status.value != 0:
        raise CudaCompileError(f"NVRTC: {status.name}")
    return values[0] if values else None


def _text(size: Any, get: Any, program: Any) -> bytes:
    buffer: bytes = b" " * _checked(size(program))
    _checked(get(program, buffer))
    return buffer


def _to_json(compiled: Compiled) -> str:
    resources = {name: asdict(value) for name, value in compiled.resources.items()}
    return json.dumps({"log": compiled.log, "resources": resources})


def _from_json(cubin: bytes, notes: str) -> Compiled:
    data = json.loads(notes)
    return Compiled(cubin, data["log"], {name: Resources(**value) for name, value in data["resources"].items()})


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(name, path)  # atomic: a reader sees the whole file or none
