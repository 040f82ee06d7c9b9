"""Local response normalization: x / (bias + alpha/size · sum of squares of neighbouring channels)^beta.

Blocked layouts: the squares of a run of pixels lie in scratch memory with their channels contiguous and a block of zeros at both
ends, so that a shift by some channels is an unaligned vector load. ROW: vectors over pixels, channels one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Binary, Buffer, Const, Expr, Load, Select, Unary, wrap
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    ComputeAt,
    Inline,
    Parallel,
    Reorder,
    Segment,
    Split,
    Step,
    StoreAs,
    Unroll,
    Vectorize,
    schedule,
)
from wpk.kernels.epilogue import ZERO, Operands, block_of, padded
from wpk.kernels.family import Built
from wpk.kernels.nests import LANES, SMALL, fused, isas, lanes, nearest, up_to
from wpk.kernels.reduce import vector_width
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Space


@dataclass(frozen=True)
class Shape:
    """An LRN's numbers: ``pixels`` = H·W; channel c sums the squares of c - before … c + after."""

    n: int
    c: int
    pixels: int
    block: int
    before: int
    after: int
    alpha: float
    beta: float
    bias: float

    @property
    def cb(self) -> int:
        """Channel blocks."""
        return -(-self.c // self.block)

    @property
    def size(self) -> int:
        """Channels in a sum."""
        return self.before + self.after + 1


def shape_of(workload: Workload) -> Shape:
    """The numbers of an lrn workload."""
    n, c, h, w = workload.inputs[0].shape
    size = int(_number(workload, "size"))
    alpha, beta, bias = (_number(workload, a) for a in ("alpha", "beta", "bias"))
    before = (size - 1) // 2
    return Shape(n, c, h * w, block_of(workload.outputs[0].layout), before, size - 1 - before, alpha, beta, bias)


def _number(workload: Workload, name: str) -> float:
    value = workload.attr(name)
    assert isinstance(value, int | float)
    return float(value)


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape) -> Algorithm:
    """out[n,cb,p,v] = epilogue(x[n,cb,p,v] / (bias + alpha/size * sum over j of sq[n,p,b+cb*b+v+j-before])^beta).

    sq[n,p,c] = x[n,c/b-1,p,c%b]² for c in b … b+C-1, and 0 in the block before and the block behind.
    """
    n, cb, p, v = Axis("n", s.n), Axis("cb", s.cb), Axis("p", s.pixels), Axis("v", s.block)
    c = Axis("c", (s.cb + 2) * s.block)
    inside = (wrap(s.block - 1) < c.var) & (c.var < (s.cb + 1) * s.block)
    value = Load("x", (n.var, c.var // s.block - 1, p.var, c.var % s.block))
    squares = Stage("sq", (n, p, c), Select(inside, value * value, ZERO))
    channel = cb.var * s.block + v.var + s.block
    terms = [Load("sq", (n.var, p.var, channel + (j - s.before))) for j in range(s.size)]
    x = Load("x", (n.var, cb.var, p.var, v.var))
    done = Operands(workload, 1, s.block, flat=True).value(
        normalized(s, x, terms), n.var, cb.var, Const(0), p.var, v.var
    )
    return _algorithm(workload, s, squares, Stage("out", (n, cb, p, v), done), (s.block,))


def row_algorithm(workload: Workload, s: Shape) -> Algorithm:
    """The same on x[n,c,p]; sq[n,c,p] has no padding, its neighbours beyond the channels count as 0."""
    n, c, p = Axis("n", s.n), Axis("c", s.c), Axis("p", s.pixels)
    x = Load("x", (n.var, c.var, p.var))
    squares = Stage("sq", (n, c, p), x * x)
    terms: list[Expr] = []
    for j in range(-s.before, s.after + 1):
        at = c.var + j
        term = Load("sq", (n.var, at, p.var))
        terms.append(Select((wrap(-1) < at) & (at < s.c), term, ZERO) if j else term)
    operands = Operands(workload, 1, 1, flat=True)
    done = operands.value(normalized(s, x, terms), n.var, c.var, Const(0), p.var, Const(0))
    return _algorithm(workload, s, squares, Stage("out", (n, c, p), done), ())


def _algorithm(workload: Workload, s: Shape, squares: Stage, out: Stage, last: tuple[int, ...]) -> Algorithm:
    shape = (s.n, s.cb, s.pixels, *last)
    params = (Buffer("x", shape), *Operands(workload, 1, s.block, flat=True).buffers(), Buffer("out", shape, access="out"))
    return Algorithm("lrn", params, (squares, out))


def normalized(s: Shape, x: Expr, terms: Sequence[Expr]) -> Expr:
    """x / (bias + alpha/size * sum of terms)^beta, by square roots where beta is a multiple of a quarter up to one."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    base = total * float(np.float32(s.alpha / s.size)) + float(np.float32(s.bias))
    root = Unary("sqrt", base)
    powers = {1.0: base, 0.75: Unary("sqrt", base * root), 0.5: root, 0.25: Unary("sqrt", root)}
    return Binary("/", x, powers.get(s.beta, Binary("pow", base, Const(float(np.float32(s.beta)), "float32"))))


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(s: Shape, target: Target) -> Space:
    """ISA, pixels of a job, pixels (ROW: vectors) at a time, loop order, squares kept or not, parallel jobs and grain."""
    kinds = isas(target)
    blocked = s.block > 1
    runs = up_to((1, 2, 4, 8, 16, 32, 64, 128, 256), s.pixels)
    runs = runs if blocked else up_to((16, 32, 64, 128, 256, 512, 1024), s.pixels)
    rows = 4 * (s.cb + 2) * s.block if blocked else 4 * s.c
    run = nearest(runs, min(target.l1d // (2 * rows), s.n * s.pixels // (2 * target.threads)))
    small = 8 * s.n * s.cb * s.pixels * s.block < SMALL or target.threads == 1
    knobs: tuple[Knob, ...] = (
        Choice("isa", kinds, kinds[0]),
        Ordered("run", runs, max(run, min(8 if blocked else 64, runs[-1]))),
        Ordered("unroll", (1, 2, 4, 8), 2 if blocked else 1),
        Choice("order", ("channels_outer", "pixels_outer"), "channels_outer"),
        Choice("squares", ("stage",) if blocked else ("inline", "stage"), "stage" if blocked else "inline"),
        Choice("parallel", ("jobs", "serial"), "serial" if small else "jobs"),
        Ordered("grain", (1, 2, 4, 8, 16), 1),
    )
    first: Config = {k.name: k.default for k in knobs}
    limits = (lambda c: c["parallel"] == "jobs" or c["grain"] == 1, lambda c: not blocked or c["unroll"] <= c["run"])
    return Space(knobs, limits, (first, {**first, "unroll": 1}))


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(s: Shape, c: Config) -> list[Step]:
    """parallel (n, run of pixels): squares of all channels; then for blocks of channels, for pixels: the quotient."""
    isa = str(c["isa"])
    nest = ("cb", "p_m", "p_u") if c["order"] == "channels_outer" else ("p_m", "p_u", "cb")
    plan: list[Step] = [
        Split("out", "p", int(c["run"]), "p_o", "p_i", "shift"), Split("out", "p_i", int(c["unroll"]), "p_m", "p_u"),
        Reorder("out", ("n", "p_o", *nest, "v")), Unroll("out", "p_u"), *lanes("out", "v", s.block, isa),
    ]  # fmt: skip
    job = "p_o"
    if c["parallel"] == "jobs":
        joined, job = fused("out", ("n", "p_o"))
        plan += [*joined, Parallel("out", job, int(c["grain"]))]
    return [
        *plan, ComputeAt("sq", "out", job, "thread"), StoreAs("sq", ("n", "p", "c"), whole=("c",)),
        Split("sq", "c", s.block, "c_o", "c_v"), Reorder("sq", ("n", "c_o", "p", "c_v")), Segment("sq", "c_o", (1, -1)),
        *lanes("sq", "c_v", s.block, isa),
    ]  # fmt: skip


def row_steps(s: Shape, c: Config) -> list[Step]:
    """parallel (n, run of pixels): for channels, for vectors of pixels: the quotient. Only the border channels test."""
    width = vector_width(LANES[str(c["isa"])], s.pixels)
    run = max(int(c["run"]) // width, 1) * width
    run = min(run, s.pixels // width * width)
    nest = ("c", "p_m") if c["order"] == "channels_outer" else ("p_m", "c")
    plan: list[Step] = [
        Split("out", "p", run, "p_o", "p_i", "shift"), Split("out", "p_i", width * int(c["unroll"]), "p_m", "p_w"),
        Split("out", "p_w", width, "p_u", "v"), Reorder("out", ("n", "p_o", *nest, "p_u", "v")),
        Segment("out", "c", (s.before, s.c - s.after)), Unroll("out", "p_u"), Vectorize("out", "v"),
    ]  # fmt: skip
    job = "p_o"
    if c["parallel"] == "jobs":
        joined, job = fused("out", ("n", "p_o"))
        plan += [*joined, Parallel("out", job, int(c["grain"]))]
    if c["squares"] == "inline":
        return [*plan, Inline("sq")]
    return [*plan, ComputeAt("sq", "out", job, "thread"), Split("sq", "p", width, "p_o", "v"), Vectorize("sq", "v")]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lrn:
    """Local response normalization; see the module's docstring."""

    name: str = "lrn"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 2-D LRN, ROW or channel-blocked with a window that two blocks cover."""
        if workload.op != "lrn":
            return f"op is {workload.op}, expected lrn"
        x, y = workload.inputs[0], workload.outputs[0]
        if x.dtype != "float32" or len(x.shape) != 4 or x.layout != y.layout or x.layout == "NHWC" or 0 in x.shape:
            return f"{x} → {y}, expected float32 of rank 4 in one layout, ROW or channel-blocked"
        s = shape_of(workload)
        if s.bias <= 0 or s.alpha < 0:
            return f"bias {s.bias}, alpha {s.alpha}: a base that may be 0 or negative"
        if max(s.before, s.after) > (s.block if s.block > 1 else 64):
            return f"a window of {s.size} channels, expected at most two blocks"
        if any(padded(t.shape)[2:] not in ((1, 1), x.shape[2:]) for t in workload.inputs[1:]):
            return "an epilogue operand broadcasts over rows or columns only"
        return Operands(workload, 1, s.block, flat=True).reason()

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(shape_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s, isa = shape_of(workload), str(config["isa"])
        name = f"f32_lrn{s.size}_{config['run']}x{config['unroll']}__{isa}"
        if s.block > 1:
            return Built(lower(schedule(algorithm(workload, s), steps(s, config)), name), isa)
        return Built(lower(schedule(row_algorithm(workload, s), row_steps(s, config)), name), isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Epilogue constants, blocked like the output."""
        block = block_of(workload.outputs[0].layout)
        return Operands(workload, 1, block, flat=True).pack(constants, 0)
