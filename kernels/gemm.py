"""Matrix products on ROW matrices: a register tile of rows × vectors of columns, blocked for the caches.

The right matrix is read in panels of ``width`` columns: (panel, k, width). A constant one is packed at compile time; another
is packed by the kernel (once, or for each job) or read where it lies. The blocking is that of Goto and van de Geijn,
"Anatomy of High-Performance Matrix Multiplication", TOMS 2008. :mod:`wpk.kernels.matmul` is the same with batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import Buffer, Const, Expr, Load, Select
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    CacheRead,
    ComputeAt,
    Inline,
    Parallel,
    Prefetch,
    Reorder,
    RFactor,
    Split,
    Step,
    StoreAs,
    Unroll,
    Vectorize,
    schedule,
)  # fmt: skip
from wpk.kernels.epilogue import ZERO, padded
from wpk.kernels.family import Built
from wpk.kernels.nests import REGISTERS, fused, isas
from wpk.kernels.row_operands import RowOperands
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Constraint, Space

#: columns of one vector: a register of the ISA (four even where only scalars are promised: compilers find SSE)
VECTOR = {"avx512": 16, "avx2": 8, "neon": 4, "scalar": 4}

ZERO_INDEX = Const(0)


@dataclass(frozen=True)
class Product:
    """A matrix product's numbers: out[*batch, m, n] = sum over k of a[*a_batch, m, k] * b[*b_batch, k, n].

    ``a_batch`` and ``b_batch`` are as long as ``batch``, with 1 where they broadcast. ``groups`` are the output's
    dimensions that each of (*batch, m, n) stands for.
    """

    batch: tuple[int, ...]
    a_batch: tuple[int, ...]
    b_batch: tuple[int, ...]
    m: int
    k: int
    n: int
    trans_a: bool
    trans_b: bool
    constant: bool
    groups: tuple[tuple[int, ...], ...]

    def panels(self, width: int) -> int:
        """Panels of ``width`` columns."""
        return -(-self.n // width)


def product_of(workload: Workload) -> Product:
    """The numbers of a gemm or matmul workload; leading dimensions of ``a`` become rows where ``b`` has none."""
    a, b, out = workload.inputs[0].shape, workload.inputs[1].shape, workload.outputs[0].shape
    constant, rank = 1 in workload.constants, len(out)
    if workload.op == "gemm":
        trans_a, trans_b = bool(workload.attr("trans_a")), bool(workload.attr("trans_b"))
        k = a[0] if trans_a else a[1]
        return Product((), (), (), out[0], k, out[1], trans_a, trans_b, constant, ((0,), (1,)))
    a, b = (a if len(a) > 1 else (1, *a)), (b if len(b) > 1 else (*b, 1))
    lead = max(len(a), len(b)) - 2
    a, b = padded(a, lead + 2), padded(b, lead + 2)
    rows = (lead,) if len(workload.inputs[0].shape) > 1 else ()
    columns = (rank - 1,) if len(workload.inputs[1].shape) > 1 else ()
    merged = (*range(lead), *rows)
    m, k, n = a[-2], a[-1], b[-1]
    if prod(b[:lead]) == 1 and RowOperands(workload, 2, (merged, columns)).reason() is None:
        return Product((), (), (), prod(a[:lead]) * m, k, n, False, False, constant, (merged, columns))
    groups = (*((d,) for d in range(lead)), rows, columns)
    return Product(out[:lead], a[:lead], b[:lead], m, k, n, False, False, constant, groups)


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, p: Product, vectors: int, lanes: int) -> Algorithm:
    """out[m, n] = epilogue(sum over k of a[m, k] * bp[panel, k, t, v]), n = (panel*vectors + t)*lanes + v < N."""
    width = vectors * lanes
    batch = tuple(Axis(f"b{i}", n) for i, n in enumerate(p.batch))
    m, nb, nt, nv = Axis("m", p.m), Axis("nb", p.panels(width)), Axis("nt", vectors), Axis("nv", lanes)
    k = Axis("k", p.k)
    a_at, b_at = _broadcast(batch, p.a_batch), _broadcast(batch, p.b_batch)
    pair = (k.var, m.var) if p.trans_a else (m.var, k.var)
    packed = (*p.b_batch, p.panels(width), p.k, vectors, lanes)
    a = Buffer("a", (*p.a_batch, p.k, p.m) if p.trans_a else (*p.a_batch, p.m, p.k))
    b, pack = (Buffer("bp", packed), []) if p.constant else (_raw_b(p), [_packed_b(p, vectors, lanes)])
    at = (*batch, m, nb, nt, nv)
    product = Load("a", (*a_at, *pair)) * Load("bp", (*b_at, nb.var, k.var, nt.var, nv.var))
    column = nb.var * width + nt.var * lanes + nv.var
    place = (*(x.var for x in batch), m.var, column)
    operands = RowOperands(workload, 2, p.groups, width)
    done = operands.value(Load("acc", tuple(x.var for x in at)), place)
    stages = [
        *pack,
        Stage("acc", at, product, Reduce("+", (k,))),
        Stage("out", at, done, None, place, column < p.n),
    ]
    out = Buffer("out", (*p.batch, p.m, p.n), access="out")
    return Algorithm(workload.op, (a, b, *operands.buffers(), out), tuple(stages))


def _broadcast(batch: tuple[Axis, ...], extents: tuple[int, ...]) -> tuple[Expr, ...]:
    return tuple(x.var if n > 1 else ZERO_INDEX for x, n in zip(batch, extents, strict=True))


def _raw_b(p: Product) -> Buffer:
    return Buffer("b", (*p.b_batch, p.n, p.k) if p.trans_b else (*p.b_batch, p.k, p.n))


def _packed_b(p: Product, vectors: int, lanes: int) -> Stage:
    """bp[panel, k, t, v] = b[k, n], or 0 beyond the last column."""
    width = vectors * lanes
    batch = tuple(Axis(f"b{i}", n) for i, n in enumerate(p.b_batch))
    nb, k, nt, nv = Axis("nb", p.panels(width)), Axis("k", p.k), Axis("nt", vectors), Axis("nv", lanes)
    column = nb.var * width + nt.var * lanes + nv.var
    pair = (column, k.var) if p.trans_b else (k.var, column)
    value = Load("b", (*(x.var for x in batch), *pair))
    return Stage("bp", (*batch, nb, k, nt, nv), Select(column < p.n, value, ZERO))


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(p: Product, target: Target) -> Space:
    """Register tile, cache tiles of m, n and k, loop order, parallel axes and grain, unroll, packing, prefetch, ISA."""
    choices = isas(target)
    rows = tuple(sorted({t for t in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 16, 20, 24, 28) if t <= p.m}))
    vectors = tuple(t for t in (1, 2, 3, 4, 6) if t == 1 or (t - 1) * VECTOR[choices[-1]] < p.n)
    blocks = tuple(t for t in (1, 2, 4, 8, 16, 32, 64) if t == 1 or t // 2 < p.m)
    chunks = tuple(t for t in (1, 2, 4, 8, 16, 32) if t == 1 or t // 2 * VECTOR[choices[-1]] < p.n)
    knobs: tuple[Knob, ...] = (
        Choice("isa", choices, choices[0]),
        Ordered("tile_m", rows, rows[-1]),
        Ordered("tile_n", vectors, vectors[0]),
        Choice("tail", ("cut", "shift"), "cut"),
        Ordered("block_m", blocks, 1),
        Ordered("chunk_n", chunks, 1),
        Ordered("block_k", k_blocks(p.k), p.k),
        Choice("order", ("n_m", "m_n"), "n_m"),
        Choice("parallel", ("mn", "nm", "m", "n"), "mn"),
        Ordered("grain", (1, 2, 4), 1),
        Ordered("unroll_k", tuple(u for u in (1, 2, 4, 8, 16) if u <= p.k), 1),
        Choice("pack_a", ("none", "job", "root"), "none"),
        Choice(
            "pack_b",
            ("constant",) if p.constant else ("root", "job", "none"),
            "constant" if p.constant else "root",
        ),
        Ordered("prefetch", (0, 4, 8, 16, 32), 0),
    )
    limits = (fits_registers, lambda c: reaches(p, c), lambda c: fits_cache(p, c, target))
    return Space(knobs, limits, first_configs(p, target, knobs, limits))


def width_of(c: Config) -> int:
    """Columns of a panel."""
    return int(c["tile_n"]) * VECTOR[str(c["isa"])]


def k_blocks(k: int) -> tuple[int, ...]:
    """Divisors of k that are sensible cache blocks, and k itself."""
    return (*[d for d in range(64, min(k, 1025)) if k % d == 0 and k // d > 1][-6:], k)


def fits_registers(c: Config) -> bool:
    """Accumulators, one row of b and a broadcast fit the registers of the ISA."""
    return (int(c["tile_m"]) + 1) * int(c["tile_n"]) + 1 <= REGISTERS[str(c["isa"])]


def reaches(p: Product, c: Config) -> bool:
    """Blocks divide the rows and the panels without computing much of them twice."""
    rows = int(c["block_m"]) * int(c["tile_m"])
    chunk, panels = int(c["chunk_n"]), p.panels(width_of(c))
    return thrifty(p.m, rows, int(c["tile_m"])) and thrifty(panels, chunk, 1)


def covered(total: int, block: int) -> int:
    """What blocks of ``block`` compute of ``total``, the last one moved back to end with it."""
    return -(-total // block) * block if block < total else total


def thrifty(total: int, block: int, least: int) -> bool:
    """At most a quarter (or ``least``) is computed twice; and no block so large that a smaller one means the same."""
    if block <= least:
        return True
    return block < 2 * total and 4 * covered(total, block) <= 5 * total + 4 * least


def fits_cache(p: Product, c: Config, target: Target) -> bool:
    """What a thread keeps for itself fits L2 twice: partial sums when k is blocked, packed parts of a and b."""
    rows = min(int(c["block_m"]) * int(c["tile_m"]), p.m)
    columns = min(int(c["chunk_n"]), p.panels(width_of(c))) * width_of(c)
    kept = rows * columns if int(c["block_k"]) < p.k else 0
    kept += rows * p.k if c["pack_a"] == "job" else 0
    kept += columns * p.k if c["pack_b"] == "job" else 0
    return 4 * kept <= 2 * target.l2


def first_configs(
    p: Product, target: Target, knobs: tuple[Knob, ...], limits: tuple[Constraint, ...]
) -> tuple[Config, ...]:
    """Analytic first guesses: the register tiles that waste least, blocks that fit L2 and keep all threads busy."""
    base: Config = {k.name: k.default for k in knobs}
    rows, vectors = knobs[1].values, knobs[2].values
    tiles = [
        (int(m), int(n)) for m in rows for n in vectors if fits_registers({**base, "tile_m": m, "tile_n": n})
    ]

    def cost(tile: tuple[int, int]) -> float:
        whole, rest = divmod(p.m, tile[0])
        cycles = whole * step_cycles(p, target, *tile) + (
            step_cycles(p, target, rest, tile[1]) if rest else 0.0
        )
        return cycles * p.panels(tile[1] * VECTOR[str(base["isa"])])

    best = sorted(tiles, key=cost)[:4]
    found = [_blocked(p, target, {**base, "tile_m": m, "tile_n": n}, knobs) for m, n in best]
    found += [{**c, "prefetch": 8, "unroll_k": min(p.k, 4)} for c in found[:2]]
    return tuple(c for c in found if all(limit(c) for limit in limits))


def step_cycles(p: Product, target: Target, rows: int, vectors: int) -> float:
    """Cycles of one step of k in a register tile: two FMAs and two loads a cycle, half a line from L2, and some overhead."""
    sums = max(rows * vectors, 8)
    lanes = VECTOR[isas(target)[0]]
    from_l2 = vectors * lanes / 8 if 4 * p.k * vectors * lanes > target.l1d // 2 else 0.0
    return max(sums / 2, (rows + vectors) / 2, from_l2) + 0.25


def _blocked(p: Product, target: Target, c: Config, knobs: tuple[Knob, ...]) -> Config:
    """Cache tiles of a register tile: rows of a that fit half of L2, panels such that each thread has some jobs."""
    width, tile, batches = width_of(c), int(c["tile_m"]), prod(p.batch)
    depth = p.k
    if 4 * p.k * width > target.l2 // 2:
        depth = max((int(d) for d in knobs[6].values if 8 * int(d) * width <= target.l2), default=p.k)
    wanted, panels = 4 * target.threads, p.panels(width)
    blocks = [int(b) for b in knobs[4].values if thrifty(p.m, int(b) * tile, tile)]
    chunks = [int(n) for n in knobs[5].values if thrifty(panels, int(n), 1)]

    def jobs(block: int, chunk: int) -> int:
        return batches * -(-p.m // (block * tile)) * -(-panels // chunk)

    def cost(block: int, chunk: int) -> float:
        twice = covered(p.m, block * tile) * covered(panels, chunk)
        return twice * -(-jobs(block, chunk) // target.threads) * target.threads / jobs(block, chunk)

    room = max(target.l2 // (8 * depth * tile), 1)
    block = max((b for b in blocks if b <= room and jobs(b, 1) >= wanted), default=1)
    fine = [n for n in chunks if jobs(block, n) >= wanted] or [1]
    chunk = min(fine, key=lambda n: (cost(block, n), -n))
    strided = not p.trans_a and 4 * p.k % 4096 == 0 and tile > 4 and p.m > tile
    return {
        **c,
        "block_m": block,
        "chunk_n": chunk,
        "block_k": depth,
        "pack_a": "root" if strided else "none",
    }


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(p: Product, c: Config) -> list[Step]:
    """The schedule of a config.

    parallel (batch, m_c, n_c): [for k_o:] for [m_o, n_m] in ``order``: tile in registers = sum over k; store the tile.
    """
    batch = tuple(f"b{i}" for i in range(len(p.batch)))
    outer, serial = {
        "mn": (("m_c", "n_c"), ()),
        "nm": (("n_c", "m_c"), ()),
        "m": (("m_c",), ("n_c",)),
        "n": (("n_c",), ("m_c",)),
    }[str(c["parallel"])]
    middle = ("n_m", "m_o") if c["order"] == "n_m" else ("m_o", "n_m")
    fuse, job = fused("out", (*batch, *outer), "job")
    inside = serial[-1] if serial else job
    plan: list[Step] = [
        Split("out", "m", int(c["tile_m"]) * int(c["block_m"]), "m_c", "m_b", "shift"),
        Split("out", "m_b", int(c["tile_m"]), "m_o", "m_i", "shift" if c["tail"] == "shift" else "cut"),
        Split("out", "nb", int(c["chunk_n"]), "n_c", "n_m", "shift"),
        Reorder("out", (*batch, *outer, *serial, *middle, "m_i", "nt", "nv")),
        *fuse, Parallel("out", job, int(c["grain"])),
        Unroll("out", "m_i"), Unroll("out", "nt"), Vectorize("out", "nv"),
    ]  # fmt: skip
    blocked = int(c["block_k"]) < p.k
    plan += blocked_sum(batch, c, inside) if blocked else [ComputeAt("acc", "out", middle[-1], "register")]
    plan += tile_sum("part" if blocked else "acc", batch, c, blocked)
    a_at, b_at = (inside if "m_c" in serial else job), (inside if "n_c" in serial else job)
    return plan + packed_a(p, c, "part" if blocked else "acc", a_at) + packed_b(p, c, b_at)


def blocked_sum(batch: tuple[str, ...], c: Config, inside: str) -> list[Step]:
    """acc holds a job's tile in cache; blocks of k are added to it one after another."""
    middle = ("nb", "m_o") if c["order"] == "n_m" else ("m_o", "nb")
    return [
        RFactor("acc", "k", int(c["block_k"]), "part"),
        ComputeAt("acc", "out", inside, "thread"),
        Split("acc", "m", int(c["tile_m"]), "m_o", "m_i"),
        Reorder("acc", (*batch, "k_o", *middle, "m_i", "nt", "nv")),
        Unroll("acc", "m_i"), Unroll("acc", "nt"), Vectorize("acc", "nv"),
        ComputeAt("part", "acc", middle[-1], "register"),
    ]  # fmt: skip


def tile_sum(stage: str, batch: tuple[str, ...], c: Config, blocked: bool) -> list[Step]:
    """The register tile: k outside, unrolled; rows and vectors inside."""
    unroll, k = int(c["unroll_k"]), "k_i" if blocked else "k"
    lead = (*(("k_o",) if blocked else ()), *batch)
    plan: list[Step] = [
        Split(stage, k, unroll, "k_m", "k_u"),
        Reorder(stage, (*lead, "nb", "k_m", "k_u", "m", "nt", "nv")),
        Unroll(stage, "k_u"), Unroll(stage, "m"), Unroll(stage, "nt"), Vectorize(stage, "nv"),
    ]  # fmt: skip
    if int(c["prefetch"]) and c["pack_b"] != "none":
        plan.append(Prefetch(stage, "bp", "k_u" if unroll > 1 else "k_m", int(c["prefetch"])))
    return plan


def packed_a(p: Product, c: Config, reader: str, at: str) -> list[Step]:
    """A copy of a with the rows innermost, so that the rows of a tile are one stream: for all, or for the rows of a job."""
    if c["pack_a"] == "none":
        return []
    lead = tuple(f"d{i}" for i in range(len(p.a_batch)))
    first, second = f"d{len(lead)}", f"d{len(lead) + 1}"
    m, k = (second, first) if p.trans_a else (first, second)
    plan: list[Step] = [CacheRead("a", "ap", reader), StoreAs("ap", (*lead, k, m))]
    if c["pack_a"] == "job":
        return [*plan, ComputeAt("ap", "out", at, "thread")]
    fuse, job = fused("ap", (*lead, "line"), "job")
    plan += [
        Split("ap", k, VECTOR[str(c["isa"])], "line", "word", "guard"),
        Reorder("ap", (*lead, "line", m, "word")),
    ]
    return [*plan, *fuse, Parallel("ap", job), Unroll("ap", "word")]


def packed_b(p: Product, c: Config, at: str) -> list[Step]:
    """Where b is put in panels: once for all, for the panels of a job, or not at all."""
    if c["pack_b"] == "constant":
        return []
    if c["pack_b"] == "none":
        return [Inline("bp")]
    plan: list[Step] = [Vectorize("bp", "nv"), Unroll("bp", "nt")]
    if c["pack_b"] == "job":
        return [*plan, ComputeAt("bp", "out", at, "thread")]
    fuse, job = fused("bp", (*(f"b{i}" for i in range(len(p.b_batch))), "nb"), "job")
    return [*plan, *fuse, Parallel("bp", job)]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gemm:
    """Matrix product of ROW matrices; see the module's docstring."""

    name: str = "gemm"
    version: int = 1
    packing: tuple[str, ...] = ("isa", "tile_n")

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 gemm in layout ROW."""
        if workload.op != "gemm":
            return f"op is {workload.op}, expected gemm"
        return unfit(workload)

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(product_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        return build(workload, config)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """See :func:`pack`."""
        return pack(workload, width_of(config), constants)


def unfit(workload: Workload) -> str | None:
    """Why a gemm or matmul workload cannot be built, or None."""
    for t in (*workload.inputs[:2], *workload.outputs):
        if t.dtype != "float32" or t.layout != "ROW":
            return f"operand {t}, expected float32 in layout ROW"
        if 0 in t.shape:
            return f"operand {t} is empty"
    p = product_of(workload)
    return RowOperands(workload, 2, p.groups).reason()


def build(workload: Workload, config: Config) -> Built:
    """The kernel of a config of :func:`space`. Raises InvalidConfig."""
    p, isa = product_of(workload), str(config["isa"])
    plain = algorithm(workload, p, int(config["tile_n"]), VECTOR[isa])
    name = f"f32_{workload.op}_{config['tile_m']}x{width_of(config)}__{isa}"
    return Built(lower(schedule(plain, steps(p, config)), name), isa)


def pack(workload: Workload, width: int, constants: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A constant b (*batch, K, N) → panels (*batch, N/width, K, width), zero-padded; epilogue constants padded likewise."""
    p = product_of(workload)
    own = [i for i in workload.constants if i < 2]
    done = [
        pack_panels(p, c, width) if i == 1 else np.ascontiguousarray(c, np.float32)
        for i, c in zip(own, constants, strict=False)
    ]
    return [*done, *RowOperands(workload, 2, p.groups, width).pack(constants, len(own))]


def pack_panels(p: Product, b: np.ndarray, width: int) -> np.ndarray:
    """b as (*batch, panels, K, width). A panel at a time, whose columns are few enough to stay in the cache."""
    b = np.asarray(b, np.float32)
    b = b.T if p.trans_b else b.reshape(*p.b_batch, p.k, p.n)
    panels = np.zeros((*p.b_batch, p.panels(width), p.k, width), np.float32)
    for i in range(p.panels(width)):
        part = b[..., i * width : (i + 1) * width]
        panels[..., i, :, : part.shape[-1]] = part
    return panels
