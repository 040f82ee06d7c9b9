"""Concatenation by copying, for where the planner cannot give the inputs their places in the output's memory.

Along whole blocks of memory (ROW on any axis, blocked channels that fill their blocks) each input is rows of a copy. Blocked
channels that do not fill a block shift the channels of what follows: a vector is then put together from two neighbouring blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.tensor import to_layout
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Buffer, Expr, Load, Select, wrap
from wpk.dsl.lower import lower
from wpk.dsl.schedule import Parallel, Segment, Step, schedule
from wpk.kernels.copies import Copy, row_steps
from wpk.kernels.epilogue import ZERO, block_of
from wpk.kernels.family import Built
from wpk.kernels.nests import LANES, SMALL, fused, ints, isas, lanes, nearest
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Space


@dataclass(frozen=True)
class Shape:
    """``outer`` rows of the output, of which each input gives ``sizes[i]`` elements.

    With ``block`` above 1 channels shift: then a row is an image of ``pixels``, and sizes and offsets count channels.
    """

    outer: int
    sizes: tuple[int, ...]
    block: int = 1
    pixels: int = 1

    @property
    def shifted(self) -> bool:
        """True when some input does not start at a block."""
        return self.block > 1

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each input starts."""
        return (0, *accumulate(self.sizes))[:-1]

    @property
    def count(self) -> int:
        """Elements of the output, padding lanes not counted."""
        return self.outer * sum(self.sizes) * self.pixels


def shape_of(workload: Workload) -> Shape:
    """The numbers of a concat workload."""
    out = workload.outputs[0]
    axis = ints(workload, "axis")[0] % len(out.shape)
    block = block_of(out.layout)
    if axis == 1 and any(t.shape[1] % block for t in workload.inputs[:-1]):
        return Shape(out.shape[0], tuple(t.shape[1] for t in workload.inputs), block, prod(out.shape[2:]))
    at = axis if out.layout != "NHWC" else {0: 0, 1: len(out.shape) - 1}.get(axis, axis - 1)
    return Shape(prod(out.physical[:at]), tuple(prod(t.physical[at:]) for t in workload.inputs))


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(s: Shape) -> Algorithm:
    """For each input: out[o, offset + j] = x[o, j]."""
    stages, params = [], []
    for i, (size, offset) in enumerate(zip(s.sizes, s.offsets, strict=True)):
        o, j = Axis("o", s.outer), Axis("j", size)
        params.append(Buffer(f"x{i}", (s.outer, size)))
        value = Load(f"x{i}", (o.var, j.var))
        stages.append(Stage(f"copy{i}", (o, j), value, scatter=(o.var, offset + j.var), output="out"))
    out = Buffer("out", (s.outer, sum(s.sizes)), access="out")
    return Algorithm("concat", (*params, out), tuple(stages))


def shifted_algorithm(s: Shape) -> Algorithm:
    """For each input: out[o, (offset+c)/b, p, (offset+c)%b] = x[o, c/b, p, c%b] for its channels c; the last adds zeros.

    Output lane v of block q, counted from the input's first, holds channel q·b + v - r, r = offset % b: lane v - r of the same
    block, or lane v - r + b of the one before.
    """
    stages, params = [], []
    blocks = -(-sum(s.sizes) // s.block)
    for i, (size, offset) in enumerate(zip(s.sizes, s.offsets, strict=True)):
        first, r = divmod(offset, s.block)
        last = i == len(s.sizes) - 1
        count = blocks - first if last else -(-(r + size) // s.block)
        o, q, p, v = Axis("o", s.outer), Axis("q", count), Axis("p", s.pixels), Axis("v", s.block)
        params.append(Buffer(f"x{i}", (s.outer, -(-size // s.block), s.pixels, s.block)))
        channel = q.var * s.block + v.var - r
        value: Expr = Load(f"x{i}", (o.var, q.var, p.var, v.var - r))
        if r:
            before = Load(f"x{i}", (o.var, q.var - 1, p.var, v.var + (s.block - r)))
            value = Select(wrap(r) <= v.var, value, before)
        inside = wrap(-1) < channel
        if last:
            value = Select(channel < size, value, ZERO)
        else:
            inside = inside & (channel < size)
        at = (o.var, first + q.var, p.var, v.var)
        stages.append(Stage(f"copy{i}", (o, q, p, v), value, scatter=at, where=inside, output="out"))
    out = Buffer("out", (s.outer, blocks, s.pixels, s.block), access="out")
    return Algorithm("concat", (*params, out), tuple(stages))


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(s: Shape, target: Target) -> Space:
    """ISA, vectors at a time, parallel loops and grain."""
    kinds = isas(target)
    small = s.count < 2 * SMALL or target.threads == 1
    unrolls = (1,) if s.shifted else (1, 2, 4, 8)
    ways = ("blocks", "serial") if s.shifted else ("rows", "vectors", "serial") if s.outer > 1 else ("vectors", "serial")
    row = s.count // s.outer // len(s.sizes)
    step = row if ways[0] == "rows" else 4 * LANES[kinds[0]] * s.outer
    grains = (1, 4, 16, 64, 256)
    knobs: tuple[Knob, ...] = (
        Choice("isa", kinds, kinds[0]),
        Ordered("unroll", unrolls, nearest(unrolls, 4)),
        Choice("parallel", ways, "serial" if small else ways[0]),
        Ordered("grain", grains, 1 if small or s.shifted else nearest(grains, 2048 / step)),
    )
    first: Config = {k.name: k.default for k in knobs}
    return Space(knobs, (lambda c: c["parallel"] != "serial" or c["grain"] == 1,), (first,))


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(s: Shape, c: Config) -> list[Step]:
    """One input after another; each is divided among the threads."""
    plan: list[Step] = []
    for i, size in enumerate(s.sizes):
        plan += row_steps(Copy((("o", s.outer), ("j", size)), "j"), c, f"copy{i}")
    return plan


def shifted_steps(s: Shape, c: Config) -> list[Step]:
    """parallel (image, block): for pixels: one vector of two masked loads; or serial, only the end blocks masked."""
    plan: list[Step] = []
    for i in range(len(s.sizes)):
        stage = f"copy{i}"
        plan += lanes(stage, "v", s.block, str(c["isa"]))
        if c["parallel"] == "serial":
            plan.append(Segment(stage, "q", (1, -1)))
            continue
        joined, job = fused(stage, ("o", "q"))
        plan += [*joined, Parallel(stage, job, int(c["grain"]))]
    return plan


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Concat:
    """Concatenation; see the module's docstring."""

    name: str = "concat"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 inputs in the output's layout, on any axis, nothing fused."""
        if workload.op != "concat":
            return f"op is {workload.op}, expected concat"
        out = workload.outputs[0]
        if any(t.dtype != "float32" or 0 in t.shape for t in (out, *workload.inputs)):
            return "expected non-empty float32 tensors"
        odd = next((t for t in workload.inputs if t.layout != out.layout), None)
        if odd is not None:
            return f"input {odd}, the output has layout {out.layout}"
        return None if workload.epilogue is None else "a concatenation with an epilogue"

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(shape_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s, isa = shape_of(workload), str(config["isa"])
        name = f"f32_concat{len(s.sizes)}_{'shifted' if s.shifted else 'rows'}__{isa}"
        if s.shifted:
            return Built(lower(schedule(shifted_algorithm(s), shifted_steps(s, config)), name), isa)
        return Built(lower(schedule(algorithm(s), steps(s, config)), name), isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants in the output's layout."""
        layout = workload.outputs[0].layout
        return [to_layout(np.asarray(c, np.float32), layout) for c in constants]
