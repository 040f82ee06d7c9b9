"""Epilogue operands of ROW outputs whose dimensions a kernel merges: (batch…, M) × N, or N × C × (H·W)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.workload import Workload
from wpk.dsl.ir import Buffer, Const, Expr, Load
from wpk.kernels.epilogue import padded, to_expr


@dataclass(frozen=True)
class RowOperands:
    """Inputs ``first``… of a workload, as parameters ``e<i>`` with one dimension for each group of output dimensions.

    An operand is, in each group, either as large as the output or 1. Constants that reach along the last group are
    zero-padded there to a multiple of ``pad``, so that whole vectors of them can be read.
    """

    workload: Workload
    first: int
    groups: tuple[tuple[int, ...], ...]
    pad: int = 1

    def reason(self) -> str | None:
        """Why some operand cannot be read here, or None."""
        out = self.workload.outputs[0].shape
        for i in range(self.first, len(self.workload.inputs)):
            t = self.workload.inputs[i]
            if t.dtype != "float32" or t.layout != "ROW":
                return f"epilogue operand {i} is {t}, expected float32 in layout ROW"
            if len(t.shape) > len(out) or self._sizes(i) is None:
                return f"epilogue operand {i} of shape {t.shape} does not broadcast to {out} with dimensions merged"
        return None

    def buffers(self) -> list[Buffer]:
        """Their parameters, in order."""
        return [Buffer(f"e{i}", self._shape(i)) for i in range(self.first, len(self.workload.inputs))]

    def value(self, acc: Expr, at: Sequence[Expr]) -> Expr:
        """The epilogue at an output element, given its index in each group."""
        point = self.workload.epilogue
        return acc if point is None else to_expr(point, acc, lambda i: self._at(i, at))

    def pack(self, constants: Sequence[np.ndarray], skip: int) -> list[np.ndarray]:
        """The constants that are epilogue operands; the first ``skip`` constants are the anchor's own."""
        picked = [i for i in self.workload.constants if i >= self.first]
        return [self._packed(i, c) for i, c in zip(picked, constants[skip:], strict=True)]

    def _sizes(self, i: int) -> tuple[int, ...] | None:
        """Extents by group; None when a group is neither whole nor 1."""
        out = self.workload.outputs[0].shape
        shape = padded(self.workload.inputs[i].shape, len(out))
        sizes = []
        for group in self.groups:
            mine, whole = [shape[d] for d in group], [out[d] for d in group]
            if mine != whole and prod(mine) != 1:
                return None
            sizes.append(prod(mine))
        return tuple(sizes)

    def _shape(self, i: int) -> tuple[int, ...]:
        sizes = self._sizes(i)
        assert sizes is not None
        if i in self.workload.constants and sizes[-1] > 1:
            return (*sizes[:-1], -(-sizes[-1] // self.pad) * self.pad)
        return sizes

    def _at(self, i: int, at: Sequence[Expr]) -> Expr:
        return Load(
            f"e{i}", tuple(Const(0) if n == 1 else e for n, e in zip(self._shape(i), at, strict=True))
        )

    def _packed(self, i: int, array: np.ndarray) -> np.ndarray:
        sizes, shape = self._sizes(i), self._shape(i)
        assert sizes is not None
        out = np.zeros(shape, np.float32)
        out[..., : sizes[-1]] = np.asarray(array, np.float32).reshape(sizes)
        return out


__all__ = ["RowOperands"]
