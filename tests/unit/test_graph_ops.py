"""What operators say of workloads: work and layouts."""

from __future__ import annotations

from math import prod

import pytest

from wpk.core.pointwise import parse
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.ops import OPERATORS, layouts, work


def tensor(*shape: int) -> TensorType:
    """A float32 tensor."""
    return TensorType("float32", shape)


def conv(
    c: int, oc: int, group: int = 1, epilogue: str | None = None, extra: tuple[TensorType, ...] = ()
) -> Workload:
    """A 3×3 convolution of 8×8 images."""
    attrs = (("dilations", (1, 1)), ("group", group), ("pads", (1, 1, 1, 1)), ("strides", (1, 1)))
    inputs = (tensor(1, c, 8, 8), tensor(oc, c // group, 3, 3), *extra)
    point = None if epilogue is None else parse(epilogue)
    return Workload("conv", inputs, (tensor(1, oc, 8, 8),), attrs, point, (1, 2) if extra else (1,))


def names(workload: Workload, blocks: tuple[int, ...] = (16, 8)) -> list[str]:
    """Each assignment as text: inputs → outputs."""
    offered = tuple(f"NCHW{b}c" if b > 1 else "NHWC" for b in blocks)
    return [f"{' '.join(v.inputs)} > {' '.join(v.outputs)}" for v in layouts(workload, offered)]


def test_conv_layouts() -> None:
    assert names(conv(64, 64), (16,)) == ["ROW ROW > ROW", "NCHW16c ROW > NCHW16c"]
    assert names(conv(3, 64)) == ["ROW ROW > ROW", "ROW ROW > NCHW16c", "ROW ROW > NCHW8c"]
    assert names(conv(32, 32, 32), (8,)) == ["ROW ROW > ROW", "NCHW8c ROW > NCHW8c"]
    assert names(conv(32, 48, 4), (8,)) == ["ROW ROW > ROW"]  # 12 channels a group are no whole blocks
    assert names(conv(32, 48, 4), (1,)) == ["ROW ROW > ROW", "NHWC ROW > NHWC"]  # channels last have no blocks


def test_an_epilogue_operand_has_the_outputs_layout_and_a_bias_is_row_major() -> None:
    extra = (tensor(1, 64, 1, 1), tensor(1, 64, 8, 8))
    workload = conv(64, 64, 1, "relu(add(add(acc,in2),in3))", extra)
    assert names(workload, (16,))[1] == "NCHW16c ROW ROW NCHW16c > NCHW16c"


@pytest.mark.parametrize(("parts", "blocked"), [((16, 32), True), ((16, 5), True), ((5, 16), False)])
def test_concat_and_split_need_whole_blocks(parts: tuple[int, ...], blocked: bool) -> None:
    pieces, whole = tuple(tensor(1, c, 4, 4) for c in parts), (tensor(1, sum(parts), 4, 4),)
    concat = Workload("concat", pieces, whole, (("axis", 1),))
    split = Workload("split", whole, pieces, (("axis", 1), ("sizes", parts)))
    assert (len(names(concat, (16,))) > 1) == (len(names(split, (16,))) > 1) == blocked
    assert names(Workload("concat", pieces[:1] * 2, (tensor(2, parts[0], 4, 4),), (("axis", 0),)), (16,)) == [
        "ROW ROW > ROW"
    ]


def test_matrices_are_row_major() -> None:
    gemm = Workload("gemm", (tensor(4, 8), tensor(8, 3)), (tensor(4, 3),), (("trans_a", 0), ("trans_b", 0)))
    assert names(gemm) == ["ROW ROW > ROW"]


def test_work_of_conv_counts_the_epilogue() -> None:
    workload = conv(16, 32, 2, "relu(add(acc,in2))", (tensor(1, 32, 1, 1),))
    out = 32 * 64
    assert work(workload).flops == 2 * out * 8 * 9 + 2 * out
    assert work(workload).nbytes == 4 * (16 * 64 + 32 * 8 * 9 + 32 + out)


def test_work_of_other_ops() -> None:
    gemm = Workload("gemm", (tensor(8, 4), tensor(3, 8)), (tensor(4, 3),), (("trans_a", 1), ("trans_b", 1)))
    assert work(gemm).flops == 2 * 4 * 3 * 8
    matmul = Workload("matmul", (tensor(5, 4, 8), tensor(8, 3)), (tensor(5, 4, 3),))
    assert work(matmul).flops == 2 * 5 * 4 * 3 * 8
    view = Workload("view", (tensor(4, 8),), (tensor(32),))
    assert work(view).flops == work(view).nbytes == 0
    eltwise = Workload("eltwise", (tensor(4, 8),), (tensor(4, 8),), (), parse("tanh(relu(in0))"))
    assert work(eltwise).flops == 2 * prod((4, 8)) and work(eltwise).nbytes == 2 * 4 * 32


def test_every_operator_has_a_fusion_class() -> None:
    classes = {"elementwise", "injective", "reduction", "anchor", "opaque"}
    assert {op.fusion for op in OPERATORS.values()} == classes
