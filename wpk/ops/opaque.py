"""onnx and region: what has no native meaning. ONNX Runtime runs their payload; wpk only knows their types.

Attributes of ``onnx``: ``digest`` of the payload (so that equal workloads are equal code), ``domain``, ``imports`` (other
domains as ``domain:version``), ``onnx_op``, ``opset`` of the default domain. ``region`` has ``digest`` and ``onnx_op``
(the ops inside, joined by +) and ``domain``.
"""

from __future__ import annotations

from math import prod

from wpk.core.workload import Workload
from wpk.ops.base import Operator, row_only
from wpk.ops.move import free_shape


def flops(w: Workload) -> float:
    """Unknown; one operation for each output element."""
    return float(sum(prod(t.shape) for t in w.outputs))


ONNX = Operator(
    "onnx",
    "opaque",
    None,
    ("digest", "domain", "imports", "onnx_op", "opset"),
    free_shape,
    flops,
    row_only,
    None,
)
REGION = Operator(
    "region", "opaque", None, ("digest", "domain", "onnx_op"), free_shape, flops, row_only, None
)
