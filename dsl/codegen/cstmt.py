"""Statements as C: loops expanded or printed, registers named, stores classified by the stride of the vector lane."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from wpk.core.errors import InternalError
from wpk.dsl.affine import Linear, interval, linear
from wpk.dsl.codegen.address import Address, Binding, Unit
from wpk.dsl.codegen.cexpr import Expressions, offset
from wpk.dsl.codegen.cstyle import ATOM, C_TYPES, COMPUTE, Val, add, constant, multiply, vector_type
from wpk.dsl.codegen.storage import Workspace, allocs
from wpk.dsl.instr import Instr, Operand, expand, find
from wpk.dsl.ir import (
    Alloc,
    Barrier,
    Binary,
    Buffer,
    Cast,
    Commit,
    Const,
    Expr,
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
)  # fmt: skip

_ACROSS = {"+": "sum", "max": "most", "min": "least"}
_WIDTH = 100


class Statements(Expressions):
    """Prints the statements of one function."""

    def __init__(self, unit: Unit, plan: Workspace, lanes: dict[int, int]) -> None:
        super().__init__(unit)
        self.plan = plan
        self.register_lanes = lanes
        self.pools: dict[int, tuple[str, int | None]] = {}
        self.expansions: dict[int, tuple[Stmt, ...]] = {}
        self.sharing: dict[int, frozenset[int]] = {}
        self.stmts: dict[type, Callable[..., None]] = {
            For: self._for, Store: self._store, If: self._if, Alloc: self._alloc, Prefetch: self._prefetch,
            Invoke: self._invoke, Barrier: lambda _: None, Commit: lambda _: None, Settle: lambda _: None,
        }  # fmt: skip

    def body(self, stmts: tuple[Stmt, ...]) -> None:
        """Print statements in order."""
        for stmt in stmts:
            self.stmts[type(stmt)](stmt)

    # -- loops ----------------------------------------------------------------------------------------------------------

    def parallel(self, loop: For) -> None:
        """The chunk ``begin..end`` of a parallel loop."""
        first = linear(loop.start, self.ranges)
        if not first.is_const:
            raise InternalError(f"parallel loop {loop.var} does not start at a constant")
        low = first.const
        high = linear(loop.stop, self.ranges).const
        shift = f" + {low}" if low else ""
        self._c_loop(loop, f"begin{shift}", f"end{shift}", (low, high - 1))

    def _for(self, loop: For) -> None:
        if loop.kind == "parallel":
            raise InternalError(f"parallel loop {loop.var} is inside another loop")
        start, stop = linear(loop.start, self.ranges), linear(loop.stop, self.ranges)
        if loop.kind == "unroll":
            return self._unroll(loop, *self._constants(loop, start, stop))
        if loop.kind == "vector":
            return self._vector(loop, *self._constants(loop, start, stop))
        if start.is_const and stop.is_const and stop.const - start.const <= 1:
            return self._unroll(loop, start.const, stop.const)
        low, high = interval(start, self.ranges), interval(stop, self.ranges)
        span = (low[0] if low else -(1 << 40), (high[1] if high else 1 << 40) - 1)
        self._c_loop(loop, str(self.form_val(start)), str(self.form_val(stop)), span)

    def _constants(self, loop: For, start: Linear, stop: Linear) -> tuple[int, int]:
        if not start.is_const or not stop.is_const:
            raise InternalError(f"{loop.kind} loop {loop.var} has no constant bounds")
        return start.const, stop.const

    def _c_loop(self, loop: For, start: str, stop: str, span: tuple[int, int]) -> None:
        with self.counting(loop, start, stop, span):
            self.body(loop.body)

    @contextmanager
    def counting(self, loop: For, start: str, stop: str, span: tuple[int, int]) -> Iterator[None]:
        """The C loop of ``loop``, around what is printed inside."""
        with self.at_place(id(loop)):
            name = self.claim(loop.var)
            head = f"for ({self.index_type} {name} = {start}; {name} < {stop}; ++{name})"
            with self.block(head):
                self.vars[loop.var] = name
                self.depths[name] = len(self.blocks) - 1
                self.ranges[loop.var] = self.wide[loop.var] = span
                yield
                del self.ranges[loop.var], self.wide[loop.var], self.vars[loop.var], self.depths[name]
            self.used.discard(name)

    def _unroll(self, loop: For, start: int, stop: int) -> None:
        with self.at_place(id(loop)):
            self.unrolled.add(loop.var)
            self.wide[loop.var] = (start, stop - 1)
            for k in range(start, stop):
                self.ranges[loop.var] = (k, k)
                self.body(loop.body)
            self.unrolled.discard(loop.var)
            self.ranges.pop(loop.var, None)
            del self.wide[loop.var]

    def _vector(self, loop: For, start: int, stop: int) -> None:
        lanes = stop - start
        if lanes == 1 or any(a.buffer.scope != "register" for a in allocs(loop.body)):
            return self._unroll(loop, start, stop)  # memory of its own in each iteration: no lanes
        if self.lane is not None or lanes < 2 or lanes & (lanes - 1):
            raise InternalError(f"vector loop {loop.var} has {lanes} lanes: expected a power of two, not nested")
        with self.at_place(id(loop)):
            self.lane, self.lanes = loop.var, lanes
            self.ranges[loop.var] = self.wide[loop.var] = (start, stop - 1)
            self.body(loop.body)
            del self.ranges[loop.var], self.wide[loop.var]
            self.lane, self.lanes = None, 0

    # -- control and storage ----------------------------------------------------------------------------------------------

    def _if(self, stmt: If) -> None:
        c = self.cond(stmt.cond)
        if c.const is not None:
            if c.const:
                self.body(stmt.body)
        elif c.lanes:
            with self.masked(self.name_mask(c)):
                self.body(stmt.body)
        else:
            with self.block(f"if ({c})"):
                self.body(stmt.body)

    def _alloc(self, stmt: Alloc) -> None:
        name = stmt.buffer.name
        hidden = self.bind.get(name)
        self.bind[name] = self._binding(stmt)
        with self.at_place(id(stmt)):
            self.body(stmt.body)
        if hidden is None:
            del self.bind[name]
        else:
            self.bind[name] = hidden

    def _binding(self, stmt: Alloc) -> Binding:
        buffer, depth = stmt.buffer, len(self.blocks) - 1
        if buffer.values is not None:
            return Binding(buffer, buffer.name)
        if buffer.scope == "register":
            return self._register_binding(stmt, depth)
        if id(stmt) in self.pools:
            name, at = self.pools[id(stmt)]
            if at is None:
                return Binding(buffer, name)
            local, ctype = self.claim(buffer.name), C_TYPES[buffer.dtype][0]
            self.declare(depth, f"{ctype} *{local} = (void *)({name} + {at});")
            return Binding(buffer, local, depth)
        raise InternalError(f"{buffer.scope} buffer {buffer.name} is allocated inside a phase")

    def _register_binding(self, stmt: Alloc, depth: int) -> Binding:
        buffer, private = stmt.buffer, self.lane is not None
        lanes = self.lanes if private else self.register_lanes.get(id(stmt), 0)
        probe = Binding(buffer, buffer.name, depth)
        if lanes < 0:
            probe.name = self.claim(buffer.name)
            size = f"{probe.name}[{probe.size}] __attribute__((aligned(64)))"
            self.line(f"{C_TYPES[probe.dtype][0]} {size};")
            return probe
        block = self.blocks[-1]
        names = block.allocs.get((buffer, lanes))
        if names is None:
            names = [self.claim(n) for n in _register_names(buffer, 1 if private else lanes)]
            block.allocs[buffer, lanes] = names
            self._declare_registers(vector_type(probe.dtype, lanes), names)
        return Binding(buffer, buffer.name, depth, names, lanes, private)

    def _declare_registers(self, ctype: str, names: list[str]) -> None:
        row: list[str] = []
        for name in names:
            if sum(map(len, row)) + 2 * len(row) + len(name) > _WIDTH:
                self.line(f"{ctype} {', '.join(row)};")
                row = []
            row.append(name)
        self.line(f"{ctype} {', '.join(row)};")

    def _prefetch(self, stmt: Prefetch) -> None:
        b = self.buffer(stmt.buffer)
        const, terms, stride = self.address(stmt, b)
        if b.names is None and b.values is None and stride is not None:
            at = offset(self.pointer(b, terms), const)
            self.line(f"__builtin_prefetch({at}, {int(stmt.write)}, {stmt.locality});")

    # -- stores -----------------------------------------------------------------------------------------------------------

    def _store(self, s: Store) -> None:
        b = self.buffer(s.buffer)
        key = id(s)
        if key not in self.sharing:
            self.sharing[key] = _shared_nodes(s.value)
        self.shared = self.sharing[key]
        if self.shared:
            self.known = {}
        value = self.eval(s.value)
        if value.dtype != b.dtype:
            value = self.convert(value, b.dtype)
        if s.op == "+" and value.const == 0:
            return
        const, terms, stride = address = self.address(s, b)
        if self.lane is None:
            self._assign_scalar(b, self._element(b, const, terms), s.op, value)
        elif b.private or stride == 1:
            self._store_lanes(s, b, address, value)
        elif stride == 0:
            self._reduce_lanes(s, b, self._element(b, const, terms), value)
        else:
            self._scatter(s, b, value)

    def _element(self, b: Binding, const: int, terms: tuple[tuple[str | int, int], ...]) -> str:
        """A scalar lvalue."""
        if b.names is None:
            return f"{self.pointer(b, terms)}[{const}]"
        if terms:
            raise InternalError(f"register {b.buffer.name} is indexed by a loop variable")
        if b.private:
            name = self._inside(b, const, b.names)
            return name if self.fixed is None else f"{name}[{self.fixed}]"
        if not b.lanes:
            return self._inside(b, const, b.names)
        q, r = divmod(const, b.lanes)
        return f"{self._inside(b, q, b.names)}[{r}]"

    def _assign_scalar(self, b: Binding, target: str, op: str, value: Val) -> None:
        """``target op= value``."""
        if b.names is None and b.buffer.dtype in COMPUTE:
            old = self.widen(Val(target, ATOM, value.lanes, b.buffer.dtype))
            value = self.narrow(self._updated(old, op, value), b.buffer.dtype)
            op = ""
        if op == "+":
            sign = "-" if value.neg else "+"
            self.line(f"{target} {sign}= {value.text};")
        elif op:
            self.line(f"{target} = {self._updated(Val(target, ATOM, value.lanes, b.dtype), op, value)};")
        else:
            self.line(f"{target} = {value};")

    def _updated(self, old: Val, op: str, value: Val) -> Val:
        if not op:
            return value
        return add(old, value) if op == "+" else self.call(op, old.dtype, old, value)

    def _vector_value(self, value: Val) -> Val:
        return value if value.lanes else Val(self.splat(value), ATOM, self.lanes, value.dtype)

    def _store_lanes(self, s: Store, b: Binding, address: Address, value: Val) -> None:
        const, terms, _ = address
        if b.names is None:
            return self._store_vector(s, b, address, value)
        if terms:
            raise InternalError(f"register {b.buffer.name} is indexed by a loop variable")
        if b.private:
            name = self._inside(b, const, b.names)
        elif not b.lanes or const % b.lanes or b.lanes != self.lanes:
            return self._scatter(s, b, value)
        else:
            name = self._inside(b, const // b.lanes, b.names)
        if self.mask is not None:
            new = self._updated(Val(name, ATOM, self.lanes, b.dtype), s.op, value)
            blend = self.unit.need("blend", b.dtype, self.lanes)
            self.line(f"{name} = {blend}({self.mask}, {self.splat(new)}, {name});")
        elif s.op == "+":
            self._assign_scalar(b, name, "+", value)
        else:
            self._assign_scalar(b, name, s.op, self._vector_value(value))

    def _store_vector(self, s: Store, b: Binding, address: Address, value: Val) -> None:
        const, terms, _ = address
        at = offset(self.pointer(b, terms), const)
        dtype = b.buffer.dtype
        if self.mask is None:
            target = f"{vector_type(dtype, self.lanes)}_at({at})"
            return self._assign_scalar(b, target, s.op, self._vector_value(value))
        if s.op:
            raw = f"{self.unit.need('loadm', dtype, self.lanes)}({at}, {self.mask})"
            value = self._updated(self.widen(Val(raw, ATOM, self.lanes, dtype)), s.op, value)
        stored = self.narrow(self._vector_value(value), dtype) if dtype in COMPUTE else value
        self.line(f"{self.unit.need('storem', dtype, self.lanes)}({at}, {self.mask}, {self.splat(stored)});")

    def _reduce_lanes(self, s: Store, b: Binding, target: str, value: Val) -> None:
        """Every lane combines into one element: first across the lanes, in a fixed tree order."""
        if not s.op:
            if value.lanes:
                raise InternalError(f"lanes of {self.lane} race to store to {b.buffer.name}")
            with nullcontext() if self.mask is None else self.block(f"if ({self._any()})"):
                self._assign_scalar(b, target, "", value)
            return
        zeros = s.op == "+" and value.text.startswith("loadm_") and value.text.endswith(f", {self.mask})")
        if self.mask is not None and not zeros:
            inactive = constant(0.0, b.dtype) if s.op == "+" else Val(target, ATOM, 0, b.dtype)
            blend = self.unit.need("blend", b.dtype, self.lanes)
            text = f"{blend}({self.mask}, {self.splat(value)}, {self.splat(inactive)})"
            value = Val(text, ATOM, self.lanes, b.dtype)
        if value.lanes:
            text = f"{self.unit.need(_ACROSS[s.op], b.dtype, self.lanes)}({value})"
            value = Val(text, ATOM, 0, b.dtype)
        elif s.op == "+":
            value = multiply(value, constant(self.lanes, b.dtype))
        self._assign_scalar(b, target, s.op, value)

    def _any(self) -> str:
        """C text: is any lane active?"""
        if self.shape("float32").has_k:
            return f"{self.mask}"
        return " | ".join(self.bit(k) for k in range(self.lanes))

    def _scatter(self, s: Store, b: Binding, value: Val) -> None:
        """A lane at a time."""
        if value.lanes:
            value = self.named(value)
        bits = [self.bit(k) for k in range(self.lanes)] if self.mask is not None else None
        outer, self.mask = self.mask, None
        for k in range(self.lanes):
            with self.lane_fixed(k), nullcontext() if bits is None else self.block(f"if ({bits[k]})"):
                const, terms, _ = self.address(s, b)
                one = Val(f"{value.text}[{k}]", ATOM, 0, value.dtype) if value.lanes else value
                self._assign_scalar(b, self._element(b, const, terms), s.op, one)
        self.mask = outer

    # -- instructions -----------------------------------------------------------------------------------------------------

    def _invoke(self, s: Invoke) -> None:
        instr = find(s.instr)
        if instr.isa == self.isa.name and self.lane is None and len(s.operands) == len(instr.operands):
            fields = self._fields(instr, s)
            if fields is not None:
                self.line(instr.template.format(**fields))
                return
        if id(s) not in self.expansions:
            self.expansions[id(s)] = expand(s)
        self.body(self.expansions[id(s)])

    def _fields(self, instr: Instr, s: Invoke) -> dict[str, str] | None:
        """The operands as the template wants them; None when one cannot be given so."""
        fields: dict[str, str] = {}
        for operand, (name, indices) in zip(instr.operands, s.operands, strict=True):
            text = self._operand(operand, self.buffer(name), indices)
            if text is None:
                return None
            fields[operand.name] = text
        return fields

    def _operand(self, operand: Operand, b: Binding, indices: tuple[Expr, ...]) -> str | None:
        rank, lanes = len(operand.shape), operand.shape[-1] if operand.shape else 0
        dense = rank < 2 or b.buffer.shape[1 - rank :] == operand.shape[1:]
        if b.buffer.dtype != operand.dtype or b.values is not None or not dense:
            return None
        const, terms, _ = self._fold_now(indices, b)
        if operand.kind == "scalar":
            return self._element(b, const, terms)
        if b.names is None:
            at = offset(self.pointer(b, terms), const)
            return f"({at})" if operand.kind == "pointer" else f"{vector_type(operand.dtype, lanes)}_at({at})"
        if operand.kind != "vector" or b.lanes != lanes or const % lanes:
            return None
        return self._inside(b, const // lanes, b.names)

    def _fold_now(self, indices: tuple[Expr, ...], b: Binding) -> Address:
        form = Linear(0, {})
        for index, stride in zip(indices, b.strides, strict=True):
            form = form.plus(linear(index, self.ranges), stride)
        return form.const, tuple((self.ref(a), k) for a, k in form.terms.items()), 0


def _register_names(buffer: Buffer, lanes: int) -> list[str]:
    """One name a variable: ``acc_0_3``; the last index is left out when it is all lanes."""
    shape = buffer.shape
    if lanes > 1:
        last = shape[-1] // lanes
        shape = shape[:-1] + ((last,) if last > 1 else ())
    names = [buffer.name]
    for n in shape:
        names = [f"{name}_{i}" for name in names for i in range(n)]
    return names


def _shared_nodes(value: Expr) -> frozenset[int]:
    """Identities of the operators that an expression holds more than once."""
    seen: set[int] = set()
    shared: set[int] = set()
    stack = [value]
    while stack:
        e = stack.pop()
        kind = type(e)
        if kind is Load or kind is Const or kind is Var:
            continue
        if id(e) in seen:
            shared.add(id(e))
            continue
        seen.add(id(e))
        if isinstance(e, Binary):
            stack += (e.a, e.b)
        elif isinstance(e, Select):
            stack += (e.cond, e.a, e.b)
        elif isinstance(e, Unary | Cast):
            stack.append(e.a)
    return frozenset(shared)
