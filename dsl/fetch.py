"""Boxes of a tensor that are fetched at once (TMA): what a fetch means, and which stages are one.

A stage can be fetched when each dimension of the tensor that it copies moves with one of its axes, and it is zero exactly where
the tensor has no element. Its axes lie in memory in the tensor's order then, as one box, or as panels of ``lanes`` elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from wpk.core.tensor import DTYPE_BYTES
from wpk.dsl import affine
from wpk.dsl.affine import Linear, linear
from wpk.dsl.algorithm import Stage
from wpk.dsl.ir import Binary, Const, Expr, Fetch, For, Load, Select, Side, Stmt, Store, Var

#: elements that a box reaches over along one dimension, dimensions of a tensor, elements from one that is fetched to the next
LONGEST, MOST_DIMENSIONS, WIDEST = 256, 5, 8


@dataclass(frozen=True)
class Placed:
    """Where a stage lies in memory: its axes in order, (axis, width) of panels, whose number takes the axis's place, and axes
    that are one dimension together."""

    order: tuple[str, ...]
    lanes: tuple[str, int] | None = None
    join: tuple[tuple[str, ...], ...] = ()

    def dimensions(self, extents: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """The dimension of each axis, and its step along that."""
        found: dict[str, tuple[int, int]] = {}
        inner = {n for group in self.join for n in group[1:]}
        dimension = -1
        for axis in self.order:
            dimension += axis not in inner
            found = {a: (d, step * extents[axis] if d == dimension else step) for a, (d, step) in found.items()}
            found[axis] = (dimension, 1)
        return found


def expand(fetch: Fetch) -> tuple[Stmt, ...]:
    """A Fetch as the loops it means."""
    names = [Var(f"{fetch.buffer}_box{i}") for i in range(len(fetch.box))]
    to, of = list(fetch.indices), list(fetch.origin)
    for name, side in zip(names, fetch.box, strict=True):
        to[side.buffer] = to[side.buffer] + (name * side.step if side.step > 1 else name)
        of[side.source] = of[side.source] + (name * side.stride if side.stride > 1 else name)
    inside: Expr = Const(True, "bool")
    for at, size in zip(of, fetch.sizes, strict=True):
        inside = inside & (Const(-1) < at) & (at < size)
    zero = Const(0, fetch.dtype) if "int" in fetch.dtype else Const(0.0, "float32")
    body: Stmt = Store(fetch.buffer, tuple(to), Select(inside, Load(fetch.source, tuple(of)), zero))
    for name, side in reversed(list(zip(names, fetch.box, strict=True))):
        body = For(name.name, Const(0), Const(side.count), "serial", (body,))
    return (body,)


def fetched(
    stage: Stage, placed: Placed, box: Mapping[str, tuple[Expr, int]], shapes: Mapping[str, tuple[int, ...]],
    ranges: affine.Ranges,
) -> tuple[Stmt, ...] | str:  # fmt: skip
    """The fetches that make ``box`` of a stage, or why there are none. ``shapes``: those of tensors in device memory."""
    load = stage.value.a if isinstance(stage.value, Select) else stage.value
    if stage.reduce or not isinstance(load, Load) or load.buffer not in shapes or stage.dtype == "float64":
        return "it is no copy of a tensor in device memory"
    sizes = shapes[load.buffer]
    if len(sizes) > MOST_DIMENSIONS or (isinstance(stage.value, Select) and not _zero_outside(stage.value, load, sizes)):
        return f"it is not zero where {load.buffer} ends, or that has more than {MOST_DIMENSIONS} dimensions"
    if len(sizes) < 2 or any(prod(sizes[d:]) * DTYPE_BYTES[stage.dtype] % 16 for d in range(1, len(sizes))):
        return f"rows of {load.buffer} are no multiple of 16 bytes"
    moved = {a: Var(f"{a}'") for a, (_, n) in box.items() if n > 1}
    known = {**ranges, **{v.name: (0, box[a][1] - 1) for a, v in moved.items()}}
    env = {a: first + moved[a] if a in moved else first for a, (first, _) in box.items()}
    forms = [linear(affine.substitute(i, env), known) for i in load.indices]
    place = _dimensions(forms, moved)
    if place is None:
        return f"an axis does not move along one dimension of {load.buffer}"
    strides = {a: forms[place[a]].terms[v] for a, v in moved.items()}
    origin = tuple(Linear(f.const, {x: k for x, k in f.terms.items() if x not in moved.values()}).expr() for f in forms)
    sides = {a: Side(0, d, box[a][1], 1, strides[a]) for a, d in place.items()}
    return _boxes(stage, placed, {a: n for a, (_, n) in box.items()}, sides, Load(load.buffer, origin), sizes)


def _boxes(
    stage: Stage, placed: Placed, extents: Mapping[str, int], sides: Mapping[str, Side], at: Load, sizes: tuple[int, ...]
) -> tuple[Stmt, ...] | str:
    cut, width = placed.lanes or ("", 0)
    where = placed.dimensions(extents)
    rank, panels = max(d for d, _ in where.values()) + 1, 1
    inner = [a for a in placed.order if extents[a] > 1 and a != cut]
    box = tuple(replace(sides[a], buffer=where[a][0], step=where[a][1]) for a in inner)
    if width:
        box = (*box, replace(sides[cut], buffer=rank, count=width))
        panels, rank = extents[cut] // width, rank + 1
    indices = [Const(0)] * rank
    ordered = [side.source for side in box]
    if not box or ordered != sorted(ordered) or ordered[-1] != len(sizes) - 1 or box[-1].stride != 1:
        return f"in memory it has not the order of {at.buffer}"
    if max(x.count * x.stride for x in box) > LONGEST or max(x.stride for x in box) > WIDEST:
        return f"it reaches over more than {LONGEST} elements along a dimension, or takes fewer than one of {WIDEST}"
    if panels == 1:
        return (Fetch(stage.name, tuple(indices), at.buffer, at.indices, box, sizes, stage.dtype),)
    var, origin = Var(f"{stage.name}_panel"), list(at.indices)
    origin[sides[cut].source] = origin[sides[cut].source] + var * width
    to: list[Expr] = [*indices]
    to[where[cut][0]] = var
    one = Fetch(stage.name, tuple(to), at.buffer, tuple(origin), box, sizes, stage.dtype)
    return (For(var.name, Const(0), Const(panels), "unroll", (one,)),)


def _dimensions(forms: list[Linear], moved: Mapping[str, Var]) -> dict[str, int] | None:
    """The tensor's dimension that each axis moves along, where all do."""
    place: dict[str, int] = {}
    for axis, var in moved.items():
        found = [d for d, form in enumerate(forms) if any(var.name in _names(atom) for atom in form.terms)]
        if len(found) != 1 or forms[found[0]].terms.get(var, 0) < 1 or found[0] in place.values():
            return None
        place[axis] = found[0]
    plain = all(isinstance(x, Var) or not _names(x) & {v.name for v in moved.values()} for f in forms for x in f.terms)
    return place if plain else None


def _names(e: Expr) -> set[str]:
    if isinstance(e, Binary):
        return _names(e.a) | _names(e.b)
    return {e.name} if isinstance(e, Var) else set()


def _zero_outside(value: Select, load: Load, sizes: tuple[int, ...]) -> bool:
    """Does the condition hold wherever the tensor has an element, and is the value else zero?"""
    if not isinstance(value.b, Const) or value.b.value != 0:
        return False
    at = [linear(i, {}) for i in load.indices]
    bounds = [*at, *(Linear(n - 1, {}).plus(form, -1) for n, form in zip(sizes, at, strict=True))]
    return all(_implied(c, bounds) for c in _conjuncts(value.cond))


def _conjuncts(cond: Expr) -> Iterator[Expr]:
    if isinstance(cond, Binary) and cond.op == "and":
        yield from _conjuncts(cond.a)
        yield from _conjuncts(cond.b)
    else:
        yield cond


def _implied(cond: Expr, bounds: list[Linear]) -> bool:
    """Does ``cond`` hold where all of ``bounds`` are at least 0?"""
    if not isinstance(cond, Binary) or cond.op not in ("<", "<="):
        return False
    form = linear(cond.b, {}).plus(linear(cond.a, {}), -1)
    slack = [form.plus(b, -1) for b in bounds]
    return any(s.is_const and s.const >= (1 if cond.op == "<" else 0) for s in slack)


__all__ = ["LONGEST", "Placed", "expand", "fetched"]
