"""Finds a C compiler and says which flags make code for an ISA: settings → Compiler → command line."""

import importlib.util
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass

from wpk.core.errors import ToolchainError

#: Kernels may reassociate nothing and assume no NaN-freedom, but owe nothing to signed zeros, traps or errno.
COMMON_FLAGS = (
    "-O3", "-std=gnu11", "-fPIC", "-shared", "-pipe", "-w", "-fno-signed-zeros", "-fno-trapping-math",
    "-fno-math-errno", "-ffp-contract=fast", "-fno-stack-protector",
)  # fmt: skip

#: Only what every CPU of that level has: ``Target.isas`` promises exactly these.
ISA_FLAGS = {
    "avx512": (
        "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512",
    ),
    "avx2": ("-mavx2", "-mfma"),
    "neon": (),
    "scalar": (),
}  # fmt: skip

#: zig turns on checks for undefined behaviour, and tunes for the host, unless told otherwise.
ZIG_FLAGS = ("-fno-sanitize=all", "-mcpu=baseline")

INSTALL_HINT = "install gcc or clang (e.g. `apt-get install gcc`) or `pip install 'wpk[zig]'`"


@dataclass(frozen=True)
class Compiler:
    """A working C compiler: how its command line starts, and the first line of ``--version``."""

    command: tuple[str, ...]
    version: str

    @property
    def is_zig(self) -> bool:
        """True for ``python -m ziglang cc``."""
        return "ziglang" in self.command

    def flags(self, isa: str) -> tuple[str, ...]:
        """Flags for a shared library for ``isa``: :func:`flags`, and what this compiler needs besides."""
        return flags(isa) + (ZIG_FLAGS if self.is_zig else ())


def flags(isa: str) -> tuple[str, ...]:
    """Flags of kernels for ``isa`` (``avx512``, ``avx2``, ``neon``, ``scalar``). Raises ToolchainError for others."""
    if isa not in ISA_FLAGS:
        raise ToolchainError(f"unknown ISA {isa!r}: expected one of {', '.join(ISA_FLAGS)}")
    return COMMON_FLAGS + ISA_FLAGS[isa]


def find_compiler(explicit: str | None = None) -> Compiler:
    """``explicit`` (a command) when given, else cc, gcc or clang on PATH, else the ziglang package.

    Raises ToolchainError when there is none, or when ``explicit`` does not run.
    """
    if explicit is not None:
        return _probe(tuple(shlex.split(explicit)))
    for name in ("cc", "gcc", "clang"):
        if (path := shutil.which(name)) is not None:
            return _probe((path,))
    if importlib.util.find_spec("ziglang") is not None:
        return _probe((sys.executable, "-m", "ziglang", "cc"))
    raise ToolchainError(
        f"no C compiler: looked for cc, gcc, clang on PATH and the ziglang package; {INSTALL_HINT}"
    )


def _probe(command: tuple[str, ...]) -> Compiler:
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(
            f"C compiler {shlex.join(command)!r} does not run: {error}; {INSTALL_HINT}"
        ) from error
    if done.returncode != 0 or not done.stdout.strip():
        said = done.stderr.strip() or "no version"
        raise ToolchainError(f"C compiler {shlex.join(command)!r} does not work: {said}; {INSTALL_HINT}")
    return Compiler(command, done.stdout.splitlines()[0].strip())
