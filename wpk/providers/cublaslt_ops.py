"""Workloads → products as cuBLASLt takes them. What it cannot say raises :class:`Unsupported` with the reason.

Row-major out[m, n] = a[m, k] · b[k, n] is, by columns, outᵀ = bᵀ · aᵀ: the library's first operand is b, its second a, and its
bias, which has a value for each row, has one for each of our columns. An added operand that is no such bias is its matrix c;
a constant one may be smaller than the output, for packing makes it as large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.tensor import TensorType, to_layout
from wpk.core.workload import Workload
from wpk.providers.cublaslt_tail import Tail, Unsupported, tail
from wpk.runtime.cuda.cublaslt_call import Matmul, Matrix
from wpk.runtime.ports import numpy_dtype

_DTYPES = ("float32", "float16", "bfloat16")
_LAYOUTS = ("ROW", "NHWC")


@dataclass(frozen=True)
class Operand:
    """A row-major matrix for each batch, ``stride`` elements apart; ``trans``: it lies there transposed."""

    argument: int
    trans: bool = False
    stride: int = 0


@dataclass(frozen=True)
class Form:
    """out[m, n] = a[m, k] · b[k, n] for each of ``batch``; ``rows`` and ``columns``: the output's dimensions that m and n are."""

    batch: int
    m: int
    n: int
    k: int
    a: Operand
    b: Operand
    rows: tuple[int, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Added:
    """The epilogue's operands: positions of the bias and of c, -1 for none; ``shared``: all batches have one c."""

    bias: int = -1
    c: int = -1
    shared: bool = False


def lower(workload: Workload) -> Matmul:
    """The product that computes ``workload``. Raises Unsupported."""
    _check(workload)
    end, reasons = tail(workload.epilogue, _exact(workload)), list[str]()
    for form in _FORMS[workload.op](workload):
        try:
            return _matmul(workload, form, end, _added(workload, form, end))
        except Unsupported as error:
            reasons.append(str(error))
    raise Unsupported(reasons[-1])


def pack(workload: Workload, constants: list[np.ndarray]) -> list[np.ndarray]:
    """Logical constants as the product wants them: what is added in the output's dtype, as wide as a row or the output.

    Raises Unsupported.
    """
    matmul = lower(workload)
    return [_packed(workload, matmul, i, a) for i, a in zip(workload.constants, constants, strict=True)]


def _packed(w: Workload, matmul: Matmul, position: int, array: np.ndarray) -> np.ndarray:
    t, out = w.inputs[position], w.outputs[0]
    logical = np.asarray(array).reshape(t.shape)
    if position not in (matmul.bias, matmul.c.argument):
        return to_layout(logical, t.layout)
    with np.errstate(over="ignore"):  # what does not fit is infinite, as the sum would be
        added = logical.astype(numpy_dtype(out.dtype), copy=False)
    if position == matmul.bias:
        return np.ascontiguousarray(np.broadcast_to(added.reshape(-1), (matmul.d.rows,)))
    shape = out.shape if matmul.batch == 1 or matmul.c.stride else _one_batch(w, matmul.batch)
    return to_layout(np.broadcast_to(_padded(added, len(out.shape)), shape), out.layout)


def _one_batch(w: Workload, batch: int) -> tuple[int, ...]:
    """The output's shape with one batch only: its leading dimensions are the batch."""
    shape, lead = w.outputs[0].shape, 0
    while prod(shape[:lead]) < batch:
        lead += 1
    return (*[1] * lead, *shape[lead:])


def _check(w: Workload) -> None:
    if w.op not in _FORMS:
        raise Unsupported(f"cuBLASLt has no {w.op}")
    a, b, out = w.inputs[0], w.inputs[1], w.outputs[0]
    if a.dtype not in _DTYPES or a.dtype != b.dtype or out.dtype not in (a.dtype, "float32"):
        raise Unsupported(f"a product of {a.dtype} and {b.dtype} in {out.dtype}")
    if any(0 in t.shape for t in (*w.inputs, out)):
        raise Unsupported("an empty tensor")
    if any(t.layout not in _LAYOUTS for t in (*w.inputs, out)) or b.layout != "ROW":
        raise Unsupported("only row-major and NHWC tensors, and row-major weights")


def _exact(w: Workload) -> bool:
    """True where float32 means float32."""
    return w.inputs[0].dtype == "float32" and not _tf32(w)


def _tf32(w: Workload) -> bool:
    return dict(w.attrs).get("precision") == "tf32"


# Forms


def _gemm(w: Workload) -> Iterator[Form]:
    trans_a, trans_b = bool(w.attr("trans_a")), bool(w.attr("trans_b"))
    (m, n), k = w.outputs[0].shape, w.inputs[0].shape[0 if trans_a else 1]
    yield Form(1, m, n, k, Operand(0, trans_a), Operand(1, trans_b), (0,), (1,))


def _products(w: Workload) -> Iterator[Form]:
    """One matrix for all: one tall product, unless that keeps an operand of the epilogue out. Else a batch of products."""
    a, b, out = (t.shape for t in (*w.inputs[:2], w.outputs[0]))
    if min(len(a), len(b)) < 2:
        raise Unsupported("a product with a vector")
    (*lead, m, n), k, last = out, a[-1], len(out) - 1
    batch, of_a, of_b = prod(lead), prod(a[:-2]), prod(b[:-2])
    if of_b == 1 and of_a == batch:
        yield Form(1, batch * m, n, k, Operand(0), Operand(1), tuple(range(last)), (last,))
    if of_a not in (1, batch) or of_b not in (1, batch):
        raise Unsupported("batch dimensions broadcast in part")
    first = Operand(0, False, m * k if of_a > 1 else 0)
    yield Form(batch, m, n, k, first, Operand(1, False, k * n if of_b > 1 else 0), (last - 1,), (last,))


def _pointwise(w: Workload) -> Iterator[Form]:
    """1×1 convolutions: channels are columns where they are innermost, rows where the image is row-major."""
    x, kernel, y = w.inputs[0], w.inputs[1].shape, w.outputs[0]
    plain = prod(kernel[2:]) == 1 and set(w.ints("strides")) == {1} and set(w.ints("pads")) == {0}
    if not plain or w.attr("group") != 1:
        raise Unsupported("only 1×1 convolutions of stride 1, without padding or groups")
    (n, ic), oc, pixels = x.shape[:2], kernel[0], prod(x.shape[2:])
    space, image = tuple(range(2, len(y.shape))), Operand(0, _inside(x), ic * pixels if n > 1 else 0)
    if not _inside(y):
        yield Form(n, oc, pixels, ic, Operand(1), image, (1,), space)
    elif _inside(x):
        yield Form(1, n * pixels, oc, ic, Operand(0), Operand(1, True), (0, *space), (1,))
    else:
        yield Form(n, pixels, oc, ic, Operand(0, True, image.stride), Operand(1, True), space, (1,))


def _inside(t: TensorType) -> bool:
    """True where the channels are innermost."""
    return t.layout == "NHWC" or prod(t.shape[2:]) == 1


_FORMS: dict[str, Callable[[Workload], Iterator[Form]]] = {"gemm": _gemm, "matmul": _products, "conv": _pointwise}


# The epilogue's operands


def _added(w: Workload, form: Form, end: Tail) -> Added:
    """The bias and c. Raises Unsupported where there is no place for an operand."""
    added = Added()
    for position in end.added:
        if position < 2 and position in w.constants:
            raise Unsupported(f"operand {position} is multiplied and added: it cannot be packed for both")
        if added.bias < 0 and _is_bias(w, form, position):
            added = Added(position, added.c, added.shared)
        elif added.c < 0:
            added = Added(added.bias, position, _is_shared(w, form, position))
        else:
            raise Unsupported(f"operand {position} is one addition too many")
    return added


def _is_bias(w: Workload, form: Form, position: int) -> bool:
    """True for a value for each column. One that is not constant must lie there as it is."""
    varying, t, out = _varying(w, position), w.inputs[position], w.outputs[0]
    if not varying <= set(form.columns):
        return False
    return position in w.constants or (t.dtype == out.dtype and prod(t.shape) == form.n)


def _is_shared(w: Workload, form: Form, position: int) -> bool:
    """Whether all batches have this operand as their c. Raises Unsupported where it can be no c at all."""
    varying, t, out = _varying(w, position), w.inputs[position], w.outputs[0]
    shared = form.batch > 1 and varying <= {*form.rows, *form.columns}
    if position in w.constants:
        return shared
    if t.dtype != out.dtype:
        raise Unsupported(f"operand {position} is {t.dtype}, the output {out.dtype}")
    whole = form.m * form.n * (1 if shared else form.batch)
    if prod(t.shape) != whole or (t.layout != out.layout and _inside(t) != _inside(out)):
        raise Unsupported(f"operand {position} is neither a value for each column nor as large as the output")
    return shared


def _varying(w: Workload, position: int) -> set[int]:
    """The output's dimensions along which an operand varies."""
    shape = w.inputs[position].shape
    lead = len(w.outputs[0].shape) - len(shape)
    return {lead + i for i, n in enumerate(shape) if n > 1}


def _padded(array: np.ndarray, rank: int) -> np.ndarray:
    return array.reshape((*[1] * (rank - array.ndim), *array.shape))


# By columns


def _matmul(w: Workload, form: Form, end: Tail, added: Added) -> Matmul:
    f, dtype, result, output = form, w.inputs[0].dtype, w.outputs[0].dtype, len(w.inputs)
    d = Matrix(output, result, f.n, f.m, f.n, f.m * f.n if f.batch > 1 else 0)
    c = d if added.c < 0 else Matrix(added.c, result, f.n, f.m, f.n, 0 if added.shared else d.stride)
    names = [x for x in (end.activation, "BIAS" if added.bias >= 0 else "") if x]
    return Matmul(
        _by_columns(f.b, dtype, f.k, f.n), _by_columns(f.a, dtype, f.m, f.k), c, d, f.b.trans, f.a.trans, f.batch,
        end.alpha, 0.0 if added.c < 0 else 1.0, "32F_FAST_TF32" if _tf32(w) else "32F", "_".join(names) or "DEFAULT", added.bias,
    )  # fmt: skip


def _by_columns(operand: Operand, dtype: str, rows: int, cols: int) -> Matrix:
    """A row-major rows × cols matrix, or its transpose that lies there instead, as the library sees it."""
    stored = (rows, cols) if operand.trans else (cols, rows)
    return Matrix(operand.argument, dtype, *stored, stored[0], operand.stride)
