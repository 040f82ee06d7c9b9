"""Transposition of ROW tensors: dimensions that stay together become one; what is left is a copy of rows, or tiles.

The space and the schedules are those of :mod:`wpk.kernels.copies`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Buffer, Load
from wpk.kernels.copies import Copy, build_copy, copy_space
from wpk.kernels.family import Built
from wpk.kernels.nests import ints
from wpk.search.space import Space


def collapsed(shape: tuple[int, ...], perm: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The same transposition with fewest dimensions: those of extent 1 dropped, neighbours that stay neighbours merged."""
    order = [d for d in perm if shape[d] > 1]
    runs: list[list[int]] = []
    for d in order:
        if runs and not any(shape[k] > 1 for k in range(runs[-1][-1] + 1, d)) and runs[-1][-1] < d:
            runs[-1].append(d)
        else:
            runs.append([d])
    inputs = sorted(runs)
    sizes = tuple(prod(shape[d] for d in run) for run in inputs)
    return sizes or (1,), tuple(inputs.index(run) for run in runs) or (0,)


def copy_of(workload: Workload) -> Copy:
    """The collapsed loops of a transpose workload: axis ``d<i>`` is dimension i of the collapsed input."""
    sizes, perm = collapsed(workload.inputs[0].shape, ints(workload, "perm"))
    extents = tuple((f"d{d}", sizes[d]) for d in perm)
    return Copy(extents, f"d{len(sizes) - 1}")


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(copy: Copy) -> Algorithm:
    """out[d_perm0, d_perm1, …] = x[d0, d1, …]."""
    axes = tuple(Axis(name, n) for name, n in copy.extents)
    inputs = sorted(axes, key=lambda a: int(a.name[1:]))
    value = Load("x", tuple(a.var for a in inputs))
    params = (
        Buffer("x", tuple(a.extent for a in inputs)),
        Buffer("out", tuple(a.extent for a in axes), access="out"),
    )
    return Algorithm("transpose", params, (Stage("out", axes, value),))


# --- THE FAMILY: THE SPACE and THE SCHEDULE are those of wpk.kernels.copies ---------------------------------------------


@dataclass(frozen=True)
class Transpose:
    """Transposition; see the module's docstring."""

    name: str = "transpose"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 in layout ROW, any permutation, nothing fused."""
        if workload.op != "transpose":
            return f"op is {workload.op}, expected transpose"
        x, y = workload.inputs[0], workload.outputs[0]
        if x.dtype != "float32" or x.layout != "ROW" or y.layout != "ROW" or 0 in x.shape:
            return f"{x} → {y}, expected non-empty float32 in layout ROW"
        return None if workload.epilogue is None else "a transposition with an epilogue"

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`wpk.kernels.copies.copy_space`."""
        return copy_space(copy_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        copy = copy_of(workload)
        order = "".join(name[1:] for name, _ in copy.extents)
        return build_copy(algorithm(copy), copy, config, f"f32_transpose{order}")

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants stay as they are."""
        return [np.ascontiguousarray(c, np.float32) for c in constants]
