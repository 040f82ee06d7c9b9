"""Is a candidate right? Relative L2 error against the oracle, with a tolerance that a wrong kernel cannot meet.

One wrong element among a million already costs 1e-3; the tolerances are at most a tenth of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, prod, sqrt

import numpy as np

from wpk.core.tensor import TensorType, channel_block, from_layout
from wpk.core.workload import Workload

#: unit roundoff times two, by dtype; integers must be exact
EPSILON = {"float64": 2.2e-16, "float32": 1.2e-7, "tf32": 9.8e-4, "float16": 9.8e-4, "bfloat16": 7.8e-3}

#: dtypes whose arithmetic is float32, and how many of their roundings an element may see: operands, result, an epilogue's operand
_ROUNDED, _ROUNDINGS = ("tf32", "float16", "bfloat16"), 4.0

#: what an algorithm may lose besides the rounding of its sums: factor on the tolerance, and the most it may reach
ACCURACY = {"direct": (1.0, inf), "winograd": (12.0, 1e-4)}

#: polynomial approximations of exp, erf and tanh may be this many epsilons off
_FLOOR = 32.0


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check: relative L2 error, tolerance and, when the candidate is wrong, what is wrong."""

    error: float
    tolerance: float
    problem: str = ""

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problem


def tolerance(dtype: str, reduction: int, accuracy: str = "direct") -> float:
    """The relative L2 error allowed to a result of ``dtype`` whose elements are sums of ``reduction`` terms.

    Rounding errors of a sum in any order grow about as the square root of its length; but what is stored in 16 bits, or rounded
    to ``tf32`` for tensor cores, is summed in float32. ``accuracy`` names the class of the algorithm (:data:`ACCURACY`); an
    unknown class raises KeyError.
    """
    epsilon = EPSILON.get(dtype, 0.0)
    factor, most = ACCURACY[accuracy]
    if dtype in _ROUNDED:
        return factor * epsilon * _ROUNDINGS
    allowed = factor * epsilon * max(_FLOOR, sqrt(max(reduction, 1)))
    return min(allowed, max(most, epsilon * _FLOOR))


def reduction_length(workload: Workload) -> int:
    """Terms in the sum behind one output element; 1 where nothing is reduced."""
    shapes = [t.shape for t in workload.inputs]
    if workload.op == "conv":
        return prod(shapes[1][1:])
    if workload.op in ("gemm", "matmul"):
        attrs = dict(workload.attrs)
        return shapes[0][0] if attrs.get("trans_a") else shapes[0][-1]
    if workload.op == "attention":
        return max(shapes[0][-1], shapes[1][-2])
    if workload.op == "pool":
        return prod(_ints(workload.attr("kernel")))
    if workload.op == "lrn":
        return max(prod(_ints(workload.attr("size"))), 1)
    if workload.op == "softmax":
        return shapes[0][max(_ints(workload.attr("axis")))]
    if workload.op == "norm":
        return prod(shapes[0][max(_ints(workload.attr("axis"))) :])
    if workload.op == "reduce":
        return prod(shapes[0][a] for a in _ints(workload.attr("axes")))
    return 1


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """‖actual − expected‖₂ / ‖expected‖₂; infinity where one is NaN or infinite and the other is not the same."""
    if actual.shape != expected.shape:
        return inf
    if expected.dtype.kind not in "fV":
        return 0.0 if np.array_equal(actual, expected) else inf
    if expected.dtype.itemsize < 4:
        actual, expected = actual.astype(np.float32), expected.astype(np.float32)
    error = _quotient(actual, expected)
    return error if isfinite(error) else _careful_error(actual.astype(np.float64), expected.astype(np.float64))


def check_outputs(
    buffers: list[np.ndarray], expected: list[np.ndarray], types: tuple[TensorType, ...], allowed: float
) -> Verdict:
    """Compare physical output buffers with logical expected arrays. The worst output decides."""
    worst = 0.0
    for i, (buffer, want, kind) in enumerate(zip(buffers, expected, types, strict=True)):
        if not padding_is_zero(buffer, kind):
            return Verdict(inf, allowed, f"output {i}: padding lanes of {kind} are not zero")
        found = from_layout(buffer, kind.shape, kind.layout)
        error = relative_error(found, want.reshape(kind.shape))
        worst = max(worst, error)
        if not error <= allowed:
            return Verdict(worst, allowed, f"output {i}: {_describe(found, want.reshape(kind.shape), error, allowed)}")
    return Verdict(worst, allowed)


def padding_is_zero(buffer: np.ndarray, kind: TensorType) -> bool:
    """True when the lanes of a blocked layout beyond the last channel hold zeros."""
    block = channel_block(kind.layout)
    used = kind.shape[1] % block if block > 1 else 0
    return used == 0 or not np.any(buffer.reshape(kind.physical)[:, -1, ..., used:])


def _quotient(actual: np.ndarray, expected: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        difference, norm = np.linalg.norm((actual - expected).ravel()), np.linalg.norm(expected.ravel())
        return float(difference / norm) if norm > 0 else (0.0 if difference == 0 else inf)


def _careful_error(actual: np.ndarray, expected: np.ndarray) -> float:
    odd = ~np.isfinite(expected)
    if not np.array_equal(actual[odd], expected[odd], equal_nan=True) or not np.isfinite(actual[~odd]).all():
        return inf
    return _quotient(actual[~odd], expected[~odd])


def _describe(found: np.ndarray, want: np.ndarray, error: float, allowed: float) -> str:
    with np.errstate(all="ignore"):
        off = np.abs(found.astype(np.float64) - want.astype(np.float64))
    at = np.unravel_index(int(np.argmax(np.where(np.isnan(off), inf, off))), off.shape) if off.size else ()
    place = ",".join(str(int(i)) for i in at)
    return f"relative error {error:.2e}, allowed {allowed:.1e}; at [{place}] expected {want[at]!s}, found {found[at]!s}"


def _ints(value: object) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value),)  # type: ignore[call-overload]
