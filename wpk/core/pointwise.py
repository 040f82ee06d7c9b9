"""Elementwise expressions: the language of epilogues and of fused elementwise chains.

An expression is a tree over three leaves: ``Acc`` (the anchor's result), ``Input(i)`` (operand i of the workload,
broadcast to the output by NumPy's rules) and ``Literal``. Its text form is stable and is part of workload keys:
``relu(add(acc,in2))``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

#: operator name -> number of arguments. Meaning: NumPy's function of that name unless said otherwise in `evaluate`.
ARITY = {
    "add": 2, "sub": 2, "mul": 2, "div": 2, "max": 2, "min": 2, "pow": 2,
    "neg": 1, "abs": 1, "exp": 1, "log": 1, "sqrt": 1, "erf": 1, "tanh": 1, "sigmoid": 1,
    "relu": 1, "floor": 1, "ceil": 1, "recip": 1,
    "lt": 2, "le": 2, "eq": 2, "where": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Acc:
    """The result of the anchor, before the epilogue."""

    def __str__(self) -> str:
        return "acc"


@dataclass(frozen=True)
class Input:
    """Operand ``index`` of the workload's inputs, broadcast to the output shape."""

    index: int

    def __str__(self) -> str:
        return f"in{self.index}"


@dataclass(frozen=True)
class Literal:
    """A float constant."""

    value: float

    def __str__(self) -> str:
        return repr(float(self.value))


@dataclass(frozen=True)
class Apply:
    """An operator of :data:`ARITY` applied to arguments."""

    op: str
    args: tuple["Point", ...]

    def __post_init__(self) -> None:
        if ARITY.get(self.op) != len(self.args):
            raise ValueError(f"{self.op} takes {ARITY.get(self.op)} arguments, found {len(self.args)}")

    def __str__(self) -> str:
        return f"{self.op}({','.join(map(str, self.args))})"


Point = Acc | Input | Literal | Apply


def apply(op: str, *args: Point) -> Apply:
    """Short for ``Apply(op, args)``."""
    return Apply(op, args)


def substitute(point: Point, leaf: Callable[[Point], Point]) -> Point:
    """Replace every leaf by ``leaf(leaf)``."""
    if isinstance(point, Apply):
        return Apply(point.op, tuple(substitute(a, leaf) for a in point.args))
    return leaf(point)


def inputs_of(point: Point) -> tuple[int, ...]:
    """Indices of the operands read, ascending, each once."""
    if isinstance(point, Apply):
        return tuple(sorted({i for a in point.args for i in inputs_of(a)}))
    return (point.index,) if isinstance(point, Input) else ()


def size(point: Point) -> int:
    """Number of operators in the tree."""
    return 1 + sum(map(size, point.args)) if isinstance(point, Apply) else 0


_TOKEN = re.compile(r"\s*([a-z]+\d*|-?(?:inf|nan|[\d.]+(?:e[+-]?\d+)?)|[(),])")


def parse(text: str) -> Point:
    """The inverse of ``str``. Raises ValueError on malformed text."""
    tokens = _TOKEN.findall(text)
    point, rest = _parse(tokens)
    if rest or "".join(tokens) != text.replace(" ", ""):
        raise ValueError(f"malformed expression {text!r}")
    return point


def _parse(tokens: list[str]) -> tuple[Point, list[str]]:
    if not tokens:
        raise ValueError("expression ends early")
    head, rest = tokens[0], tokens[1:]
    if head == "acc":
        return Acc(), rest
    if re.fullmatch(r"in\d+", head):
        return Input(int(head[2:])), rest
    if head not in ARITY:
        return Literal(float(head)), rest
    args: list[Point] = []
    while rest and rest[0] in ("(", ","):
        arg, rest = _parse(rest[1:])
        args.append(arg)
    if not rest or rest[0] != ")":
        raise ValueError(f"unclosed {head}(")
    return Apply(head, tuple(args)), rest[1:]
