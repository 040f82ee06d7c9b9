"""Elementwise kernels: any expression over operands that broadcast to the output, in memory order.

Dimensions along which every operand moves alike, or not at all, become one; most chains are one long vector. It runs in place
where an operand has the type of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.pointwise import size
from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.tensor import TensorType, to_layout
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Buffer, Cast, Const, Expr, Load, Select
from wpk.dsl.lower import lower
from wpk.dsl.schedule import Parallel, Reorder, Segment, Split, Step, Unroll, Vectorize, schedule
from wpk.kernels.epilogue import ZERO, block_of, padded, to_expr, vanishes
from wpk.kernels.family import Built
from wpk.kernels.nests import LANES, SMALL, fused, isas, nearest
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Space

#: dtypes of operands; all are read as float32
READ = ("float32", "int64", "int32", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Shape:
    """The output's memory in as few dimensions as the operands allow, and the extents of each operand in them.

    ``channels`` is (dimension of blocks, block, channels) where padding lanes need zeros written to them.
    """

    extents: tuple[int, ...]
    operands: tuple[tuple[int, ...], ...]
    channels: tuple[int, int, int] | None

    @property
    def count(self) -> int:
        """Elements of the output."""
        return prod(self.extents)


def spread(t: TensorType, out: TensorType, constant: bool) -> tuple[int, ...] | str:
    """Extents of an operand in the output's memory order (1 where it broadcasts), or why it has none."""
    shape = padded(t.shape, len(out.shape))
    if len(t.shape) > len(out.shape) or any(a not in (1, b) for a, b in zip(shape, out.shape, strict=True)):
        return f"shape {t.shape} does not broadcast to {out.shape}"
    if out.layout == "ROW":
        return shape if t.layout == "ROW" or constant else f"layout {t.layout}, the output ROW"
    block = block_of(out.layout)
    full = shape[1] == out.shape[1] and shape[1] > 1
    if t.layout == out.layout and not constant:
        return TensorType(t.dtype, shape, t.layout).physical if full else f"{t} is blocked but broadcasts over channels"
    blocked = (shape[0], -(-shape[1] // block) if full else 1, *shape[2:], block if full else 1)
    if constant or not full or (shape[1] % block == 0 and prod(shape[2:]) == 1):
        return blocked
    return f"layout {t.layout}, the output {out.layout}"


def shape_of(workload: Workload) -> Shape:
    """The collapsed numbers of an eltwise workload that :meth:`Eltwise.matches`."""
    out = workload.outputs[0]
    spreads = [spread(t, out, i in workload.constants) for i, t in enumerate(workload.inputs)]
    block = block_of(out.layout)
    alive = [i for i, t in enumerate(workload.inputs) if padded(t.shape, len(out.shape))[1:2] == (1,)]
    zeros = block > 1 and out.shape[1] % block != 0 and not vanishes(workload.epilogue, alive)
    groups = _groups(out.physical, [s for s in spreads if not isinstance(s, str)], zeros)
    extents = tuple(prod(out.physical[d] for d in g) for g in groups)
    operands = tuple(tuple(prod(int(s[d]) for d in g) for g in groups) for s in spreads)
    where = next((i for i, g in enumerate(groups) if 1 in g), 0)
    return Shape(extents, operands, (where, block, out.shape[1]) if zeros else None)


def _groups(out: tuple[int, ...], spreads: Sequence[tuple[int, ...]], zeros: bool) -> list[list[int]]:
    """Runs of dimensions that can be one. With ``zeros`` the channel dimensions stay apart."""
    apart = {1, len(out) - 1} if zeros else set()
    groups: list[list[int]] = []
    for d, extent in enumerate(out):
        if extent == 1 and d not in apart:
            continue
        alike = groups and all((s[d] == 1) == (s[groups[-1][-1]] == 1) for s in spreads)
        if alike and not apart & {d, groups[-1][-1]}:
            groups[-1].append(d)
        else:
            groups.append([d])
    return groups or [[]]


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape) -> Algorithm:
    """out[i…] = f(in0[i…], in1[i…], …), an operand's index 0 where it broadcasts; zero in padding lanes."""
    assert workload.epilogue is not None
    axes = tuple(Axis(f"i{d}", n) for d, n in enumerate(s.extents))
    whole: Expr = to_expr(workload.epilogue, None, lambda i: _operand(workload, i, s, axes))
    if s.channels is not None:
        at, block, channels = s.channels
        whole = Select(axes[at].var * block + axes[-1].var < channels, whole, ZERO)
    params = [Buffer(f"x{i}", shape, stored(workload, i)) for i, shape in enumerate(s.operands)]
    out = Buffer("out", s.extents, access="out")
    if workload.outputs[0].dtype == "bool":
        out, whole = Buffer("out", s.extents, "uint8", access="out"), Cast("uint8", whole)
    return Algorithm("eltwise", (*params, out), (Stage("out", axes, whole, dtype=out.dtype),))


def stored(workload: Workload, i: int) -> str:
    """The dtype of an operand in memory: constants are packed as float32, a bool is a byte."""
    dtype = "float32" if i in workload.constants else workload.inputs[i].dtype
    return "uint8" if dtype == "bool" else dtype


def _operand(workload: Workload, i: int, s: Shape, axes: tuple[Axis, ...]) -> Expr:
    index = (Const(0) if n == 1 else a.var for n, a in zip(s.operands[i], axes, strict=True))
    value = Load(f"x{i}", tuple(index))
    return value if stored(workload, i) == "float32" else Cast("float32", value)


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(workload: Workload, s: Shape, target: Target) -> Space:
    """ISA, vectors at a time, what to do with the last elements of a row, parallel axis and grain."""
    assert workload.epilogue is not None
    kinds, best = isas(target), isas(target)[0]
    inner, outer = s.extents[-1], s.count // s.extents[-1]
    blocks = prod(s.extents[:-2])
    ways = ("serial", *(("outer",) if outer > 1 else ()), *(("blocks",) if 1 < blocks < outer else ()),
            *(("inner",) if inner > 1 else ()))  # fmt: skip
    unrolls = tuple(u for u in (1, 2, 4, 8) if u == 1 or u * LANES[best] <= inner)
    tails = ("cut", "mask") if inner % LANES[best] and inner > LANES[best] and s.channels is None else ("cut",)
    grains = (1, 4, 16, 64, 256)
    work = s.count * (1 + size(workload.epilogue) // 4 + _costly(str(workload.epilogue)))
    way = "outer" if outer >= 4 * target.threads else "inner"
    if inner < 256 and blocks >= 4 * target.threads:
        way = "blocks"  # short rows: finding a row's place costs as much as the row
    if work < SMALL or target.threads == 1:
        way = "serial"
    unroll = nearest(unrolls, 4)
    step = {"outer": inner, "blocks": s.count // max(blocks, 1)}.get(way, unroll * LANES[best] * outer)
    knobs: tuple[Knob, ...] = (
        Choice("isa", kinds, best),
        Ordered("unroll", unrolls, unroll),
        Choice("tail", tails, "cut"),
        Choice("parallel", ways, way if way in ways else ways[-1]),
        Ordered("grain", grains, nearest(grains, 2048 / step)),
    )
    return Space(knobs, (lambda c: c["parallel"] != "serial" or c["grain"] == 1,), _first(knobs))


def _first(knobs: tuple[Knob, ...]) -> tuple[Config, ...]:
    base: Config = {k.name: k.default for k in knobs}
    serial: Config = {**base, "parallel": "serial", "grain": 1}
    return (serial,) if base["parallel"] == "serial" else (base, serial)


def _costly(text: str) -> int:
    """Vector instructions of the elementary functions in an expression, in rough units of four."""
    names = ("exp", "log", "erf", "tanh", "sigmoid", "pow")
    return 5 * sum(text.count(f"{n}(") for n in names)


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(s: Shape, c: Config) -> list[Step]:
    """[parallel] for the outer dimensions: for vectors of the last one, ``unroll`` at a time.

    ``outer`` divides all outer dimensions among threads, ``blocks`` keeps the innermost of them whole.
    The remainder of a row is a shorter loop (``cut``), or one vector under a mask (``mask``).
    """
    isa, last = str(c["isa"]), f"i{len(s.extents) - 1}"
    lead = tuple(f"i{d}" for d in range(len(s.extents) - 1))
    masked, width = c["tail"] == "mask", max(LANES[isa], 4)
    plan: list[Step] = [
        Split("out", last, width * int(c["unroll"]), "v_m", "v_i", "guard" if masked else "cut"),
        Split("out", "v_i", width, "v_u", "v"),
        Unroll("out", "v_u"), Vectorize("out", "v"),
    ]  # fmt: skip
    if c["parallel"] == "inner":
        return [*plan, Reorder("out", ("v_m", *lead, "v_u", "v")), Parallel("out", "v_m", int(c["grain"]))]
    if masked:
        plan.append(Segment("out", "v_m", (-1,)))
    if c["parallel"] == "serial" or not lead:
        return plan
    joined, job = fused("out", lead[:-1] if c["parallel"] == "blocks" else lead)
    return [*plan, *joined, Parallel("out", job, int(c["grain"]))]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Eltwise:
    """Elementwise expressions; see the module's docstring."""

    name: str = "eltwise"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Operands of the output's layout, or ROW where that is the same memory, or constant; integers are read as float32."""
        if workload.op != "eltwise" or workload.epilogue is None:
            return f"op is {workload.op}, expected eltwise with an expression"
        out = workload.outputs[0]
        if (out.dtype != "float32" and (out.dtype, out.layout) != ("bool", "ROW")) or 0 in out.shape or out.layout == "NHWC":
            return f"output {out}, expected non-empty float32 in layout ROW or channel-blocked"
        for i, t in enumerate(workload.inputs):
            found = spread(t, out, i in workload.constants)
            if t.dtype not in READ or isinstance(found, str):
                return f"operand {i}: {found if isinstance(found, str) else t.dtype}"
        return None

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(workload, shape_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s = shape_of(workload)
        name = f"f32_eltwise_{'x'.join(map(str, s.extents))}__{config['isa']}"
        kernel = lower(schedule(algorithm(workload, s), steps(s, config)), name)
        inputs = enumerate(workload.inputs)
        same = tuple(i for i, t in inputs if t == workload.outputs[0] and i not in workload.constants)
        return Built(kernel, str(config["isa"]), same)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants in the output's memory order, channels zero-padded to the block."""
        out, s = workload.outputs[0], shape_of(workload)
        picked = zip(workload.constants, constants, strict=True)
        return [_packed(c, workload.inputs[i], out).reshape(s.operands[i]) for i, c in picked]


def _packed(array: np.ndarray, t: TensorType, out: TensorType) -> np.ndarray:
    value = np.asarray(array, np.float32).reshape(padded(t.shape, len(out.shape)))
    blocked = out.layout != "ROW" and value.shape[1] > 1
    return to_layout(value, out.layout) if blocked else np.ascontiguousarray(value)
