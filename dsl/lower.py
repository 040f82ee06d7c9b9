"""Lowering: a :class:`Scheduled` algorithm → a kernel of loops, with storage sized by bounds inference.

Root stages follow one another; a stage placed at a loop of its consumer is produced at the top of that loop's body, over the
box of it that the body reads (Halide's model: Ragan-Kelley et al., PLDI 2013, section 4). All extents are constants; bases of
boxes are expressions of the loops outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

from wpk.core.tensor import DTYPE_BYTES
from wpk.dsl import affine
from wpk.dsl.affine import Linear, linear
from wpk.dsl.algorithm import Stage
from wpk.dsl.barriers import with_barriers
from wpk.dsl.fetch import Placed, fetched
from wpk.dsl.instr import find
from wpk.dsl.ir import (
    BLOCK_KINDS,
    Alloc,
    Binary,
    Buffer,
    Cast,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    Prefetch,
    Select,
    Settle,
    Stmt,
    Store,
    Unary,
    Var,
)  # fmt: skip
from wpk.dsl.pipeline import pipeline, ring
from wpk.dsl.schedule import FuseOf, Nest, Placement, PrefetchOf, Scheduled, ScheduleError, SplitOf
from wpk.dsl.tensorize import match

#: axis -> (first element, number of elements)
Box = dict[str, tuple[Expr, int]]
Body = tuple[Stmt, ...]
ZERO = Const(0)


@dataclass(slots=True)
class _Walk:
    """One traversal of a stage's nest: the box it covers, the loops entered so far, the inner extents of cut tails."""

    stage: Stage
    nest: Nest
    box: Box
    reducing: bool
    env: dict[str, Expr] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    begin: tuple[str, ...] = ()  # the loops in front of which the result is initialized, when that is inside the nest
    fading: bool = False  # what is there is multiplied by the reduction's decay

    def extents(self) -> dict[str, int]:
        """The extent of every axis and loop, given the cuts taken."""
        table = {a: n for a, (_, n) in self.box.items()}
        for rel in self.nest.relations:
            if isinstance(rel, FuseOf):
                if rel.outer in table and rel.inner in table:
                    table[rel.fused] = table[rel.outer] * table[rel.inner]
            elif rel.parent in table:
                factor = min(rel.factor, table[rel.parent])
                table[rel.outer] = -(-table[rel.parent] // factor)
                table[rel.inner] = self.cut.get(rel.inner, factor)
        return table


class _Lowering:
    """State of one lowering: known ranges of loop variables, and where each live stage is stored."""

    def __init__(self, scheduled: Scheduled) -> None:
        self.s = scheduled
        self.stages = {t.name: t for t in scheduled.algorithm.stages}
        self.order = list(self.stages)
        self.params = {p.name: p for p in (*scheduled.algorithm.params, *scheduled.algorithm.tables)}
        self.ranges: dict[str, tuple[int, int]] = {}
        self.live: dict[str, Box] = {}
        self.parallel = False
        self.threads: set[str] = set()  # variables of the loops over threads around
        self.loads = {t.name: _loads(t) for t in scheduled.algorithm.stages}

    # --- root -------------------------------------------------------------------------------------------------------

    def body(self) -> Body:
        roots = [t for t in self.s.algorithm.stages if self.s.placement(t.name).at is None]
        return self._chain(roots, {t.name: _full_box(t) for t in roots}, lambda: ())

    def _chain(self, stages: list[Stage], boxes: Mapping[str, Box], rest: Callable[[], Body]) -> Body:
        """Produce ``stages`` one after another, each allocated for all that follows it, then ``rest``."""
        if not stages:
            return rest()
        first, box = stages[0], boxes[stages[0].name]
        if first.target in self.params:
            return self._produce(first, box) + self._chain(stages[1:], boxes, rest)
        if first.name in self.live:
            raise ScheduleError(f"{first.name} is computed inside itself")
        if self.s.placement(first.name).scope == "shared" and self.parallel:
            raise ScheduleError(
                f"compute_at {first.name}: shared storage inside a parallel loop; use thread or register"
            )
        self.live[first.name] = box
        carried = [t for t in self.stages.values() if t.carry and (self.s.placement(t.name).at or ("",))[0] == first.name]
        begun = tuple(s for t in carried for s in self._begin_carry(t, boxes))
        body = begun + self._produce(first, box) + self._chain(stages[1:], boxes, rest)
        for t in carried:
            body = (Alloc(self._buffer(t, self.live.pop(t.name)), body),)
        del self.live[first.name]
        return (Alloc(self._buffer(first, box), body),)

    def _begin_carry(self, stage: Stage, boxes: Mapping[str, Box]) -> Body:
        """What makes the first value of a stage that a loop hands on, which stays live."""
        assert stage.carry is not None
        if stage.name not in boxes:
            raise ScheduleError(f"{stage.name}: nothing in or behind the loop that hands it on reads it")
        box = self.live[stage.name] = {**boxes[stage.name], stage.carry.axis: (ZERO, 1)}
        return self._produce(replace(stage, value=Const(stage.carry.init, stage.dtype), carry=None), box)

    def _buffer(self, stage: Stage, box: Box) -> Buffer:
        place = self.s.placement(stage.name)
        order = place.storage or tuple(a.name for a in stage.axes)
        shape = [box[a][1] for a in order]
        if place.join:
            first, shape = _joined_dims(place, order, shape)
            order = tuple(first)
        if place.lanes:
            axis, width = place.lanes
            at = order.index(axis)
            if shape[at] % width:
                raise ScheduleError(f"store {stage.name}: {width} lanes do not divide {shape[at]} of {axis}")
            shape = [*shape[:at], shape[at] // width, *shape[at + 1 :], width]
        if place.pad:
            shape[order.index(place.pad[0])] += place.pad[1]
        if place.swizzle and (place.scope != "block" or shape[-1] * DTYPE_BYTES[stage.dtype] != place.swizzle):
            raise ScheduleError(f"store {stage.name}: a swizzle of {place.swizzle} bytes for rows of {shape[-1]} {stage.dtype}")
        return Buffer(stage.name, tuple(shape), stage.dtype, place.scope, swizzle=place.swizzle)

    # --- one stage --------------------------------------------------------------------------------------------------

    def _produce(self, stage: Stage, box: Box) -> Body:
        nest = self.s.nest(stage.name)
        if stage.reduce is None:
            return self._loops(_Walk(stage, nest, box, False), nest.order)
        over: Box = {a.name: (ZERO, a.extent) for a in stage.reduce.axes}
        first = stage.reduce.axes[0].name
        if stage.reduce.count is not None and first not in nest.order:
            raise ScheduleError(f"{stage.name}.{first}: a ragged axis is one loop")
        if stage.reduce.decay is not None and (first not in nest.order or nest.kind(first) != "serial"):
            raise ScheduleError(f"{stage.name}.{first}: a sum that decays is one serial loop")
        reduced = _carried(nest, set(over))
        pure = tuple(n for n in nest.order if n not in reduced)
        bound = [i for i, n in enumerate(nest.order) if nest.kind(n) in (*BLOCK_KINDS, "thread")]
        if bound and not reduced & set(nest.order[: bound[-1]]):
            begin = nest.order[bound[-1] + 1 :]
            return self._loops(_Walk(stage, nest, {**box, **over}, True, begin=begin), nest.order)
        start = self._loops(_Walk(stage, nest, box, True), pure, init=True)
        return start + self._loops(_Walk(stage, nest, {**box, **over}, True), nest.order)

    def _loops(self, walk: _Walk, order: tuple[str, ...], init: bool = False) -> Body:
        if walk.begin and walk.begin == order and not init:
            return self._begun(walk, order)
        if not order:
            return self._leaf(walk, init)
        loop = order[0]
        extents = walk.extents()
        if loop not in extents:
            raise ScheduleError(f"{walk.stage.name}.{loop} has no extent")
        rel = next(
            (
                r
                for r in walk.nest.relations
                if isinstance(r, SplitOf) and r.outer == loop and r.tail == "cut"
            ),
            None,
        )
        rest = extents[rel.parent] % min(rel.factor, extents[rel.parent]) if rel else 0
        if rel is None or rest == 0:
            return self._for(walk, order, extents[loop], init)
        main = self._for(walk, order, extents[loop] - 1, init)
        walk.cut[rel.inner], walk.env[loop] = rest, Const(extents[loop] - 1)
        tail = self._inside(walk, order, init)
        del walk.cut[rel.inner], walk.env[loop]
        return main + tail

    def _begun(self, walk: _Walk, order: tuple[str, ...]) -> Body:
        """A device's thread initializes its own part of a reduction, then goes on."""
        assert walk.stage.reduce is not None
        over = {a.name for a in walk.stage.reduce.axes}
        box = {a: r for a, r in walk.box.items() if a not in over}
        begun = _Walk(walk.stage, walk.nest, box, True, dict(walk.env), dict(walk.cut))
        start = self._loops(begun, tuple(n for n in order if n not in _carried(walk.nest, over)), init=True)
        walk.begin = ()
        rest = self._loops(walk, order)
        walk.begin = order
        return start + rest

    def _for(self, walk: _Walk, order: tuple[str, ...], extent: int, init: bool) -> Body:
        """The loop, in the segments asked for: what the range of a segment decides folds away in it."""
        points = () if init else self.s.segments.get((walk.stage.name, order[0]), ())
        inside = sorted({q for p in points if 0 < (q := p if p >= 0 else extent + p) < extent})
        edges = (0, *inside, extent)
        return sum((self._segment(walk, order, a, b, init) for a, b in pairwise(edges)), ())

    def _segment(self, walk: _Walk, order: tuple[str, ...], first: int, end: int, init: bool) -> Body:
        loop, kind, extent = order[0], walk.nest.kind(order[0]), end - first
        stop = None if init else self._stop(walk, loop)
        piped, _, fetch = self.s.pipelines.get(walk.stage.name, ("", 0, False))
        if extent == 1 and kind != "thread" and stop is None and not (fetch and piped == loop and not init):
            walk.env[loop] = Const(first)
            body = self._inside(walk, order, init)
            del walk.env[loop]
            return body
        var = f"{walk.stage.name}_{loop}"
        if piped == loop and not init:
            return self._pipelined(walk, order, end, stop)
        outside, self.parallel = self.parallel, self.parallel or kind == "parallel" or kind in BLOCK_KINDS
        if kind == "thread":
            self.threads.add(var)
        with self._ranged(var, first, end):
            walk.env[loop] = Var(var)
            body = self._inside(walk, order, init)
            del walk.env[loop]
        self.parallel = outside
        self.threads.discard(var)
        if kind == "vector" and (len(order) > 1 or extent & (extent - 1)):
            if len(order) > 1:
                raise ScheduleError(f"vectorize {walk.stage.name}.{loop}: not the innermost loop")
            kind = "serial"
        grain = walk.nest.grain if kind == "parallel" or kind in BLOCK_KINDS else 1
        done = (For(var, Const(first), stop or Const(end), kind, body, grain),)
        target = self.s.instructions.get(walk.stage.name)
        if target and target[0] == loop and not init:
            found = match(done, find(target[1]), self.ranges)
            return (found, Settle()) if find(target[1]).ahead else (found,)
        return done

    def _stop(self, walk: _Walk, loop: str) -> Expr | None:
        """Where the loop of a ragged axis ends, None for others. All threads of a block must agree on it."""
        reduce = walk.stage.reduce
        if reduce is None or reduce.count is None or loop != reduce.axes[0].name:
            return None
        where, spans = f"{walk.stage.name}.{loop}", self._span(walk)
        apart = [a for a, (_, n) in spans.items() if n > 1 and _mentions(reduce.count, a)]
        if apart or walk.nest.kind(loop) != "serial" or (walk.stage.name, loop) in self.s.segments:
            raise ScheduleError(f"{where}: a ragged axis is a serial loop inside those of {apart or reduce.count}")
        stop = affine.substitute(reduce.count, {a: base for a, (base, _) in spans.items()})
        stop = affine.index(Binary("min", stop, Const(reduce.axes[0].extent)), self.ranges)
        if any(_mentions(stop, t) for t in self.threads):
            raise ScheduleError(f"{where}: threads of a block would end it at different times")
        return stop

    def _pipelined(self, walk: _Walk, order: tuple[str, ...], count: int, stop: Expr | None) -> Body:
        """The loop as a pipeline over the block stages computed in it."""
        loop, name = order[0], walk.stage.name
        var, (_, depth, fetch) = f"{name}_{loop}", self.s.pipelines[name]
        rel = next((r for r in walk.nest.relations if isinstance(r, SplitOf) and r.outer == loop), None)
        if rel is not None and rel.tail == "cut" and walk.extents()[rel.parent] % rel.factor:
            raise ScheduleError(f"pipeline {name}.{loop}: it counts the tiles of a split with a cut tail")
        placed = [self.stages[n] for n in self.order if self.s.placement(n).at == (name, loop) and not self.stages[n].carry]
        ahead = [t for t in placed if self.s.placement(t.name).scope == "block" and not self._waits(t, (name, loop))]
        if not ahead:
            raise ScheduleError(f"pipeline {name}.{loop}: no block stage is computed there")
        with self._ranged(var, 0, count):
            walk.env[loop] = Var(var)
            boxes = self._boxes(walk, order[1:])
            make = self._fetched if fetch else self._kept
            made = [(self._buffer(t, boxes[t.name]), make(t, boxes[t.name])) for t in ahead]
            use = self._chain(
                [t for t in placed if t not in ahead], boxes, lambda: self._step(walk, order)
            )
            for t in ahead:
                del self.live[t.name]
            del walk.env[loop]
        if fetch:
            return ring(var, stop or Const(count), depth, made, use)
        return pipeline(var, count, depth, made, use, stop)

    def _waits(self, stage: Stage, here: tuple[str, str]) -> bool:
        """Does a stage need, in the same step of the loop ``here``, another one that is computed there?"""
        inside = [stage.name, *(n for n in self.order if self._runs_inside(n, stage.name))]
        return any(self.s.placement(x.buffer).at == here for n in inside for x in self.loads[n] if x.buffer in self.stages)

    def _kept(self, stage: Stage, box: Box) -> Body:
        """What makes a stage, which stays live."""
        self.live[stage.name] = box
        return self._produce(stage, box)

    def _fetched(self, stage: Stage, box: Box) -> Body:
        """What fetches a stage, which stays live."""
        self.live[stage.name] = box
        place = self.s.placement(stage.name)
        plain = [t for t in self.stages.values() if t.name in self.live and self.s.placement(t.name) == Placement()]
        shapes = {t.name: tuple(a.extent for a in t.axes) for t in plain}
        shapes |= {p.name: p.shape for p in self.params.values() if p.values is None}
        placed = Placed(place.storage or tuple(a.name for a in stage.axes), place.lanes, place.join)
        found = fetched(stage, placed, box, shapes, self.ranges)
        if isinstance(found, str):
            raise ScheduleError(f"fetch {stage.name}: {found}")
        return found

    @contextmanager
    def _ranged(self, var: str, first: int, end: int) -> Iterator[None]:
        before = self.ranges.get(var)
        self.ranges[var] = (first, end - 1)
        try:
            yield
        finally:
            if before is None:
                del self.ranges[var]
            else:
                self.ranges[var] = before

    def _inside(self, walk: _Walk, order: tuple[str, ...], init: bool) -> Body:
        """The body of the loop just entered: prefetches, the stages computed here, then the loops inside."""
        if init:
            return self._loops(walk, order[1:], init)
        here = (walk.stage.name, order[0])
        hints = tuple(x for p in self.s.prefetches.get(walk.stage.name, ()) if p.loop == order[0]
                      for x in self._prefetch(walk, order[1:], p))  # fmt: skip
        placed = [self.stages[n] for n in self.order if self.s.placement(n).at == here and not self.stages[n].carry]
        if not placed:
            return hints + self._step(walk, order)
        boxes = self._boxes(walk, order[1:])
        for stage in placed:
            if stage.name not in boxes:
                raise ScheduleError(f"compute_at {stage.name}: {walk.stage.name}.{order[0]} does not read it")
        return hints + self._chain(placed, boxes, lambda: self._step(walk, order))

    def _step(self, walk: _Walk, order: tuple[str, ...]) -> Body:
        """The loops inside the one just entered, between a decay of what they add to and what goes to the next step."""
        body: Body = ()
        reduce = walk.stage.reduce
        if reduce is not None and reduce.decay is not None and order[0] == reduce.axes[0].name:
            over = {a.name for a in reduce.axes}
            box = {a: r for a, r in walk.box.items() if a not in over or a == order[0]}
            faded = _Walk(walk.stage, walk.nest, box, True, dict(walk.env), dict(walk.cut), fading=True)
            body = self._loops(faded, tuple(n for n in order[1:] if n not in _carried(walk.nest, over)), init=True)
        body += self._loops(walk, order[1:])
        for name, box in self._handed(walk).items():
            if self.s.placement(name).at == (walk.stage.name, order[0]):
                body += self._produce(replace(self.stages[name], carry=None), box)
        return body

    def _handed(self, walk: _Walk) -> dict[str, Box]:
        """The stages that the loops entered hand on, and the part of them that the current step makes."""
        found: dict[str, Box] = {}
        for stage in self.stages.values():
            owner, loop = self.s.placement(stage.name).at or ("", "")
            if stage.carry and owner == walk.stage.name and loop in walk.env and stage.name in self.live:
                found[stage.name] = {**self.live[stage.name], stage.carry.axis: (walk.env[loop], 1)}
        return found

    def _leaf(self, walk: _Walk, init: bool) -> Body:
        stage = walk.stage
        env, guards = self._axes(walk)
        buffer, indices = self._target(stage, env)
        if walk.fading:
            assert stage.reduce is not None and stage.reduce.decay is not None
            store = Store(buffer, indices, Binary("*", Load(buffer, indices), self._value(stage.reduce.decay, env)))
        elif init:
            assert stage.reduce is not None
            store = Store(buffer, indices, Const(stage.reduce.init, stage.dtype))
        else:
            store = Store(
                buffer, indices, self._value(stage.value, env), stage.reduce.op if stage.reduce else ""
            )
        if stage.where is not None:
            guards.append(self._value(stage.where, env))
        return _guarded(guards, store)

    def _target(self, stage: Stage, env: Mapping[str, Expr]) -> tuple[str, tuple[Expr, ...]]:
        if stage.target not in self.params:
            return stage.name, self._address(stage, [env[a.name] for a in stage.axes])
        raw = stage.scatter or tuple(a.var for a in stage.axes)
        return stage.target, tuple(affine.index(affine.substitute(i, env), self.ranges) for i in raw)

    def _address(self, stage: Stage, position: list[Expr]) -> tuple[Expr, ...]:
        """Physical indices of an element of a live stage, from its position on the stage's axes."""
        if stage.name not in self.live:
            raise ScheduleError(f"{stage.name} is read outside the loop that it is computed in")
        place, box = self.s.placement(stage.name), self.live[stage.name]
        names = [a.name for a in stage.axes]
        order = place.storage or tuple(names)
        # along one element there is no other place, though guarded iterations may ask for what is outside
        offsets = {
            n: linear(ZERO, {}) if box[n][1] == 1 else linear(p, self.ranges).plus(linear(box[n][0], self.ranges), -1)
            for n, p in zip(names, position, strict=True)
        }
        out = [offsets[n].expr() for n in order]
        if place.join:
            out = self._joined_index(place, order, out, [box[n][1] for n in order])
        if place.lanes:
            axis, width = place.lanes
            at, offset = order.index(axis), offsets[axis].expr()
            out[at] = affine.index(Binary("//", offset, Const(width)), self.ranges)
            out.append(affine.index(Binary("%", offset, Const(width)), self.ranges))
        return tuple(out)

    def _joined_index(self, place: Placement, order: Sequence[str], at: list[Expr], extents: list[int]) -> list[Expr]:
        """Indices in which axes that are one dimension are one."""
        found: list[Expr] = []
        inner = {n for group in place.join for n in group[1:]}
        for name, index, extent in zip(order, at, extents, strict=True):
            found[-1:] = [affine.index(found[-1] * extent + index, self.ranges)] if name in inner else [*found[-1:], index]
        return found

    # --- expressions ------------------------------------------------------------------------------------------------

    def _value(self, expr: Expr, env: Mapping[str, Expr]) -> Expr:
        """``expr`` with axes replaced, stages addressed, and everything simplified."""
        if isinstance(expr, Load):
            at = [affine.substitute(i, env) for i in expr.indices]
            if expr.buffer in self.stages and expr.buffer not in self.params:
                return Load(expr.buffer, self._address(self.stages[expr.buffer], at))
            return Load(expr.buffer, tuple(affine.index(i, self.ranges) for i in at))
        if isinstance(expr, Select):
            cond = affine.condition(affine.substitute(expr.cond, env), self.ranges)
            if isinstance(cond, Const):
                return self._value(expr.a if cond.value else expr.b, env)
            return Select(self._value(expr.cond, env), self._value(expr.a, env), self._value(expr.b, env))
        if isinstance(expr, Binary):
            if affine.is_integer(expr):
                return affine.index(affine.substitute(expr, env), self.ranges)
            if expr.op in ("<", "<=", "==") and affine.is_integer(expr.a) and affine.is_integer(expr.b):
                return affine.condition(affine.substitute(expr, env), self.ranges)
            if expr.op in ("and", "or"):
                return affine.condition(
                    Binary(expr.op, self._value(expr.a, env), self._value(expr.b, env)), self.ranges
                )
            return Binary(expr.op, self._value(expr.a, env), self._value(expr.b, env))
        if isinstance(expr, Unary):
            return Unary(expr.op, self._value(expr.a, env))
        if isinstance(expr, Cast):
            return Cast(expr.dtype, self._value(expr.a, env))
        return env.get(expr.name, expr) if isinstance(expr, Var) else expr

    def _axes(self, walk: _Walk) -> tuple[dict[str, Expr], list[Expr]]:
        """The value of each axis in terms of the loops entered, and the guards of splits that do not divide."""
        extents, guards = walk.extents(), list[Expr]()
        values = dict(walk.env)
        for rel in reversed(walk.nest.relations):
            if isinstance(rel, FuseOf):
                if rel.fused not in values:  # a reduction loop, while the result is initialized
                    continue
                fused = values[rel.fused]
                values[rel.outer] = affine.index(fused // extents[rel.inner], self.ranges)
                values[rel.inner] = affine.index(fused % extents[rel.inner], self.ranges)
            elif rel.parent in extents:
                values[rel.parent], guard = self._joined(rel, extents, values[rel.outer], values[rel.inner])
                guards += [guard] if guard else []
        return {a: affine.index(base + values[a], self.ranges) for a, (base, _) in walk.box.items()}, guards

    def _joined(
        self, rel: SplitOf, extents: Mapping[str, int], outer: Expr, inner: Expr
    ) -> tuple[Expr, Expr | None]:
        total = extents[rel.parent]
        factor = min(rel.factor, total)
        start: Expr = outer * factor
        if total % factor and rel.tail == "shift":
            start = affine.index(Binary("min", start, Const(total - factor)), self.ranges)
        whole = affine.index(start + inner, self.ranges)
        if total % factor and rel.tail == "guard":
            guard = affine.condition(whole < total, self.ranges)
            return whole, None if isinstance(guard, Const) and guard.value else guard
        return whole, None

    # --- bounds -----------------------------------------------------------------------------------------------------

    def _boxes(self, walk: _Walk, inner: tuple[str, ...]) -> dict[str, Box]:
        """For every stage not yet live that runs inside the current point: the box of it that is read from here on."""
        boxes = {walk.stage.name: self._span(walk), **self._handed(walk)}
        for name in reversed(self.order):
            if not self._runs_inside(name, walk.stage.name):
                continue
            found: Box | None = None
            for user, box in boxes.items():
                for load in self.loads[user]:
                    if load.buffer == name:
                        found = self._union(name, found, self._reads(self.stages[name], load, box))
            if found:
                full = _full_box(self.stages[name])
                found |= {a: full[a] for a in self.s.placement(name).whole}
                if self.s.placement(name).scope == "block":
                    found = self._for_all_threads(name, found)
                reduce = self.stages[name].reduce
                over: Box = {a.name: (ZERO, a.extent) for a in reduce.axes} if reduce else {}
                boxes[name] = {**found, **over}
        names = {n: {a.name for a in self.stages[n].axes} for n in boxes}
        return {n: {a: r for a, r in box.items() if a in names[n]} for n, box in boxes.items()}

    def _for_all_threads(self, name: str, box: Box) -> Box:
        """What all threads of a block read, from what one of them does."""
        if not self.threads:
            return box
        full = {a.name: a.extent for a in self.stages[name].axes}
        wide: Box = {}
        for axis, (first, count) in box.items():
            base, reach = _bounds(linear(first, self.ranges), self.threads, self.ranges)
            wide[axis] = self._clamp(base, count + reach - 1, full[axis])
        return wide

    def _runs_inside(self, name: str, ancestor: str) -> bool:
        at = self.s.placement(name).at
        return at is not None and (at[0] == ancestor or self._runs_inside(at[0], ancestor))

    def _span(self, walk: _Walk) -> Box:
        """The box of a stage's axes that the loops not yet entered cover."""
        extents = walk.extents()
        spans: dict[str, tuple[Expr, int]] = {n: (e, 1) for n, e in walk.env.items()}
        for n in walk.nest.order:
            spans.setdefault(n, (ZERO, extents.get(n, 1)))
        for rel in reversed(walk.nest.relations):
            if isinstance(rel, FuseOf):
                fused, count = spans[rel.fused]
                if count == 1:
                    spans[rel.outer] = (affine.index(fused // extents[rel.inner], self.ranges), 1)
                    spans[rel.inner] = (affine.index(fused % extents[rel.inner], self.ranges), 1)
                else:
                    spans[rel.outer], spans[rel.inner] = (
                        (ZERO, extents[rel.outer]),
                        (ZERO, extents[rel.inner]),
                    )
            elif rel.parent in extents:
                spans[rel.parent] = self._joined_span(rel, extents, spans[rel.outer], spans[rel.inner])
        return {
            a: (affine.index(base + spans[a][0], self.ranges), spans[a][1])
            for a, (base, _) in walk.box.items()
        }

    def _joined_span(
        self, rel: SplitOf, extents: Mapping[str, int], outer: tuple[Expr, int], inner: tuple[Expr, int]
    ) -> tuple[Expr, int]:
        total = extents[rel.parent]
        factor = min(rel.factor, total)
        if outer[1] == 1:
            start, _ = self._joined(rel, extents, outer[0], inner[0])
            return start, inner[1]
        count = (outer[1] - 1) * factor + inner[1]
        if count >= total:
            return ZERO, total
        return affine.index(outer[0] * factor + inner[0], self.ranges), count

    def _reads(self, stage: Stage, load: Load, box: Box) -> Box:
        relative = {a: Var(f"{a}'") for a in box}
        ranges = {**self.ranges, **{v.name: (0, box[a][1] - 1) for a, v in relative.items()}}
        env = {a: box[a][0] + v for a, v in relative.items()}
        names = {v.name for v in relative.values()}
        found: Box = {}
        for axis, i in zip(stage.axes, load.indices, strict=True):
            base, count = _bounds(linear(affine.substitute(i, env), ranges), names, ranges)
            found[axis.name] = self._clamp(base, count, axis.extent)
        return found

    def _clamp(self, base: Linear, count: int, total: int) -> tuple[Expr, int]:
        """Keep a box inside its axis: it moves rather than shrinks, so that its size stays a constant."""
        if count >= total:
            return ZERO, total
        span = affine.interval(base, self.ranges)
        expr = base.expr()
        if span is None or span[1] + count > total:
            expr = Binary("min", expr, Const(total - count))
        if span is None or span[0] < 0:
            expr = Binary("max", expr, ZERO)
        return affine.index(expr, self.ranges), count

    def _union(self, name: str, a: Box | None, b: Box) -> Box:
        if a is None:
            return b
        full = {x.name: x.extent for x in self.stages[name].axes}
        return {n: self._hull(a[n], b[n], full[n]) for n in b}

    def _hull(self, a: tuple[Expr, int], b: tuple[Expr, int], total: int) -> tuple[Expr, int]:
        shift = linear(b[0], self.ranges).plus(linear(a[0], self.ranges), -1)
        if not shift.is_const:
            return ZERO, total
        first = a[0] if shift.const >= 0 else b[0]
        last = max(a[1], shift.const + b[1])
        return first, min(last - min(0, shift.const), total)

    # --- prefetch ---------------------------------------------------------------------------------------------------

    def _prefetch(self, walk: _Walk, inner: tuple[str, ...], hint: PrefetchOf) -> Body:
        """One hint for each pure iteration inside that reads another line of the tensor."""
        if hint.distance and not isinstance(walk.env.get(hint.loop), Var):
            return ()
        reduced = _carried(
            walk.nest, {a.name for a in walk.stage.reduce.axes} if walk.stage.reduce else set()
        )
        extents = walk.extents()
        ahead = _Walk(walk.stage, walk.nest, walk.box, walk.reducing, dict(walk.env), dict(walk.cut))
        ahead.env[hint.loop] = walk.env[hint.loop] + hint.distance
        loops = [n for n in inner if n not in reduced and walk.nest.kind(n) == "unroll" and extents[n] > 1]
        for n in inner:
            ahead.env[n] = Var(f"{walk.stage.name}_{n}_ahead") if n in loops else ZERO
        env, _ = self._axes(ahead)
        for axis, delta in hint.shift:
            env[axis] = env[axis] + delta
        load = next((x for x in self.loads[walk.stage.name] if x.buffer == hint.tensor), None)
        if load is None:
            raise ScheduleError(f"prefetch {hint.tensor}: {walk.stage.name} no longer reads it")
        address = self._value(load, env)
        assert isinstance(address, Load)
        body: Body = (Prefetch(address.buffer, address.indices, hint.locality),)
        for n in reversed(loops):
            var = f"{walk.stage.name}_{n}_ahead"
            if any(_mentions(i, var) for i in address.indices):
                body = (For(var, ZERO, Const(extents[n]), "unroll", body),)
        return body


def _loads(stage: Stage) -> list[Load]:
    """What a stage reads of others."""
    decay = stage.reduce.decay if stage.reduce is not None else None
    return affine.loads(stage.value) + (affine.loads(decay) if decay is not None else [])


def _joined_dims(place: Placement, order: Sequence[str], shape: list[int]) -> tuple[list[str], list[int]]:
    """The first axis and the extent of each dimension, axes that are one dimension being one."""
    names, dims = list[str](), list[int]()
    inner = {n for group in place.join for n in group[1:]}
    for name, extent in zip(order, shape, strict=True):
        if name in inner:
            dims[-1] *= extent
        else:
            names, dims = [*names, name], [*dims, extent]
    return names, dims


def _bounds(form: Linear, relative: set[str], ranges: Mapping[str, tuple[int, int]]) -> tuple[Linear, int]:
    """Base and size of the values of ``form`` as its relative variables run over their ranges."""
    base, count = Linear(form.const, {}), 1
    for atom, c in form.terms.items():
        if isinstance(atom, Var) and atom.name in relative:
            reach = c * ranges[atom.name][1]
            base, count = Linear(base.const + min(reach, 0), base.terms), count + abs(reach)
        elif any(_mentions(atom, r) for r in relative):
            low, size = _atom_bounds(atom, relative, ranges)
            if c < 0:
                low = low.plus(Linear(size - 1, {}))
            base, count = base.plus(low, c), count + abs(c) * (size - 1)
        else:
            base = base.plus(Linear(0, {atom: c}))
    return base, count


def _atom_bounds(atom: Expr, relative: set[str], ranges: Mapping[str, tuple[int, int]]) -> tuple[Linear, int]:
    if isinstance(atom, Binary) and isinstance(atom.b, Const) and atom.op in ("//", "%"):
        c = int(atom.b.value)
        if atom.op == "%":
            return Linear(0, {}), c
        base, count = _bounds(linear(atom.a, ranges), relative, ranges)
        aligned = base.const % c == 0 and all(k % c == 0 for k in base.terms.values())
        return linear(Binary("//", base.expr(), atom.b), ranges), (count - 1) // c + (1 if aligned else 2)
    span = affine.interval(Linear(0, {atom: 1}), ranges)
    if span is None:
        raise ScheduleError(f"the range of {atom} is unknown")
    return Linear(span[0], {}), span[1] - span[0] + 1


def _mentions(expr: Expr, name: str) -> bool:
    if isinstance(expr, Var):
        return expr.name == name
    if isinstance(expr, Binary):
        return _mentions(expr.a, name) or _mentions(expr.b, name)
    if isinstance(expr, Load):
        return any(_mentions(i, name) for i in expr.indices)
    if isinstance(expr, Select):
        return any(_mentions(e, name) for e in (expr.cond, expr.a, expr.b))
    return isinstance(expr, Unary | Cast) and _mentions(expr.a, name)


def _carried(nest: Nest, axes: set[str]) -> set[str]:
    """Loops that carry (part of) one of ``axes``."""
    names = set(axes)
    for rel in nest.relations:
        if isinstance(rel, SplitOf) and rel.parent in names:
            names |= {rel.outer, rel.inner}
        elif isinstance(rel, FuseOf) and {rel.outer, rel.inner} & names:
            names.add(rel.fused)
    return names


def _full_box(stage: Stage) -> Box:
    return {a.name: (ZERO, a.extent) for a in stage.axes}


def _guarded(guards: Iterable[Expr], store: Store) -> Body:
    body: Body = (store,)
    for guard in guards:
        if isinstance(guard, Const):
            if not guard.value:
                return ()
            continue
        body = (If(guard, body),)
    return body


def lower(scheduled: Scheduled, name: str | None = None) -> Kernel:
    """The kernel of a scheduled algorithm. Raises ScheduleError when a placement or a bound does not work out."""
    algorithm = scheduled.algorithm
    body = _Lowering(scheduled).body()
    for table in reversed(algorithm.tables):
        body = (Alloc(table, body),)
    return with_barriers(Kernel(name or algorithm.name, algorithm.params, body))


__all__ = ["lower"]
