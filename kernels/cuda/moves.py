"""Kernels that only move elements on GPUs: transpositions and conversions between ROW and NHWC, dtypes changed on the way.

Where the same dimension is contiguous on both sides, rows are copied by vectors. Elsewhere a block brings a square tile into
shared memory, rows as they are read, and writes it by columns; rows are one element longer than the tile, so that columns
meet all banks (Ruetsch & Micikevicius, "Optimizing Matrix Transpose in CUDA", 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Buffer, Expr, Load, Select
from wpk.dsl.lower import lower
from wpk.dsl.schedule import Bind, ComputeAt, Reorder, Split, Step, StoreAs, Unroll, schedule
from wpk.kernels.cuda.images import job_space, job_steps
from wpk.kernels.cuda.nests import fuse_all, gpu_of
from wpk.kernels.cuda.operands import STORED
from wpk.kernels.epilogue import ZERO
from wpk.kernels.family import Built
from wpk.kernels.nests import nearest
from wpk.kernels.transpose import collapsed
from wpk.search.knobs import Ordered
from wpk.search.space import Space


@dataclass(frozen=True)
class Move:
    """out[d_perm0, d_perm1, …] = x[d0, d1, …], as few dimensions as there can be; dtypes of both."""

    sizes: tuple[int, ...]
    perm: tuple[int, ...]
    source: str
    target: str

    @property
    def rows(self) -> bool:
        """True when the same dimension is contiguous in both."""
        return self.perm[-1] == len(self.sizes) - 1

    @property
    def count(self) -> int:
        """Elements."""
        return prod(self.sizes)

    @property
    def size(self) -> int:
        """Bytes of the larger element."""
        return max(DTYPE_BYTES[self.source], DTYPE_BYTES[self.target])


def move_of(workload: Workload) -> Move:
    """A transpose, or a convert between ROW and NHWC, as a move."""
    x, y = workload.inputs[0], workload.outputs[0]
    if workload.op == "transpose":
        return Move(*collapsed(x.shape, workload.ints("perm")), x.dtype, y.dtype)
    rank = len(x.shape)
    perm = tuple(range(rank))
    if (x.layout, y.layout) == ("ROW", "NHWC"):
        perm = (0, *range(2, rank), 1)
    elif (x.layout, y.layout) == ("NHWC", "ROW"):
        perm = (0, rank - 1, *range(1, rank - 1))
    return Move(*collapsed(x.physical, perm), x.dtype, y.dtype)


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def row_algorithm(m: Move) -> Algorithm:
    """Each element of the output from its place in the input."""
    axes = tuple(Axis(f"d{d}", m.sizes[d]) for d in m.perm)
    value = Load("x", tuple(a.var for a in sorted(axes, key=lambda a: int(a.name[1:]))))
    return Algorithm("move", _params(m), (Stage("out", axes, value, dtype=m.target),))


def tile_algorithm(m: Move, tile: int) -> Algorithm:
    """The same by way of ``t``, whose contiguous dimensions are padded to whole tiles: zero outside, and not written."""
    a, b = len(m.sizes) - 1, m.perm[-1]  # contiguous in the input, in the output
    extents = {d: -(-n // tile) * tile if d in (a, b) else n for d, n in enumerate(m.sizes)}
    axes = tuple(Axis(f"d{d}", extents[d]) for d in m.perm)
    by_number = sorted(axes, key=lambda x: int(x.name[1:]))
    place = tuple(x.var for x in by_number)
    inside: Expr | None = None
    for d in (a, b):
        if extents[d] > m.sizes[d]:
            here = by_number[d].var < m.sizes[d]
            inside = here if inside is None else inside & here
    value: Expr = Load("x", place)
    held = Stage("t", tuple(by_number), value if inside is None else Select(inside, value, ZERO), dtype=m.target)
    out = Stage("out", axes, Load("t", place), None, tuple(x.var for x in axes), inside, m.target)
    return Algorithm("move", _params(m), (held, out))


def _params(m: Move) -> tuple[Buffer, Buffer]:
    out = tuple(m.sizes[d] for d in m.perm)
    return Buffer("x", m.sizes, m.source), Buffer("out", out, m.target, access="out")


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(m: Move, gpu: Gpu) -> Space:
    """Jobs where rows are copied; else the side of a tile, and its rows that are under way at once."""
    if m.rows:
        return job_space(m.count, m.sizes[-1], m.size, gpu)
    tiles = (16, 32, 64)
    small = m.count < gpu.sms * 4096
    return Space(
        (Ordered("tile", tiles, nearest(tiles, 16 if small else 32)), Ordered("rows", (4, 8, 16), 8)),
        (lambda c: int(c["rows"]) <= int(c["tile"]),),
    )


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def tile_steps(m: Move, c: Config) -> list[Step]:
    """block: threads copy a tile, rows along the input's contiguous dimension; threads write it along the output's."""
    a, b = f"d{len(m.sizes) - 1}", f"d{m.perm[-1]}"
    tile, rows = int(c["tile"]), int(c["rows"])
    lead = tuple(f"d{d}" for d in m.perm if f"d{d}" not in (a, b))
    fuse, block = fuse_all("out", (*lead, "a_o", "b_o"), "block")
    plan: list[Step] = [
        Split("out", a, tile, "a_o", "a_t", "guard"), Split("out", b, tile, "b_o", "b_t", "guard"),
        Split("out", "a_t", rows, "a_r", "a_y", "guard"), Reorder("out", (*lead, "a_o", "b_o", "a_y", "b_t", "a_r")),
        *fuse, Bind("out", block, "block.x"), *_bound("out", ("a_y", "b_t")), Unroll("out", "a_r"),
        ComputeAt("t", "out", block, "block"), Split("t", b, rows, "b_r", "b_y", "guard"),
    ]  # fmt: skip
    others = tuple(f"d{d}" for d in range(len(m.sizes)) if f"d{d}" not in (a, b))
    order = (*others, b, a)
    return [
        *plan, Reorder("t", (*others, "b_y", a, "b_r")), *_bound("t", ("b_y", a)), Unroll("t", "b_r"),
        StoreAs("t", order, pad=(a, 1)),
    ]  # fmt: skip


def _bound(stage: str, loops: tuple[str, ...]) -> list[Step]:
    fuse, one = fuse_all(stage, loops, "thread")
    return [*fuse, Bind(stage, one, "thread")]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaMove:
    """Transpositions and layout conversions; see the module's docstring. ``op`` is ``transpose`` or ``convert``."""

    name: str = "cuda_transpose"
    version: int = 1
    op: str = "transpose"
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Floats of 16 or 32 bits: any permutation of ROW tensors, any change between ROW and NHWC."""
        if workload.op != self.op or gpu_of(target) is None:
            return f"op is {workload.op} for {target.arch}, expected {self.op} for cuda"
        x, y = workload.inputs[0], workload.outputs[0]
        if x.dtype not in STORED or y.dtype not in STORED or 0 in x.shape:
            return f"{x} → {y}, expected non-empty floats"
        known = ("ROW", "NHWC") if self.op == "convert" else ("ROW",)
        if x.layout not in known or y.layout not in known:
            return f"layouts {x.layout} → {y.layout}, expected {' or '.join(known)}"
        return None if workload.epilogue is None else f"a {self.op} with an epilogue"

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        assert target.gpu is not None
        return space(move_of(workload), target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        m = move_of(workload)
        name = f"{self.op}_{'x'.join(map(str, m.sizes))}_{''.join(map(str, m.perm))}__{target.isa}"
        if m.rows:
            lead = tuple(f"d{d}" for d in m.perm[:-1])
            steps = job_steps("out", lead, f"d{m.perm[-1]}", config)
            return Built(lower(schedule(row_algorithm(m), steps), name), target.isa)
        plain = tile_algorithm(m, int(config["tile"]))
        return Built(lower(schedule(plain, tile_steps(m, config)), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants as they are."""
        return [np.ascontiguousarray(c) for c in constants]


def convert() -> CudaMove:
    """The family for layout conversions."""
    return CudaMove("cuda_convert", op="convert")
