"""Checks kernel families: every config of a workload, interpreted and compiled, gives what the reference gives.

Compiled kernels run without the native runtime: `parallel` calls the body on chunks in reverse order, on alternating
thread numbers, so that a loop that is not really parallel is caught.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import gettempdir

import numpy as np

from wpk.core.pointwise import Acc, Apply, Input, Literal, Point
from wpk.core.result import Config
from wpk.core.target import Target, host_target
from wpk.core.tensor import TensorType, from_layout, to_layout
from wpk.core.workload import Workload
from wpk.dsl.codegen.c import emit
from wpk.dsl.interp import run as interpret
from wpk.dsl.verify import verify
from wpk.kernels.family import Built, Family
from wpk.measure.builder import build
from wpk.measure.toolchain import Compiler, find_compiler

Reference = Callable[[Workload, Sequence[np.ndarray]], np.ndarray]
THREADS = 2
MARGIN = 64  # floats on both sides of a compiled kernel's output that must stay as they are
CANARY = np.float32(-7.25e33)


@cache
def target() -> Target:
    """This machine, with the threads that the tests pretend to have."""
    return host_target(THREADS)


@cache
def compiler() -> Compiler:
    """The C compiler of this machine."""
    return find_compiler()


def random_feeds(workload: Workload, seed: int = 0) -> list[np.ndarray]:
    """One seeded normal logical array for each input."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=t.shape).astype(t.dtype) for t in workload.inputs]


_OPS: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
    "pow": np.power, "neg": np.negative, "abs": np.abs, "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "tanh": np.tanh,
    "floor": np.floor, "ceil": np.ceil, "recip": np.reciprocal, "relu": lambda a: np.maximum(a, 0),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)), "erf": np.vectorize(math.erf), "lt": np.less, "le": np.less_equal,
    "eq": np.equal, "where": lambda c, a, b: np.where(c != 0, a, b),
}  # fmt: skip


def evaluate(point: Point | None, acc: np.ndarray | None, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """The value of an expression in float64, by NumPy's broadcasting."""
    match point:
        case None | Acc():
            assert acc is not None
            return acc
        case Input(i):
            return inputs[i].astype(np.float64)
        case Literal(value):
            return np.float64(value)
        case Apply(op, args):
            return np.asarray(_OPS[op](*(evaluate(a, acc, inputs) for a in args)), np.float64)


def configs_of(family: Family, workload: Workload, samples: int, seed: int = 0) -> list[Config]:
    """The default config and ``samples`` random ones."""
    space = family.space(workload, target())
    rng = Random(seed)
    return [space.default(), *(space.sample(rng) for _ in range(samples))]


def interpreted(family: Family, workload: Workload, config: Config, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """The physical output that the interpreter computes."""
    built = family.build(workload, config, target())
    out = np.full(workload.outputs[0].physical, np.nan, np.float32)
    arrays = [*_arguments(family, workload, config, feeds), out]
    params = built.kernel.params
    interpret(built.kernel, {p.name: a.reshape(p.shape) for p, a in zip(params, arrays, strict=True)})
    return out


def compiled(
    family: Family,
    workload: Workload,
    config: Config,
    feeds: Sequence[np.ndarray],
    inplace: int | None = None,
) -> np.ndarray:
    """The physical output that the compiled kernel computes; ``inplace``: the input whose memory it takes over.

    AssertionError when it writes outside its output or returns an error code.
    """
    built = family.build(workload, config, target())
    inputs = [_aligned(a) for a in _arguments(family, workload, config, feeds)]
    guarded = np.full(np.prod(workload.outputs[0].physical, dtype=int) + 2 * MARGIN, CANARY, np.float32)
    guarded = _aligned(guarded)
    out = guarded[MARGIN:-MARGIN]
    out[:] = np.nan
    if inplace is not None:
        out[:] = inputs[inplace].ravel()
        inputs[inplace] = out
    call(built, [*inputs, out])
    assert (guarded[:MARGIN] == CANARY).all() and (guarded[-MARGIN:] == CANARY).all(), "wrote outside the output"
    return out.reshape(workload.outputs[0].physical).copy()


def check_family(
    family: Family,
    workload: Workload,
    reference: Reference,
    *,
    samples: int = 3,
    interpret_too: bool = True,
    tolerance: float = 2e-6,
    feeds: Sequence[np.ndarray] | None = None,
    seed: int = 0,
) -> None:
    """The default and ``samples`` random configs agree with ``reference`` (logical arrays in and out).

    ``tolerance`` bounds the greatest difference, relative to the greatest magnitude of the expected output. Padding lanes
    must be zero. Configs that allow it also run in place. The interpreter runs the default config only: it is slow.
    """
    assert family.matches(workload, target()) is None, family.matches(workload, target())
    arrays = random_feeds(workload, seed) if feeds is None else list(feeds)
    expected = reference(workload, arrays)
    for i, config in enumerate(configs_of(family, workload, samples, seed)):
        if interpret_too and i == 0:
            assert_close(workload, interpreted(family, workload, config, arrays), expected, tolerance, config)
        assert_close(workload, compiled(family, workload, config, arrays), expected, tolerance, config)
        for taken in family.build(workload, config, target()).inplace:
            out = compiled(family, workload, config, arrays, inplace=taken)
            assert_close(workload, out, expected, tolerance, config)


def assert_close(
    workload: Workload, physical: np.ndarray, expected: np.ndarray, tolerance: float, config: Config
) -> None:
    """A physical output equals the expected logical one; its padding lanes are zero."""
    output = workload.outputs[0]
    got = from_layout(physical, output.shape, output.layout)
    with np.errstate(invalid="ignore"):
        wrong = np.abs(got - expected) > tolerance * max(float(np.abs(expected).max(initial=0)), 1e-30)
    wrong |= np.isnan(got) != np.isnan(expected)
    assert not wrong.any(), (
        f"{workload}\n{config}\n{wrong.sum()} of {wrong.size} wrong, first at {np.argwhere(wrong)[0]}: "
        f"{got[tuple(np.argwhere(wrong)[0])]}, expected {expected[tuple(np.argwhere(wrong)[0])]}"
    )
    padded = to_layout(np.zeros_like(got), output.layout) if output.layout != "ROW" else None
    if padded is not None:
        lanes = to_layout(np.ones_like(got), output.layout) == 0
        assert not physical.reshape(lanes.shape)[lanes].any(), f"{workload}\n{config}\npadding lanes are not zero"


def call(built: Built, arrays: Sequence[np.ndarray]) -> None:
    """Compile and run a kernel on physical arrays in parameter order; AssertionError when it returns an error code."""
    verify(built.kernel)
    emitted = emit(built.kernel, built.isa)
    library = ctypes.CDLL(str(build(emitted.text, built.isa, compiler(), _cache_folder())))
    function = getattr(library, emitted.symbol)
    function.restype = ctypes.c_int
    workspace = _aligned(np.full((emitted.shared_bytes + THREADS * emitted.thread_bytes) // 4 + 16, np.nan, np.float32))
    pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
    runtime = _Runtime(THREADS, _PARALLEL)
    code = function(None, pointers, ctypes.c_void_p(workspace.ctypes.data), ctypes.byref(runtime))
    assert code == 0, f"the kernel returned {code}"


def _arguments(family: Family, workload: Workload, config: Config, feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Inputs in parameter order: activations in their layouts, constants packed by the family."""
    constants = [feeds[i] for i in workload.constants]
    read: Config = {name: config[name] for name in getattr(family, "packing", config)}  # no other knob may matter
    packed = dict(zip(workload.constants, family.pack(workload, read, constants, target()), strict=True))
    return [packed[i] if i in packed else to_layout(a, t.layout)
            for i, (a, t) in enumerate(zip(feeds, workload.inputs, strict=True))]  # fmt: skip


def _cache_folder() -> Path:
    """Built kernels are kept by content between runs, so that a second run of the tests is quick."""
    return Path(gettempdir()) / "wpk-test-cache"


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy at a 64-byte aligned address."""
    flat = np.ascontiguousarray(array)
    room = np.empty(flat.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + flat.nbytes].view(flat.dtype).reshape(flat.shape)
    copy[...] = flat
    return copy


_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int)
_PARALLEL_TYPE = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
)


class _Runtime(ctypes.Structure):
    _fields_ = [("threads", ctypes.c_int), ("parallel", _PARALLEL_TYPE)]


def _parallel(_rt: int, body: int, ctx: int, n: int, grain: int) -> None:
    step = grain * max(n // (3 * grain), 1)
    run = _BODY(body)
    for k, begin in reversed(list(enumerate(range(0, n, step)))):
        run(ctx, begin, min(begin + step, n), k % THREADS)


_PARALLEL = _PARALLEL_TYPE(_parallel)


@dataclass(frozen=True)
class Case:
    """A workload to check, with a short name for test ids."""

    name: str
    workload: Workload

    def __str__(self) -> str:
        return self.name


def tensor(*shape: int, layout: str = "ROW") -> TensorType:
    """A float32 tensor type."""
    return TensorType("float32", shape, layout)
