"""Statements of one ``__global__`` function: threads run scalar code; vector loops become wide loads and stores.

A loop over threads is no loop: its variable is ``threadIdx.x``. Unrolled loops are printed with ``#pragma unroll`` and
register buffers as arrays, which the compiler keeps in registers since every index is a constant after that. Indices are
split: what outer loops give goes into a pointer that is made there, unrolled loops and constants into the subscript.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

from wpk.core.errors import InternalError
from wpk.dsl.affine import index, linear, substitute
from wpk.dsl.codegen.address import Binding, Terms, free_vars
from wpk.dsl.codegen.cstmt import Statements
from wpk.dsl.codegen.cstyle import ADD, ATOM, BITAND, C_TYPES, COMPUTE, OR, Val, within
from wpk.dsl.codegen.cudaunit import CudaUnit, element_type
from wpk.dsl.codegen.storage import Workspace
from wpk.dsl.instr import Instr, Operand
from wpk.dsl.ir import (
    BLOCK_KINDS,
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

#: threads of the lanes of an operand, and what their number in the block is called
_LANES = {"warp": 32, "group": 128}
_LOCAL = ("register", "thread")


class CudaStatements(Statements):
    """Prints the statements of one kernel; ``threads`` in a block, ``offsets`` of block buffers by ``id(Alloc)``."""

    def __init__(self, unit: CudaUnit, threads: int, offsets: dict[int, int]) -> None:
        super().__init__(unit, Workspace(), {})
        self.cuda = unit
        self.index_type = unit.index_type
        self.threads, self.offsets = threads, offsets
        self.grid = dict.fromkeys(BLOCK_KINDS, 1)
        self.min_blocks = 1
        self.shows = False  # do instructions that run ahead read what threads write to shared memory?
        self.bound = 0  # loops over threads around
        self.inline: set[str] = set()
        self.wide_loads: dict[int, str] = {}
        self.stmts[Barrier] = self._barrier
        self.stmts[Commit] = lambda _: self.line("cp_async_commit();")
        self.stmts[Settle] = lambda s: self.line(f"wgmma_wait<{s.left}>();")
        self.used |= {"thread", "warp", "lane", "group", "workspace", "wpk_shared"}

    # -- loops ----------------------------------------------------------------------------------------------------------

    def _for(self, loop: For) -> None:
        if loop.kind in BLOCK_KINDS:
            return self._blocks(loop)
        if loop.kind == "thread":
            return self._threads(loop)
        if loop.kind == "unroll":
            start, stop = self._constants(loop, linear(loop.start, self.ranges), linear(loop.stop, self.ranges))
            if stop - start <= 1 or _reads_tables(loop.body, loop.var, self.bind):
                return self._unroll(loop, start, stop)
            self.line("#pragma unroll")
            return self._c_loop(loop, str(start), str(stop), (start, stop - 1))
        return super()._for(loop)

    def _c_loop(self, loop: For, start: str, stop: str, span: tuple[int, int]) -> None:
        if loop.kind == "serial":
            self.line("#pragma unroll 1")
            return super()._c_loop(loop, start, stop, span)
        self.inline.add(loop.var)
        super()._c_loop(loop, start, stop, span)
        self.inline.discard(loop.var)

    def _blocks(self, loop: For) -> None:
        _, count = self._constants(loop, linear(loop.start, {}), linear(loop.stop, {}))
        self.grid[loop.kind] = count
        self.min_blocks = max(self.min_blocks, loop.grain)
        name = self.claim(loop.var, 0)
        self.declare(0, f"const {self.index_type} {name} = blockIdx.{loop.kind[-1]};")
        self._bound(loop, name, count)

    def _threads(self, loop: For) -> None:
        _, count = self._constants(loop, linear(loop.start, {}), linear(loop.stop, {}))
        self._index_name("thread")
        self.bound += 1
        with nullcontext() if count == self.threads else self.block(f"if (thread < {count})"):
            self._bound(loop, "thread", count)
        self.bound -= 1

    def _index_name(self, name: str) -> None:
        """Declare ``thread``, ``warp``, ``lane`` or ``group``, once; the last is one for all lanes, as the compiler can see."""
        if name not in self.depths:
            self.depths[name] = 0
            value = {
                "thread": "threadIdx.x", "warp": "threadIdx.x / 32", "lane": "threadIdx.x % 32",
                "group": "__shfl_sync(0xffffffffu, (int)threadIdx.x / 128, 0)",
            }[name]  # fmt: skip
            self.declare(0, f"const {self.index_type} {name} = {value};")

    def _bound(self, loop: For, name: str, count: int) -> None:
        """The body, with the loop's variable held by something that the device gives."""
        with self.at_place(id(loop)):
            self.vars[loop.var] = name
            self.depths.setdefault(name, 0)
            self.ranges[loop.var] = self.wide[loop.var] = (0, count - 1)
            self.body(loop.body)
            del self.ranges[loop.var], self.wide[loop.var], self.vars[loop.var]

    def _if(self, stmt: If) -> None:
        """Inside ``if (k + 2 < n)`` the range of k is known to be shorter."""
        narrow = self._bounded(stmt.cond)
        if narrow is None:
            return super()._if(stmt)
        name, last = narrow
        with self.block(f"if ({self.cond(stmt.cond)})"), self.at_place(id(stmt)):
            ranges, wide = self.ranges[name], self.wide[name]
            self.ranges[name] = self.wide[name] = (ranges[0], min(ranges[1], last))
            self.body(stmt.body)
            self.ranges[name], self.wide[name] = ranges, wide

    def _bounded(self, cond: Expr) -> tuple[str, int] | None:
        """(variable of a loop, its last value) where a condition bounds one and is not known."""
        if not isinstance(cond, Binary) or cond.op != "<" or self.lane is not None:
            return None
        form = linear(cond.b, self.ranges).plus(linear(cond.a, self.ranges), -1)
        if len(form.terms) != 1 or self.cond(cond).const is not None:
            return None
        ((atom, factor),) = form.terms.items()
        return (atom.name, form.const - 1) if isinstance(atom, Var) and factor == -1 else None

    # -- places in memory -----------------------------------------------------------------------------------------------

    def _binding(self, stmt: Alloc) -> Binding:
        buffer, depth = stmt.buffer, len(self.blocks) - 1
        if buffer.values is not None:
            return Binding(buffer, buffer.name)
        if buffer.scope == "block":
            b = self.binding(buffer, self.claim(buffer.name, 0))
            self.declare(0, f"{b.ctype} *{b.name} = ({b.ctype} *)(wpk_shared + {self.offsets[id(stmt)]});")
            return b
        if buffer.scope not in _LOCAL:
            raise InternalError(f"{buffer.scope} buffer {buffer.name} is allocated inside a kernel")
        names = self.blocks[-1].allocs.get((buffer, 0))
        if names is None:
            names = self.blocks[-1].allocs[buffer, 0] = [self.claim(buffer.name)]
            b = self.binding(buffer, names[0], depth)
            self.line(f"{b.ctype} {b.name}{f'[{b.size}]' if b.size > 1 else ''};")
        return self.binding(buffer, names[0], depth)

    def binding(self, buffer: Buffer, name: str, depth: int = 0) -> Binding:
        """A binding with CUDA's name of the element type."""
        b = Binding(buffer, name, depth)
        b.ctype = b.ctype.replace(C_TYPES[buffer.dtype][0], element_type(buffer.dtype))
        return b

    def _place(self, b: Binding, const: int, terms: Terms) -> tuple[str, str]:
        """A pointer and a subscript (both as text) of an element."""
        if b.buffer.scope in _LOCAL and b.values is None:
            return b.name, self.terms_text(const, terms)
        inner = tuple(t for t in terms if self._is_inline(t[0]))
        outer = tuple(t for t in terms if not self._is_inline(t[0]))
        return self.pointer(b, outer), self.terms_text(const, inner)

    def _is_inline(self, ref: str | int) -> bool:
        if isinstance(ref, str):
            return any(self.vars.get(v) == ref for v in self.inline)
        return not self.inline.isdisjoint(free_vars(self.atom_list[ref]))

    def _element(self, b: Binding, const: int, terms: Terms) -> str:
        if b.buffer.scope in _LOCAL and b.size == 1:
            return b.name
        pointer, subscript = self._place(b, const, terms)
        return f"{pointer}[{subscript}]"

    def physical(self, indices: tuple[Expr, ...], b: Binding) -> tuple[Expr, ...]:
        """Swizzled rows: 16-byte pieces exchanged by the row's place among those that share banks."""
        bytes_each = C_TYPES[b.buffer.dtype][2]
        if not b.buffer.swizzle:
            return indices
        piece, shape = 16 // bytes_each, b.buffer.shape
        row: Expr = Const(0)
        for i, n in zip(indices[:-1], shape[:-1], strict=True):
            row = row * n + i
        turn = (row // (128 // b.buffer.swizzle)) % (b.buffer.swizzle // 16)
        column = Binary("^", indices[-1] // piece, turn) * piece + indices[-1] % piece
        return (*indices[:-1], column)

    def _atom(self, atom: Expr) -> tuple[str, int]:
        if isinstance(atom, Binary) and atom.op == "^":
            x, y = (self.form_val(linear(e, self.ranges)) for e in (atom.a, atom.b))
            return f"{x.at(ADD)} ^ {y.at(ADD)}", BITAND - 1
        return super()._atom(atom)

    # -- instructions ---------------------------------------------------------------------------------------------------

    def _operand(self, operand: Operand, b: Binding, indices: tuple[Expr, ...]) -> str | None:
        if b.buffer.dtype != operand.dtype or b.values is not None:
            raise InternalError(f"operand {operand.name} is {b.buffer.dtype}, expected {operand.dtype}")
        const, terms, _ = self._fold_now(indices, b)
        pointer, subscript = self._place(b, const, terms)
        return pointer if subscript == "0" else f"{pointer} + {subscript}"

    def _fields(self, instr: Instr, s: Invoke) -> dict[str, str] | None:
        """The operands as the template wants them; the tile of a warp is where its lane 0 begins."""
        if any(o.kind == "warp" for o in instr.operands):
            self._index_name("lane")
        if instr.helper:
            self.cuda.helpers[instr.helper, "", 0] = instr.helper
        fields: dict[str, str] = {}
        for operand, (name, indices) in zip(instr.operands, s.operands, strict=True):
            b = self.buffer(name)
            if operand.kind not in _LANES:
                fields[operand.name] = self._operand(operand, b, indices) or ""
                continue
            self._check_lanes(instr, operand, indices)
            tile = self._of_lanes(operand.kind, indices)
            fields[operand.name] = self._operand(operand, b, (*tile[:-1], Const(0))) or ""
            fields[f"{operand.name}_at"] = str(self.form_val(linear(tile[-1], self.ranges)))
            fields[f"{operand.name}_row"] = str(b.buffer.shape[-1])
            fields[f"{operand.name}_swizzle"] = str(b.buffer.swizzle)
        return fields

    def _of_lanes(self, kind: str, indices: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """Indices of a thread's warp or group: those of its first lane."""
        lanes, var = _LANES[kind], f"{kind}'"
        self._index_name(kind)
        self.vars[var], self.ranges[var] = kind, (0, max(self.threads // lanes - 1, 0))
        self.wide[var] = self.ranges[var]
        env: dict[str, Expr] = {v: Var(var) * lanes for v, name in self.vars.items() if name == "thread"}
        return tuple(index(substitute(i, env), self.ranges) for i in indices)

    def _check_lanes(self, instr: Instr, operand: Operand, indices: tuple[Expr, ...]) -> None:
        """The threads of a warp or group must stand where the instruction has them."""
        lead = len(indices) - len(operand.lanes)
        threads = [v for v, name in self.vars.items() if name == "thread"]
        for lane in (n for n in (1, 2, 3, 4, 8, 16, 31, 32, 64, 127) if n < _LANES[operand.kind]):
            for d, i in enumerate(indices):
                here, first = (linear(substitute(i, {v: Const(n) for v in threads}), self.ranges) for n in (lane, 0))
                where = operand.lanes[d - lead] if d >= lead else ()
                moved = here.plus(first, -1)
                if moved.terms or moved.const != sum(lane // a % b * c for a, b, c in where):
                    raise InternalError(f"{instr.name}: lane {lane} is not where it must be in {operand.name}, dimension {d}")

    # -- expressions ----------------------------------------------------------------------------------------------------

    def _load(self, e: Load) -> Val:
        if id(e) in self.wide_loads and self.fixed is not None:
            return self.widen(Val(f"{self.wide_loads[id(e)]}.v[{self.fixed}]", ATOM, 0, self.buffer(e.buffer).buffer.dtype))
        b = self.buffer(e.buffer)
        const, terms, _ = self.address(e, b)
        if b.values is not None:
            if not terms:
                return self._inside(b, const, b.constants)
            b.name = self.unit.table(b.buffer)
        return self.widen(Val(self._element(b, const, terms), ATOM, 0, b.buffer.dtype))

    def _select(self, e: Select) -> Val:
        known = self.fixed is not None and id(e.a) in self.wide_loads and _is_zero(e.b)
        return self.eval(e.a) if known else super()._select(e)  # a wide load is zero where its condition fails

    def widen(self, raw: Val) -> Val:
        """An element as loaded, in the dtype it computes as."""
        if raw.dtype not in COMPUTE:
            return raw
        return Val(f"to_float({raw.text})", ATOM, 0, COMPUTE[raw.dtype])

    def narrow(self, v: Val, dtype: str) -> Val:
        """A computed value as the element of storage that it is written to."""
        if v.dtype == dtype:
            return v
        return Val(f"to_{C_TYPES[dtype][1]}({v})", ATOM, 0, dtype)

    def _library(self, name: str, e: Expr, *args: Val) -> Val:
        return self.call(name, args[0].dtype, *args)

    def _double(self, e: Unary, a: Val) -> Val:
        return self.call(e.op, a.dtype, a)

    def _prefetch(self, stmt: Prefetch) -> None:
        """Nothing: a GPU hides latency with other warps, and with copies under way."""

    def _barrier(self, stmt: Barrier) -> None:
        if stmt.wait is not None:
            self.line(f"cp_async_wait<{stmt.wait}>();")
        if self.shows:
            self.line("fence_async();")
        self.line("__syncthreads();")

    def _store(self, s: Store) -> None:
        """Outside loops over threads all of them keep the same registers, and one writes memory."""
        alone = self.bound or self.threads == 1 or self.buffer(s.buffer).buffer.scope in _LOCAL
        if not alone:
            self._index_name("thread")
        with nullcontext() if alone else self.block("if (thread == 0)"):
            if not (s.ahead and self._copy_ahead(s, 1)) and not self._copy_raw(s):
                super()._store(s)

    def _copy_raw(self, s: Store) -> bool:
        """An element of 16 bits as it is; False where it is computed."""
        target, load = self.buffer(s.buffer), _copied(s.value)
        if load is None or s.op or target.buffer.dtype not in COMPUTE:
            return False
        source = self.buffer(load.buffer)
        if source.buffer.dtype != target.buffer.dtype or source.values is not None:
            return False
        if id(load) in self.wide_loads and self.fixed is not None:
            text = f"{self.wide_loads[id(load)]}.v[{self.fixed}]"
        else:
            text = self._element(source, *self.address(load, source)[:2])
            if isinstance(s.value, Select):
                c = self.cond(s.value.cond)
                zero = f"{element_type(target.buffer.dtype)}{{}}"
                text = f"{c.at(OR)} ? {text} : {zero}" if c.const is None else text if c.const else zero
        self.line(f"{self._element(target, *self.address(s, target)[:2])} = {text};")
        return True

    def _copy_ahead(self, s: Store, lanes: int) -> bool:
        """An asynchronous copy of ``lanes`` elements; False where the value is no plain copy of 4, 8 or 16 bytes."""
        load, conditions = _copied(s.value), [s.value.cond] if isinstance(s.value, Select) else []
        if load is None:
            return False
        source, target = self.buffer(load.buffer), self.buffer(s.buffer)
        size = lanes * C_TYPES[target.buffer.dtype][2]
        scopes = source.buffer.scope in ("global", "shared") and source.values is None and target.buffer.scope == "block"
        if not scopes or source.buffer.dtype != target.buffer.dtype or size not in (4, 8, 16):
            return False
        if lanes > 1:
            if not all(map(self._uniform, conditions)):
                return False
            to, at = self._wide_place(s, target), self._wide_place(load, source)
            valid = [self._lane_zero(c) for c in conditions]
        else:
            to, at = (
                "&" + self._element(b, *self.address(x, b)[:2]) for x, b in ((s, target), (load, source))
            )
            valid = [self.cond(c) for c in conditions]
        if to is None or at is None:
            return False
        test = " && ".join(str(c) for c in valid if c.const is None) or "true"
        if all(c.const is not False for c in valid):
            self.line(f"cp_async<{size}>({to}, {at}, {test});")
            return True
        return False

    # -- wide loads and stores --------------------------------------------------------------------------------------------

    def _vector(self, loop: For, start: int, stop: int) -> None:
        lanes = stop - start
        if lanes == 1 or not all(isinstance(s, Store | If) for s in loop.body) or loop.var in self.vars:
            return self._unroll(loop, start, stop)
        with self.at_place(id(loop)):
            self.lane, self.lanes = loop.var, lanes
            self.ranges[loop.var] = self.wide[loop.var] = (start, stop - 1)
            self._lanes(loop.body)
            self.lane, self.lanes = None, 0
            del self.ranges[loop.var], self.wide[loop.var]

    def _lanes(self, stmts: tuple[Stmt, ...]) -> None:
        """Statements of a vector loop, each for all lanes."""
        for stmt in stmts:
            if isinstance(stmt, Store):
                self._wide_store(stmt)
            elif isinstance(stmt, If) and self._uniform(stmt.cond):
                c = self._lane_zero(stmt.cond)
                if c.const is None:
                    with self.block(f"if ({c})"):
                        self._lanes(stmt.body)
                elif c.const:
                    self._lanes(stmt.body)
            else:
                for k in range(self.lanes):
                    with self.lane_fixed(k):
                        self.body((stmt,))

    def _lane_zero(self, cond: Expr) -> Val:
        with self.lane_fixed(0):
            return self.cond(cond)

    def _wide_store(self, s: Store) -> None:
        b = self.buffer(s.buffer)
        if s.ahead and self._copy_ahead(s, self.lanes):
            return
        outer, self.wide_loads = self.wide_loads, {}
        if s.ahead and C_TYPES[b.buffer.dtype][2] >= 4:
            return self._by_lanes(s)
        self._load_wide(s.value, ())
        at = None if s.op or not self.bound else self._wide_place(s, b)
        if at is None:
            self._by_lanes(s)
        else:
            dtype = b.buffer.dtype
            copied = _copied(s.value)
            if copied and id(copied) in self.wide_loads and self.buffer(copied.buffer).buffer.dtype == dtype:
                value = self.wide_loads[id(copied)]
            else:
                value = f"{self.cuda.vector(dtype, self.lanes)}{{{{{', '.join(self._lane_values(s.value, b))}}}}}"
            self.line(f"*({self.cuda.vector(dtype, self.lanes)} *){_atom(at)} = {value};")
        self.wide_loads = outer

    def _by_lanes(self, s: Store) -> None:
        for k in range(self.lanes):
            with self.lane_fixed(k):
                self._store(s)

    def _lane_values(self, value: Expr, b: Binding) -> Iterator[str]:
        for k in range(self.lanes):
            with self.lane_fixed(k):
                v = self.convert(self.eval(value), b.dtype)
                yield str(self.narrow(v, b.buffer.dtype) if b.buffer.dtype in COMPUTE else v)

    def _load_wide(self, e: Expr, conditions: tuple[Expr, ...]) -> None:
        """Load what the lanes find next to each other in memory at once, into a variable; where all ``conditions`` hold."""
        match e:
            case Load():
                at = self._wide_place(e, self.buffer(e.buffer))
                if at is not None:
                    self.wide_loads[id(e)] = self._wide_load(self.buffer(e.buffer), at, conditions)
            case Select():
                if not self._uniform(e.cond):
                    return
                self._load_wide(e.a, (*conditions, e.cond))
                self._load_wide(e.b, (*conditions, Unary("not", e.cond)))
            case Binary():
                self._load_wide(e.a, conditions)
                self._load_wide(e.b, conditions)
            case Unary() | Cast():
                self._load_wide(e.a, conditions)

    def _wide_load(self, b: Binding, at: str, conditions: tuple[Expr, ...]) -> str:
        vector = self.cuda.vector(b.buffer.dtype, self.lanes)
        known = [self._lane_zero(c) for c in conditions]
        tests = " && ".join(within(str(c), c.prec, 5) for c in known if c.const is None)
        name = self.claim(f"v{self.number()}")
        if any(c.const is False for c in known):
            self.line(f"const {vector} {name} = {{}};")
        elif not tests:
            self.line(f"const {vector} {name} = *(const {vector} *){_atom(at)};")
        else:
            self.line(f"{vector} {name} = {{}};")
            self.line(f"if ({tests}) {name} = *(const {vector} *){_atom(at)};")
        return name

    def _wide_place(self, node: Load | Store, b: Binding) -> str | None:
        """The address of lane 0 when the lanes lie next to each other, aligned as a whole; else None."""
        size = self.lanes * C_TYPES[b.buffer.dtype][2]
        if b.buffer.scope in _LOCAL or b.values is not None or size > 32 or self.lanes & (self.lanes - 1):
            return None
        const, terms, stride = self.address(node, b)
        if stride != 1 or const % self.lanes or any(k % self.lanes for _, k in terms):
            return None
        pointer, subscript = self._place(b, const, terms)
        return pointer if subscript == "0" else f"{pointer} + {subscript}"

    def _uniform(self, cond: Expr) -> bool:
        """Does a condition hold for all lanes or for none?"""
        match cond:
            case Binary(op, a, b) if op in ("and", "or"):
                return self._uniform(a) and self._uniform(b)
            case Unary("not", a):
                return self._uniform(a)
            case Binary(op, a, b) if op in ("<", "<="):
                form = linear(b, self.ranges).plus(linear(a, self.ranges), -1)
                form.const -= op == "<"
                stride = form.terms.pop(Var(self.lane or ""), 0)
                first = form.const + (min(0, stride) * (self.lanes - 1) if stride else 0)
                if any(self.lane in free_vars(atom) for atom in form.terms):
                    return False
                if stride == 0:
                    return True
                return stride in (1, -1) and self._steps(form.terms.values(), first, stride)
        return self.lane not in free_vars(cond)

    def _steps(self, factors: object, first: int, stride: int) -> bool:
        """Is ``form + stride * lane`` of one sign for all lanes, given that the form moves by multiples of the lanes?"""
        whole = all(k % self.lanes == 0 for k in factors)  # type: ignore[attr-defined]
        return whole and first % self.lanes == 0


def _atom(text: str) -> str:
    return f"({text})" if " " in text and not (text.startswith("(") and text.endswith(")")) else text


def _copied(value: Expr) -> Load | None:
    """The element that a value is, or is where some condition holds and else zero."""
    if isinstance(value, Select) and _is_zero(value.b):
        value = value.a
    return value if isinstance(value, Load) else None


def _is_zero(e: Expr) -> bool:
    return isinstance(e, Const) and e.value == 0


def _reads_tables(body: tuple[Stmt, ...], var: str, bound: dict[str, Binding]) -> bool:
    """Does a loop index a constant table, whose values fold when it is written out?"""

    def reads(e: Expr) -> bool:
        match e:
            case Load():
                known = bound.get(e.buffer)
                table = known is not None and known.values is not None
                return (table and any(var in free_vars(i) for i in e.indices)) or any(map(reads, e.indices))
            case Binary():
                return reads(e.a) or reads(e.b)
            case Select():
                return reads(e.cond) or reads(e.a) or reads(e.b)
            case Unary() | Cast():
                return reads(e.a)
        return False

    def found(s: Stmt) -> bool:
        match s:
            case Store():
                return reads(s.value) or any(map(reads, s.indices))
            case If():
                return reads(s.cond) or any(map(found, s.body))
            case For() | Alloc():
                return any(map(found, s.body))
        return False

    return any(map(found, body))
