"""Kernels as indented text, for people, tests and `wpk show`. The same kernel always gives the same text."""

from __future__ import annotations

from collections.abc import Iterator

from wpk.dsl.ir import (
    Alloc,
    Barrier,
    Binary,
    Buffer,
    Cast,
    Commit,
    Const,
    Expr,
    Fetch,
    For,
    If,
    Invoke,
    Kernel,
    Load,
    Prefetch,
    Select,
    Settle,
    Stmt,
    Store,
    Unary,
    Var,
)

_PRECEDENCE = {
    "or": 1, "and": 2, "<": 3, "<=": 3, "==": 3, "+": 4, "-": 4, "*": 5, "/": 5, "//": 5, "%": 5,
}  # fmt: skip
_CALLED = ("min", "max", "pow")
_ATOM = 9


def show(kernel: Kernel) -> str:
    """The kernel as text: parameters, then the body, two spaces a level; ends in a newline."""
    params = "".join(f"  {_buffer(p)} {p.access}\n" for p in kernel.params)
    lines = (f"{line}\n" for line in _body(kernel.body, 1))
    return f"kernel {kernel.name}\n{params}{''.join(lines)}"


def _buffer(b: Buffer) -> str:
    values = f" = {', '.join(f'{v:g}' for v in b.values)}" if b.values is not None else ""
    slots = f" slots {b.slots}" if b.slots > 1 else ""
    slots += f" swizzle {b.swizzle}" if b.swizzle else ""
    return f"{b.name}: {b.dtype}[{', '.join(map(str, b.shape))}] {b.scope}{slots}{values}"


def _body(stmts: tuple[Stmt, ...], depth: int) -> Iterator[str]:
    for stmt in stmts:
        yield from _stmt(stmt, depth)


def _stmt(stmt: Stmt, depth: int) -> Iterator[str]:
    pad = "  " * depth
    match stmt:
        case For():
            kind = "" if stmt.kind == "serial" else f" {stmt.kind}"
            grain = f" grain {stmt.grain}" if stmt.grain != 1 else ""
            yield f"{pad}for {stmt.var} in {show_expr(stmt.start)}..{show_expr(stmt.stop)}{kind}{grain}:"
            yield from _body(stmt.body, depth + 1)
        case Store():
            op = stmt.op if stmt.op in ("", "+") else f"{stmt.op} "
            ahead = "ahead " if stmt.ahead else ""
            yield f"{pad}{ahead}{_access(stmt.buffer, stmt.indices)} {op}= {show_expr(stmt.value)}"
        case If():
            yield f"{pad}if {show_expr(stmt.cond)}:"
            yield from _body(stmt.body, depth + 1)
        case Alloc():
            yield f"{pad}alloc {_buffer(stmt.buffer)}:"
            yield from _body(stmt.body, depth + 1)
        case Prefetch():
            write = " write" if stmt.write else ""
            yield f"{pad}prefetch {_access(stmt.buffer, stmt.indices)} locality {stmt.locality}{write}"
        case Invoke():
            operands = ", ".join(_access(name, at) for name, at in stmt.operands)
            yield f"{pad}{stmt.instr}({operands})"
        case Fetch():
            box = " × ".join(str(side.count) for side in stmt.box)
            yield f"{pad}{_access(stmt.buffer, stmt.indices)} = fetch {box} of {_access(stmt.source, stmt.origin)}"
        case Barrier():
            yield f"{pad}barrier" + (f" wait {stmt.wait}" if stmt.wait is not None else "")
        case Commit():
            yield f"{pad}commit"
        case Settle():
            yield f"{pad}settle" + (f" left {stmt.left}" if stmt.left else "")


def _access(name: str, indices: tuple[Expr, ...]) -> str:
    return f"{name}[{', '.join(map(show_expr, indices))}]"


def show_expr(e: Expr) -> str:
    """An expression in one line."""
    return _expr(e)[0]


def _expr(e: Expr) -> tuple[str, int]:
    """Text and precedence."""
    match e:
        case Const():
            return (str(e.value) if e.dtype in ("int64", "float32") else f"{e.dtype}({e.value})"), _ATOM
        case Var():
            return e.name, _ATOM
        case Load():
            return _access(e.buffer, e.indices), _ATOM
        case Unary():
            return f"{e.op}({show_expr(e.a)})", _ATOM
        case Cast():
            return f"{e.dtype}({show_expr(e.a)})", _ATOM
        case Select():
            return f"select({show_expr(e.cond)}, {show_expr(e.a)}, {show_expr(e.b)})", _ATOM
        case Binary() if e.op in _CALLED or e.op not in _PRECEDENCE:
            return f"{e.op}({show_expr(e.a)}, {show_expr(e.b)})", _ATOM
        case Binary():
            mine = _PRECEDENCE[e.op]
            return f"{_operand(e.a, mine)} {e.op} {_operand(e.b, mine + 1)}", mine
    return repr(e), _ATOM


def _operand(e: Expr, least: int) -> str:
    text, precedence = _expr(e)
    return text if precedence >= least else f"({text})"
