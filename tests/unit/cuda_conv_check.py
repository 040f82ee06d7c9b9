"""Convolution workloads for GPU families, and what any config of them must give: that of sliding windows in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from dsl_cuda_check import H200, emulated, interpreted
from test_dsl_cuda_mma import real, rounded
from test_family_conv import conv, reference

from wpk.core.pointwise import parse
from wpk.core.result import Config
from wpk.core.tensor import TensorType, from_layout, to_layout
from wpk.core.workload import Workload
from wpk.kernels.family import Family

SAME3 = (1, 1, 1, 1)
Maker = Callable[[str], Workload]

#: name -> the workload in a layout
CASES: dict[str, Maker] = {
    "pointwise": lambda lay: conv((1, 16, 7, 7), 24, 1, layouts=(lay, lay), residual=True),
    "pointwise-strided": lambda lay: conv((2, 8, 7, 9), 12, 1, 2, layouts=(lay, lay)),
    "padded": lambda lay: conv((1, 16, 9, 7), 24, 3, 1, SAME3, layouts=(lay, lay), residual=True),
    "odd": lambda lay: conv((1, 5, 9, 10), 7, 3, 2, SAME3, layouts=(lay, lay), residual=True),
    "stem": lambda lay: conv((1, 3, 17, 15), 16, 7, 2, (3, 3, 3, 3), layouts=(lay, lay)),
    "groups": lambda lay: conv((1, 16, 6, 5), 24, 3, 1, SAME3, group=2, layouts=(lay, lay), residual=True),
    "one-channel-groups": lambda lay: conv((1, 6, 6, 5), 6, 3, 1, SAME3, group=6, layouts=(lay, lay)),
    "dilated": lambda lay: conv((1, 8, 11, 9), 16, 3, 1, (2, 2, 2, 2), dilation=2, layouts=(lay, lay)),
    "batch": lambda lay: conv((2, 8, 6, 5), 12, 3, 1, (0, 1, 1, 0), layouts=(lay, lay), residual=True, act="sigmoid({})"),
    "batch-groups": lambda lay: conv((3, 8, 5, 5), 8, 3, 2, SAME3, group=2, layouts=(lay, lay), residual=True),
}  # fmt: skip


def in_dtype(w: Workload, dtype: str) -> Workload:
    """The workload in another dtype; float32 with tf32 allowed."""
    turn = tuple(replace(t, dtype=dtype) for t in w.inputs), tuple(replace(t, dtype=dtype) for t in w.outputs)
    return replace(w, inputs=turn[0], outputs=turn[1], attrs=(*w.attrs, ("precision", "tf32")) if dtype == "float32" else w.attrs)


def feeds(w: Workload, seed: int) -> list[np.ndarray]:
    """Seeded inputs; values as tensor cores see them where they may be used."""
    rng = np.random.default_rng(seed)
    exact = dict(w.attrs).get("precision") != "tf32" and w.inputs[0].dtype == "float32"
    arrays = [rng.normal(size=t.shape) for t in w.inputs]
    return [a.astype(np.float32) if exact else rounded(a, t.dtype) for a, t in zip(arrays, w.inputs, strict=True)]


def check(
    family: Family, w: Workload, config: Config, *, emulate: bool = True, seed: int = 0, factor: float = 1.0
) -> None:
    """A config, interpreted or emulated, gives what the reference gives, up to ``factor`` times the rounding of its dtype."""
    assert family.matches(w, H200) is None, family.matches(w, H200)
    logical = feeds(w, seed)
    want = reference(w, [real(a) for a in logical])
    packed = iter(family.pack(w, config, [logical[i] for i in w.constants], H200))
    arrays: Sequence[np.ndarray] = [
        next(packed) if i in w.constants else to_layout(a, t.layout)
        for i, (a, t) in enumerate(zip(logical, w.inputs, strict=True))
    ]
    kernel = family.build(w, config, H200).kernel
    arrays = [a.reshape(p.shape) for a, p in zip(arrays, kernel.params, strict=False)]
    out = (emulated if emulate else interpreted)(kernel, arrays)
    got = real(from_layout(out.reshape(w.outputs[0].physical), w.outputs[0].shape, w.outputs[0].layout))
    error = factor * {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1.6e-2}[w.inputs[0].dtype]
    np.testing.assert_allclose(got, want, rtol=error, atol=error * float(np.abs(want).max()), err_msg=f"{w}\n{config}")


def with_constant_map(w: Workload) -> Workload:
    """The workload with a constant of the output's height and width added, and multiplied by a factor of each channel."""
    y = w.outputs[0].shape
    extra = TensorType(w.inputs[0].dtype, (1, 1, *y[2:])), TensorType(w.inputs[0].dtype, (1, y[1], *y[2:]))
    text = parse("relu(add(mul(add(acc,in2),in4),in3))")
    return replace(w, inputs=(*w.inputs[:3], *extra), epilogue=text, constants=(1, 2, 3, 4))
