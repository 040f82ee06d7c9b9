"""One small workload or more for each operator and dtype that GPU families take: what all of them are tried on."""

from __future__ import annotations

from collections.abc import Iterator

from wpk.core.pointwise import parse
from wpk.core.tensor import TensorType
from wpk.core.workload import Attr, Workload

DTYPES = ("float32", "float16", "bfloat16")
LAYOUTS = ("ROW", "NHWC")

_RELU = "relu(add(acc,in2))"


def conv(
    c: int, oc: int, size: int, kernel: int, stride: int = 1, group: int = 1, dtype: str = "float32", layout: str = "ROW",
    tf32: bool = False, result: str = "",
) -> Workload:  # fmt: skip
    """A padded convolution with bias and ReLU on a square image."""
    pad = kernel // 2
    out = (size + 2 * pad - kernel) // stride + 1
    attrs: tuple[tuple[str, Attr], ...] = (
        ("dilations", (1, 1)), ("group", group), ("pads", (pad, pad, pad, pad)),
        *((("precision", "tf32"),) if tf32 else ()), ("strides", (stride, stride)),
    )  # fmt: skip
    types = (
        TensorType(dtype, (1, c, size, size), layout), TensorType(dtype, (oc, c // group, kernel, kernel)),
        TensorType("float32", (1, oc, 1, 1)),
    )  # fmt: skip
    return Workload("conv", types, (TensorType(result or dtype, (1, oc, out, out), layout),), attrs, parse(_RELU), (1, 2))


def gemm(m: int, n: int, k: int, dtype: str = "float32", tf32: bool = False, constant: bool = True) -> Workload:
    """A product with weights as exporters store them, (N, K), and a bias."""
    attrs: tuple[tuple[str, Attr], ...] = (*((("precision", "tf32"),) if tf32 else ()), ("trans_a", 0), ("trans_b", 1))
    types = TensorType(dtype, (m, k)), TensorType(dtype, (n, k)), TensorType("float32", (n,))
    return Workload("gemm", types, (TensorType(dtype, (m, n)),), attrs, parse("add(acc,in2)"), (1, 2) if constant else (2,))


def matmul(batch: int, m: int, n: int, k: int, dtype: str = "float32", tf32: bool = False) -> Workload:
    """A batched product of two activations."""
    attrs: tuple[tuple[str, Attr], ...] = (("precision", "tf32"),) if tf32 else ()
    types = TensorType(dtype, (1, batch, m, k)), TensorType(dtype, (1, batch, k, n))
    return Workload("matmul", types, (TensorType(dtype, (1, batch, m, n)),), attrs)


def attention(dtype: str, lengths: tuple[int, int, int], size: int, rows: bool = True, tf32: bool = False) -> Workload:
    """Two heads with a mask; ``lengths``: batch, queries, keys."""
    batch, queries, keys = lengths
    attrs: tuple[tuple[str, Attr], ...] = (
        ("heads", 2), ("packed", 0), *((("precision", "tf32"),) if tf32 else ()), ("rows", int(rows)), ("safe", int(tf32)),
        ("scores", "add(mul(acc,0.25),in3)"),
    )  # fmt: skip
    q, k = TensorType(dtype, (batch, queries, 2 * size)), TensorType(dtype, (batch, keys, 2 * size))
    out = q if rows else TensorType(dtype, (batch, 2, queries, size))
    return Workload("attention", (q, k, k, TensorType("float32", (batch, 1, 1, keys))), (out,), attrs)


def pool(kind: str, size: int, kernel: int, stride: int, pad: int, dtype: str, layout: str) -> Workload:
    """A pooling of 24 channels."""
    out = (size + 2 * pad - kernel) // stride + 1
    attrs: tuple[tuple[str, Attr], ...] = (
        ("count_include_pad", 0), ("dilations", (1, 1)), ("kernel", (kernel, kernel)), ("kind", kind),
        ("pads", (pad, pad, pad, pad)), ("strides", (stride, stride)),
    )  # fmt: skip
    types = TensorType(dtype, (1, 24, size, size), layout), TensorType(dtype, (1, 24, out, out), layout)
    return Workload("pool", types[:1], types[1:], attrs)


def plain(op: str, shape: tuple[int, ...], dtype: str, layout: str = "ROW", **attrs: Attr) -> Workload:
    """An operator whose result has its input's type."""
    t = TensorType(dtype, shape, layout)
    return Workload(op, (t,), (t,), tuple(sorted(attrs.items())))


def workloads() -> Iterator[Workload]:
    """All of them."""
    for dtype in DTYPES:
        for tf32 in (False, True) if dtype == "float32" else (False,):
            yield gemm(40, 48, 64, dtype, tf32)
            yield matmul(2, 24, 32, 40, dtype, tf32)
            for layout in LAYOUTS:
                yield conv(16, 24, 9, 3, dtype=dtype, layout=layout, tf32=tf32)
                yield conv(32, 16, 6, 1, 2, dtype=dtype, layout=layout, tf32=tf32)
                yield conv(3, 16, 15, 7, 2, dtype=dtype, layout=layout, tf32=tf32)
        if dtype != "float32":  # several rounds of a pipeline, and blocks that fill a multiprocessor
            yield gemm(200, 272, 704, dtype)
            yield gemm(200, 272, 704, dtype, constant=False)
            yield conv(128, 72, 18, 3, dtype=dtype, layout="NHWC")
        yield gemm(1, 64, 96, dtype)
        yield conv(64, 24, 9, 3, dtype=dtype, layout="NHWC")  # whole steps of channels
        yield conv(16, 24, 1, 1, dtype=dtype, result="float32")  # the last layer of a model in lower precision
        yield plain("softmax", (6, 70), dtype, axis=1)
        yield Workload(
            "transpose", (TensorType(dtype, (2, 9, 20)),), (TensorType(dtype, (2, 20, 9)),), (("perm", (0, 2, 1)),)
        )
        for layout in LAYOUTS:
            yield conv(24, 24, 9, 3, group=24, dtype=dtype, layout=layout)
            yield conv(24, 48, 10, 5, 2, group=24, dtype=dtype, layout=layout)  # two filters for each channel
            yield pool("max", 9, 3, 2, 1, dtype, layout)
            yield pool("avg", 7, 7, 1, 0, dtype, layout)
            yield plain("lrn", (1, 24, 5, 5), dtype, layout, alpha=1e-4, beta=0.75, bias=1.0, size=5)
            t = TensorType(dtype, (1, 24, 5, 5), layout)
            yield Workload("eltwise", (t, t), (t,), (), parse("relu(add(in0,in1))"))
            other = t.with_layout("NHWC" if layout == "ROW" else "ROW")
            yield Workload("convert", (t,), (other,))
            yield from joins(dtype, layout)
        yield from rest(dtype)


def joins(dtype: str, layout: str) -> Iterator[Workload]:
    """Two parts of 6 and 10 channels, and their whole."""
    parts = tuple(TensorType(dtype, (2, c, 3, 4), layout) for c in (6, 10))
    whole = (TensorType(dtype, (2, 16, 3, 4), layout),)
    yield Workload("concat", parts, whole, (("axis", 1),))
    yield Workload("split", whole, parts, (("axis", 1), ("sizes", (6, 10))))


def rest(dtype: str) -> Iterator[Workload]:
    """Operators of transformers."""
    rows, table = TensorType(dtype, (6, 48)), TensorType(dtype, (20, 16))
    yield Workload("norm", (rows,), (rows,), (("axis", 1), ("epsilon", 1e-5), ("kind", "layer")))
    yield attention(dtype, (2, 20, 24), 16)
    if dtype == "float32":
        yield attention(dtype, (1, 17, 33), 36, rows=False, tf32=True)
    yield Workload("reduce", (rows,), (TensorType(dtype, (6, 1)),), (("axes", (1,)), ("kind", "mean")))
    yield Workload("softmax", (TensorType(dtype, (3, 10, 8)),), (TensorType(dtype, (3, 10, 8)),), (("axis", 1),))
    resized = (
        ("coordinate", "half_pixel"), ("kind", "linear"), ("rounding", "round_prefer_floor"), ("scales", (2.0, 2.0)),
        ("sizes", (8, 8)),
    )  # fmt: skip
    yield Workload("resize", (TensorType(dtype, (1, 3, 4, 4)),), (TensorType(dtype, (1, 3, 8, 8)),), resized)
    yield Workload("gather", (table, TensorType("int64", (5,))), (TensorType(dtype, (5, 16)),), (("axis", 0),), None, (0,))
