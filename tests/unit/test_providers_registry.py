"""Names → providers, and what each provider says about a workload."""

import base64

import numpy as np
import onnxruntime
import pytest

from wpk.core.errors import InvalidConfig, UsageError
from wpk.core.pointwise import parse
from wpk.core.target import host_target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.kernels import families
from wpk.providers.onnxruntime import OnnxRuntime
from wpk.providers.registry import providers

TARGET = host_target(threads=2)
RELU = Workload(
    "eltwise", (TensorType("float32", (3, 5)),), (TensorType("float32", (3, 5)),), (), parse("relu(in0)")
)


def test_all_names() -> None:
    names = [p.name for p in providers()]
    assert names[-3:] == ["onednn", "openblas", "onnxruntime"]
    assert names[:-3] == [f"generated:{f.name}" for f in families()]


def test_some_names_in_their_order_each_once() -> None:
    one = families()[0].name
    names = [p.name for p in providers(["onnxruntime", f"generated:{one}", "generated"])]
    assert names[:2] == ["onnxruntime", f"generated:{one}"] and len(names) == len(families()) + 1


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        UsageError, match=r"unknown provider 'cudnn': expected some of generated, onednn, .*generated:"
    ):
        providers(["onednn", "cudnn"])
    with pytest.raises(UsageError, match="no provider"):
        providers([])


def test_versions_are_text() -> None:
    assert all(p.version and isinstance(p.version, str) for p in providers())


def test_onnxruntime_runs_its_model() -> None:
    provider = OnnxRuntime()
    code = provider.build(RELU, provider.space(RELU, TARGET).default(), TARGET)
    assert code.spec is not None
    session = onnxruntime.InferenceSession(base64.b64decode(str(code.spec["model"])))
    x = np.arange(-7, 8, dtype=np.float32).reshape(3, 5)
    assert [i.name for i in session.get_inputs()] == ["in0"]
    assert code.spec["inputs"] == [["in0", "float32", [3, 5]]] and code.spec["outputs"] == [
        ["out0", "float32", [3, 5]]
    ]
    assert np.array_equal(session.run(["out0"], {"in0": x})[0], np.maximum(x, 0))


def test_onnxruntime_declines_layouts_and_conversions() -> None:
    provider, t = OnnxRuntime(), TensorType("float32", (1, 16, 2, 2), "NHWC")
    assert (
        "row-major"
        in provider.supports(Workload("eltwise", (t,), (t,), (), parse("relu(in0)")), TARGET).reason
    )
    convert = Workload("convert", (t.with_layout("ROW"),), (t,))
    assert "convert" in provider.supports(convert, TARGET).reason
    with pytest.raises(InvalidConfig, match="convert"):
        provider.build(convert, {}, TARGET)


def test_generated_code_names_dtype_family_and_isa() -> None:
    supporting = [p for p in providers(["generated"]) if p.supports(RELU, TARGET)]
    for provider in supporting:
        code = provider.build(RELU, provider.space(RELU, TARGET).default(), TARGET)
        assert code.source is not None and code.source.symbol in code.source.text
        assert code.source.symbol.startswith(
            f"wpk_f32_{provider.name.removeprefix('generated:')}_{code.source.isa}_"
        )
