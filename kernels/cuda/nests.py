"""Pieces of GPU schedules that families share: copies by all threads, blocks in an order that suits L2."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wpk.core.target import Gpu, Target
from wpk.dsl.schedule import Bind, Fuse, Reorder, Split, Step, Unroll, Vectorize

#: threads of a warp, registers of a thread, bytes of the widest load
WARP, MOST_REGISTERS, WIDEST = 32, 255, 16


def gpu_of(target: Target) -> Gpu | None:
    """The limits of the target when it is a GPU."""
    return target.gpu if target.arch == "cuda" else None


def width_of(*extents: int, bytes_each: int = 4) -> int:
    """Elements of the widest load or store that all ``extents`` (row lengths, offsets) are multiples of."""
    most = WIDEST // bytes_each
    while most > 1 and any(n % most for n in extents):
        most //= 2
    return most


def fuse_all(stage: str, loops: Sequence[str], name: str) -> tuple[list[Step], str]:
    """Steps that fuse adjacent loops into one called ``name``, and what it is called (a single loop keeps its name)."""
    plan: list[Step] = []
    current = loops[0]
    for i, loop in enumerate(loops[1:]):
        fused = name if i == len(loops) - 2 else f"{name}{i}"
        plan.append(Fuse(stage, current, loop, fused))
        current = fused
    return plan, current


def copied(
    stage: str, outer: Sequence[str], rows: Sequence[str], along: str, width: int, threads: int
) -> list[Step]:
    """A nest in which all threads of a block fill ``stage``: ``outer`` | chunk | thread | ``width`` elements ``along``.

    ``rows`` are the other axes, slowest first: neighbouring threads take neighbouring vectors along ``along``, then rows.
    """
    plan: list[Step] = [Split(stage, along, width, "v_o", "v", "guard")]
    plan.append(Reorder(stage, (*outer, *rows, "v_o", "v")))
    fuse, one = fuse_all(stage, (*rows, "v_o"), "job")
    return [
        *plan, *fuse,
        Split(stage, one, threads, "chunk", "copier", "guard"),
        Unroll(stage, "chunk"), Bind(stage, "copier", "thread"), Vectorize(stage, "v"),
    ]  # fmt: skip


def divisors(n: int, choices: Iterable[int]) -> tuple[int, ...]:
    """Those of ``choices`` that divide ``n``."""
    return tuple(c for c in choices if n % c == 0)


__all__ = ["MOST_REGISTERS", "WARP", "WIDEST", "copied", "divisors", "fuse_all", "gpu_of", "width_of"]
