"""Source text → shared library, cached by content: equal text, flags and compiler mean equal file name."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

from wpk.core.errors import StorageError
from wpk.measure.toolchain import Compiler

#: Longest compile, in seconds; a kernel that needs more is of no use to the search.
BUILD_TIMEOUT = 60.0

_ERROR_LINES = 8


class CompileError(Exception):
    """The compiler refused a source, or took too long. ``detail`` holds the first lines it said.

    Inside the search this is a value (kind ``compile``): :func:`build_many` returns it in place of a path.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


def default_cache(override: Path | str | None = None) -> Path:
    """The folder of built binaries: ``override``, else ``wpk`` in the user's cache folder. Not created here."""
    if override is not None:
        return Path(override).expanduser()
    home = Path.home()
    return (home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache") / "wpk"


def native_folder() -> Path:
    """The folder of ``wpk.h`` and the runtime's C files."""
    return Path(str(files("wpk.runtime.native")))


def build(text: str, isa: str, compiler: Compiler, cache: Path, timeout: float = BUILD_TIMEOUT) -> Path:
    """The shared library of one translation unit for ``isa``, from ``cache`` when there; ``wpk.h`` can be included.

    Safe to call from many threads and processes at once. Raises CompileError, and StorageError for the cache.
    """
    header = (native_folder() / "wpk.h").read_text()
    target = cache / "build" / f"{_digest(compiler, isa, header, text)}.so"
    if not target.exists():
        include = ("-I", str(native_folder()))
        _compile([*_command(compiler, isa), *include, "-x", "c", "-", "-lm"], text, target, timeout)
    return target


def build_runtime(isa: str, compiler: Compiler, cache: Path, timeout: float = 120.0) -> Path:
    """``libwpkrt.so``: all C files of the native runtime and its adapters. Raises as :func:`build`."""
    folder = native_folder()
    sources = sorted(folder.glob("*.c"))
    texts = [p.read_text() for p in (*sorted(folder.glob("*.h")), *sources)]
    target = cache / "build" / f"{_digest(compiler, isa, *texts)}-wpkrt.so"
    if not target.exists():
        files = ("-pthread", *map(str, sources), "-ldl", "-lm")
        _compile([*_command(compiler, isa), *files], "", target, timeout)
    return target


def build_many(
    sources: Sequence[tuple[str, str]],
    compiler: Compiler,
    cache: Path,
    jobs: int,
    timeout: float = BUILD_TIMEOUT,
) -> list[Path | CompileError]:
    """Build (text, isa) pairs, ``jobs`` at a time; results in order, a CompileError where a source is refused.

    Raises StorageError.
    """

    def one(source: tuple[str, str]) -> Path | CompileError:
        try:
            return build(source[0], source[1], compiler, cache, timeout)
        except CompileError as error:
            return error

    with ThreadPoolExecutor(max(jobs, 1)) as pool:
        return list(pool.map(one, sources))


def _command(compiler: Compiler, isa: str) -> tuple[str, ...]:
    return (*compiler.command, *compiler.flags(isa))


def _digest(compiler: Compiler, isa: str, *texts: str) -> str:
    parts = (compiler.version, *compiler.flags(isa), *texts)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _compile(command: list[str], text: str, target: Path, timeout: float) -> None:
    temporary = _temporary(target)
    try:
        _run([*command, "-o", str(temporary)], text, timeout)
        temporary.chmod(0o755)
        os.replace(temporary, target)  # atomic: a reader sees the whole library or none
    except CompileError as error:
        if shutil.disk_usage(target.parent).free < 1 << 20:
            raise StorageError(f"cache {target.parent}: the disk is full") from error
        raise
    except OSError as error:
        raise StorageError(f"cannot write to the cache {target.parent}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _temporary(target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".so.tmp", dir=target.parent)
    except OSError as error:
        raise StorageError(f"cannot write to the cache {target.parent}: {error.strerror or error}") from error
    os.close(handle)
    return Path(name)


def _run(command: list[str], text: str, timeout: float) -> None:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=timeout, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"the compiler took more than {timeout:g} s") from error
    except OSError as error:
        raise CompileError(f"the compiler does not run: {error.strerror}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "In function" not in line]
        raise CompileError("\n".join(lines[:_ERROR_LINES]) or f"status {done.returncode}")
