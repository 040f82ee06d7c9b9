"""What a policy sees: a task (workload and target) and the values of knobs as vectors of numbers of order one.

Sizes are in doublings: a tile against an extent is then a difference, which a linear layer can take. Words (op, knob, names of
values) become fixed pseudo-random vectors, so that any word has one and no list of words is kept.
"""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from math import log2, prod

import numpy as np
from numpy.typing import NDArray

from wpk.core.target import Target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.search.knobs import Knob, Ordered, Value
from wpk.search.space import Space

Array = NDArray[np.float64]

#: Lengths of the vectors of words.
_OP, _NAME, _WORD = 8, 16, 8
#: Extents of an operand that are looked at, the last ones.
_RANK = 4
#: ISAs told apart; a GPU's compute capability counts by its first digits.
_ISAS = ("avx512", "avx2", "neon", "scalar", "sm_8", "sm_9", "sm_10", "sm_12")
_BYTES = {"float64": 8, "int64": 8, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1, "bool": 1}
#: Doublings that make one unit: keeps features of order one.
_SCALE = 8.0


def task_features(workload: Workload | None, target: Target | None) -> Array:
    """(TASK,) numbers of a task; zeros for what is not known."""
    one = np.zeros(_WORKLOAD) if workload is None else _workload_features(workload)
    two = np.zeros(_TARGET) if target is None else _target_features(target)
    three = np.zeros(_BOTH) if workload is None or target is None else _pressure(workload, target)
    return np.concatenate([one, two, three])


def token_features(space: Space, width: int) -> Array:
    """(K, width, TOKEN): each value of each knob; zeros past a knob's values."""
    tokens = np.zeros((len(space.knobs), width, TOKEN))
    for k, knob in enumerate(space.knobs):
        for v, value in enumerate(knob.values):
            tokens[k, v] = _token(knob, v, value)
    return tokens


@cache
def word(text: str, length: int) -> tuple[float, ...]:
    """``length`` numbers of variance 1 that depend on ``text`` only."""
    digest = blake2b(text.encode(), digest_size=2 * length).digest()
    units = (int.from_bytes(digest[2 * i : 2 * i + 2], "big") / 65535 for i in range(length))
    return tuple((u - 0.5) * 12**0.5 for u in units)


def arithmetic(workload: Workload) -> float:
    """Operations of a workload, roughly: twice the products summed for an output, times the outputs."""
    return 2.0 * max(_reduction(workload), 1) * sum(prod(t.shape) for t in workload.outputs)


def traffic(workload: Workload) -> float:
    """Bytes of all operands."""
    return float(sum(map(_size, (*workload.inputs, *workload.outputs))))


def task_distance(a: Array, b: Array) -> float:
    """How unlike two tasks are, by their features."""
    return float(np.linalg.norm(a - b))


def _workload_features(w: Workload) -> Array:
    operands = [*w.inputs[:2], *w.outputs[:1]]
    operands += [TensorType("float32", ())] * (3 - len(operands))
    strides, pads = _ints(w, "strides"), _ints(w, "pads")
    extra = [
        log2(arithmetic(w) + 1) / (3 * _SCALE),
        log2(traffic(w) + 1) / (2 * _SCALE),
        log2(arithmetic(w) / (traffic(w) + 1) + 1) / _SCALE,
        log2(max(_reduction(w), 1)) / _SCALE,
        log2(max(strides, default=1)),
        float(sum(pads) > 0),
        log2(max(_ints(w, "kernel"), default=1)) / 2,
        log2(float(dict(w.attrs).get("group", 1)) or 1) / _SCALE,  # type: ignore[arg-type]
        float(w.epilogue is not None),
        float(len(w.inputs) > 3),
        *(float(t.layout not in ("ROW", "NHWC")) for t in (*w.inputs[:1], *w.outputs[:1])),
    ]
    extra += [0.0] * (_EXTRA - len(extra))
    return np.array([*word(w.op, _OP), *(x for t in operands for x in _extents(t)), *extra])


def _target_features(t: Target) -> Array:
    sizes = [log2(x + 1) / (2 * _SCALE) for x in (t.l1d, t.l2, t.l3)]
    isa = [float(t.isa.startswith(name)) for name in _ISAS]
    return np.array([*sizes, log2(t.threads) / _SCALE, log2(t.cores) / _SCALE, *isa])


def _pressure(w: Workload, t: Target) -> Array:
    """Operands against caches, in doublings: what stays near, and what streams."""
    operands = [*map(_size, w.inputs[:2]), *map(_size, w.outputs[:1])]
    operands += [1] * (3 - len(operands))
    caches = [max(c, 1) for c in (t.l1d, t.l2, t.l3)]
    return np.array([log2((size + 1) / c) / (2 * _SCALE) for size in operands for c in caches])


def _token(knob: Knob, rank: int, value: Value) -> Array:
    last = max(len(knob.values) - 1, 1)
    text = isinstance(value, str | bool)
    number = 0.0 if text else float(value)
    numbers = [
        float(isinstance(knob, Ordered)),
        float(value == knob.default),
        rank / last,
        abs(rank / last - 0.5),
        log2(abs(number) + 1) / 4,
        (log2(abs(number) + 1) / 4) ** 2,
        float(not text and number == 0),
        float(not text and number < 0),
        log2(len(knob.values)) / 4,
    ]
    name = word(f"{knob.name}={value}", _WORD) if text else (0.0,) * _WORD
    return np.array([*numbers, *word(knob.name, _NAME), *name])


def _extents(t: TensorType) -> list[float]:
    shape = (1,) * _RANK + tuple(t.shape)
    return [log2(max(x, 1)) / _SCALE for x in shape[-_RANK:]]


def _size(t: TensorType) -> int:
    return prod(t.shape) * _BYTES.get(t.dtype, 4)


def _ints(w: Workload, name: str) -> tuple[int, ...]:
    value = dict(w.attrs).get(name, ())
    return tuple(int(v) for v in value) if isinstance(value, tuple) else ()


def _reduction(w: Workload) -> int:
    """Products summed for one output: the filter's size, the inner extent of a product, the window of a pooling."""
    if w.op == "conv" and len(w.inputs) > 1:
        return prod(w.inputs[1].shape[1:])
    if w.op in ("gemm", "matmul") and w.inputs:
        trans = dict(w.attrs).get("trans_a", 0)
        return w.inputs[0].shape[-2 if trans and len(w.inputs[0].shape) > 1 else -1]
    return prod(_ints(w, "kernel"))


_EXTRA = 12
_WORKLOAD = _OP + 3 * _RANK + _EXTRA
_TARGET = 5 + len(_ISAS)
_BOTH = 9
#: Lengths of the vectors.
TASK, TOKEN = _WORKLOAD + _TARGET + _BOTH, 9 + _NAME + _WORD
