"""Hand-written kernels, each with its NumPy meaning: what the interpreter and every printer must agree on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wpk.dsl.ir import (
    Alloc,
    Binary,
    Buffer,
    Cast,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Prefetch,
    Scope,
    Select,
    Stmt,
    Store,
    Unary,
    Var,
    wrap,
)

Arrays = dict[str, np.ndarray]
F0, F1 = Const(0.0, "float32"), Const(1.0, "float32")
LOWEST = Const(-math.inf, "float32")


@dataclass(frozen=True)
class Example:
    """A kernel and the values of its outputs, given its inputs."""

    kernel: Kernel
    meaning: Callable[[Arrays], Arrays]
    tolerance: float = 1e-6

    def __str__(self) -> str:
        return self.kernel.name


def v(name: str) -> Var:
    """Short for Var."""
    return Var(name)


def loop(var: str, n: int | Expr, *body: Stmt, kind: LoopKind = "serial", start: int = 0, grain: int = 1) -> For:
    """``for var in start..n``."""
    return For(var, Const(start), wrap(n), kind, body, grain)


def unroll(var: str, n: int, *body: Stmt) -> For:
    """An unrolled loop."""
    return loop(var, n, *body, kind="unroll")


def lanes(var: str, n: int, *body: Stmt) -> For:
    """A vector loop."""
    return loop(var, n, *body, kind="vector")


def ld(name: str, *indices: Expr | int) -> Load:
    """A load."""
    return Load(name, tuple(map(wrap, indices)))


def st(name: str, indices: tuple[Expr | int, ...], value: Expr, op: str = "") -> Store:
    """A store."""
    return Store(name, tuple(map(wrap, indices)), value, op)


def buf(name: str, *shape: int, scope: Scope = "register", dtype: str = "float32") -> Buffer:
    """Storage that a kernel allocates."""
    return Buffer(name, shape, dtype, scope)


def inp(name: str, *shape: int, dtype: str = "float32") -> Buffer:
    """An input parameter."""
    return Buffer(name, shape, dtype)


def out(name: str, *shape: int, dtype: str = "float32") -> Buffer:
    """An output parameter."""
    return Buffer(name, shape, dtype, access="out")


def fmax(a: Expr, b: Expr) -> Binary:
    """max(a, b)."""
    return Binary("max", a, b)


def conv1x1(pixels: int, tile: int, channels: int, vectors: int, width: int, depth: int) -> Example:
    """A 1x1 convolution on (pixels, channels): register tile ``tile`` x ``vectors``, unrolled by ``depth``, fused ReLU."""
    acc = buf("acc", tile, vectors, width)
    c, ln, p = v("co") * depth + v("ci"), v("lane"), v("p") * tile + v("i")
    column = v("j") * width + ln
    tiled: Callable[..., Stmt] = lambda *body: unroll("i", tile, unroll("j", vectors, lanes("lane", width, *body)))  # noqa: E731
    at = (v("i"), v("j"), ln)
    zero = tiled(st("acc", at, F0))
    step = tiled(st("acc", at, ld("x", p, c) * ld("w", c, column), "+"))
    done = tiled(st("y", (p, column), fmax(ld("acc", *at) + ld("b", column), F0)))
    ahead = Prefetch("w", (v("co") * depth + depth, Const(0)))
    work = (zero, loop("co", channels // depth, ahead, unroll("ci", depth, step)), done)
    body = loop("p", pixels // tile, Alloc(acc, work), kind="parallel", grain=2)
    n = vectors * width
    params = (inp("x", pixels, channels), inp("w", channels, n), inp("b", n), out("y", pixels, n))
    kernel = Kernel(f"conv1x1_{tile}x{n}", params, (body,))
    return Example(kernel, lambda a: {"y": np.maximum(a["x"] @ a["w"] + a["b"], 0)}, 1e-5)


def max_pool(h: int, w: int, width: int) -> Example:
    """3x3 max pooling, stride 2, padding 1, channels in lanes; the guard is the same for all lanes."""
    oh, ow = (h + 1) // 2, (w + 1) // 2
    row, col, ln = v("oh") * 2 + v("kh") - 1, v("ow") * 2 + v("kw") - 1, v("lane")
    inside = (Const(-1) < row) & (row < h) & (Const(-1) < col) & (col < w)
    value = Select(inside, ld("x", row, col, ln), LOWEST)
    taps = unroll("kh", 3, unroll("kw", 3, lanes("lane", width, st("m", (ln,), value, "max"))))
    done = lanes("lane", width, st("y", (v("oh"), v("ow"), ln), ld("m", ln)))
    start = lanes("lane", width, st("m", (ln,), LOWEST))
    body = loop("oh", oh, loop("ow", ow, Alloc(buf("m", width), (start, taps, done))), kind="parallel")

    def meaning(a: Arrays) -> Arrays:
        x = np.pad(a["x"], ((1, 2), (1, 2), (0, 0)), constant_values=-np.inf)
        taps = [x[i : i + 2 * oh : 2, j : j + 2 * ow : 2] for i in range(3) for j in range(3)]
        return {"y": np.max(taps, axis=0)}

    return Example(Kernel("max_pool", (inp("x", h, w, width), out("y", oh, ow, width)), (body,)), meaning)


def softmax(rows: int, n: int, width: int) -> Example:
    """Rows of n with lanes along the row: horizontal max and sum, exp, division by the sum."""
    r, k = v("r"), v("k") * width + v("lane")
    row: Callable[..., Stmt] = lambda *body: loop("k", n // width, lanes("lane", width, *body))  # noqa: E731
    body = loop(
        "r", rows,
        Alloc(buf("top"), (
            st("top", (), LOWEST),
            row(st("top", (), ld("x", r, k), "max")),
            Alloc(buf("total"), (
                st("total", (), F0),
                row(st("e", (k,), Unary("exp", ld("x", r, k) - ld("top")))),
                row(st("total", (), ld("e", k), "+")),
                row(st("y", (r, k), ld("e", k) / ld("total"))),
            )),
        )),
        kind="parallel",
    )  # fmt: skip
    inner = For(body.var, body.start, body.stop, body.kind, (Alloc(buf("e", n, scope="thread"), body.body),))

    def meaning(a: Arrays) -> Arrays:
        e = np.exp(a["x"].astype(np.float64) - a["x"].max(1, keepdims=True))
        return {"y": e / e.sum(1, keepdims=True)}

    return Example(Kernel("softmax", (inp("x", rows, n), out("y", rows, n)), (inner,)), meaning, 2e-6)


def masked_tail(n: int, width: int) -> Example:
    """``y = 2 x + 1`` over n elements, the last vector masked; an accumulator updated under the mask; and a shifted read."""
    at = v("k") * width + v("lane")
    body = loop(
        "k", -(-n // width),
        lanes(
            "lane", width,
            If(at < n, (st("y", (at,), ld("x", at) * 2.0 + F1), st("s", (v("lane"),), ld("x", at), "+"))),
            If(at < n, (st("z", (at,), Select(Const(0) < at, ld("x", at - 1), Const(7.0, "float32"))),)),
        ),
    )  # fmt: skip
    start = lanes("lane", width, st("s", (v("lane"),), F0))
    done = lanes("lane", width, st("t", (), ld("s", v("lane")), "+"))
    whole = Alloc(buf("s", width), (start, body, st("t", (), F0), done))
    params = (inp("x", n), out("y", n), out("z", n), out("t"))

    def meaning(a: Arrays) -> Arrays:
        x = a["x"]
        return {"y": 2 * x + 1, "z": np.concatenate([[7.0], x[:-1]]), "t": x.sum(dtype=np.float64)}

    return Example(Kernel("masked_tail", params, (whole,)), meaning, 1e-5)


def horizontal(n: int, width: int) -> Example:
    """Sum, max and min of a row whose tail is masked, and an in-place style scalar accumulation."""
    at = v("k") * width + v("lane")
    ops = (("s", "+", F0), ("hi", "max", LOWEST), ("lo", "min", Const(math.inf, "float32")))
    starts = tuple(st(name, (), first) for name, _, first in ops)
    parts = tuple(st(name, (), ld("x", at), op) for name, op, _ in ops)
    body = loop("k", -(-n // width), lanes("lane", width, If(at < n, parts)))
    params = (inp("x", n), out("s"), out("hi"), out("lo"))

    def meaning(a: Arrays) -> Arrays:
        return {"s": a["x"].sum(dtype=np.float64), "hi": a["x"].max(), "lo": a["x"].min()}

    return Example(Kernel("horizontal", params, (*starts, body)), meaning, 1e-5)


BT = (4, 0, -5, 0, 1, 0, 0, -4, -4, 1, 1, 0, 0, 4, -4, -1, 1, 0, 0, -2, -1, 2, 1, 0, 0, 2, -1, -2, 1, 0, 0, 4, 0, -5, 0, 1)


def transform(width: int) -> Example:
    """The input transform of Winograd F(4,3), ``BT d B``, with a constant table, unrolled."""
    table = Buffer("BT", (6, 6), "float32", "global", "in", tuple(map(float, BT)))
    ln, i, j, k = v("lane"), v("i"), v("j"), v("k")
    left = st("t", (i, j, ln), ld("BT", i, k) * ld("d", k, j, ln), "+")
    right = st("y", (v("n"), i, j, ln), ld("t", i, k, ln) * ld("BT", j, k), "+")
    cube: Callable[..., Stmt] = lambda *body: unroll("i", 6, unroll("j", 6, *body))  # noqa: E731
    body = (
        cube(lanes("lane", width, st("d", (i, j, ln), ld("x", v("n"), i, j, ln)), st("t", (i, j, ln), F0))),
        cube(unroll("k", 6, lanes("lane", width, left))),
        cube(lanes("lane", width, st("y", (v("n"), i, j, ln), F0))),
        cube(unroll("k", 6, lanes("lane", width, right))),
    )
    registers = Alloc(buf("d", 6, 6, width), (Alloc(buf("t", 6, 6, width), body),))
    whole = Alloc(table, (loop("n", 3, registers, kind="parallel"),))
    matrix = np.array(BT, np.float64).reshape(6, 6)

    def meaning(a: Arrays) -> Arrays:
        return {"y": np.einsum("ik,nklc,jl->nijc", matrix, a["x"].astype(np.float64), matrix)}

    return Example(Kernel("transform", (inp("x", 3, 6, 6, width), out("y", 3, 6, 6, width)), (whole,)), meaning, 2e-5)


def two_phases(rows: int, n: int, width: int) -> Example:
    """Row sums into shared scratch in one parallel loop; columns scaled by the total in the next; serial work between."""
    r, at = v("r"), v("k") * width + v("lane")
    first = loop(
        "r", rows,
        st("sums", (r,), F0),
        loop("k", n // width, lanes("lane", width, st("sums", (r,), ld("x", r, at), "+"))),
        kind="parallel",
    )  # fmt: skip
    total = (st("total", (0,), F0), loop("r", rows, st("total", (0,), ld("sums", r), "+")))
    second = loop(
        "r", rows, loop("k", n // width, lanes("lane", width, st("y", (r, at), ld("x", r, at) * ld("total", 0)))),
        kind="parallel", grain=3,
    )  # fmt: skip
    inner = Alloc(buf("total", 1, scope="shared"), (*total, second))
    whole = Alloc(buf("sums", rows, scope="shared"), (first, inner))

    def meaning(a: Arrays) -> Arrays:
        return {"y": a["x"] * a["x"].sum(dtype=np.float64)}

    return Example(Kernel("two_phases", (inp("x", rows, n), out("y", rows, n)), (whole,)), meaning, 1e-4)


def thread_scratch(jobs: int, n: int, width: int) -> Example:
    """Three thread buffers, two of them with disjoint lives in the same memory; loads through a transposing (strided) walk."""
    j, at = v("j"), v("k") * width + v("lane")
    row: Callable[..., Stmt] = lambda *body: loop("k", n // width, lanes("lane", width, *body))  # noqa: E731
    reverse = wrap(n - 1) - at
    stages = (
        Alloc(buf("a", n, scope="thread"), (
            row(st("a", (at,), ld("x", at, j) + F1)),
            row(st("keep", (at,), ld("a", reverse) * 3.0)),
        )),
        Alloc(buf("b", n, scope="thread"), (
            row(st("b", (reverse,), ld("keep", at))),
            row(st("y", (at, j), ld("b", at) - ld("x", at, j))),
        )),
    )  # fmt: skip
    whole = loop("j", jobs, Alloc(buf("keep", n, scope="thread"), stages), kind="parallel")

    def meaning(a: Arrays) -> Arrays:
        return {"y": 3 * (a["x"] + 1) - a["x"]}

    return Example(Kernel("thread_scratch", (inp("x", n, jobs), out("y", n, jobs)), (whole,)), meaning)


def private_registers(n: int, width: int) -> Example:
    """Registers that belong to a lane; nested Selects on values; a Select on the lane's position; casts of conditions."""
    at, k = v("o") * width + v("lane"), v("k")
    x = ld("t")
    value = Select(x < F0, x * 0.5, Select(x > F1, F1, x))
    edge = Select(Const(2) < Binary("%", at, Const(5)), value, Unary("neg", value))
    body = lanes(
        "lane", width,
        Alloc(buf("t"), (
            st("t", (), F0),
            loop("k", 3, st("t", (), ld("x", k, at), "+")),
            st("y", (at,), edge + Cast("float32", x > F0)),
        )),
    )  # fmt: skip
    whole = loop("o", n // width, body)

    def meaning(a: Arrays) -> Arrays:
        t = a["x"][0] + a["x"][1] + a["x"][2]
        value = np.where(t < 0, t * 0.5, np.minimum(t, 1))
        return {"y": np.where(np.arange(n) % 5 > 2, value, -value) + (t > 0)}

    return Example(Kernel("private_registers", (inp("x", 3, n), out("y", n)), (whole,)), meaning)


def gather(n: int, width: int) -> Example:
    """An index tensor (int64), a layout change with // and % of the lane, and integer work in int32."""
    at = v("k") * width + v("lane")
    body = loop(
        "k", n // width,
        lanes(
            "lane", width,
            st("y", (at,), ld("x", ld("i", at))),
            st("z", (at // 4, at % 4), Cast("int32", ld("i", at)) * Const(3, "int32") + Cast("int32", at)),
        ),
    )  # fmt: skip
    params = (inp("x", n), inp("i", n, dtype="int64"), out("y", n), out("z", n // 4, 4, dtype="int32"))

    def meaning(a: Arrays) -> Arrays:
        return {"y": a["x"][a["i"]], "z": (a["i"] * 3 + np.arange(n)).reshape(-1, 4)}

    return Example(Kernel("gather", params, (body,)), meaning)


def half_formats(n: int, width: int) -> Example:
    """bfloat16 (as bits) and float16 storage, computed in float32."""
    at = v("k") * width + v("lane")
    body = loop(
        "k", n // width,
        lanes("lane", width, st("y", (at,), ld("b", at) + ld("h", at)), st("r", (at,), ld("h", at) * 0.3)),
        st("s", (v("k"),), ld("b", v("k") * width) * 2.0),
    )  # fmt: skip
    params = (
        inp("b", n, dtype="bfloat16"), inp("h", n, dtype="float16"),
        out("y", n), out("r", n, dtype="bfloat16"), out("s", n // width, dtype="float16"),
    )  # fmt: skip

    def meaning(a: Arrays) -> Arrays:
        wide = (a["b"].astype(np.uint32) << 16).view(np.float32)
        h = a["h"].astype(np.float32)
        bits = (h * np.float32(0.3)).view(np.uint32).astype(np.uint64)
        return {
            "y": wide + h,
            "r": ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16),
            "s": (2 * wide[::width]).astype(np.float16),
        }

    return Example(Kernel("half_formats", params, (body,)), meaning)


def examples(width: int) -> list[Example]:
    """All of them with ``width`` lanes."""
    return [
        conv1x1(12, 3, 8, 2, width, 4),
        max_pool(7, 6, width),
        softmax(3, 4 * width, width),
        masked_tail(3 * width - width // 2 - 1, width),
        horizontal(2 * width + 1, width),
        transform(width),
        two_phases(5, 2 * width, width),
        thread_scratch(4, 2 * width, width),
        private_registers(2 * width, width),
        gather(2 * width, width),
        half_formats(2 * width, width),
    ]


def arguments(kernel: Kernel, seed: int = 0) -> Arrays:
    """Seeded inputs, and outputs full of NaN (or of a mark)."""
    rng = np.random.default_rng(seed)
    return {p.name: _argument(p, rng) for p in kernel.params}


def _argument(p: Buffer, rng: np.random.Generator) -> np.ndarray:
    dtype = np.dtype("uint16" if p.dtype == "bfloat16" else p.dtype)
    if p.access == "out":
        return np.full(p.shape, np.nan if dtype.kind == "f" else 99, dtype)
    if p.dtype == "bfloat16":
        return (rng.normal(size=p.shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if dtype.kind == "f":
        return rng.normal(size=p.shape).astype(dtype)
    return rng.integers(0, p.shape[0], p.shape).astype(dtype)
