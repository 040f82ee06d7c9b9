"""Pieces of schedules that many families share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.schedule import Fuse, Split, Step, Unroll, Vectorize

REGISTERS = {"avx512": 32, "avx2": 16, "neon": 32, "scalar": 16}
LANES = {"avx512": 16, "avx2": 8, "neon": 4, "scalar": 1}

#: elements that one thread handles in about the time that starting the others takes (1–2 µs)
SMALL = 8192


def isas(target: Target) -> tuple[str, ...]:
    """The vector ISAs of a target, best first; ``scalar`` when it has none."""
    return tuple(i for i in target.isas if i in ("avx512", "avx2", "neon")) or ("scalar",)


def fused(stage: str, loops: Sequence[str], name: str = "job") -> tuple[list[Step], str]:
    """Steps that fuse adjacent loops into one, and its name: that of a single loop stays."""
    plan: list[Step] = []
    current = loops[0]
    for i, loop in enumerate(loops[1:]):
        plan.append(Fuse(stage, current, loop, f"{name}{i}"))
        current = f"{name}{i}"
    return plan, current


def lanes(stage: str, loop: str, extent: int, isa: str) -> list[Step]:
    """Run a loop whose extent is a power of two in vectors of the ISA: one, or some after each other."""
    width = max(LANES[isa], 4)
    if extent <= width:
        return [Vectorize(stage, loop)]
    return [
        Split(stage, loop, width, f"{loop}_w", f"{loop}_v"),
        Unroll(stage, f"{loop}_w"), Vectorize(stage, f"{loop}_v"),
    ]  # fmt: skip


def up_to(values: Iterable[int], limit: int) -> tuple[int, ...]:
    """The values that do not exceed ``limit``; at least the first."""
    values = tuple(values)
    return tuple(v for v in values if v <= limit) or values[:1]


def nearest(values: Sequence[int], wanted: float) -> int:
    """The greatest value up to ``wanted``, else the least."""
    return max((v for v in values if v <= wanted), default=min(values))


def ints(workload: Workload, name: str) -> tuple[int, ...]:
    """An attribute that is a tuple of integers. Raises KeyError when the op has none of that name."""
    value = workload.attr(name)
    return tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value),)
