"""Workloads that cuBLASLt takes, how they are built, run and checked: on the double, and on a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np

from wpk.core.pointwise import parse
from wpk.core.target import Target
from wpk.core.tensor import TensorType, to_layout
from wpk.core.workload import Attr, Workload
from wpk.measure.check import Verdict, check_outputs
from wpk.measure.measurer import _tolerance
from wpk.providers.cublaslt import CublasLt
from wpk.providers.reference import reference_output
from wpk.runtime.cuda.device import Device
from wpk.runtime.parts import Parts
from wpk.runtime.plan import Arg, BufferSpec, Plan, Port, Step
from wpk.runtime.ports import numpy_dtype

DTYPES = ("float32", "float16", "bfloat16")
GELU = "mul(mul({x},0.5),add(erf(mul({x},0.7071067811865476)),1.0))"
TANH_GELU = "mul(mul({x},0.5),add(tanh(mul(add({x},mul(mul({x},{x}),mul({x},0.044715))),0.7978845608028654)),1.0))"


def t(dtype: str, *shape: int, layout: str = "ROW") -> TensorType:
    """A type."""
    return TensorType(dtype, shape, layout)


def gemm(
    m: int, n: int, k: int, dtype: str = "float32", trans: tuple[int, int] = (0, 0), added: tuple[TensorType, ...] = (),
    epilogue: str = "", constants: tuple[int, ...] = (1,), tf32: bool = False, result: str = "",
) -> Workload:  # fmt: skip
    """A product; ``added`` are the epilogue's operands."""
    a, b = (k, m) if trans[0] else (m, k), (n, k) if trans[1] else (k, n)
    attrs = (*((("precision", "tf32"),) if tf32 else ()), ("trans_a", trans[0]), ("trans_b", trans[1]))
    types, out = (t(dtype, *a), t(dtype, *b), *added), t(result or dtype, m, n)
    return Workload("gemm", types, (out,), attrs, parse(epilogue) if epilogue else None, constants)


def matmul(
    a: tuple[int, ...], b: tuple[int, ...], dtype: str = "float32", added: tuple[TensorType, ...] = (), epilogue: str = "",
    constants: tuple[int, ...] = (),
) -> Workload:  # fmt: skip
    """A batched product."""
    lead = max(len(a), len(b)) - 2
    sizes = [(*[1] * (lead + 2 - len(s)), *s) for s in (a, b)]
    out = (*(max(x, y) for x, y in zip(sizes[0][:-2], sizes[1][:-2], strict=True)), a[-2], b[-1])
    types = (t(dtype, *a), t(dtype, *b), *added)
    return Workload("matmul", types, (t(dtype, *out),), (), parse(epilogue) if epilogue else None, constants)


def conv(
    n: int, ic: int, oc: int, size: tuple[int, int], dtype: str = "float32", layouts: tuple[str, str] = ("ROW", "ROW"),
    epilogue: str = "", residual: bool = False, result: str = "", kernel: int = 1, stride: int = 1, group: int = 1,
) -> Workload:  # fmt: skip
    """A convolution; with an epilogue, its bias is operand 2 and constant, its residual operand 3."""
    attrs: tuple[tuple[str, Attr], ...] = (
        ("dilations", (1, 1)), ("group", group), ("pads", (kernel // 2,) * 4), ("strides", (stride, stride)),
    )  # fmt: skip
    out = t(result or dtype, n, oc, *(-(-s // stride) for s in size), layout=layouts[1])
    types = [t(dtype, n, ic, *size, layout=layouts[0]), t(dtype, oc, ic // group, kernel, kernel)]
    types += [t("float32", 1, oc, 1, 1)] if epilogue else []
    types += [out] if residual else []
    constants = (1, 2) if epilogue else (1,)
    return Workload("conv", tuple(types), (out,), attrs, parse(epilogue) if epilogue else None, constants)


def workloads() -> Iterator[Workload]:
    """All of them."""
    for dtype in DTYPES:
        for trans in ((0, 0), (0, 1), (1, 0), (1, 1)):
            yield gemm(24, 40, 16, dtype, trans)
            yield gemm(24, 40, 16, dtype, trans, (t("float32", 40),), "relu(add(acc,in2))", (1, 2))
        yield from _epilogues(dtype)
        yield from _batches(dtype)
        for layouts in (("ROW", "ROW"), ("NHWC", "NHWC"), ("ROW", "NHWC"), ("NHWC", "ROW")):
            yield from _pointwise(dtype, layouts)
    for trans in ((0, 0), (0, 1), (1, 0), (1, 1)):
        yield gemm(16, 32, 48, "float32", trans, (t("float32", 1, 32),), "add(acc,in2)", (1, 2), tf32=True)
    yield gemm(8, 24, 32, "float16", result="float32")
    yield gemm(8, 24, 32, "bfloat16", (0, 1), (t("float32", 24),), "add(in2,acc)", (1,), result="float32")
    yield conv(1, 16, 24, (1, 1), "float16", epilogue="relu(add(acc,in2))", result="float32")


def _epilogues(dtype: str) -> Iterator[Workload]:
    bias, whole = t(dtype, 40), t(dtype, 24, 40)
    given: dict[str, tuple[TensorType, ...]] = {
        "relu(acc)": (), "mul(acc,0.125)": (), "relu(div(acc,4.0))": (), TANH_GELU.format(x="acc"): (),
        "add(acc,in2)": (bias,), "max(add(in2,acc),0.0)": (t(dtype, 1, 40),), TANH_GELU.format(x="add(acc,in2)"): (bias,),
        "add(in2,mul(acc,0.5))": (bias,), "add(acc,in3)": (bias, whole), "relu(add(acc,in2))": (whole,),
        "relu(add(add(acc,in2),in3))": (bias, whole), "add(add(acc,in3),in2)": (bias, whole),
    }  # fmt: skip
    for epilogue, added in given.items():
        yield gemm(24, 40, 16, dtype, (0, 1), added, epilogue, (1,))
    yield gemm(16, 16, 16, dtype, (0, 0), (), "add(acc,in0)")
    # constants of other dtypes and extents: packing makes them what the library wants
    for wide in (t("float32", 1), t("float32", 24, 1), t("float32", 24, 40)):
        yield gemm(24, 40, 16, dtype, (0, 0), (wide,), "relu(add(acc,in2))", (1, 2))
    if dtype != "float32":
        yield gemm(24, 40, 16, dtype, (0, 0), (t("float32", 40),), GELU.format(x="add(acc,in2)"), (1, 2))


def _batches(dtype: str) -> Iterator[Workload]:
    yield matmul((2, 3, 8, 16), (2, 3, 16, 24), dtype)
    yield matmul((8, 16), (5, 16, 24), dtype)
    yield matmul((5, 8, 16), (16, 24), dtype, (t(dtype, 24),), "relu(add(acc,in2))")
    yield matmul((5, 8, 16), (1, 16, 24), dtype, (t(dtype, 5, 8, 24),), "add(in2,acc)")
    yield matmul((2, 3, 8, 16), (2, 3, 16, 24), dtype, (t(dtype, 1, 1, 1, 24),), "add(div(acc,4.0),in2)")
    yield matmul((2, 3, 8, 16), (2, 3, 16, 24), dtype, (t(dtype, 8, 24),), "add(acc,in2)")
    yield matmul((5, 8, 16), (5, 16, 24), dtype, (t("float32", 8, 1),), "add(acc,in2)", (2,))
    yield matmul((5, 8, 16), (5, 16, 24), dtype, (t("float32", 5, 1, 1),), "add(acc,in2)", (2,))
    yield matmul((5, 8, 16), (16, 24), dtype, (t(dtype, 8, 24),), "relu(add(acc,in2))")  # one matrix, but no tall product


def _pointwise(dtype: str, layouts: tuple[str, str]) -> Iterator[Workload]:
    for n in (1, 2):
        yield conv(n, 16, 24, (5, 4), dtype, layouts)
        yield conv(n, 16, 24, (5, 4), dtype, layouts, "relu(add(acc,in2))")
    yield conv(2, 16, 24, (1, 1), dtype, layouts, "add(acc,in2)")
    if layouts[1] == "NHWC":
        yield conv(2, 16, 24, (5, 4), dtype, layouts, "relu(add(add(acc,in2),in3))", residual=True)


#: what :func:`chain` runs twice
CHAINED = gemm(6, 16, 16, "float32", (0, 1), (t("float32", 16),), "relu(add(acc,in2))", (1, 2))


def feeds_of(w: Workload) -> list[np.ndarray]:
    """Random logical operands."""
    rng = np.random.default_rng(len(w.key))
    return [rng.normal(size=x.shape).astype(np.float32).astype(numpy_dtype(x.dtype)) for x in w.inputs]


def placed(device: Device, provider: CublasLt, w: Workload, feeds: Sequence[np.ndarray], target: Target) -> list[int]:
    """Pointers to the operands as the code wants them, and to an output of NaN."""
    packed = iter(provider.pack(w, {}, [feeds[i] for i in w.constants], target))
    arrays = [next(packed) if i in w.constants else to_layout(a, w.inputs[i].layout) for i, a in enumerate(feeds)]
    return [_put(device, a) for a in (*arrays, np.full(w.outputs[0].nbytes, 0xFF, np.uint8))]


def checked(
    device: Device, provider: CublasLt, w: Workload, target: Target, algorithm: int = 0, feeds: Sequence[np.ndarray] = ()
) -> Verdict:
    """Builds, goes through JSON, runs, compares with the reference."""
    name = [str(c["algorithm"]) for c in provider.space(w, target).enumerate()][algorithm]
    code = provider.build(w, {"algorithm": name}, target)
    call = device.library(code.kind, json.loads(json.dumps(code.spec)))
    given = feeds or feeds_of(w)
    pointers = placed(device, provider, w, given, target)
    try:
        call(device.stream, pointers)
        found = np.empty(w.outputs[0].physical, numpy_dtype(w.outputs[0].dtype))
        device.download(pointers[-1], found)
    finally:
        for pointer in pointers:
            device.free(pointer)
    return check_outputs([found], reference_output(w, given), w.outputs, _tolerance(w, "direct"))


def chain(provider: CublasLt, w: Workload, feeds: Sequence[np.ndarray], target: Target) -> Parts:
    """A plan that feeds :data:`CHAINED` its own result once."""
    config = provider.space(w, target).default()
    extents = {"outputs": 1, "bytes": [x.nbytes for x in (*w.inputs, *w.outputs)]}
    spec = {**(provider.build(w, config, target).spec or {}), **extents}
    weights = dict(zip(("w", "b"), provider.pack(w, config, feeds[1:], target), strict=True))
    size = w.outputs[0].nbytes
    buffers = (
        BufferSpec("input", w.inputs[0].nbytes, "x"), BufferSpec("weight", weights["w"].nbytes, "w"),
        BufferSpec("weight", weights["b"].nbytes, "b"), BufferSpec("arena", size), BufferSpec("output", size, "y"),
    )  # fmt: skip
    arguments = [(0, 1, 2, 3), (3, 1, 2, 4)]
    steps = tuple(Step(f"s{i}", "cublaslt", tuple(map(Arg, a)), spec=spec) for i, a in enumerate(arguments))
    ends = (Port("x", "float32", w.inputs[0].shape),), (Port("y", "float32", w.outputs[0].shape),)
    plan = Plan("m", *ends, buffers, steps, size, target.to_json(), target.fingerprint, (), None)
    return Parts(plan, {}, weights, {}, {})


def _put(device: Device, array: np.ndarray) -> int:
    pointer = device.allocate(array.nbytes)
    device.upload(pointer, np.ascontiguousarray(array))
    return pointer
