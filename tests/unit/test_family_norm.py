"""Kernels of norm, reduce and gather against NumPy: rows and inner axes, tails, large means, indices from the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from family_check import Case, check_family, evaluate, random_feeds, target, tensor

from wpk.core.pointwise import parse
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.kernels.gather import Gather
from wpk.kernels.norm import Norm
from wpk.kernels.reduce_axes import ReduceAxes


def norm(
    x: TensorType, axis: int, kind: str = "layer", epilogue: str | None = None, operands: tuple[TensorType, ...] = ()
) -> Workload:
    """A norm workload whose epilogue operands are constants."""
    attrs = (("axis", axis), ("epsilon", 1e-5), ("kind", kind))
    point = parse(epilogue) if epilogue else None
    return Workload("norm", (x, *operands), (x,), attrs, point, tuple(range(1, 1 + len(operands))))


def norm_reference(workload: Workload, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """NumPy, in float64."""
    axes = tuple(range(int(dict(workload.attrs)["axis"]), len(workload.inputs[0].shape)))  # type: ignore[arg-type]
    x = feeds[0].astype(np.float64)
    d = x - x.mean(axes, keepdims=True) if workload.attr("kind") == "layer" else x
    return evaluate(workload.epilogue, d / np.sqrt((d * d).mean(axes, keepdims=True) + 1e-5), feeds)


AFFINE = "add(mul(acc,in1),in2)"
NORMS = [
    Case("bert", norm(tensor(1, 8, 64), 2, "layer", AFFINE, (tensor(1, 1, 64), tensor(1, 1, 64)))),
    Case("ragged", norm(tensor(5, 37), 1)),
    Case("long", norm(tensor(2, 1000), 1, "layer", "mul(acc,in1)", (tensor(1, 1000),))),
    Case("short", norm(tensor(7, 3), 1)),
    Case("rms", norm(tensor(6, 48), 1, "rms", "mul(acc,in1)", (tensor(1, 48),))),
    Case("two-axes", norm(tensor(3, 4, 10), 1, "layer", AFFINE, (tensor(1, 4, 10), tensor(1, 4, 10)))),
    Case("all", norm(tensor(40), 0, "rms")),
]


@pytest.mark.parametrize("case", NORMS, ids=str)
def test_norms_match_numpy(case: Case) -> None:
    check_family(Norm(), case.workload, norm_reference, samples=4, tolerance=4e-6)


def test_a_large_mean_costs_no_digits() -> None:
    workload = norm(tensor(3, 70), 1)
    feeds = [random_feeds(workload)[0] + np.float32(300)]
    check_family(Norm(), workload, norm_reference, feeds=feeds, tolerance=1e-4)


def reduce(
    x: TensorType, axes: tuple[int, ...], kind: str, epilogue: str | None = None, operands: tuple[TensorType, ...] = ()
) -> Workload:
    """A reduce workload."""
    out = TensorType("float32", tuple(1 if d in axes else n for d, n in enumerate(x.shape)))
    attrs = (("axes", axes), ("kind", kind))
    return Workload("reduce", (x, *operands), (out,), attrs, parse(epilogue) if epilogue else None)


def reduce_reference(workload: Workload, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """NumPy, in float64."""
    axes, f = workload.ints("axes"), getattr(np, str(workload.attr("kind")))
    return evaluate(workload.epilogue, f(feeds[0].astype(np.float64), axes, keepdims=True), feeds)


REDUCTIONS = [
    Case("rows", reduce(tensor(4, 3, 100), (2,), "mean")),
    Case("two-axes", reduce(tensor(5, 6, 7), (1, 2), "sum")),
    Case("max", reduce(tensor(9, 37), (1,), "max")),
    Case("min-short", reduce(tensor(9, 3), (1,), "min")),
    Case("all", reduce(tensor(300), (0,), "sum")),
    Case("inner", reduce(tensor(2, 7, 50), (1,), "mean")),
    Case("inner-narrow", reduce(tensor(11, 3), (0,), "max")),
    Case("inner-wide", reduce(tensor(4, 6, 130), (0, 1), "min")),
    Case("one", reduce(tensor(3, 1, 5), (1,), "sum")),
    Case("epilogue", reduce(tensor(2, 7, 20), (1,), "sum", "relu(add(acc,in1))", (tensor(2, 1, 20),))),
]


@pytest.mark.parametrize("case", REDUCTIONS, ids=str)
def test_reductions_match_numpy(case: Case) -> None:
    check_family(ReduceAxes(), case.workload, reduce_reference, samples=4, tolerance=1e-5)


def gather(x: TensorType, indices: TensorType, axis: int, constants: tuple[int, ...] = ()) -> Workload:
    """A gather workload."""
    out = TensorType("float32", (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))
    return Workload("gather", (x, indices), (out,), (("axis", axis),), None, constants)


def gather_reference(workload: Workload, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """NumPy."""
    return np.take(feeds[0], feeds[1], int(dict(workload.attrs)["axis"]))  # type: ignore[arg-type]


GATHERS = [
    Case("embedding", gather(tensor(30, 64), TensorType("int64", (1, 9)), 0, (0,))),
    Case("int32", gather(tensor(12, 21), TensorType("int32", (5,)), 0)),
    Case("middle", gather(tensor(3, 8, 10), TensorType("int64", (2, 3)), 1, (1,))),
    Case("last", gather(tensor(4, 9), TensorType("int64", (6,)), 1)),
    Case("scalar", gather(tensor(4, 9), TensorType("int64", ()), 0)),
]


@pytest.mark.parametrize("case", GATHERS, ids=str)
def test_gathers_match_numpy(case: Case) -> None:
    x, indices = case.workload.inputs
    n = x.shape[int(dict(case.workload.attrs)["axis"])]  # type: ignore[arg-type]
    chosen = np.random.default_rng(3).integers(-n, n, indices.shape).astype(indices.dtype)
    feeds = [random_feeds(case.workload)[0], chosen]
    check_family(Gather(), case.workload, gather_reference, samples=4, feeds=feeds, tolerance=0)


def test_indices_beyond_the_table_mean_its_ends() -> None:
    workload = gather(tensor(5, 20), TensorType("int64", (3,)), 0)
    feeds = [random_feeds(workload)[0], np.array([99, -99, 4])]
    check_family(Gather(), workload, lambda w, f: f[0][[4, 0, 4]], feeds=feeds, tolerance=0)


@pytest.mark.parametrize(
    ("family", "workload", "reason"),
    [
        (Norm(), norm(TensorType("float16", (2, 4)), 1), "expected float32"),
        (Norm(), norm(tensor(2, 4, 6), 1, "rms", "mul(acc,in1)", (tensor(1, 1, 6),)), "dimensions merged"),
        (ReduceAxes(), reduce(tensor(2, 16, 2, 2, layout="NHWC"), (1,), "sum"), "layout ROW"),
        (Gather(), gather(TensorType("int64", (2, 4)), TensorType("int64", (1,)), 0), "expected non-empty float32"),
    ],
)
def test_declines(family: Norm | ReduceAxes | Gather, workload: Workload, reason: str) -> None:
    assert reason in (family.matches(workload, target()) or "")
