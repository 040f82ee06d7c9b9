"""Local response normalization for GPUs: a thread has a vector of outputs and adds the squares of neighbouring channels.

Each element is read as often as the window is wide, from L1 but for the first time: the sums are too short to share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Buffer, Expr, Load, Select, wrap
from wpk.dsl.lower import lower
from wpk.dsl.schedule import schedule
from wpk.kernels.cuda.images import ImageOperands, job_space, job_steps, size_of, unfit
from wpk.kernels.epilogue import ZERO
from wpk.kernels.family import Built
from wpk.kernels.lrn import Shape, normalized, shape_of
from wpk.search.space import Space

# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape, h: int, w: int) -> Algorithm:
    """out[n,c,h,w] = epilogue(x / (bias + alpha/size * sum of the squares of channels c - before … c + after)^beta)."""
    last = workload.outputs[0].layout == "NHWC"
    n, c, p, q = Axis("n", s.n), Axis("c", s.c), Axis("h", h), Axis("w", w)
    axes = (n, p, q, c) if last else (n, c, p, q)

    def read(channel: Expr) -> Expr:
        return Load("x", (n.var, p.var, q.var, channel) if last else (n.var, channel, p.var, q.var))

    terms: list[Expr] = []
    for j in range(-s.before, s.after + 1):
        at = c.var + j
        inside = (wrap(-1) < at) & (at < s.c)
        value = read(at) if j == 0 else Select(inside, read(at), ZERO)
        terms.append(value * value)
    operands, y = ImageOperands(workload), workload.outputs[0]
    done = operands.value(normalized(s, read(c.var), terms), n.var, c.var, p.var, q.var)
    shape = tuple(a.extent for a in axes)
    params = (Buffer("x", shape, workload.inputs[0].dtype), *operands.buffers(), Buffer("out", shape, y.dtype, access="out"))
    return Algorithm("lrn", params, (Stage("out", axes, done, dtype=y.dtype),))


# --- THE FAMILY: THE SPACE and THE SCHEDULE are those of jobs ---------------------------------------------------------------


@dataclass(frozen=True)
class CudaLrn:
    """Local response normalization; see the module's docstring."""

    name: str = "cuda_lrn"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Images of 16 or 32-bit floats in ROW or NHWC, the same in and out."""
        return unfit(workload, "lrn", target)

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`wpk.kernels.cuda.images.job_space`."""
        assert target.gpu is not None
        n, c, h, w = workload.inputs[0].shape
        row = c if workload.outputs[0].layout == "NHWC" else w
        return job_space(n * c * h * w, row, size_of(workload), target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        _, c, h, w = workload.inputs[0].shape
        lead, last = (("n", "h", "w"), "c") if workload.outputs[0].layout == "NHWC" else (("n", "c", "h"), "w")
        plain = algorithm(workload, shape_of(workload), h, w)
        kernel = lower(schedule(plain, job_steps("out", lead, last, config)), f"lrn_{c}x{h}x{w}__{target.isa}")
        return Built(kernel, target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Epilogue constants in the order of memory."""
        return ImageOperands(workload).pack(constants)


