"""The oracle against NumPy: each operator, epilogues, constants inside and outside the model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from wpk.core.errors import ModelError
from wpk.core.pointwise import parse
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.providers.reference import random_feeds, reference_model, reference_output


def tensor(*shape: int, layout: str = "ROW", dtype: str = "float32") -> TensorType:
    """A tensor type."""
    return TensorType(dtype, shape, layout)


def erf(x: np.ndarray) -> np.ndarray:
    """Abramowitz and Stegun 7.1.26, good to 1.5e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - poly * np.exp(-x * x))


EXPRESSIONS = {
    "add(mul(in0,in1),2.5)": lambda a, b: a * b + 2.5,
    "where(lt(in0,in1),sub(in0,in1),neg(in1))": lambda a, b: np.where(a < b, a - b, -b),
    "add(le(in0,in1),eq(in0,in0))": lambda a, b: (a <= b) + 1.0,
    "max(min(in0,in1),floor(in0))": lambda a, b: np.maximum(np.minimum(a, b), np.floor(a)),
    "div(sqrt(abs(in0)),exp(in1))": lambda a, b: np.sqrt(np.abs(a)) / np.exp(b),
    "add(erf(in0),tanh(in1))": lambda a, b: erf(a) + np.tanh(b),
    "mul(sigmoid(in0),relu(in1))": lambda a, b: np.maximum(b, 0) / (1 + np.exp(-a)),
    "sub(ceil(in0),log(pow(abs(in1),2.0)))": lambda a, b: np.ceil(a) - np.log(b**2),
    "recip(add(abs(in0),add(abs(in1),1.0)))": lambda a, b: 1 / (abs(a) + abs(b) + 1),
}


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expressions(text: str) -> None:
    workload = Workload("eltwise", (tensor(2, 3, 4), tensor(3, 1)), (tensor(2, 3, 4),), (), parse(text))
    feeds = random_feeds(workload, 3)
    (found,) = reference_output(workload, feeds)
    np.testing.assert_allclose(found, EXPRESSIONS[text](*feeds), rtol=1e-5, atol=1e-5)


def test_gemm_with_epilogue_and_blocked_layouts_are_logical() -> None:
    inputs = (tensor(3, 5), tensor(4, 5), tensor(1, 4), tensor(3, 4))
    attrs = (("trans_a", 0), ("trans_b", 1))
    workload = Workload("gemm", inputs, (tensor(3, 4),), attrs, parse("relu(add(add(acc,in2),in3))"), (1, 2))
    a, b, bias, residual = random_feeds(workload)
    (found,) = reference_output(workload, [a, b, bias, residual])
    np.testing.assert_allclose(found, np.maximum(a @ b.T + bias + residual, 0), rtol=1e-5, atol=1e-5)
    convert = Workload("convert", (tensor(1, 5, 2, 2),), (tensor(1, 5, 2, 2, layout="NCHW16c"),))
    (x,) = random_feeds(convert)
    np.testing.assert_array_equal(reference_output(convert, [x])[0], x)


def test_moves_and_reductions() -> None:
    x = random_feeds(Workload("view", (tensor(2, 6, 3),), (tensor(36),)))[0]
    one = (tensor(2, 6, 3),)
    parts = (tensor(2, 2, 3), tensor(2, 4, 3))
    split = Workload("split", one, parts, (("axis", 1), ("sizes", (2, 4))))
    for found, expected in zip(reference_output(split, [x]), (x[:, :2], x[:, 2:]), strict=True):
        np.testing.assert_array_equal(found, expected)
    concat = Workload("concat", parts, one, (("axis", 1),))
    np.testing.assert_array_equal(reference_output(concat, [x[:, :2], x[:, 2:]])[0], x)
    transpose = Workload("transpose", one, (tensor(3, 2, 6),), (("perm", (2, 0, 1)),))
    np.testing.assert_array_equal(reference_output(transpose, [x])[0], x.transpose(2, 0, 1))
    softmax = Workload("softmax", one, one, (("axis", 1),))
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(reference_output(softmax, [x])[0], e / e.sum(1, keepdims=True), rtol=1e-5)


def test_constants_go_into_the_model_or_stay_inputs() -> None:
    attrs = (("dilations", (1, 1)), ("group", 1), ("pads", (0, 0, 0, 0)), ("strides", (1, 1)))
    workload = Workload(
        "conv", (tensor(1, 2, 4, 4), tensor(3, 2, 1, 1)), (tensor(1, 3, 4, 4),), attrs, None, (1,)
    )
    weights = random_feeds(workload)[1]
    inside = onnx.load_from_string(reference_model(workload, [weights])).graph
    outside = onnx.load_from_string(reference_model(workload)).graph
    assert [i.name for i in inside.input] == ["in0"] and len(inside.initializer) == 1
    assert [i.name for i in outside.input] == ["in0", "in1"] and not outside.initializer
    with pytest.raises(ValueError, match="expected 1 constants, found 2"):
        reference_model(workload, [weights, weights])


def test_feeds_are_seeded_and_keep_results_of_size_one() -> None:
    attrs = (("trans_a", 0), ("trans_b", 1))
    workload = Workload("gemm", (tensor(8, 900), tensor(700, 900)), (tensor(8, 700),), attrs, None, (1,))
    feeds = random_feeds(workload, 1)
    assert all(np.array_equal(a, b) for a, b in zip(feeds, random_feeds(workload, 1), strict=True))
    assert not np.array_equal(feeds[0], random_feeds(workload, 2)[0])
    assert 0.9 < reference_output(workload, feeds)[0].std() < 1.1
    mixed = Workload("onnx", (tensor(4, dtype="int64"), tensor(4, dtype="bool")), ())
    assert [f.dtype.name for f in random_feeds(mixed)] == ["int64", "bool"]


def test_opaque_workloads_need_their_payload() -> None:
    node = onnx.helper.make_node("Sin", ["a"], ["b"])
    attrs = (("digest", "d"), ("domain", ""), ("imports", ()), ("onnx_op", "Sin"), ("opset", 17))
    workload = Workload("onnx", (tensor(3),), (tensor(3),), attrs)
    with pytest.raises(ValueError, match="without its payload"):
        reference_model(workload)
    (x,) = random_feeds(workload)
    np.testing.assert_allclose(
        reference_output(workload, [x], node.SerializeToString())[0], np.sin(x), rtol=1e-6
    )


def test_too_large_a_model_is_refused() -> None:
    workload = Workload(
        "gemm",
        (tensor(1, 1 << 15), tensor(1 << 15, 1 << 15)),
        (tensor(1, 1 << 15),),
        (("trans_a", 0), ("trans_b", 0)),
        None,
        (1,),
    )
    with pytest.raises(ModelError, match=r"4\.0 GiB"):
        reference_model(workload, [np.broadcast_to(np.float32(0), (1 << 15, 1 << 15))])
