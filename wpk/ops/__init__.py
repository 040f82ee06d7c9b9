"""Operators: one file for each family. The table of all of them, and the questions asked of any."""

from __future__ import annotations

from collections.abc import Sequence

from wpk.core.workload import Workload
from wpk.ops.attention import ATTENTION
from wpk.ops.base import READ, Builder, Foreign, Layouts, Lift, Operator, Speller, Work, epilogue_flops, own
from wpk.ops.conv import CONV
from wpk.ops.eltwise import ELTWISE, LOGIC, spell_point
from wpk.ops.gather import GATHER
from wpk.ops.gemm import GEMM, MATMUL
from wpk.ops.move import CONCAT, CONVERT, SPLIT, TRANSPOSE, VIEW
from wpk.ops.norm import LRN, NORM, SOFTMAX
from wpk.ops.opaque import ONNX, REGION
from wpk.ops.pool import POOL
from wpk.ops.reduce import REDUCE
from wpk.ops.resize import RESIZE

OPERATORS: dict[str, Operator] = {
    op.name: op
    for op in (
        CONV,
        GEMM,
        MATMUL,
        ATTENTION,
        POOL,
        LRN,
        SOFTMAX,
        NORM,
        REDUCE,
        GATHER,
        RESIZE,
        ELTWISE,
        TRANSPOSE,
        CONCAT,
        SPLIT,
        VIEW,
        CONVERT,
        ONNX,
        REGION,
    )
}
#: ONNX op of the default domain → its translation
LIFTS: dict[str, Lift] = {name: lift for op in OPERATORS.values() for name, lift in op.lifts.items()}
#: ONNX ops whose translation looks at dtypes itself; all others are of float32 throughout
ANY_DTYPE = {
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Expand", "Cast", "Gather", "Where", "Attention", *LOGIC,
}  # fmt: skip
#: layouts offered when nothing is said about the target
LAYOUTS = ("NCHW16c", "NCHW8c")


def work(workload: Workload) -> Work:
    """Operations and compulsory traffic of a workload; a view has none."""
    operator = OPERATORS[workload.op]
    once = workload.inputs[2:] if workload.op == "attention" and workload.attr("packed") else workload.inputs
    nbytes = 0 if workload.op == "view" else sum(t.nbytes for t in (*once, *workload.outputs))
    return Work(operator.flops(workload) + epilogue_flops(workload), float(nbytes))


def layouts(workload: Workload, names: tuple[str, ...] = LAYOUTS) -> tuple[Layouts, ...]:
    """The layout assignments that make sense for a workload, row-major first; ``names`` are the other layouts to offer."""
    return OPERATORS[workload.op].layouts(workload, names)


def lift(f: Foreign, b: Builder) -> str | None:
    """Translate an ONNX node of the default domain into native pieces in ``b``; or the reason why it stays opaque."""
    if f.op_type not in LIFTS:
        return f"{f.op_type} has no native meaning"
    activations = [f.types[v] for v in f.inputs if v and v not in f.constants]
    results = [f.types[v] for v in f.outputs if v in f.used]
    if f.opset < 7:
        return f"opset {f.opset} broadcasts by attributes"
    if f.op_type not in ANY_DTYPE and any(t.dtype != "float32" for t in (*activations, *results)):
        return "not float32"
    if any(d <= 0 for t in (*activations, *results) for d in t.shape):
        return "an empty tensor or an unknown dimension"
    return LIFTS[f.op_type](f, b)


def spell(s: Speller, workload: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """Append the ONNX nodes of a native workload, epilogue included, to ``s``. Raises KeyError for an opaque one."""
    operator = OPERATORS[workload.op]
    if operator.spell is None:
        raise KeyError(f"{workload.op} has no native spelling")
    mine = ins[: len(own(workload, operator.arity))]
    ins = [
        s.op("Cast", (v,), to=1) if i >= len(mine) and t.dtype in READ[1:] else v
        for i, (v, t) in enumerate(zip(ins, workload.inputs, strict=True))
    ]
    if workload.epilogue is None or operator.name == "eltwise":
        operator.spell(s, workload, ins, outs)
        return
    acc = s.fresh("acc")
    operator.spell(s, workload, mine, (acc,))
    spell_point(s, workload.epilogue, acc, ins, outs[0])
