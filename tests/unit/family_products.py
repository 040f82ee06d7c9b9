"""Workloads of matrix products and their reference, shared by the tests of the families gemm, fc and matmul."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from family_check import tensor

from wpk.core import pointwise
from wpk.core.pointwise import Acc, Apply, Input, Literal, Point
from wpk.core.workload import Workload

Shape = tuple[int, ...]
BIAS_RELU = "relu(add(acc,in2))"


def gemm(
    m: int,
    k: int,
    n: int,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    epilogue: str | None = None,
    operands: Sequence[Shape] = (),
    constants: tuple[int, ...] = (1,),
) -> Workload:
    """A gemm workload."""
    a, b = ((k, m) if trans_a else (m, k)), ((n, k) if trans_b else (k, n))
    point = pointwise.parse(epilogue) if epilogue else None
    inputs = (tensor(*a), tensor(*b), *(tensor(*s) for s in operands))
    attrs = (("trans_a", trans_a), ("trans_b", trans_b))
    return Workload("gemm", inputs, (tensor(m, n),), attrs, point, constants)


def matmul(
    a: Shape,
    b: Shape,
    *,
    epilogue: str | None = None,
    operands: Sequence[Shape] = (),
    constants: tuple[int, ...] = (),
) -> Workload:
    """A matmul workload; the output's shape is NumPy's."""
    out = np.matmul(np.zeros(a, np.float32), np.zeros(b, np.float32)).shape
    point = pointwise.parse(epilogue) if epilogue else None
    inputs = (tensor(*a), tensor(*b), *(tensor(*s) for s in operands))
    return Workload("matmul", inputs, (tensor(*out),), (), point, constants)


def product(workload: Workload, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """What a gemm or matmul workload means, computed in float64."""
    attrs = dict(workload.attrs)
    a = feeds[0].T if attrs.get("trans_a") else feeds[0]
    b = feeds[1].T if attrs.get("trans_b") else feeds[1]
    acc = a.astype(np.float64) @ b.astype(np.float64)
    return finished(workload, acc, feeds)


_FUNCTIONS = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum, "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0), "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}  # fmt: skip


def finished(workload: Workload, acc: np.ndarray, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """The epilogue of a workload on the anchor's result, as float32."""

    def at(point: Point) -> np.ndarray:
        if isinstance(point, Acc):
            return acc
        if isinstance(point, Input):
            return feeds[point.index].astype(np.float64)
        if isinstance(point, Literal):
            return np.asarray(point.value)
        assert isinstance(point, Apply)
        return np.asarray(_FUNCTIONS[point.op](*map(at, point.args)))

    whole = acc if workload.epilogue is None else at(workload.epilogue)
    return np.broadcast_to(whole, workload.outputs[0].shape).astype(np.float32)
