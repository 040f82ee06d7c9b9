"""Random small networks: whatever fuses, the optimized graph computes what the model computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_build import make, node, normal, optimized
from hypothesis import given, settings
from hypothesis import strategies as st

from wpk.passes import default_pipeline

UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Abs", "LeakyRelu", "HardSwish")
BINARY = ("Add", "Sub", "Mul", "Max")


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """Chains of convolutions, norms, activations, constants by channel, residuals, pools, concats."""
    channels, constants, nodes = 4, {}, []
    values = {"x": channels}  # every value with its channels; all images are 5×5

    def constant(array: np.ndarray) -> str:
        constants[f"k{len(constants)}"] = array
        return f"k{len(constants) - 1}"

    for i in range(draw(st.integers(1, 9))):
        names = list(values)
        source = names[-1] if draw(st.booleans()) else draw(st.sampled_from(names))
        c, out = values[source], f"v{i}"
        kind = draw(
            st.sampled_from(["conv", "bn", "unary", "constant", "residual", "pool", "concat", "identity"])
        )
        if kind == "conv":
            values[out] = draw(st.sampled_from([2, 4]))
            weights = normal(values[out], c, 3, 3, seed=i) * np.float32(0.2)
            nodes.append(node("Conv", [source, constant(weights)], [out], pads=[1, 1, 1, 1]))
            continue
        values[out] = c
        if kind == "bn":
            parameters = [constant(normal(c, seed=i + j)) for j in range(3)] + [
                constant(np.abs(normal(c, seed=i)) + 1)
            ]
            nodes.append(node("BatchNormalization", [source, *parameters], [out]))
        elif kind == "unary":
            nodes.append(node(draw(st.sampled_from(UNARY)), [source], [out]))
        elif kind == "constant":
            shape = draw(st.sampled_from([(c, 1, 1), (1,), (1, c, 5, 5), (5,), ()]))
            operands = [source, constant(normal(*shape, seed=i))]
            nodes.append(
                node(draw(st.sampled_from(BINARY)), operands[:: draw(st.sampled_from([1, -1]))], [out])
            )
        elif kind == "residual":
            other = draw(st.sampled_from([v for v, k in values.items() if k == c and v != out]))
            nodes.append(node(draw(st.sampled_from(BINARY)), [source, other], [out]))
        elif kind == "pool":
            nodes.append(node("MaxPool", [source], [out], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        elif kind == "concat":
            other = draw(st.sampled_from([v for v in values if v != out]))
            values[out] = c + values[other]
            nodes.append(node("Concat", [source, other], [out], axis=1))
        else:
            nodes.append(node("Identity", [source], [out]))
    outputs = [v for v in values if v != "x" and not any(v in n.input for n in nodes)]
    return make(nodes, {"x": [1, 4, 5, 5]}, outputs, constants, opset=15)


@pytest.mark.parametrize("siblings", [False, True])
@given(model=networks())
@settings(max_examples=60, deadline=None)
def test_optimized_networks_compute_the_same(
    siblings: bool, tmp_path_factory: pytest.TempPathFactory, model: onnx.ModelProto
) -> None:
    graph = optimized(model, tmp_path_factory.mktemp("net"), default_pipeline(siblings), tolerance=2e-4)
    convs = sum(n.op_type == "Conv" for n in model.graph.node)
    assert sum(n.op == "conv" for n in graph.nodes) <= convs
    assert all(n.op not in ("onnx", "region") for n in graph.nodes)
    assert graph.outputs == tuple(v.name for v in model.graph.output)
