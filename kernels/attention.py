"""Attention on CPUs: a job has some queries of one head, whose scores stay in its caches.

The scores are made turned, keys by queries: vectors of queries meet single elements of keys where they lie, and the softmax goes
along the keys for all queries of a vector at once. The weights, so turned, are single elements again in the second product, whose
vectors are rows of the values. So nothing but the queries of a job is ever transposed; rows of all heads are read and written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.pointwise import parse
from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import Binary, Buffer, Cast, Const, Expr, Load, Select, Unary
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    ComputeAt,
    Inline,
    Parallel,
    Reorder,
    Split,
    Step,
    StoreAs,
    Unroll,
    Vectorize,
    schedule,
)
from wpk.kernels.epilogue import ZERO, padded, to_expr
from wpk.kernels.family import Built
from wpk.kernels.gemm import VECTOR
from wpk.kernels.nests import REGISTERS, fused, isas, nearest
from wpk.ops.attention import OWN, Heads, heads_of
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Constraint, Space

#: the largest score of no keys: finite, so that scores of -infinity are no differences of infinities
LOWEST = -3.4028234663852886e38
#: what a job is: batch, head, tile of queries
PLACE = ("b", "h", "mb")

# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, a: Heads, rows: int, lanes: int, shuffle: bool) -> Algorithm:
    """s[n,r] = f(Σ_d q[r,d]·k[n,d]); p = exp(s - max_n s); out[r,e] = Σ_n p[n,r]·v[n,e] / Σ_n p[n,r]; r: a query of the tile."""
    b, h, mb, r = Axis("b", a.batch), Axis("h", a.heads), Axis("mb", -(-a.queries // rows)), Axis("r", rows)
    n, d, et, ev = Axis("n", a.keys), Axis("d", a.size), Axis("et", -(-a.values // lanes)), Axis("ev", lanes)
    place, at = (b, h, mb), (b.var, h.var, mb.var)
    m, e = mb.var * rows + r.var, et.var * lanes + ev.var
    shared = a.heads // a.groups
    group = h.var // shared if shared > 1 else h.var
    k, v = _load(workload, 1, (at[0], group, n.var, d.var)), _load(workload, 2, (at[0], group, n.var, e))
    turned = queries(workload, a, rows, lanes if shuffle else 1)
    square = (d.var // lanes, r.var // lanes, d.var % lanes * lanes + r.var % lanes)
    q = Load("qt", (*at, *(square if shuffle else (d.var, r.var))))
    ragged, wide = a.queries % rows > 0, a.values % lanes > 0
    column = (*at, n.var, r.var)
    total = Load("total", (*at, r.var))
    scale: Expr = Unary("recip", total)
    if workload.attr("safe"):
        scale = Select(Binary("<", ZERO, total), scale, ZERO)
    result = Load("oa", (*at, r.var, et.var, ev.var)) * Load("scale", (*at, r.var))
    target = (at[0], m, at[1], e) if workload.attr("rows") else (at[0], at[1], m, e)
    stages = (
        *turned,
        Stage("vs", (b, h, n, et, ev), Select(e < a.values, v, ZERO) if wide else v),
        Stage("sa", (*place, n, r), q * k, Reduce("+", (d,))),
        Stage("s", (*place, n, r), _score(workload, a, Load("sa", column), (*at[:2], m, n.var))),
        Stage("largest", (*place, r), Load("s", column), Reduce("max", (n,), LOWEST)),
        Stage("p", (*place, n, r), Unary("exp", Load("s", column) - Load("largest", (*at, r.var)))),
        Stage("total", (*place, r), Load("p", column), Reduce("+", (n,))),
        Stage("scale", (*place, r), scale),
        Stage("oa", (*place, r, et, ev), Load("p", column) * Load("vs", (*at[:2], n.var, et.var, ev.var)), Reduce("+", (n,))),
        Stage("out", (*place, r, et, ev), result, None, target, _inside(a, m, e, ragged, wide)),
    )
    return Algorithm("attention", tuple(buffers(workload, a)), stages)


def queries(workload: Workload, a: Heads, rows: int, square: int) -> list[Stage]:
    """The queries of a tile turned, ``qt``[d, r]; or in squares [d // square, r // square, q], by exchanges of registers."""
    b, h, mb = Axis("b", a.batch), Axis("h", a.heads), Axis("mb", -(-a.queries // rows))
    place, at = (b, h, mb), (b.var, h.var, mb.var)

    def query(row: Expr, element: Expr) -> Expr:
        m = mb.var * rows + row
        value = _load(workload, 0, (at[0], at[1], m, element))
        return Select(m < a.queries, value, ZERO) if a.queries % rows else value

    if square == 1:
        d, r = Axis("d", a.size), Axis("r", rows)
        return [Stage("qt", (*place, d, r), query(r.var, d.var))]
    do, ro, q = Axis("do", a.size // square), Axis("ro", rows // square), Axis("q", square * square)
    axes, outer = (*place, do, ro, q), (*at, do.var, ro.var)
    row, lane = q.var // square, q.var % square
    stages = [Stage("t0", axes, query(ro.var * square + row, do.var * square + lane))]
    for k in range(square.bit_length() - 1):
        bit = 1 << k
        shift = (lane // bit % 2 - row // bit % 2) * bit
        stages.append(Stage(f"t{k + 1}", axes, Load(f"t{k}", (*outer, (row + shift) * square + (lane - shift)))))
    return [*stages, Stage("qt", axes, Load(stages[-1].name, (*outer, q.var)))]


def _inside(a: Heads, m: Expr, e: Expr, ragged: bool, wide: bool) -> Expr | None:
    """Where the result is, if tiles reach beyond it."""
    if ragged and wide:
        return (m < a.queries) & (e < a.values)
    return m < a.queries if ragged else e < a.values if wide else None


def _load(workload: Workload, index: int, at: tuple[Expr, Expr, Expr, Expr]) -> Expr:
    """An element (batch, head, place, element) of q, k or v."""
    b, h, place, element = at
    if workload.attr("packed"):
        return Load("qkv"[index], (b, place, Const(index), h, element))
    rows = len(workload.inputs[index].shape) == 3
    return Load("qkv"[index], (b, place, h, element) if rows else (b, h, place, element))


def _score(workload: Workload, a: Heads, acc: Expr, at: tuple[Expr, ...]) -> Expr:
    """f(q·kᵀ); an operand with a row for each query is read only where there is one."""

    def operand(i: int) -> Expr:
        t = workload.inputs[i]
        index = tuple(Const(0) if n == 1 else x for n, x in zip(padded(t.shape, 4), at, strict=True))
        value: Expr = Load(f"x{i}", index)
        value = value if t.dtype == "float32" else Cast("float32", value)
        return value if index[2] == Const(0) else Select(at[2] < a.queries, value, ZERO)

    return to_expr(parse(str(workload.attr("scores"))), acc, operand)


def buffers(workload: Workload, a: Heads) -> list[Buffer]:
    """The parameters: operands by head, however they lie; operands of the scores; the result."""
    counts = ((a.heads, a.queries, a.size), (a.groups, a.keys, a.size), (a.groups, a.keys, a.values))
    found = []
    for name, (heads, length, size), t in zip("qkv", counts, workload.inputs[:OWN], strict=True):
        shape: tuple[int, ...] = (a.batch, length, heads, size) if len(t.shape) == 3 else (a.batch, heads, length, size)
        found.append(Buffer(name, (a.batch, length, 3, heads, size) if workload.attr("packed") else shape))
    for i, t in enumerate(workload.inputs[OWN:], OWN):
        found.append(Buffer(f"x{i}", padded(t.shape, 4), "uint8" if t.dtype == "bool" else t.dtype))
    order = (a.batch, a.queries, a.heads, a.values) if workload.attr("rows") else (a.batch, a.heads, a.queries, a.values)
    return [*found, Buffer("out", order, access="out")]


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(a: Heads, target: Target) -> Space:
    """ISA, vectors of queries of a job, register tiles of both products, unrolling, grain."""
    kinds = isas(target)
    knobs: tuple[Knob, ...] = (
        Choice("isa", kinds, kinds[0]),
        Ordered("vectors", (1, 2, 3, 4, 6, 8), 2),
        Ordered("tile_v", (1, 2, 3, 4), 2), Ordered("tile_n", (1, 2, 4, 6, 8, 10, 12, 14), 4),
        Ordered("tile_m", (1, 2, 4, 6, 8, 12, 14), 4), Ordered("tile_e", (1, 2, 3, 4, 6, 8), 2),
        Ordered("unroll", (1, 2, 4, 8), 2), Ordered("grain", (1, 2, 4), 1), Choice("turn", ("shuffle", "scalar"), "scalar"),
    )  # fmt: skip
    limits: tuple[Constraint, ...] = (
        lambda c: int(c["vectors"]) % int(c["tile_v"]) == 0,
        lambda c: (int(c["tile_n"]) + 1) * int(c["tile_v"]) + 1 <= REGISTERS[str(c["isa"])],
        lambda c: (int(c["tile_m"]) + 1) * int(c["tile_e"]) + 1 <= REGISTERS[str(c["isa"])],
        lambda c: int(c["tile_n"]) <= a.keys and -(-a.values // VECTOR[str(c["isa"])]) % int(c["tile_e"]) == 0,
        lambda c: (int(c["vectors"]) - 1) * VECTOR[str(c["isa"])] < a.queries or c["vectors"] == 1,
        lambda c: int(c["tile_m"]) <= int(c["vectors"]) * VECTOR[str(c["isa"])],
        lambda c: c["turn"] == "scalar" or a.size % VECTOR[str(c["isa"])] == 0,
    )  # fmt: skip
    found = []
    for vectors, tile_v in ((2, 2), (4, 2), (1, 1), (3, 3), (6, 3)):
        c: Config = {**{k.name: k.default for k in knobs}, "vectors": vectors, "tile_v": tile_v}
        c["turn"] = "scalar" if a.size % VECTOR[kinds[0]] else "shuffle"
        room, blocks = REGISTERS[kinds[0]] - 1, -(-a.values // VECTOR[kinds[0]])
        c["tile_e"] = max(t for t in (1, 2, 3, 4) if blocks % t == 0)
        c["tile_n"] = nearest((1, 2, 4, 6, 8, 10, 12, 14), min(room // tile_v - 1, a.keys))
        c["tile_m"] = nearest((1, 2, 4, 6, 8, 12), room // int(c["tile_e"]) - 1)
        found.append(c)
    return Space(knobs, limits, tuple(c for c in found if all(limit(c) for limit in limits)))


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(a: Heads, c: Config, target: Target) -> list[Step]:
    """parallel job: qt; scores by register tiles; largest; weights; their sum; the result by register tiles."""
    lanes, unroll = VECTOR[str(c["isa"])], int(c["unroll"])
    fuse, job = fused("out", PLACE)
    plan: list[Step] = [
        Split("out", "r", int(c["tile_m"]), "r_o", "r_i"), Split("out", "et", int(c["tile_e"]), "e_o", "e_i"),
        Reorder("out", (*PLACE, "r_o", "e_o", "r_i", "e_i", "ev")), *fuse,
        *([Parallel("out", job, int(c["grain"]))] if target.threads > 1 else []),
        Unroll("out", "r_i"), Unroll("out", "e_i"), Vectorize("out", "ev"), Inline("vs"),
        ComputeAt("qt", "out", job, "thread"),
        *(turn_steps(lanes) if c["turn"] == "shuffle" else [Reorder("qt", (*PLACE, "r", "d"))]),
        ComputeAt("s", "out", job, "thread"), Split("s", "n", int(c["tile_n"]), "n_o", "n_i"),
        Split("s", "r", lanes * int(c["tile_v"]), "r_o", "r_t"), Split("s", "r_t", lanes, "r_u", "r_v"),
        Reorder("s", (*PLACE, "r_o", "n_o", "n_i", "r_u", "r_v")),
        *(Unroll("s", x) for x in ("n_i", "r_u")), Vectorize("s", "r_v"),
        ComputeAt("sa", "s", "n_o", "register"), Split("sa", "d", lanes, "d_o", "d_m"), Split("sa", "d_m", unroll, "d_i", "d_u"),
        Split("sa", "r", lanes, "r_u", "r_v"),
        Reorder("sa", (*PLACE, "d_o", "d_i", "d_u", "n", "r_u", "r_v")), *(Unroll("sa", x) for x in ("d_u", "n", "r_u")),
        Vectorize("sa", "r_v"),
        ComputeAt("oa", "out", "e_o", "register"), Split("oa", "n", unroll, "n_o", "n_u"),
        Reorder("oa", (*PLACE, "n_o", "n_u", "r", "et", "ev")), *(Unroll("oa", x) for x in ("n_u", "r", "et")),
        Vectorize("oa", "ev"),
    ]  # fmt: skip
    for stage, scope in (("largest", "register"), ("p", "thread"), ("total", "register"), ("scale", "thread")):
        loops = ("r_u", "r_v") if stage == "scale" else ("n", "r_u", "r_v")
        plan += [
            ComputeAt(stage, "out", job, "register" if scope == "register" else "thread"), Split(stage, "r", lanes, "r_u", "r_v"),
            Reorder(stage, (*PLACE, *loops)), Unroll(stage, "r_u"), Vectorize(stage, "r_v"),
        ]  # fmt: skip
    return plan


def turn_steps(square: int) -> list[Step]:
    """Squares of queries are turned in registers."""

    def lines(stage: str) -> list[Step]:
        return [Split(stage, "q", square, "i", "l"), Unroll(stage, "i"), Vectorize(stage, "l")]

    plan = lines("qt")
    for k in range(square.bit_length()):
        plan += [ComputeAt(f"t{k}", "qt", "ro", "register"), StoreAs(f"t{k}", whole=("q",)), *lines(f"t{k}")]
    return plan


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """Attention; see the module's docstring."""

    name: str = "attention"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 in ROW; operands of the scores may be integers and booleans."""
        if workload.op != "attention":
            return f"op is {workload.op}, expected attention"
        own = (*workload.inputs[:OWN], *workload.outputs)
        if any(t.dtype != "float32" for t in own) or any(t.layout != "ROW" for t in (*own, *workload.inputs)):
            return f"{', '.join(map(str, own))}: expected float32 in layout ROW"
        if any(t.dtype not in ("float32", "bool", "int8", "uint8", "int32", "int64") for t in workload.inputs):
            return "an operand of the scores that is neither float32 nor an integer"
        return "empty" if 0 in heads_of(workload.inputs, dict(workload.attrs)).scores else None

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(heads_of(workload.inputs, dict(workload.attrs)), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        a, isa = heads_of(workload.inputs, dict(workload.attrs)), str(config["isa"])
        rows = int(config["vectors"]) * VECTOR[isa]
        name = f"f32_attention_{rows}x{a.keys}x{a.size}__{isa}"
        plan = steps(a, config, target)
        return Built(lower(schedule(algorithm(workload, a, rows, VECTOR[isa], config["turn"] == "shuffle"), plan), name), isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants as they are."""
        params = buffers(workload, heads_of(workload.inputs, dict(workload.attrs)))
        found = (np.ascontiguousarray(c).reshape(params[i].shape) for i, c in zip(workload.constants, constants, strict=True))
        return [c.view(np.uint8) if c.dtype == np.bool_ else c for c in found]
