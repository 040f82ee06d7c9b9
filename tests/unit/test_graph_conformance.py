"""A sample of ONNX's own conformance suite: what ONNX Runtime runs with static shapes imports, optimizes, computes the same."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_build import run
from onnx import numpy_helper

from wpk.core.errors import ModelError
from wpk.graph.onnx_io import export_model, load_model
from wpk.passes import default_pipeline, run_pipeline

#: every so many of the suite's cases (run with 1 to check all of them)
EVERY = 9
#: what a static, numeric graph cannot say
REFUSALS = ("depends on the data", "found strings", "expected a tensor")


@pytest.fixture(scope="module")
def suite() -> list[Any]:
    """The suite's cases, which onnx computes anew; its examples warn of overflows they mean to show."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(collect_testcases(None))[::EVERY]


def prepared(case: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model with its integer inputs (shapes, axes, indices) as constants, and the other feeds."""
    model, inputs = case.model, case.data_sets[0][0]
    feeds = dict(zip((i.name for i in model.graph.input), inputs, strict=False))
    fixed = [k for k, a in feeds.items() if len(feeds) > 1 and a.ndim <= 1 and a.dtype.kind in "ib"]
    model.graph.initializer.extend(numpy_helper.from_array(feeds.pop(k), k) for k in fixed)
    kept = [i for i in model.graph.input if i.name in feeds]
    model.graph.ClearField("input")
    model.graph.input.extend(kept)
    return model, feeds


def computes_the_same(case: Any, path: Path) -> bool:
    """Assert it; False when ONNX Runtime cannot run the case itself, or the refusal is a known one."""
    if not case.data_sets or not all(isinstance(a, np.ndarray) for a in case.data_sets[0][0]):
        return False
    model, feeds = prepared(case)
    try:
        expected = run(model.SerializeToString(), feeds)
    except Exception:  # too new an opset, a missing kernel: nothing to compare with
        return False
    onnx.save_model(model, str(path))
    try:
        graph = run_pipeline(load_model(path, {k: a.shape for k, a in feeds.items()}), default_pipeline())
    except ModelError as error:
        assert any(known in str(error) for known in REFUSALS), error
        return False
    for found, wanted in zip(run(export_model(graph), feeds), expected, strict=True):
        if isinstance(wanted, np.ndarray) and wanted.dtype.kind in "fiub":
            tolerance = 4e-3 if wanted.dtype == np.float16 else 2e-5
            np.testing.assert_allclose(found, wanted, tolerance, tolerance, err_msg=case.name)
    return True


def test_the_suite(suite: list[Any], tmp_path: Path) -> None:
    checked = [case.name for case in suite if computes_the_same(case, tmp_path / "case.onnx")]
    assert len(checked) > len(suite) // 2
