"""Elementwise kernels against NumPy: broadcasts, layouts, tails, in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from family_check import Case, call, check_family, configs_of, evaluate, target, tensor

from wpk.core.pointwise import parse
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.kernels.eltwise import Eltwise, shape_of
from wpk.kernels.epilogue import vanishes


def eltwise(text: str, out: TensorType, *inputs: TensorType, constants: tuple[int, ...] = ()) -> Workload:
    """An eltwise workload."""
    return Workload("eltwise", inputs, (out,), (), parse(text), constants)


def reference(workload: Workload, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """NumPy, in float64."""
    return np.broadcast_to(evaluate(workload.epilogue, None, feeds), workload.outputs[0].shape)


B16, B8 = "NCHW16c", "NCHW8c"
CASES = [
    Case("relu-vector", eltwise("relu(in0)", tensor(1000), tensor(1000))),
    Case("relu-tail", eltwise("relu(in0)", tensor(3, 67), tensor(3, 67))),
    Case("scalar", eltwise("mul(in0,2.0)", tensor(), tensor())),
    Case("tiny", eltwise("add(in0,in1)", tensor(2, 3), tensor(2, 3), tensor(3))),
    Case("rows", eltwise("add(in0,in1)", tensor(5, 83), tensor(5, 83), tensor(83))),
    Case("columns", eltwise("sub(in0,in1)", tensor(5, 83), tensor(5, 83), tensor(5, 1))),
    Case("outer", eltwise("mul(in0,in1)", tensor(9, 37), tensor(9, 1), tensor(1, 37))),
    Case("middle", eltwise("add(in0,in1)", tensor(2, 3, 4, 25), tensor(2, 3, 4, 25), tensor(3, 1, 1), constants=(1,))),
    Case("gelu", eltwise("mul(mul(in0,0.5),add(erf(mul(in0,0.7071)),1.0))", tensor(4, 100), tensor(4, 100))),
    Case("select", eltwise("where(lt(in0,in1),in1,neg(in0))", tensor(3, 50), tensor(3, 50), tensor(3, 50))),
    Case("exp", eltwise("div(exp(in0),add(exp(in1),1.0))", tensor(2, 130), tensor(2, 130), tensor(2, 130))),
    Case("residual", eltwise("relu(add(in0,in1))", *[tensor(2, 32, 5, 3, layout=B16)] * 3)),
    Case("padded", eltwise("relu(add(in0,in1))", *[tensor(2, 19, 3, 5, layout=B16)] * 3)),
    Case("bias-padded", eltwise("add(in0,in1)", *[tensor(1, 21, 3, 4, layout=B16)] * 2, tensor(1, 21, 1, 1),
                                constants=(1,))),
    Case("nonzero-padding", eltwise("exp(in0)", *[tensor(2, 13, 3, 3, layout=B8)] * 2)),
    Case("nonzero-one-pixel", eltwise("sigmoid(in0)", *[tensor(2, 13, 1, 1, layout=B8)] * 2)),
    Case("gate", eltwise("mul(in0,sigmoid(in1))", *[tensor(2, 32, 4, 4, layout=B16)] * 2, tensor(2, 32, 1, 1))),
    Case("scalar-padded", eltwise("add(in0,in1)", *[tensor(1, 20, 3, 3, layout=B16)] * 2, tensor(), constants=(1,))),
    Case("image-padded", eltwise("max(in0,in1)", *[tensor(2, 20, 3, 3, layout=B8)] * 2, tensor(1, 1, 3, 3))),
    Case("mask", eltwise("mul(in0,in1)", *[tensor(1, 20, 4, 4, layout=B16)] * 2, tensor(1, 1, 4, 4))),
]  # fmt: skip


def test_operands_that_broadcast_over_channels_fill_padding_lanes() -> None:
    assert vanishes(parse("mul(in0,in1)"), {1}) and vanishes(parse("where(in1,in0,0.0)"), {1})
    assert not vanishes(parse("add(in0,in1)"), {1}) and not vanishes(parse("max(in0,neg(in1))"), {1})
    assert vanishes(parse("where(lt(1.0,0.0),in1,in0)"), {1}) and not vanishes(parse("relu(in1)"), {1})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_numpy(case: Case) -> None:
    check_family(Eltwise(), case.workload, reference, samples=4)


def test_long_chain_in_place() -> None:
    out = tensor(2, 24, 11, 13)
    workload = eltwise("max(add(mul(in0,in1),in2),0.1)", out, out, tensor(1, 24, 1, 1), out)
    assert Eltwise().build(workload, Eltwise().space(workload, target()).default(), target()).inplace == (0, 2)
    check_family(Eltwise(), workload, reference, samples=8, interpret_too=False)


def test_dimensions_collapse() -> None:
    same = tensor(2, 3, 4, 5)
    assert shape_of(eltwise("add(in0,in1)", same, same, same)).extents == (120,)
    assert shape_of(eltwise("add(in0,in1)", same, same, tensor(3, 1, 1))).extents == (2, 3, 20)
    assert shape_of(eltwise("add(in0,in1)", same, same, tensor(4, 5))).extents == (6, 20)
    blocked = tensor(1, 19, 4, 5, layout=B16)
    assert shape_of(eltwise("relu(in0)", blocked, blocked)).extents == (640,)
    assert shape_of(eltwise("exp(in0)", blocked, blocked)).channels == (0, 16, 19)


@pytest.mark.parametrize(
    ("workload", "reason"),
    [
        (Workload("pool", (tensor(4),), (tensor(4),)), "op is pool"),
        (eltwise("add(in0,in1)", tensor(4, 3), tensor(4, 3), tensor(2)), "does not broadcast"),
        (eltwise("relu(in0)", tensor(4, 16, 2, 2), tensor(4, 16, 2, 2, layout=B16)), "the output ROW"),
        (eltwise("add(in0,in1)", *[tensor(1, 16, 2, 2, layout=B16)] * 2, tensor(1, 16, 2, 2)), "the output NCHW16c"),
        (eltwise("relu(in0)", tensor(4), TensorType("uint16", (4,))), "uint16"),
    ],
)
def test_declines(workload: Workload, reason: str) -> None:
    assert reason in (Eltwise().matches(workload, target()) or "")


def test_small_tensors_stay_on_one_thread() -> None:
    small, large = tensor(1, 16, 4, 4), tensor(1, 64, 112, 112)
    assert configs_of(Eltwise(), eltwise("relu(in0)", small, small), 0)[0]["parallel"] == "serial"
    assert configs_of(Eltwise(), eltwise("relu(in0)", large, large), 0)[0]["parallel"] != "serial"


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
def test_integers_are_read_as_float32(dtype: str) -> None:
    mask, x = TensorType(dtype, (2, 1, 37)), tensor(2, 3, 37)
    workload = eltwise("where(in0,in1,mul(sub(1.0,in0),-7.5))", x, mask, x)
    rng = np.random.default_rng(2)
    feeds = [rng.integers(0, 2, mask.shape).astype(dtype), rng.standard_normal(x.shape, np.float32)]
    exact = dtype != "bool"  # which the interpreter does not take for a byte
    check_family(Eltwise(), workload, reference, feeds=feeds, interpret_too=exact)


def test_a_comparison_is_stored_as_bytes() -> None:
    out = TensorType("bool", (5, 43))
    workload = eltwise("lt(in0,in1)", out, tensor(5, 43), tensor(43))
    rng = np.random.default_rng(4)
    feeds = [rng.standard_normal(t.shape, np.float32) for t in workload.inputs]
    for config in configs_of(Eltwise(), workload, 3):
        built = Eltwise().build(workload, config, target())
        found = np.full(out.shape, 7, np.uint8)
        call(built, [*feeds, found])
        np.testing.assert_array_equal(found, (feeds[0] < feeds[1]).astype(np.uint8))
