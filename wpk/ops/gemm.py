"""gemm: one matrix product. matmul: a batch of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from wpk.core.pointwise import Acc, Input, Literal, apply
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.ops.base import Builder, Foreign, Operator, Shape, Speller, eltwise, row_only


def gemm_shapes(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """(M, N)."""
    a = inputs[0].shape[::-1] if attrs["trans_a"] else inputs[0].shape
    b = inputs[1].shape[::-1] if attrs["trans_b"] else inputs[1].shape
    if len(a) != 2 or len(b) != 2 or a[1] != b[0]:
        raise ValueError(f"cannot multiply {inputs[0]} and {inputs[1]}")
    return ((a[0], b[1]),)


def matmul_shapes(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """(…, M, N), the leading axes broadcast."""
    a, b = inputs[0].shape, inputs[1].shape
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise ValueError(f"cannot multiply {inputs[0]} and {inputs[1]}")
    return ((*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1]),)


def flops(w: Workload) -> float:
    """Two for each multiply-add."""
    out = prod(w.outputs[0].shape)
    if w.op == "gemm":
        return 2.0 * out * (w.inputs[0].shape[0] if w.attr("trans_a") else w.inputs[0].shape[1])
    return 2.0 * out * w.inputs[0].shape[-1]


def lift_gemm(f: Foreign, b: Builder) -> str | None:
    """Gemm; alpha goes into constant weights, beta into a constant C."""
    if len(f.type(0).shape) != 2 or len(f.type(1).shape) != 2:
        return "operands are not matrices"
    alpha, beta = float(f.attrs.get("alpha", 1.0)), float(f.attrs.get("beta", 1.0))
    weights, added, acc = (
        f.inputs[1],
        f.constant(2),
        apply("mul", Acc(), Literal(alpha)) if alpha != 1.0 else Acc(),
    )
    value = f.constant(1)
    if alpha != 1.0 and value is not None:
        weights, acc = b.constant((value * np.float32(alpha)).astype(np.float32), weights), Acc()
    trans: dict[str, Any] = {
        "trans_a": int(f.attrs.get("transA", 0)),
        "trans_b": int(f.attrs.get("transB", 0)),
    }
    inputs, (_, n) = [f.inputs[0], weights], f.out.shape
    bare = None if acc == Acc() else acc
    if not f.has(2) or beta == 0.0:
        b.emit("gemm", inputs, f.out.shape, f.outputs[0], bare, final=True, **trans)
    elif added is not None and added.shape in ((n,), (1, n)) and n > 1:
        inputs.append(b.constant((added.reshape(1, n) * np.float32(beta)).astype(np.float32), f.inputs[2]))
        b.emit("gemm", inputs, f.out.shape, f.outputs[0], apply("add", acc, Input(2)), final=True, **trans)
    else:
        product = b.emit("gemm", inputs, f.out.shape, f.outputs[0], bare, **trans)
        term = Input(1) if beta == 1.0 else apply("mul", Input(1), Literal(beta))
        eltwise(f, b, apply("add", Input(0), term), (product, f.inputs[2]), f.out.shape, f.outputs[0])
    return None


def lift_matmul(f: Foreign, b: Builder) -> str | None:
    """MatMul: one gemm when the second operand is a matrix, else a batched product."""
    x, y, out = f.type(0).shape, f.type(1).shape, f.out.shape
    if len(x) < 2 or len(y) < 2:
        return "an operand is a vector"
    if len(y) > 2:
        b.emit("matmul", f.inputs, out, f.outputs[0], final=True)
        return None
    flat = len(x) == 2
    source = f.inputs[0] if flat else b.view(f.inputs[0], (prod(x[:-1]), x[-1]), f.inputs[0])
    shape = (prod(x[:-1]), y[1])
    name = b.emit("gemm", (source, f.inputs[1]), shape, f.outputs[0], final=flat, trans_a=0, trans_b=0)
    if not flat:
        b.view(name, out, f.outputs[0], final=True)
    return None


def spell_gemm(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """Gemm without C."""
    c = [s.constant(np.zeros(1, np.float32))] if s.opset < 11 else []  # optional from opset 11 on
    s.op("Gemm", (*ins, *c), outs[0], transA=w.attr("trans_a"), transB=w.attr("trans_b"))


def spell_matmul(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """MatMul."""
    s.op("MatMul", ins, outs[0])


GEMM = Operator(
    "gemm", "anchor", 2, ("trans_a", "trans_b"), gemm_shapes, flops, row_only, spell_gemm, {"Gemm": lift_gemm}
)
MATMUL = Operator(
    "matmul", "anchor", 2, (), matmul_shapes, flops, row_only, spell_matmul, {"MatMul": lift_matmul}
)
