"""Software pipelines: a loop whose block stages are made some iterations ahead, while earlier ones are used.

    for k in 0..n:                       for s in 0..d-1: make(s) in slot s; commit
        make(k)                 →        for k in 0..n:
        use(k)                               wait until only d-2 groups are under way; barrier
                                             if k + d-1 < n: make(k + d-1) in slot (k + d-1) % d
                                             commit
                                             use(k), reading slot k % d

Where the loop ends at ``stop``, which is less than ``n`` in some runs, what is made in front is made only before ``stop`` too.

One barrier an iteration: behind it slot k is there for all threads, and all are done with slot k-1, which is the one that is
written next. Run in order this means what the loop meant.

An instruction that runs ahead (``use`` ends in a Settle) goes on while the next iteration begins, where there are slots for that:
it is waited for an iteration later, and what is made then is made one iteration less ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wpk.dsl import affine
from wpk.dsl.ir import Alloc, Barrier, Binary, Buffer, Commit, Const, Expr, For, If, Settle, Stmt, Store, Var
from wpk.dsl.rewrite import Place, Rewrite

Body = tuple[Stmt, ...]


def pipeline(var: str, count: int, depth: int, made: Sequence[tuple[Buffer, Body]], use: Body, stop: Expr | None = None) -> Body:
    """The loop ``var`` in 0..count over ``made`` (buffers and what makes them) and ``use``, with ``depth`` slots.

    ``depth`` is at least 2 and ``count`` at least 2. With ``stop``, the loop ends there; it is ``count`` at most.
    """
    depth = min(depth, count + 1)
    end = stop or Const(count)
    names = {buffer.name for buffer, _ in made}
    make = tuple(_ahead(s, names) for _, body in made for s in body)
    k, ranges = Var(var), {var: (0, count - 1)}
    lag = int(depth > 2 and use[-1:] == (Settle(),))
    later = affine.index(k + (depth - 1 - lag), ranges)
    begun = _slotted(make, names, k)
    first = For(var, Const(0), Const(depth - 1 - lag), "unroll", (*((If(k < stop, begun),) if stop else begun), Commit()))
    steady = (
        Barrier(depth - 2 - lag),
        If(later < end, _slotted(_moved(make, var, later), names, Binary("%", later, Const(depth)))),
        Commit(),
        *_slotted(use[:-1] if lag else use, names, Binary("%", k, Const(depth))),
        *((Settle(lag),) if lag else ()),
    )
    body: Body = (first, For(var, Const(0), end, "serial", steady), *((Settle(),) if lag else ()))
    return _allocated(body, made, depth)


def ring(var: str, count: Expr, depth: int, made: Sequence[tuple[Buffer, Body]], use: Body) -> Body:
    """The loop as a ring of ``depth`` slots: what is made are fetches, made by threads of their own as slots become free."""
    lag = int(depth > 1 and use[-1:] == (Settle(),))
    names = {buffer.name for buffer, _ in made}
    make = tuple(s for _, body in made for s in body)
    use = (*use[:-1], Settle(lag)) if lag else use
    inner = _slotted((*make, *use), names, Binary("%", Var(var), Const(depth)))
    body: Body = (For(var, Const(0), count, "ring", inner, depth), *((Settle(),) if lag else ()))
    return _allocated(body, made, depth)


def _allocated(body: Body, made: Sequence[tuple[Buffer, Body]], depth: int) -> Body:
    for buffer, _ in reversed(made):
        body = (Alloc(replace(buffer, shape=(depth, *buffer.shape), slots=depth), body),)
    return body


def _ahead(stmt: Stmt, names: set[str]) -> Stmt:
    """Stores to the pipeline's buffers may be under way."""
    if isinstance(stmt, Store):
        return replace(stmt, ahead=True) if stmt.buffer in names and not stmt.op else stmt
    if isinstance(stmt, For | If | Alloc):
        return replace(stmt, body=tuple(_ahead(s, names) for s in stmt.body))
    return stmt


def _slotted(body: Body, names: set[str], slot: Expr) -> Body:
    def access(buffer: str, indices: tuple[Expr, ...]) -> Place:
        return (buffer, (slot, *indices)) if buffer in names else (buffer, indices)

    return Rewrite(access=access).body(body)


def _moved(body: Body, var: str, to: Expr) -> Body:
    return Rewrite(lambda name: to if name == var else Var(name)).body(body)
