"""A small model, how a command ended, and what a refusal looks like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


def refused(ran: Ran, code: int, *names: str) -> None:
    """Assert the shape of an error: exit code, one line on stderr, the names in it, no traceback."""
    assert ran.code == code, ran.err
    assert ran.err.startswith("wpk: ") and ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.err + ran.out
    for name in names:
        assert name in ran.err


def small_model(channels: int = 8) -> onnx.ModelProto:
    """conv 3×3 → relu → conv 1×1 + residual → global pool → gemm → softmax on float32[1,3,12,12]."""
    rng = np.random.default_rng(0)
    sizes = {
        "w1": (channels, 3, 3, 3),
        "b1": (channels,),
        "w2": (channels, channels, 1, 1),
        "w3": (10, channels),
        "b3": (10,),
    }
    weights = [
        numpy_helper.from_array((rng.standard_normal(s) * 0.3).astype(np.float32), k)
        for k, s in sizes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2"),
        helper.make_node("Add", ["c2", "r1"], ["s"], "add"),
        helper.make_node("GlobalAveragePool", ["s"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["g"], "fc", transB=1),
        helper.make_node("Softmax", ["g"], ["y"], "softmax", axis=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph(nodes, "small", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
