"""Runs generated CUDA text on the CPU and finds what would go wrong on a GPU. The text is compiled as C++ against
``emulated/wpk_device.cuh``, which has all names of the real header; the runtime beside it supplies the SIMT model.

How it works
    Threads of a block are fibers of one process, run one at a time; warps, lanes and blocks take turns in an order drawn
    from the seed. The compiler is told to instrument every memory access as for its thread sanitizer (and array bounds and
    alignment as for its undefined-behaviour sanitizer), but the hooks are the runtime's: it keeps a shadow cell for each
    byte of shared and of written global memory, with the thread that wrote it and when, in vector clocks.

What is found, and by which rule (``EmulationError.kind``)
    out-of-bounds  an access outside all arguments, the workspace, shared memory as launched and the own stack: arguments
                   lie 4 GiB apart, so every stray address is seen; an index outside a declared array, shared or local
    unwritten      a read of shared memory, workspace or an argument named in ``outputs`` before it is written; a byte
                   of such an output that is never written
    race           two accesses of which one writes, by threads that have not synchronized in between (full and named
                   barriers, ``__syncwarp``, mbarriers), whatever order they ran in; also across blocks of one launch,
                   unless both did atomics since. Writing the value that is there already is no race
    in-flight      touching the target of ``cp.async`` or TMA before it was waited for: the data arrives at the wait
    misaligned     a vector access, ``cp.async``, ``ldmatrix``, TMA or ``wgmma`` operand that is not aligned as it must be
    barrier        a barrier that not all threads reach, or that they reach at different lines; a wait that never ends
    divergence     a warp operation (shuffle, vote, ``mma``, ``wgmma`` ...) that its lanes do not reach together
    proxy          ``wgmma`` or TMA stores that read what was written to shared memory with no ``fence_async``
    launch, limit  a launch the device would refuse, or one beyond what the emulator models
    compile, crash, timeout, trap

What is not found
    Blocks run one after another, so a block that spins until a later one has done something ends in a timeout; fences
    (``__threadfence``) are not checked. Not seen are accesses that stray from one part of ``wpk_shared`` into another,
    unless they race or read unwritten bytes; a global read that a later write of another thread overtakes (other seeds may
    show it in the outputs); reads of uninitialized registers, which hold a pattern where the compiler can fill it in;
    memory ordering weaker than these rules, bank conflicts, register pressure. ``__expf`` and its like are exact here and
    ``mma`` rounds its sums once, so tolerances must cover what a GPU rounds differently.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache as memoize
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

import numpy as np

from wpk.core.errors import ToolchainError
from wpk.core.launch import CudaSource, Launch, TensorMap
from wpk.core.target import host_target
from wpk.core.tensor import DTYPE_BYTES

Array = np.ndarray[Any, Any]

SOURCES = ("async.cpp", "clocks.cpp", "main.cpp", "memory.cpp", "scheduler.cpp", "warp.cpp", "wgmma.cpp")
INCLUDES = ("simt.h", "wpk_device.cuh", "wpk_half.h", "wpk_hopper.cuh")

#: Races show in the shadow, so little is gained by more optimization; less would keep register arrays in memory.
KERNEL_FLAGS = (
    "-O1", "-g1", "-fsanitize=thread", "-fsanitize=bounds,alignment", "-fno-strict-aliasing",
)  # fmt: skip
COMMON_FLAGS = (
    "-std=c++20", "-w", "-fno-exceptions", "-fno-rtti", "-fpie", "-ffp-contract=fast", "-march=native", "-pipe",
    "-ftls-model=local-exec",
)  # fmt: skip
#: Flags that not every compiler has.
OPTIONAL_FLAGS = ("-fno-extern-tls-init", "-ftrivial-auto-var-init=pattern", "-fcf-protection=none")

#: ``__CUDA_ARCH__`` of a compute capability, and what the letter ``a`` adds.
ARCHS = {"sm_80": (800, False), "sm_90": (900, False), "sm_90a": (900, True), "sm_100": (1000, False)}

#: Bytes of shared memory a block may have, with opt-in.
MAX_SHARED = {"sm_80": 166912, "sm_90": 232448, "sm_90a": 232448, "sm_100": 232448}
MAX_THREADS = 1024
DEFAULT_ARCH = "sm_90a"

_PAGE = 4096
_MUST_WRITE, _UNWRITTEN = 1, 2


class EmulationError(Exception):
    """A kernel did what it must not. ``kind`` is one of the module's list; ``detail`` says what, by which thread, where.

    ``line`` is the line of the kernel's text (1-based), None where it is not known.
    """

    def __init__(self, kind: str, detail: str, line: int | None = None) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.line = line


@dataclass(frozen=True)
class Host:
    """What compiles and where it is kept: a C++ compiler's command, a folder for binaries."""

    compiler: tuple[str, ...]
    cache: Path


def default_host(compiler: Sequence[str] | None = None, cache: Path | None = None) -> Host:
    """The given compiler and folder, else g++, clang++ or c++ on PATH or the ziglang package, and the user's cache folder.

    Raises ToolchainError when there is no C++ compiler, or on a system whose programs cannot be built this way.
    """
    if sys.platform != "linux":
        raise ToolchainError(f"the emulator builds programs for Linux; this is {sys.platform}")
    found = tuple(compiler) if compiler else _first_compiler()
    return Host(found, cache or Path.home() / ".cache" / "wpk")


def available() -> bool:
    """True when :func:`default_host` finds what it needs."""
    try:
        default_host()
    except ToolchainError:
        return False
    return True


def run(
    source: CudaSource,
    args: Sequence[Array],
    *,
    seed: int = 0,
    arch: str | None = None,
    outputs: Sequence[int] = (),
    host: Host | None = None,
    timeout: float = 60.0,
) -> None:
    """Run all launches of ``source``, in order, on ``args``: one C-contiguous array for each parameter, written in place.

    Arguments whose positions are in ``outputs`` count as unwritten at first and must be written throughout. ``arch``
    (default ``sm_90a``) is what ``__CUDA_ARCH__`` says. The kernel runs in a process of its own, for at most ``timeout``
    seconds of CPU time, rounded up. Raises EmulationError, and ToolchainError when there is no compiler.
    """
    host = host or default_host()
    arch = arch or DEFAULT_ARCH
    for launch in source.launches:
        _check_launch(launch, arch)
    for index, array in enumerate(args):
        if not array.flags.c_contiguous:
            raise ValueError(f"argument {index} is not C-contiguous")
    program = build(source, host, arch)
    sizes = [array.nbytes for array in args] + [source.workspace_bytes]
    flags = [_MUST_WRITE | _UNWRITTEN if i in outputs else 0 for i in range(len(args))] + [_UNWRITTEN]
    with tempfile.TemporaryFile(dir=_memory_folder()) as file:
        offsets = _write_args(file, args, sizes)
        areas = [f"{o},{s},{f}" for o, s, f in zip(offsets, sizes, flags, strict=True)]
        words = [w for area in areas for w in ("a", area)]
        words += [w for tensor in source.tensor_maps for w in ("m", _map_word(tensor))]
        words += [w for launch in source.launches for w in ("l", _launch_word(launch))]
        _execute(program, [str(seed), *words], file.fileno(), timeout, source.text)
        _read_back(file, args, offsets)


def build(source: CudaSource, host: Host, arch: str = DEFAULT_ARCH) -> Path:
    """The program that runs ``source``, from the cache when it is there. Raises EmulationError of kind ``compile``."""
    value, features = ARCHS[arch]
    symbols = sorted({launch.symbol for launch in source.launches})
    table = ", ".join(f'{{"{s}", wpk_launcher<{s}>::run}}' for s in symbols)
    text = f'{source.text}\nextern "C" {{ extern const wpk_entry wpk_entries[]; }}\n'
    text += f"const wpk_entry wpk_entries[] = {{{table}, {{nullptr, nullptr}}}};\n"
    defines = (f"-D__CUDA_ARCH__={value}", *(("-D__CUDA_ARCH_FEAT_SM90_ALL",) if features else ()))
    runtime = build_runtime(host)
    flags = (*COMMON_FLAGS, *_optional_flags(host.compiler), *KERNEL_FLAGS, *defines, "-I", str(_folder()))
    target = host.cache / "emulator" / _digest(host, *flags, text, runtime[0].parent.name) / "kernel"
    if not target.exists():
        _build_kernel(host, flags, text, runtime, target)
    return target


def build_runtime(host: Host) -> list[Path]:
    """The runtime's object files, from the cache when they are there. Raises EmulationError of kind ``compile``."""
    flags = (*COMMON_FLAGS, *_optional_flags(host.compiler), "-O3")
    texts = [(_folder() / name).read_text() for name in (*SOURCES, *INCLUDES)]
    folder = host.cache / "emulator" / _digest(host, *flags, *texts)
    objects = [folder / f"{name}.o" for name in SOURCES]
    for name, path in zip(SOURCES, objects, strict=True):
        if not path.exists():
            _produce([*host.compiler, *flags, "-c", str(_folder() / name), "-o"], path)
    return objects


def _build_kernel(host: Host, flags: Sequence[str], text: str, runtime: Sequence[Path], target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written, compiled = Path(folder) / "kernel.cu", Path(folder) / "kernel.o"
        written.write_text(text)
        _compile([*host.compiler, *flags, "-x", "c++", "-c", str(written), "-o", str(compiled)])
        objects = [str(compiled), *map(str, runtime)]
        _produce([*host.compiler, "-pie", *objects, "-lm", "-o"], target)


def _produce(command: Sequence[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent)
    os.close(handle)
    try:
        _compile([*command, temporary])
        Path(temporary).chmod(0o755)
        os.replace(temporary, target)  # atomic: a reader sees the whole file or none
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _compile(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise ToolchainError(f"C++ compiler {command[0]!r} does not run: {error.strerror}") from error
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise EmulationError("compile", "\n".join(errors[:8]))


def _execute(program: Path, words: Sequence[str], fd: int, timeout: float, text: str) -> None:
    limit = str(max(math.ceil(timeout), 1))
    command = [str(program), str(fd), limit, *words]
    done = subprocess.run(command, pass_fds=(fd,), capture_output=True, text=True, errors="replace")
    if done.returncode == 3:
        raise _reported(done.stdout.splitlines()[-1], program, text)
    if done.returncode < 0:
        raise EmulationError("crash", f"the kernel ended by {signal.Signals(-done.returncode).name}")
    if done.returncode != 0:
        raise EmulationError("crash", f"the kernel's process ended with status {done.returncode}: {done.stderr[-300:]}")


def _reported(report: str, program: Path, text: str) -> EmulationError:
    kind, line, pc, detail = report.split("\t", 3)
    at = int(line) or _line_of(program, pc)
    place = ""
    if at:
        lines = text.splitlines()
        place = f" at line {at}: {lines[at - 1].strip()}" if at <= len(lines) else f" at line {at}"
    return EmulationError(kind, detail + place, at)


def _line_of(program: Path, pc: str) -> int | None:
    """The line of the kernel's text that a return address belongs to; None without addr2line."""
    tool = shutil.which("addr2line")
    if tool is None or not re.fullmatch("0x[0-9a-f]+", pc):
        return None
    call = hex(int(pc, 16) - 1)  # the address is behind the call
    said = subprocess.run([tool, "-i", "-e", str(program), call], capture_output=True, text=True, check=False).stdout
    lines = re.findall(r"kernel\.cu:(\d+)", said)
    return int(lines[0]) if lines else None


def _check_launch(launch: Launch, arch: str) -> None:
    if arch not in ARCHS:
        raise ValueError(f"unknown compute capability {arch!r}: expected one of {', '.join(ARCHS)}")
    if not 1 <= launch.threads <= MAX_THREADS:
        raise EmulationError("launch", f"{launch.symbol}: {launch.threads} threads a block; at most {MAX_THREADS}")
    if launch.shared_bytes > MAX_SHARED[arch]:
        limit = f"{arch} has {MAX_SHARED[arch]}"
        raise EmulationError("launch", f"{launch.symbol}: {launch.shared_bytes} bytes of shared memory; {limit}")
    if launch.cluster != (1, 1, 1):
        raise EmulationError("limit", f"{launch.symbol}: clusters are not emulated")
    if min(launch.grid) < 1:
        raise EmulationError("launch", f"{launch.symbol}: empty grid {launch.grid}")


def _launch_word(launch: Launch) -> str:
    return ",".join(map(str, (launch.symbol, *launch.grid, *launch.block, launch.shared_bytes)))


def _map_word(tensor: TensorMap) -> str:
    """What cuTensorMapEncodeTiled would encode, for the runtime. Raises EmulationError where it would refuse."""
    size = DTYPE_BYTES["float32" if tensor.dtype == "tf32" else tensor.dtype]  # wgmma cuts what is not rounded here
    row = tensor.box[0] * size
    if any(s % 16 for s in tensor.strides) or tensor.offset % 16 or row % 16:
        raise EmulationError("launch", f"{tensor}: offset, strides and inner row of the box must be multiples of 16 bytes")
    steps = tensor.steps or (1,) * len(tensor.box)
    if max(steps) > 8 or min(steps) < 1 or steps[0] != 1 or len(steps) != len(tensor.box):
        raise EmulationError("launch", f"{tensor}: steps of 1 to 8, one an axis, and 1 of the innermost")
    reach = max(n * step for n, step in zip(tensor.box, steps, strict=True))
    if reach > 256 or tensor.swizzle not in (0, 32, 64, 128) or 0 < tensor.swizzle < row:
        raise EmulationError("launch", f"{tensor}: at most 256 elements an axis, and an inner row within the swizzle")
    if not len(tensor.shape) == len(tensor.box) == len(tensor.strides) + 1:
        raise EmulationError("launch", f"{tensor}: shape and box need one entry an axis, strides one less")
    numbers = (tensor.parameter, tensor.offset, size, len(tensor.shape), tensor.swizzle)
    return ",".join(map(str, (*numbers, *tensor.shape, size, *tensor.strides, *tensor.box, *steps)))


def _write_args(file: IO[bytes], args: Sequence[Array], sizes: Sequence[int]) -> list[int]:
    """Puts each argument at a page of its own; the offsets, the workspace's last."""
    offsets, at = [], 0
    for size in sizes:
        offsets.append(at)
        at += -(-(size + 1) // _PAGE) * _PAGE
    file.truncate(at)
    for array, offset in zip(args, offsets, strict=False):
        file.seek(offset)
        file.write(_bytes_of(array).data)
    file.flush()
    return offsets


def _bytes_of(array: Array) -> Array:
    """The bytes of a C-contiguous array of any dtype, those without a buffer (bfloat16) too; shares its memory."""
    return array.reshape(-1).view(np.uint8)


def _read_back(file: IO[bytes], args: Sequence[Array], offsets: Sequence[int]) -> None:
    for array, offset in zip(args, offsets, strict=False):
        if array.nbytes and array.flags.writeable:
            file.seek(offset)
            _bytes_of(array)[:] = np.frombuffer(file.read(array.nbytes), np.uint8)


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _digest(host: Host, *parts: str) -> str:
    # -march=native: a folder shared between machines must not mix their binaries
    machine = host_target()
    words = (_version(host.compiler), machine.model, *machine.isas, *parts)
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]


@memoize
def _version(compiler: tuple[str, ...]) -> str:
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(f"C++ compiler {compiler[0]!r} does not run: {error}") from error
    return done.stdout.splitlines()[0] if done.stdout else ""


@memoize
def _optional_flags(compiler: tuple[str, ...]) -> tuple[str, ...]:
    """Those of OPTIONAL_FLAGS that this compiler knows."""
    return tuple(flag for flag in OPTIONAL_FLAGS if _knows(compiler, flag))


def _knows(compiler: tuple[str, ...], flag: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        command = [*compiler, "-Werror", flag, "-x", "c++", "-c", "-", "-o", f"{folder}/probe.o"]
        return subprocess.run(command, input="", capture_output=True, text=True).returncode == 0


def _first_compiler() -> tuple[str, ...]:
    for name in ("g++", "clang++", "c++"):
        if (path := shutil.which(name)) is not None:
            return (path,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "c++")
    raise ToolchainError(
        "no C++ compiler: looked for g++, clang++, c++ on PATH and the ziglang package; install g++ or `pip install 'wpk[zig]'`"
    )


@memoize
def _folder() -> Path:
    return Path(str(files("wpk.cuda"))) / "emulated"
