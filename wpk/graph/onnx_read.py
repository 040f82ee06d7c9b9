"""An ONNX file → a checked onnx-ir model: every way the file itself can be bad ends here, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir.passes.common import InlinePass

from wpk.core.errors import ModelError

#: operator domains that ONNX Runtime's default build knows
DOMAINS = (
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "com.microsoft",
    "com.microsoft.nchwc",
    "com.ms.internal.nhwc",
    "ai.onnx.preview.training",
)


def read_model(path: Path) -> ir.Model:
    """The model at ``path``, functions inlined, external data found but not read.

    Raises ModelError for a file that is missing, empty, not ONNX or truncated, for operators that nobody knows, and for
    external data that is missing or too short.
    """
    model = _parse(path)
    if not model.opset_imports:
        raise ModelError(f"{path}: not an ONNX model: no operator set is imported")
    if not model.graph.outputs:
        raise ModelError(f"{path}: not a whole ONNX model: the graph has no outputs (is the file truncated?)")
    try:
        InlinePass()(model)
    except Exception as error:  # onnx-ir wraps what goes wrong in a pass
        raise ModelError(f"{path}: cannot inline the model's functions: {_line(error)}") from error
    for node in model.graph.all_nodes():
        _check_operator(path, model, node)
    for tensor in _tensors(model):
        _check_external(path, tensor)
    return model


def _parse(path: Path) -> ir.Model:
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    if not path.is_file():
        raise ModelError(f"{path}: expected a file, found a folder")
    if path.stat().st_size == 0:
        raise ModelError(f"{path}: the file is empty")
    try:
        return ir.load(path, format="protobuf")
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (DecodeError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: not an ONNX model, or truncated: {_line(error)}") from error


def _check_operator(path: Path, model: ir.Model, node: ir.Node) -> None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    where = f"{path}: node {node.name!r}"
    if domain not in DOMAINS:
        known = ", ".join(d or "ai.onnx" for d in DOMAINS if d != "ai.onnx")
        raise ModelError(
            f"{where}: operator {node.op_type} is of unknown domain {domain!r}, expected one of {known}"
        )
    version = model.opset_imports.get(domain, model.opset_imports.get("ai.onnx") if domain == "" else None)
    if version is None:
        raise ModelError(
            f"{where}: operator {node.op_type} is of domain {domain or 'ai.onnx'!r}, which the model does not import"
        )
    if domain in ("", "ai.onnx.ml") and not onnx.defs.has(
        node.op_type, max_inclusive_version=version, domain=domain
    ):
        raise ModelError(f"{where}: no operator {node.op_type} in opset {version} of {domain or 'ai.onnx'}")


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if isinstance(attribute.value, ir.ExternalTensor):
                yield attribute.value


def _check_external(path: Path, tensor: ir.TensorProtocol) -> None:
    if not isinstance(tensor, ir.ExternalTensor):
        return
    file = Path(tensor.path)
    if not file.is_file():
        raise ModelError(
            f"{path}: tensor {tensor.name!r} is in the external file {file}, which does not exist"
        )
    needed, found = (tensor.offset or 0) + (tensor.length or tensor.nbytes), file.stat().st_size
    if found < needed:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} ends at byte {needed} of {file}, which has {found} bytes"
        )


def _line(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
