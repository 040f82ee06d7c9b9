"""oneDNN and OpenBLAS calls, run through the native runtime, against ONNX Runtime and NumPy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from wpk.core.errors import InvalidConfig
from wpk.core.pointwise import parse
from wpk.core.target import Target, host_target
from wpk.core.tensor import TensorType, from_layout, to_layout
from wpk.core.workload import Workload
from wpk.measure.builder import build_runtime
from wpk.measure.toolchain import find_compiler
from wpk.providers.dnnl import encode
from wpk.providers.onednn import OneDnn
from wpk.providers.onednn_ops import Unsupported, layout_tag, lower
from wpk.providers.openblas import OpenBlas
from wpk.providers.protocol import Code
from wpk.runtime.native_api import Adapter, Native, Pool, load_native

ONEDNN, OPENBLAS = OneDnn(), OpenBlas()
needs_onednn = pytest.mark.skipif(ONEDNN.path is None, reason="oneDNN is not installed")
needs_openblas = pytest.mark.skipif(OPENBLAS.path is None, reason="OpenBLAS is not installed")
TARGET: Target = host_target(threads=2)
BLOCKED = f"NCHW{TARGET.lanes if TARGET.lanes in (8, 16) else 8}c"


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    folder: Path = tmp_path_factory.mktemp("cache")
    return load_native(build_runtime(TARGET.isa, find_compiler(), folder))


def tensor(*shape: int, layout: str = "ROW") -> TensorType:
    return TensorType("float32", shape, layout)


def run(
    native: Native, provider: OneDnn | OpenBlas, w: Workload, config: dict, arrays: Sequence[np.ndarray]
) -> np.ndarray:
    """The first output of ``w`` as the provider's code computes it, logical."""
    code = provider.build(w, config, TARGET)
    assert code.spec is not None
    constants = provider.pack(w, config, [arrays[i] for i in w.constants], TARGET)
    held = [to_layout(a, t.layout) for a, t in zip(arrays, w.inputs, strict=True)]
    for i, packed in zip(w.constants, constants, strict=True):
        held[i] = packed
    out = np.full(w.outputs[0].physical, np.nan, np.float32)
    call(native, code, [*held, out])
    return from_layout(out, w.outputs[0].shape, w.outputs[0].layout)


def call(native: Native, code: Code, arrays: Sequence[np.ndarray]) -> None:
    """Run a library call on arrays: inputs, then outputs."""
    pool = Pool(native, TARGET.threads)
    adapter = Adapter(native, code.kind, code.spec or {}, TARGET.threads)
    pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
    function = ctypes.CFUNCTYPE(ctypes.c_int, *(ctypes.c_void_p,) * 4)(adapter.call.fn)
    status = function(adapter.call.state, ctypes.cast(pointers, ctypes.c_void_p), None, pool.rt)
    adapter.close()
    pool.close()
    assert status == 0


def run_all(
    native: Native,
    provider: OneDnn | OpenBlas,
    w: Workload,
    expected: np.ndarray,
    arrays: Sequence[np.ndarray],
) -> None:
    """Every config of the provider's space gives ``expected``."""
    support = provider.supports(w, TARGET)
    assert support, support.reason
    configs = list(provider.space(w, TARGET).enumerate())
    assert configs
    for config in configs:
        found = run(native, provider, w, config, arrays)
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < 2e-6, (config, error)


def values(w: Workload, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(t.shape).astype(np.float32) for t in w.inputs]


def onnxruntime_result(op: str, inputs: Sequence[np.ndarray], **attributes: object) -> np.ndarray:
    names = [f"x{i}" for i in range(len(inputs))]
    ins = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape)
        for n, a in zip(names, inputs, strict=True)
    ]
    out = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node(op, names, ["y"], **attributes)], "g", ins, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, dict(zip(names, inputs, strict=True)))[0]
    return result


def conv(
    n: int, ci: int, co: int, size: int, k: int, stride: int = 1, group: int = 1, pad: int | None = None,
    epilogue: str | None = None, lay: tuple[str, str] = (BLOCKED, BLOCKED), dilation: int = 1,
) -> Workload:  # fmt: skip
    pad = k // 2 if pad is None else pad
    out = (size + 2 * pad - dilation * (k - 1) - 1) // stride + 1
    y = tensor(n, co, out, out, layout=lay[1])
    inputs = (tensor(n, ci, size, size, layout=lay[0]), tensor(co, ci // group, k, k), tensor(1, co, 1, 1), y)
    attrs = (
        ("dilations", (dilation,) * 2),
        ("group", group),
        ("pads", (pad,) * 4),
        ("strides", (stride,) * 2),
    )
    used = 2 if epilogue is None else 4 if "in3" in epilogue else 3
    return Workload(
        "conv", inputs[:used], (y,), attrs, parse(epilogue) if epilogue else None, (1, 2)[: used - 1]
    )


def conv_reference(w: Workload, arrays: Sequence[np.ndarray]) -> np.ndarray:
    keys = {"dilations": "dilations", "group": "group", "pads": "pads", "strides": "strides"}
    return onnxruntime_result("Conv", arrays[:2], **{keys[k]: v for k, v in w.attrs})


@needs_onednn
@pytest.mark.parametrize(
    "w",
    [
        conv(1, 32, 48, 14, 3),
        conv(2, 16, 32, 9, 3, stride=2),
        conv(1, 3, 32, 20, 7, stride=2, lay=("ROW", BLOCKED)),
        conv(1, 24, 40, 7, 1),
        conv(1, 64, 64, 7, 3, group=2),
        conv(1, 32, 32, 9, 3, group=32),
        conv(1, 16, 16, 12, 3, dilation=2, pad=2),
        conv(1, 32, 32, 10, 3, lay=("NHWC", "NHWC")),
    ],
    ids=lambda w: w.key,
)
def test_onednn_convolution(native: Native, w: Workload) -> None:
    arrays = values(w)
    run_all(native, ONEDNN, w, conv_reference(w, arrays), arrays)


@needs_onednn
@pytest.mark.parametrize("lay", [BLOCKED, "NHWC"])
def test_onednn_convolution_with_bias_residual_and_relu(native: Native, lay: str) -> None:
    w = conv(1, 24, 40, 9, 3, epilogue="relu(add(add(acc,in2),in3))", lay=(lay, lay))
    arrays = values(w)
    expected = np.maximum(conv_reference(w, arrays) + arrays[2] + arrays[3], 0)
    run_all(native, ONEDNN, w, expected, arrays)


@needs_onednn
@pytest.mark.parametrize(
    ("epilogue", "function"),
    [
        ("mul(acc,sigmoid(acc))", lambda v: v / (1 + np.exp(-v))),
        ("min(max(acc,0.0),6.0)", lambda v: np.clip(v, 0, 6)),
        ("div(sub(1.0,acc),4.0)", lambda v: (1 - v) / 4),
        ("tanh(neg(acc))", lambda v: np.tanh(-v)),
    ],
)
def test_onednn_elementwise_epilogues(native: Native, epilogue: str, function: object) -> None:
    w = conv(1, 16, 16, 6, 1, epilogue=epilogue)
    w = Workload(w.op, w.inputs[:2], w.outputs, w.attrs, w.epilogue, (1,))
    arrays = values(w)
    run_all(native, ONEDNN, w, function(conv_reference(w, arrays)), arrays)  # type: ignore[operator]


def gemm(
    m: int, n: int, k: int, trans_a: int = 0, trans_b: int = 0, constant: bool = True,
    epilogue: str = "relu(add(acc,in2))",
) -> Workload:  # fmt: skip
    a, b = tensor(*((k, m) if trans_a else (m, k))), tensor(*((n, k) if trans_b else (k, n)))
    attrs = (("trans_a", trans_a), ("trans_b", trans_b))
    return Workload(
        "gemm", (a, b, tensor(n)), (tensor(m, n),), attrs, parse(epilogue), (1, 2) if constant else (2,)
    )


GEMMS = [
    gemm(1, 40, 70, trans_b=1),
    gemm(5, 33, 64),
    gemm(4, 16, 20, trans_a=1),
    gemm(6, 7, 8, constant=False),
    gemm(6, 7, 8, 0, 1, False),
]


@pytest.mark.parametrize("w", GEMMS, ids=lambda w: w.key)
@pytest.mark.parametrize(
    "provider", [pytest.param(ONEDNN, marks=needs_onednn), pytest.param(OPENBLAS, marks=needs_openblas)]
)
def test_gemm(native: Native, w: Workload, provider: OneDnn | OpenBlas) -> None:
    a, b, bias = arrays = values(w)
    product = (a.T if w.attr("trans_a") else a) @ (b.T if w.attr("trans_b") else b)
    run_all(native, provider, w, np.maximum(product + bias, 0), arrays)


def test_wide_gemm_runs_on_several_threads(native: Native) -> None:
    w = gemm(300, 500, 400)
    a, b, bias = arrays = values(w)
    for provider in (p for p in (ONEDNN, OPENBLAS) if p.path is not None):
        run_all(native, provider, w, np.maximum(a @ b + bias, 0), arrays)


@pytest.mark.parametrize(
    "provider", [pytest.param(ONEDNN, marks=needs_onednn), pytest.param(OPENBLAS, marks=needs_openblas)]
)
@pytest.mark.parametrize(("a", "b"), [((2, 3, 8, 5), (2, 3, 5, 7)), ((3, 8, 5), (5, 7)), ((8, 5), (3, 5, 7))])
def test_matmul(native: Native, provider: OneDnn | OpenBlas, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    y = (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])
    w = Workload("matmul", (tensor(*a), tensor(*b)), (tensor(*y),))
    arrays = values(w)
    run_all(native, provider, w, arrays[0] @ arrays[1], arrays)


@needs_openblas
def test_openblas_pointwise_convolution(native: Native) -> None:
    w = conv(2, 24, 40, 9, 1, epilogue="relu(add(acc,in2))", lay=("ROW", "ROW"))
    arrays = values(w)
    run_all(native, OPENBLAS, w, np.maximum(conv_reference(w, arrays) + arrays[2], 0), arrays)


@needs_onednn
@pytest.mark.parametrize("lay", ["ROW", BLOCKED, "NHWC"])
@pytest.mark.parametrize(
    ("kind", "kernel", "stride", "pads", "include", "out"),
    [
        ("max", 3, 2, (1, 1, 1, 1), 0, 5),
        ("avg", 3, 2, (1, 1, 1, 1), 0, 5),
        ("avg", 2, 1, (1, 0, 0, 0), 1, (9, 8)),
        ("max", 3, 2, (0, 0, 0, 0), 0, 4),  # rounded up: the last window reaches beyond the image
        ("avg", 9, 1, (0, 0, 0, 0), 0, 1),
    ],
)
def test_onednn_pooling(
    native: Native,
    lay: str,
    kind: str,
    kernel: int,
    stride: int,
    pads: tuple[int, ...],
    include: int,
    out: int | tuple[int, int],
) -> None:
    oh, ow = (out, out) if isinstance(out, int) else out
    attrs = (
        ("count_include_pad", include), ("dilations", (1, 1)), ("kernel", (kernel, kernel)), ("kind", kind),
        ("pads", pads), ("strides", (stride, stride)),
    )  # fmt: skip
    w = Workload("pool", (tensor(1, 20, 9, 9, layout=lay),), (tensor(1, 20, oh, ow, layout=lay),), attrs)
    arrays = values(w)
    options = {"count_include_pad": include} if kind == "avg" else {}
    ceil = int((9 + pads[0] + pads[2] - kernel) % stride != 0)
    name = "MaxPool" if kind == "max" else "AveragePool"
    shape = {"kernel_shape": (kernel,) * 2, "strides": (stride,) * 2, "pads": pads, "ceil_mode": ceil}
    expected = onnxruntime_result(name, arrays, **shape, **options)
    assert expected.shape == w.outputs[0].shape
    run_all(native, ONEDNN, w, expected, arrays)


@needs_onednn
@pytest.mark.parametrize("lay", ["ROW", BLOCKED])
def test_onednn_lrn(native: Native, lay: str) -> None:
    attrs = (("alpha", 0.02), ("beta", 0.75), ("bias", 1.5), ("size", 5))
    x = tensor(1, 32, 6, 6, layout=lay)
    w = Workload("lrn", (x,), (x,), attrs)
    arrays = values(w)
    run_all(native, ONEDNN, w, onnxruntime_result("LRN", arrays, **dict(attrs)), arrays)


@needs_onednn
@pytest.mark.parametrize("axis", [-1, 1])
def test_onednn_softmax(native: Native, axis: int) -> None:
    w = Workload("softmax", (tensor(3, 40, 5),), (tensor(3, 40, 5),), (("axis", axis),))
    arrays = values(w)
    e = np.exp(arrays[0] - arrays[0].max(axis, keepdims=True))
    run_all(native, ONEDNN, w, e / e.sum(axis, keepdims=True), arrays)


@needs_onednn
@pytest.mark.parametrize(
    ("expression", "shapes", "function"),
    [
        ("relu(add(in0,in1))", ((1, 32, 5, 5), (1, 32, 5, 5)), lambda a, b: np.maximum(a + b, 0)),
        (
            "relu(add(mul(in0,in1),in2))",
            ((1, 32, 5, 5), (1, 32, 1, 1), (1, 32, 1, 1)),
            lambda a, b, c: np.maximum(a * b + c, 0),
        ),
        ("mul(in0,2.5)", ((7, 3),), lambda a: a * 2.5),
        ("sub(in0,in1)", ((4, 6, 8), (6, 8)), lambda a, b: a - b),
    ],
)
def test_onednn_eltwise(
    native: Native, expression: str, shapes: tuple[tuple[int, ...], ...], function: object
) -> None:
    w = Workload("eltwise", tuple(tensor(*s) for s in shapes), (tensor(*shapes[0]),), (), parse(expression))
    arrays = values(w)
    run_all(native, ONEDNN, w, function(*arrays), arrays)  # type: ignore[operator]


@needs_onednn
@pytest.mark.parametrize("pair", [("ROW", BLOCKED), (BLOCKED, "ROW"), ("NHWC", BLOCKED), ("ROW", "NHWC")])
def test_onednn_convert(native: Native, pair: tuple[str, str]) -> None:
    w = Workload("convert", (tensor(2, 20, 3, 5, layout=pair[0]),), (tensor(2, 20, 3, 5, layout=pair[1]),))
    arrays = values(w)
    run_all(native, ONEDNN, w, arrays[0], arrays)


@needs_onednn
def test_onednn_convert_writes_zeros_to_padding_lanes(native: Native) -> None:
    w = Workload("convert", (tensor(1, 3, 2, 2),), (tensor(1, 3, 2, 2, layout="NCHW8c"),))
    arrays = values(w)
    # A logical view of all eight lanes: the physical array read as if it had 8 channels.
    wide = Workload("convert", w.inputs, (tensor(1, 8, 2, 2, layout="NCHW8c"),))
    code = ONEDNN.build(w, ONEDNN.space(w, TARGET).default(), TARGET)
    out = np.full(w.outputs[0].physical, np.nan, np.float32)
    call(native, code, [arrays[0], out])
    assert not from_layout(out, wide.outputs[0].shape, "NCHW8c")[:, 3:].any()


@needs_onednn
@pytest.mark.parametrize("perm", [(0, 2, 1, 3), (3, 0, 1, 2), (0, 1, 3, 2)])
def test_onednn_transpose(native: Native, perm: tuple[int, ...]) -> None:
    x = tensor(2, 3, 4, 5)
    w = Workload("transpose", (x,), (tensor(*(x.shape[p] for p in perm)),), (("perm", perm),))
    arrays = values(w)
    run_all(native, ONEDNN, w, arrays[0].transpose(perm), arrays)


@needs_onednn
def test_onednn_concat(native: Native) -> None:
    w = Workload("concat", (tensor(2, 16, 3, 3), tensor(2, 5, 3, 3)), (tensor(2, 21, 3, 3),), (("axis", 1),))
    arrays = values(w)
    run_all(native, ONEDNN, w, np.concatenate(arrays, 1), arrays)


@needs_onednn
def test_packing_follows_the_implementation() -> None:
    w = conv(1, 32, 48, 14, 3)
    config = ONEDNN.space(w, TARGET).default()
    packed = ONEDNN.pack(w, config, values(w)[1:2], TARGET)
    assert packed[0].nbytes == w.inputs[1].nbytes and packed[0].ndim == 1


@needs_onednn
def test_a_spec_is_the_same_each_time() -> None:
    w = conv(1, 32, 48, 14, 3, epilogue="relu(add(acc,in2))")
    config = ONEDNN.space(w, TARGET).default()
    assert ONEDNN.build(w, config, TARGET) == ONEDNN.build(w, config, TARGET)


@needs_onednn
def test_an_unknown_implementation_is_invalid() -> None:
    with pytest.raises(InvalidConfig, match="no implementation 'convolution/none'"):
        ONEDNN.build(conv(1, 32, 48, 14, 3), {"implementation": "convolution/none"}, TARGET)


@pytest.mark.parametrize(
    ("w", "reason"),
    [
        (Workload("region", (tensor(1),), (tensor(1),)), "oneDNN has no region"),
        (
            Workload(
                "softmax", (TensorType("float64", (2, 2)),), (TensorType("float64", (2, 2)),), (("axis", 1),)
            ),
            "only float32",
        ),
        (conv(1, 16, 16, 6, 1, epilogue="mul(acc,erf(acc))"), "not a chain"),
        (conv(1, 16, 16, 6, 1, epilogue="erf(acc)"), "epilogue operator erf"),
    ],
)
def test_onednn_says_why_not(w: Workload, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        lower(w)


@pytest.mark.parametrize(
    ("w", "reason"),
    [
        (conv(1, 16, 16, 6, 3, lay=("ROW", "ROW")), "1×1 convolutions"),
        (conv(1, 16, 16, 6, 1), "row-major"),
        (gemm(4, 4, 4, epilogue="tanh(add(acc,in2))"), "operator tanh"),
    ],
)
@needs_openblas
def test_openblas_says_why_not(w: Workload, reason: str) -> None:
    assert reason in OPENBLAS.supports(w, TARGET).reason


def test_absent_libraries_name_the_extra() -> None:
    w = gemm(4, 4, 4)
    assert "wpk[onednn]" in OneDnn(path=None).supports(w, TARGET).reason
    assert "wpk[openblas]" in OpenBlas(path=None).supports(w, TARGET).reason
    assert OneDnn(path=None).version == OpenBlas(path=None).version == "absent"


@cache
def _conv_call() -> list[int]:
    call = lower(conv(1, 32, 32, 6, 1))[0]
    return encode(call.with_tag(1, "ABcd16b16a" if TARGET.lanes == 16 else "ABcd8b8a"))


@needs_onednn
@pytest.mark.parametrize("damage", ["empty", "short", "version", "tag", "implementation"])
def test_the_adapter_refuses_damaged_descriptions(native: Native, damage: str) -> None:
    desc = list(_conv_call())
    desc = {
        "empty": [], "short": desc[:-3], "version": [99, *desc[1:]], "tag": [v if v != ord("B") else ord("?") for v in desc],
        "implementation": [*desc[:-1], 3, *b"xyz"],
    }[damage]  # fmt: skip
    with pytest.raises(Exception, match="oneDNN"):
        Adapter(native, "onednn", {"library": "onednn", "desc": desc}, 2)


def test_layout_tags() -> None:
    assert [layout_tag(tensor(1, 2, 3, 4, layout=x)) for x in ("ROW", "NHWC", "NCHW16c")] == [
        "abcd",
        "acdb",
        "aBcd16b",
    ]


@pytest.mark.parametrize("threads", [1, 3])
def test_libraries_share_the_pool_whatever_its_size(native: Native, threads: int) -> None:
    """Also when several callers want the same pool at once: then the library's calls find other threads."""
    w, target = gemm(200, 300, 400), host_target(threads=threads)
    a, b, bias = values(w)
    expected = np.maximum(a @ b + bias, 0)
    for provider in (p for p in (ONEDNN, OPENBLAS) if p.path is not None):
        config = provider.space(w, target).default()
        code = provider.build(w, config, target)
        packed = provider.pack(w, config, [b, bias], target)
        pool = Pool(native, threads)
        with ThreadPoolExecutor(3) as callers:
            found = [
                callers.submit(repeated, native, code, [a, *packed], expected, pool, threads)
                for _ in range(3)
            ]
            assert max(f.result() for f in found) < 2e-6
        pool.close()


def repeated(
    native: Native, code: Code, arrays: list[np.ndarray], expected: np.ndarray, pool: Pool, threads: int
) -> float:
    """The greatest error of some calls by one caller with a state of its own."""
    adapter, worst = Adapter(native, code.kind, code.spec or {}, threads), 0.0
    function = ctypes.CFUNCTYPE(ctypes.c_int, *(ctypes.c_void_p,) * 4)(adapter.call.fn)
    for _ in range(4):
        out = np.full(expected.shape, np.nan, np.float32)
        pointers = (ctypes.c_void_p * (len(arrays) + 1))(*(x.ctypes.data for x in (*arrays, out)))
        assert function(adapter.call.state, ctypes.cast(pointers, ctypes.c_void_p), None, pool.rt) == 0
        worst = max(worst, float(np.linalg.norm(out - expected) / np.linalg.norm(expected)))
    adapter.close()
    return worst
