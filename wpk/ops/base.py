"""What an operator family says about itself, and the two small languages between it and ONNX.

A family is an :class:`Operator`: attributes, fusion class, shape rule, work, layouts, and two translations:

    lift    an ONNX node (:class:`Foreign`) → native nodes (:class:`Piece`), or the reason why not
    spell   a native workload → ONNX nodes (:class:`Spelled`), for regions, baselines and oracles

Both speak plain data: nothing here imports onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from wpk.core.pointwise import Input, Literal, Point, inputs_of, size, substitute
from wpk.core.tensor import TensorType, channel_block
from wpk.core.workload import Attr, Workload

Shape = tuple[int, ...]

#: dtypes that an expression reads as float32
READ = ("float32", "int64", "int32", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Work:
    """What a workload must do: operations of the direct algorithm, and compulsory memory traffic in bytes."""

    flops: float
    nbytes: float


@dataclass(frozen=True)
class Layouts:
    """One layout for each input and output of a workload, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Foreign:
    """An ONNX node as plain data. Missing optional inputs are ``""``; ``used`` are the outputs somebody reads."""

    op_type: str
    opset: int
    attrs: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    used: frozenset[str]
    types: Mapping[str, TensorType]
    constants: Mapping[str, np.ndarray]

    def has(self, index: int) -> bool:
        """True when input ``index`` is given."""
        return index < len(self.inputs) and self.inputs[index] != ""

    def type(self, index: int) -> TensorType:
        """The type of input ``index``."""
        return self.types[self.inputs[index]]

    def constant(self, index: int) -> np.ndarray | None:
        """The value of input ``index``; None when it is missing or not constant."""
        return self.constants.get(self.inputs[index]) if self.has(index) else None

    @property
    def out(self) -> TensorType:
        """The type of the first output."""
        return self.types[self.outputs[0]]

    @property
    def extra_outputs(self) -> bool:
        """True when an output other than the first is read."""
        return any(v in self.used for v in self.outputs[1:])


@dataclass(frozen=True)
class Piece:
    """A native node made by a lift; the fields are those of a graph node."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: tuple[tuple[str, Attr], ...]
    epilogue: Point | None


@dataclass
class Builder:
    """Collects what a lift makes. ``fresh`` gives an unused value name for a hint."""

    fresh: Callable[[str], str]
    pieces: list[Piece] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def constant(self, array: np.ndarray, hint: str) -> str:
        """A new constant; its name."""
        name = self.fresh(hint)
        self.constants[name] = np.ascontiguousarray(array)
        self.types[name] = TensorType(str(array.dtype), array.shape)
        return name

    def emit(
        self, op: str, inputs: Sequence[str], shape: Shape, output: str, epilogue: Point | None = None,
        final: bool = False, dtype: str = "float32", **attrs: Attr,
    ) -> str:  # fmt: skip
        """A node; its output's name: ``output`` itself when ``final``, else a fresh one like it."""
        name = output if final else self.fresh(output)
        self.types[name] = TensorType(dtype, shape)
        self.pieces.append(Piece(op, tuple(inputs), (name,), tuple(sorted(attrs.items())), epilogue))
        return name

    def split(self, value: str, outputs: Sequence[str], shapes: Sequence[Shape], axis: int) -> None:
        """A split of ``value`` along ``axis`` into the named ``outputs``."""
        self.types.update({v: TensorType("float32", s) for v, s in zip(outputs, shapes, strict=True)})
        attrs = (("axis", axis), ("sizes", tuple(s[axis] for s in shapes)))
        self.pieces.append(Piece("split", (value,), tuple(outputs), attrs, None))

    def view(
        self, value: str, shape: Shape, output: str, final: bool = False, dtype: str = "float32"
    ) -> str:
        """A view of ``value``, which is of ``dtype``; its output's name."""
        return self.emit("view", (value,), shape, output, final=final, dtype=dtype)


Lift = Callable[[Foreign, Builder], str | None]


@dataclass(frozen=True)
class Spelled:
    """An ONNX node of the default domain, as plain data."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: tuple[tuple[str, Attr], ...]


@dataclass
class Speller:
    """Collects ONNX nodes valid in ``opset``."""

    opset: int
    fresh: Callable[[str], str]
    nodes: list[Spelled] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def constant(self, array: np.ndarray) -> str:
        """A new constant; its name."""
        name = self.fresh("constant")
        self.constants[name] = array
        return name

    def op(self, op_type: str, inputs: Sequence[str], output: str = "", **attrs: Attr) -> str:
        """A node with one output, named ``output`` or freshly; the name."""
        name = output or self.fresh(op_type.lower())
        self.nodes.append(Spelled(op_type, tuple(inputs), (name,), tuple(attrs.items())))
        return name

    def outputs(self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Attr) -> None:
        """A node with given outputs."""
        self.nodes.append(Spelled(op_type, tuple(inputs), tuple(outputs), tuple(attrs.items())))


Spell = Callable[[Speller, Workload, Sequence[str], Sequence[str]], None]


@dataclass(frozen=True)
class Operator:
    """A native operator. ``arity`` counts its own inputs (None: any number); further inputs feed the epilogue.

    ``fusion`` is elementwise, injective, reduction, anchor or opaque. ``shapes`` gives the output shapes from the own inputs'
    and raises ValueError when they do not fit. ``flops`` counts without the epilogue. ``layouts`` takes the names of layouts
    to offer besides ``ROW``.
    ``lifts`` maps the ONNX ops it stands for to their translation.
    """

    name: str
    fusion: str
    arity: int | None
    attrs: tuple[str, ...]
    shapes: Callable[[Sequence[TensorType], Mapping[str, Any]], tuple[Shape, ...] | None]
    flops: Callable[[Workload], float]
    layouts: Callable[[Workload, tuple[str, ...]], tuple[Layouts, ...]]
    spell: Spell | None
    lifts: Mapping[str, Lift] = field(default_factory=dict)


def own(workload: Workload, arity: int | None) -> tuple[TensorType, ...]:
    """The inputs that are the operator's own, not the epilogue's."""
    return workload.inputs if arity is None else workload.inputs[:arity]


def row_only(workload: Workload, names: tuple[str, ...]) -> tuple[Layouts, ...]:
    """Row-major everywhere."""
    return (Layouts(("ROW",) * len(workload.inputs), ("ROW",) * len(workload.outputs)),)


def one_layout(workload: Workload, names: tuple[str, ...]) -> tuple[Layouts, ...]:
    """Row-major, or one of ``names`` for every four-dimensional activation with enough channels for its blocks."""
    plain = row_only(workload, names)
    if any(len(t.shape) != 4 for t in workload.outputs):
        return plain
    fits = [n for n in names if 2 * workload.outputs[0].shape[1] >= channel_block(n)]
    return plain + tuple(all_in(workload, n) for n in fits)


def all_in(workload: Workload, name: str) -> Layouts:
    """Every activation of four dimensions in layout ``name``; constants and operands without all channels stay row-major."""
    channels = {t.shape[1] for t in workload.outputs}

    def layout(index: int, t: TensorType, own_inputs: int) -> str:
        plain = (
            index in workload.constants
            or len(t.shape) != 4
            or (index >= own_inputs and t.shape[1] not in channels)
        )
        return "ROW" if plain else name

    own_inputs = {"conv": 2, "pool": 1, "lrn": 1, "concat": len(workload.inputs), "split": 1}.get(
        workload.op, 0
    )
    inputs = tuple(layout(i, t, own_inputs) for i, t in enumerate(workload.inputs))
    return Layouts(inputs, (name,) * len(workload.outputs))


def epilogue_flops(workload: Workload) -> float:
    """Operators of the epilogue times output elements."""
    return size(workload.epilogue) * prod(workload.outputs[0].shape) if workload.epilogue is not None else 0


def eltwise(
    f: Foreign, b: Builder, point: Point, inputs: Sequence[str], shape: Shape, output: str, final: bool = True,
    dtype: str = "float32",
) -> str:  # fmt: skip
    """Emit an eltwise node: scalar constants become literals, other constants take the output's rank."""
    known = {**f.constants, **b.constants}
    types = {**f.types, **b.types}
    used = inputs_of(point)
    kept = [i for i in used if inputs[i] not in known or known[inputs[i]].size != 1]
    if np.broadcast_shapes(*(types[inputs[i]].shape for i in kept)) != shape:
        kept = list(used)  # a scalar's rank makes the output's
    operands: list[str] = []
    leaves: dict[int, Point] = {}
    for index in used:
        name = inputs[index]
        if index not in kept:
            leaves[index] = Literal(float(known[name].reshape(())))
            continue
        if name in known and known[name].ndim < len(shape):
            name = b.constant(
                known[name].reshape((1,) * (len(shape) - known[name].ndim) + known[name].shape), name
            )
        if name not in operands:
            operands.append(name)
        leaves[index] = Input(operands.index(name))
    renamed = substitute(point, lambda leaf: leaves[leaf.index] if isinstance(leaf, Input) else leaf)
    return b.emit("eltwise", operands, shape, output, renamed, final, dtype)
