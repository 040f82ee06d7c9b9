"""Models that cannot be compiled: one line that names the file or the node, exit code 3, no traceback, nothing written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small import Ran, refused, small_model

Cli = Callable[..., Ran]


def test_no_file(cli: Cli, tmp_path: Path) -> None:
    refused(cli("compile", tmp_path / "none.onnx"), 3, "none.onnx", "no such file")


def test_a_folder(cli: Cli, tmp_path: Path) -> None:
    refused(cli("compile", tmp_path), 3, str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"This is not a model.\nIt is text.\n"], ids=["empty", "text"])
def test_a_file_that_is_no_model(cli: Cli, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "odd.onnx"
    file.write_bytes(content)
    refused(cli("compile", file, "-o", tmp_path / "m.wpk"), 3, "odd.onnx")
    assert not (tmp_path / "m.wpk").exists()


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_truncated_protobuf(cli: Cli, tmp_path: Path, part: float) -> None:
    whole = small_model().SerializeToString()
    file = tmp_path / "cut.onnx"
    file.write_bytes(whole[: int(len(whole) * part)])
    refused(cli("compile", file), 3, "cut.onnx")


def test_op_of_unknown_domain(cli: Cli, tmp_path: Path) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"], "frob", domain="org.example")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy")
    graph = helper.make_graph([node], "g", [x], [y])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("org.example", 1)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(tmp_path / "m.onnx"))
    refused(cli("compile", tmp_path / "m.onnx", "--budget", "1s"), 3, "Frobnicate", "org.example")


def test_missing_external_data(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "big.onnx"
    onnx.save_model(
        small_model(), str(file), save_as_external_data=True, location="big.data", size_threshold=0
    )
    (tmp_path / "big.data").unlink()
    refused(cli("compile", file), 3, "big.data")


def test_unknown_shape(cli: Cli, tmp_path: Path) -> None:
    model = small_model()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save_model(model, str(tmp_path / "m.onnx"))
    ran = cli("compile", tmp_path / "m.onnx", "--budget", "1s")
    assert ran.code in (2, 3)
    refused(ran, ran.code, "'x'", "height")


def test_shape_for_an_input_that_is_not_there(cli: Cli, small_onnx: Path) -> None:
    ran = cli("compile", small_onnx, "--shape", "z=1x3", "--budget", "1s")
    assert ran.code in (2, 3)
    refused(ran, ran.code, "'z'")


def test_arrays_that_are_not_a_model(tmp_path: Path, cli: Cli) -> None:
    np.save(tmp_path / "m.npy", np.ones(3))
    refused(cli("compile", tmp_path / "m.npy"), 3, "m.npy")
