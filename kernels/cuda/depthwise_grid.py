"""Depthwise convolutions on GPUs in numbers: how a config divides an output, what a thread and a block read, rough times."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from wpk.core.result import Config
from wpk.core.target import Gpu
from wpk.kernels.cuda.conv_shape import Conv
from wpk.kernels.cuda.nests import WARP, width_of
from wpk.kernels.cuda.product import resident_blocks


@dataclass(frozen=True)
class Grid:
    """How a config divides an output: ``height`` × ``width`` outputs of a thread, in vectors of ``lanes``; threads of a block.

    ``lanes`` run along columns (ROW) or channels (NHWC), and so do those of a vector of the input, ``reads``. ``channels``,
    ``rows``, ``columns`` count threads; a thread has ``lanes`` channels in NHWC, one in ROW.
    """

    conv: Conv
    height: int
    width: int
    lanes: int
    reads: int
    channels: int
    rows: int
    columns: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.channels * self.rows * self.columns

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return -(-self.threads // WARP)

    @property
    def depth(self) -> int:
        """Channels of a thread."""
        return self.lanes if self.conv.last else 1

    @property
    def vectors(self) -> int:
        """Vectors of a row of a thread's tile."""
        return self.width if self.conv.last else self.width // self.lanes

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Blocks along channels, rows and columns."""
        s = self.conv
        return (
            -(-s.k // (self.channels * self.depth)), -(-s.oh // (self.rows * self.height)),
            -(-s.ow // (self.columns * self.width)),
        )  # fmt: skip

    @property
    def lead(self) -> int:
        """Columns in front of the input, so that padding is whole vectors."""
        return -(-self.conv.pw // self.reads) * self.reads if not self.conv.last else self.conv.pw

    @property
    def box(self) -> tuple[int, int]:
        """Rows and columns of the input that all tiles read, padding included."""
        s, (_, rows, columns) = self.conv, self.blocks
        high = (rows * self.rows * self.height - 1) * s.sh + (s.kh - 1) * s.dh + 1
        wide = (columns * self.columns * self.width - 1) * s.sw + (s.kw - 1) * s.dw + 1
        return high, wide + self.lead - s.pw


def grid_of(s: Conv, size: int, c: Config) -> Grid:
    """The grid of a config; ``size``: bytes of the largest element."""
    height, width, lanes = int(c["tile_h"]), int(c["tile_w"]), int(c["lanes"])
    reads = lanes if s.kg == 1 else 1
    if not s.last:
        lanes, reads = width_of(s.ow, width, bytes_each=size), width_of(s.w, width * s.sw, bytes_each=size)
    return Grid(s, height, width, lanes, reads, *(int(c[f"threads_{x}"]) for x in "chw"))


def patch(g: Grid, unroll: str) -> tuple[int, int]:
    """Rows, and vectors of each, that a thread reads of the input at a time."""
    s = g.conv
    rows = min((g.height - 1) * s.sh + (s.kh - 1) * s.dh + 1, g.height * s.kh) if unroll == "all" else g.height
    columns = min((g.width - 1) * s.sw + (s.kw - 1) * s.dw + 1, g.width * s.kw)
    beside = (g.lead - s.pw) % g.reads if not s.last else 0
    return rows, columns if s.last else -(-(columns + beside) // g.reads)


def registers(g: Grid, unroll: str) -> int:
    """Registers of a thread, with room for what compilers load early: sums, input, weights, addresses."""
    sums = g.height * g.width * g.depth
    if unroll == "none":
        return 48 + 3 * sums
    rows, vectors = patch(g, unroll)
    kept = min(2, g.conv.kh) * g.conv.kw * g.depth if g.conv.last else g.conv.kh * g.conv.kw
    read = rows * vectors * g.reads
    return 24 + ((sums + 2 * read + kept) * 3 // 2 if unroll == "row" else (sums + read + kept) * 5 // 4)


def box_elements(g: Grid) -> int:
    """Elements of the input that a block reads, padding included."""
    s = g.conv
    high = (g.rows * g.height - 1) * s.sh + (s.kh - 1) * s.dh + 1
    wide = (g.columns * g.width - 1) * s.sw + (s.kw - 1) * s.dw + 1
    wide = wide if s.last else (-(-wide // g.reads) + 1) * g.reads
    return -(-g.channels * g.depth // s.kg) * high * wide


def cycles(s: Conv, size: int, c: Config, gpu: Gpu) -> float:
    """Rough cycles: waiting for what is read, once for each time a multiprocessor is filled, and its work.

    A multiprocessor issues four instructions of warps a cycle, takes 128 bytes from its first cache and some 40 from L2.
    """
    g, unroll, staged = grid_of(s, size, c), str(c["unroll"]), c["stage"] == "block"
    mine = -(-s.n * prod(g.blocks) // gpu.sms)
    resident = resident_blocks(gpu, WARP * g.warps, registers(g, unroll), box_elements(g) * size if staged else 1)
    waiting = 2200 + 800 * staged + 700 * (unroll == "loop") + 100 * s.kh * s.kw * (unroll == "none")
    loads, elements = reads_of(g, unroll)
    weights = s.kh * s.kw * (g.depth if s.last else 1)
    instructions = s.kh * s.kw * g.height * g.width * g.depth + 6 * loads + weights + 6 * g.height * g.vectors + 60
    copied = box_elements(g)
    instructions += 8 * -(-copied // (g.reads * g.threads)) if staged else 0
    turns = max(mine * g.warps / 4, 1.0) + 1  # schedulers idle where they have few warps
    traffic = max(g.warps * WARP * (elements + weights) / 128, copied / 40)
    return -(-mine // resident) * waiting + max(turns * instructions, mine * size * traffic)


def reads_of(g: Grid, unroll: str) -> tuple[int, int]:
    """Loads of the input by a thread, and elements of them."""
    if unroll == "none":
        loads = g.conv.kh * g.conv.kw * g.height * g.width
        return loads, loads * g.depth
    rows, vectors = patch(g, unroll)
    loads = rows * vectors * (1 if unroll == "all" else g.conv.kh)
    return loads, loads * g.reads


__all__ = ["Grid", "box_elements", "cycles", "grid_of", "patch", "reads_of", "registers"]
