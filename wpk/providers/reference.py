"""The oracle: any native workload as an ONNX model in logical layouts, run by ONNX Runtime in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod, sqrt

import numpy as np
import onnxruntime

from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.graph.graph import Graph, Node
from wpk.graph.onnx_io import export_model
from wpk.runtime.ports import numpy_dtype


def reference_model(workload: Workload, constants: Sequence[np.ndarray] = (), payload: bytes = b"") -> bytes:
    """A serialized ONNX model of one workload; inputs ``in0``, ``in1``, … and outputs ``out0``, … are logical arrays.

    ``constants`` are the values of ``workload.constants``, in that order; when there are none of them, they are inputs too.
    ``payload`` is the NodeProto or ModelProto of an opaque workload. Raises ValueError when it is needed and missing, or when
    the constants do not match; ModelError beyond 2 GiB of constants.
    """
    if workload.op in ("onnx", "region") and not payload:
        raise ValueError(f"{workload.op} has no reference without its payload")
    if len(constants) not in (0, len(workload.constants)):
        raise ValueError(f"expected {len(workload.constants)} constants, found {len(constants)}")
    ins = tuple(f"in{i}" for i in range(len(workload.inputs)))
    outs = tuple(f"out{i}" for i in range(len(workload.outputs)))
    types = {
        v: t.with_layout("ROW")
        for v, t in zip((*ins, *outs), (*workload.inputs, *workload.outputs), strict=True)
    }
    known = {
        ins[i]: np.asarray(a).reshape(workload.inputs[i].shape)
        for i, a in zip(workload.constants, constants, strict=False)
    }
    node = Node("reference", workload.op, ins, outs, workload.attrs, workload.epilogue, payload=payload)
    return export_model(
        Graph("reference", tuple(v for v in ins if v not in known), outs, (node,), types, known)
    )


def _widened(workload: Workload) -> Workload:
    """The workload in float32 throughout, with no word of tensor cores."""

    def wide(types: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
        return tuple(replace(t, dtype="float32") if t.dtype in ("float16", "bfloat16") else t for t in types)

    attrs = tuple((k, v) for k, v in workload.attrs if k != "precision")
    return replace(workload, inputs=wide(workload.inputs), outputs=wide(workload.outputs), attrs=attrs)


def reference_output(
    workload: Workload, feeds: Sequence[np.ndarray], payload: bytes = b""
) -> list[np.ndarray]:
    """What ``workload`` gives for logical ``feeds`` (one for each input, constants too): logical output arrays.

    Floats of 16 bits are computed in float32 and rounded at the end; what tensor cores round on the way is not.
    """
    wide = _widened(workload)
    if wide != workload:
        feeds = [np.asarray(a).astype(t.dtype) if t.dtype == "float32" else a for a, t in zip(feeds, wide.inputs, strict=True)]
        found = reference_output(wide, feeds, payload)
        with np.errstate(over="ignore"):  # what does not fit is infinite, as it is on the target
            return [a.astype(numpy_dtype(t.dtype)) for a, t in zip(found, workload.outputs, strict=True)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        reference_model(workload, (), payload), options, providers=["CPUExecutionProvider"]
    )
    values = {
        f"in{i}": np.ascontiguousarray(a).reshape(t.shape)
        for i, (a, t) in enumerate(zip(feeds, workload.inputs, strict=True))
    }
    return list(session.run(None, values))


def random_feeds(workload: Workload, seed: int = 0) -> list[np.ndarray]:
    """Logical arrays for every input, constants too: normal data, weights scaled so that results are O(1)."""
    rng = np.random.default_rng(seed)
    feeds = [_random(rng, t, _scale(workload, i)) for i, t in enumerate(workload.inputs)]
    if workload.op == "gather":
        data, indices = workload.inputs[:2]
        count = data.shape[int(str(workload.attr("axis")))]
        feeds[1] = rng.integers(-count, count, indices.shape).astype(indices.dtype)
    return feeds


def _scale(workload: Workload, index: int) -> float:
    """He's scale for weights: one over the root of the reduction's length."""
    if index != 1 or workload.op not in ("conv", "gemm", "matmul"):
        return 1.0
    shape = workload.inputs[1].shape
    if workload.op == "conv":
        return 1.0 / sqrt(prod(shape[1:]))
    inner = shape[-1] if workload.op == "gemm" and workload.attr("trans_b") else shape[-2]
    return 1.0 / sqrt(inner)


def _random(rng: np.random.Generator, t: TensorType, scale: float) -> np.ndarray:
    if t.dtype == "bool":
        return rng.integers(0, 2, t.shape).astype(bool)
    if t.dtype.startswith(("int", "uint")):
        return rng.integers(0, 8, t.shape).astype(t.dtype)
    return (rng.standard_normal(t.shape, np.float32) * np.float32(scale)).astype(t.dtype)
