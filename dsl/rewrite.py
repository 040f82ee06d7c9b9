"""Statements with their variables, buffers and loop names replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from wpk.dsl.ir import (
    Alloc,
    Barrier,
    Binary,
    Cast,
    Commit,
    Expr,
    Fetch,
    For,
    If,
    Invoke,
    Load,
    Prefetch,
    Select,
    Settle,
    Stmt,
    Store,
    Unary,
    Var,
)

Place = tuple[str, tuple[Expr, ...]]


@dataclass(frozen=True)
class Rewrite:
    """``var``: what a variable becomes; ``access``: where a buffer's element is; ``loop``: the name of a loop variable."""

    var: Callable[[str], Expr] = Var
    access: Callable[[str, tuple[Expr, ...]], Place] = lambda buffer, indices: (buffer, indices)
    loop: Callable[[str], str] = lambda name: name

    def expr(self, e: Expr) -> Expr:
        """An expression, rewritten from the leaves up."""
        match e:
            case Var():
                return self.var(e.name)
            case Load():
                return Load(*self.access(e.buffer, tuple(map(self.expr, e.indices))))
            case Binary():
                return Binary(e.op, self.expr(e.a), self.expr(e.b))
            case Select():
                return Select(self.expr(e.cond), self.expr(e.a), self.expr(e.b))
            case Unary() | Cast():
                return replace(e, a=self.expr(e.a))
        return e

    def body(self, stmts: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        """Statements in order."""
        return tuple(map(self.stmt, stmts))

    def stmt(self, stmt: Stmt) -> Stmt:
        """One statement and all inside it."""
        match stmt:
            case For():
                start, stop = self.expr(stmt.start), self.expr(stmt.stop)
                return replace(stmt, var=self.loop(stmt.var), start=start, stop=stop, body=self.body(stmt.body))
            case Store():
                buffer, indices = self.access(stmt.buffer, tuple(map(self.expr, stmt.indices)))
                return replace(stmt, buffer=buffer, indices=indices, value=self.expr(stmt.value))
            case If():
                return If(self.expr(stmt.cond), self.body(stmt.body))
            case Alloc():
                return Alloc(stmt.buffer, self.body(stmt.body))
            case Prefetch():
                buffer, indices = self.access(stmt.buffer, tuple(map(self.expr, stmt.indices)))
                return replace(stmt, buffer=buffer, indices=indices)
            case Invoke():
                operands = tuple(self.access(b, tuple(map(self.expr, at))) for b, at in stmt.operands)
                return replace(stmt, operands=operands)
            case Fetch():
                to, indices = self.access(stmt.buffer, tuple(map(self.expr, stmt.indices)))
                of, origin = self.access(stmt.source, tuple(map(self.expr, stmt.origin)))
                grown = len(indices) - len(stmt.indices)
                box = tuple(replace(side, buffer=side.buffer + grown) for side in stmt.box)
                return replace(stmt, buffer=to, indices=indices, source=of, origin=origin, box=box)
            case Barrier() | Commit() | Settle():
                return stmt
