"""Which columns of a tile a thread of a warpgroup has.

A fragment gives thread ``q`` of four the columns ``8 j + 2 q + v``: two neighbours, too few for a wide store. Constant weights
are therefore packed with their rows in another order, so that row ``32 i + 8 h + 2 q + v`` of a tile is column
``32 i + 8 q + 2 h + v`` of the result: then a thread has eight neighbours in four pieces, whole sectors of memory are written,
and it costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wpk.dsl.algorithm import Axis
from wpk.dsl.ir import Expr
from wpk.dsl.schedule import Bind, ComputeAt, Reorder, Split, Step, StoreAs, Unroll, Vectorize
from wpk.kernels.cuda.gemm_mma import fragment_axes
from wpk.kernels.cuda.nests import added_parts, fuse_all
from wpk.kernels.cuda.product import Ends, batch_axes, staged
from wpk.kernels.gemm import Product
from wpk.kernels.instr.wgmma import PANEL

#: columns that change places among themselves
SPREAD = 32


@dataclass(frozen=True)
class Columns:
    """The columns of a block: those of a warpgroup, in panels, or ``spread`` as the module says."""

    groups: int
    columns: int
    panels: bool
    spread: bool

    @property
    def held(self) -> tuple[str, ...]:
        """Axes of the pieces that a thread has."""
        return ("nj", "ng", "nh") if self.spread else ("no", "ni")

    @property
    def both(self) -> int:
        """Halves of 32 columns that a warpgroup has."""
        return 2 if self.columns % SPREAD == 0 else 1

    def axes(self, n: int) -> tuple[tuple[Axis, ...], Expr, Expr]:
        """Axes of ``n`` columns, the row of the tile that they stand for, and the column of the result."""
        if not self.spread:
            pieces = (self.columns // PANEL, PANEL // 8) if self.panels else (1, self.columns // 8)
            axes, row = fragment_axes("n", "bwoiqv", n, (self.groups, *pieces, 4, 2))
            return axes, row, row
        inner = self.columns // (16 * self.both)
        axes, row = fragment_axes("n", "bwjghqv", spread_over(n), (self.groups, inner, self.both, 2, 4, 2))
        nb, nw, nj, ng, nh, nq, nv = (x.var for x in axes)
        piece: Expr = (nb * self.groups + nw) * inner + nj
        piece, half = (piece, ng) if self.both == 2 else (piece // 2, piece % 2)
        return axes, row, piece * SPREAD + nq * 8 + half * 4 + nh * 2 + nv

    def vector(self, size: int) -> tuple[str, ...]:
        """Axes of the neighbours that a thread stores at once, elements of ``size`` bytes."""
        if not self.spread:
            return ("nv",)
        return ("ng", "nh", "nv") if size == 2 and self.both == 2 else ("nh", "nv")

    def accumulators(self, outer: tuple[str, ...]) -> tuple[list[Step], tuple[str, ...]]:
        """Steps that make pieces one loop over registers, inside the loops ``outer``; the loops of the instruction."""
        threads = ("mb", "mw", "mp", "mg", "nb", "nw")
        if not self.spread:
            loops = ("mi", "mh", "no", "ni", "nv")
            order = Reorder("acc", (*outer, *threads, "nq", "ko", "ki", *loops))
            return [order, StoreAs("acc", (*outer, *threads, "nq", "mi", "no", "ni", "mh", "nv"))], loops
        fuse, one = fuse_all("acc", self.held, "ni")
        order = Reorder("acc", (*outer, *threads, "nq", "ko", "ki", "mi", "mh", *self.held, "nv"))
        stored = StoreAs("acc", (*outer, *threads, "mi", "nq", *self.held, "mh", "nv"), join=(self.held,))
        return [order, *fuse, stored], ("mi", "mh", one, "nv")

    def added(self, batch: tuple[str, ...], size: int) -> list[Step]:
        """The second kernel of a split sum, whose result has elements of ``size`` bytes."""
        if not self.spread:
            return added_parts((*batch, "mb", "mw", "mi", "mp", "mh", "mg", "nb", "nw", "no", "ni", "nq"))
        vector = self.vector(size)
        loose = tuple(x for x in ("ng",) if x not in vector)
        place = (*batch, "mb", "mw", "nb", "nw", "mi", "mh", "nj", *loose, "mp", "mg", "nq")
        fuse, one = fuse_all("out", place, "job")
        lanes, lane = fuse_all("out", vector, "lane")
        sums, pair = fuse_all("total", ("nh", "nv"), "lane")
        apart = tuple(x for x in ("ng",) if x in vector)
        stored = (*batch, "mb", "mw", "nb", "nw", "mi", "mh", "nj", "ng", "mp", "mg", "nq", "nh", "nv")
        return [
            Reorder("out", (*place, *vector)), *fuse, *lanes, Split("out", one, 128, "block", "thread", "guard"),
            Bind("out", "block", "block.x"), Bind("out", "thread", "thread"), Vectorize("out", lane),
            ComputeAt("total", "out", "thread", "register"), Reorder("total", (*place, *apart, "ks", "nh", "nv")), *sums,
            *(Unroll("total", x) for x in (*apart, "ks")), Vectorize("total", pair), StoreAs("part", ("ks", *stored)),
        ]  # fmt: skip


def spread_over(n: int) -> int:
    """Rows of packed weights for ``n`` columns."""
    return -(-n // SPREAD) * SPREAD


def spread_ends(e: Ends, p: Product, tensor: str, dtype: str) -> Ends:
    """The ends of a product whose constant ``tensor`` is packed by :func:`spread_rows`."""
    rows = spread_over(p.n)
    params = tuple(replace(b, shape=(*b.shape[:-2], rows, b.shape[-1])) if b.name == tensor else b for b in e.params)
    batch = batch_axes(p)
    return replace(
        e, params=params,
        b=lambda k, padded: staged("bs", tensor, batch, p.b_batch, k, ("n", rows, padded), p.k, False, dtype),
    )  # fmt: skip


def spread_rows(matrix: np.ndarray) -> np.ndarray:
    """A constant matrix (…, n, k) with its rows where tiles want them, padded with zeros to a multiple of 32."""
    *batch, n, k = matrix.shape
    whole = np.zeros((*batch, spread_over(n), k), matrix.dtype)
    whole[..., :n, :] = matrix
    apart = whole.reshape(*batch, -1, 4, 4, 2, k)  # i, q, h, v
    return np.ascontiguousarray(np.swapaxes(apart, -4, -3)).reshape(whole.shape)


def as_vector(stage: str, axes: Sequence[str]) -> list[Step]:
    """The axes of a vector as one loop."""
    steps, lane = fuse_all(stage, axes, "lane")
    return [*steps, Vectorize(stage, lane)]


__all__ = ["SPREAD", "Columns", "as_vector", "spread_ends", "spread_over", "spread_rows"]
