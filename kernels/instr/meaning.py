"""What the instructions mean, in the IR, over the operands ``acc``, ``a`` and ``w``; shared by the ISAs."""

from __future__ import annotations

from wpk.dsl.ir import Cast, Const, Expr, For, Load, LoopKind, Stmt, Store, Var

L, Q = Var("l"), Var("q")


def _loop(var: Var, extent: int, kind: LoopKind, body: Stmt) -> Stmt:
    return For(var.name, Const(0), Const(extent), kind, (body,))


def _accumulate(value: Expr) -> Stmt:
    return Store("acc", (L,), value, "+")


def broadcast_fma(lanes: int) -> tuple[Stmt, ...]:
    """``acc[l] += a * w[l]``."""
    return (_loop(L, lanes, "vector", _accumulate(Load("a", ()) * Load("w", (L,)))),)


def vector_fma(lanes: int) -> tuple[Stmt, ...]:
    """``acc[l] += a[l] * w[l]``."""
    return (_loop(L, lanes, "vector", _accumulate(Load("a", (L,)) * Load("w", (L,)))),)


def byte_dot(lanes: int) -> tuple[Stmt, ...]:
    """``acc[l] += a[q] * w[l, q]`` over four q, in int32."""
    product = Cast("int32", Load("a", (Q,))) * Cast("int32", Load("w", (L, Q)))
    return (_loop(Q, 4, "unroll", _loop(L, lanes, "vector", _accumulate(product))),)


def bf16_dot(lanes: int) -> tuple[Stmt, ...]:
    """``acc[l] += a[q] * w[l, q]`` over two q, in float32."""
    return (_loop(Q, 2, "unroll", _loop(L, lanes, "vector", _accumulate(Load("a", (Q,)) * Load("w", (L, Q))))),)
