"""Pieces of GPU schedules that families share: copies by all threads, blocks in an order that suits L2."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wpk.core.target import Gpu, Target
from wpk.dsl.schedule import Bind, ComputeAt, Fuse, Reorder, Split, Step, StoreAs, Unroll, Vectorize

#: threads of a warp, registers of a thread, bytes of the widest load
WARP, MOST_REGISTERS, WIDEST = 32, 255, 16
#: parts of a sum that are asked for before the first is there
MOST_UNROLLED = 64


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


def part_axes(split: int, slices: int = 1) -> tuple[str, ...]:
    """Axes of the parts of k."""
    return (*(("ks",) if split > 1 else ()), *(("kp",) if slices > 1 else ()))


def joined_slices(
    stage: str, outer: tuple[str, ...], split: Sequence[Step], threads: tuple[str, ...], held: tuple[str, ...],
    stored: tuple[str, ...],
) -> list[Step]:  # fmt: skip
    """A block's slices of k: warps for each, whose sums the first of them add through shared memory, in order.

    ``outer`` are loops of parts and batches, ``threads`` those of a slice (made by ``split``), ``held`` what a thread has of
    a tile beside its vectors, ``stored`` the order of a tile in shared memory.
    """
    whole = tuple(x for x in stored if x not in ("mb", "nb", *held, "nv"))
    fuse, thread = fuse_all("slice", ("kp", *threads), "thread")
    return [
        ComputeAt("slice", stage, "tile", "block"), *split,
        Reorder("slice", (*outer, "mb", "nb", "kp", *threads, *held, "nv")),
        *fuse, Bind("slice", thread, "thread"), *(Unroll("slice", x) for x in held), Vectorize("slice", "nv"),
        StoreAs("slice", (*outer, "kp", *stored)),
        ComputeAt("joint", stage, "thread", "register"),
        Reorder("joint", (*outer, "mb", "nb", *whole, *held, "kp", "nv")),
        *(Unroll("joint", x) for x in (*held, "kp")), Vectorize("joint", "nv"),
    ]  # fmt: skip


def added_parts(place: tuple[str, ...], parts: int = 1) -> list[Step]:
    """The second kernel: a thread for each vector of the output adds the parts in order. ``place``: its axes in memory order."""
    unrolled = [Unroll("total", "ks")] if parts <= MOST_UNROLLED else []
    fuse, one = fuse_all("out", place, "job")
    return [
        *fuse,
        Split("out", one, 128, "block", "vector", "guard"),
        Bind("out", "block", "block.x"), Bind("out", "vector", "thread"), Vectorize("out", "nv"),
        ComputeAt("total", "out", "vector", "register"),
        Reorder("total", (*place, "ks", "nv")), *unrolled, Vectorize("total", "nv"),
    ]  # fmt: skip


def divisors(n: int, choices: Iterable[int]) -> tuple[int, ...]:
    """Those of ``choices`` that divide ``n``."""
    return tuple(c for c in choices if n % c == 0)


__all__ = [
    "MOST_REGISTERS", "WARP", "WIDEST", "added_parts", "copied", "divisors", "fuse_all", "gpu_of", "joined_slices", "part_axes",
    "width_of",
]  # fmt: skip
