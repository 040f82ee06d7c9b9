"""Names, scopes and addresses of one C function: IR indices → pointer + constant offset + stride of the vector lane.

Every access is linearized once per place in the loop tree. Terms of real C loop variables go into a pointer that is declared
at the top of the innermost loop they need; terms of unrolled variables are constants; the lane of a vector loop gives a
stride.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

from wpk.core.errors import InternalError
from wpk.dsl.affine import Linear, interval, linear
from wpk.dsl.codegen.cmath import helper
from wpk.dsl.codegen.cshape import Shape
from wpk.dsl.codegen.cstyle import (
    ADD,
    ATOM,
    C_TYPES,
    COMPUTE,
    MUL,
    Isa,
    Val,
    constant,
    float_literal,
    identifier,
    within,
)
from wpk.dsl.ir import Binary, Buffer, Cast, Const, Expr, Load, Prefetch, Select, Store, Unary, Var

#: a term of an address: a C identifier, or the number of an interned atom
Ref = str | int
Terms = tuple[tuple[Ref, int], ...]
#: constant, terms of unrolled variables, terms of the pointer, stride of the lane, atoms to fold at each place
Plan = tuple[int, tuple[tuple[str, int], ...], Terms, int | None, tuple[tuple[Expr, int], ...]]
#: constant offset, terms of the pointer, stride of the lane (None: not linear in it)
Address = tuple[int, Terms, int | None]


class Unit:
    """What all functions of one file share: helpers in dependency order, constant tables."""

    #: how a table that is indexed at run time is declared
    table_kind = "static const"

    def __init__(self, isa: Isa) -> None:
        self.isa = isa
        self.helpers: dict[tuple[str, str, int], str] = {}
        self.tables: dict[tuple[str, tuple[float, ...]], str] = {}
        self.table_lines: list[str] = []

    def need(self, name: str, dtype: str, lanes: int) -> str:
        """The C name of a helper, which is printed with all it needs."""
        shape = Shape(self.isa, dtype, lanes)
        key = (name, dtype, lanes)
        if key not in self.helpers:
            text, needs = helper(name, shape)
            for other in needs:
                self.need(other, dtype, lanes)
            self.helpers[key] = text
        return f"{name}_{shape.suffix}"

    def table(self, buffer: Buffer) -> str:
        """The name of a static array that holds a constant table."""
        values = buffer.values or ()
        key = (buffer.name, values)
        if key not in self.tables:
            name = f"table{len(self.tables)}_{identifier(buffer.name)}"
            ctype = C_TYPES[buffer.dtype][0]
            real = buffer.dtype in ("float32", "float64")
            texts = (
                f"{'-' if v < 0 else ''}{float_literal(abs(v), buffer.dtype)}" if real else str(int(v)) for v in values
            )
            self.table_lines.append(f"{self.table_kind} {ctype} {name}[{len(values)}] = {{{', '.join(texts)}}};")
            self.tables[key] = name
        return self.tables[key]


class Binding:
    """What a buffer name means now: C names, strides, and for registers the variables by flat index over ``lanes``."""

    __slots__ = (
        "buffer", "constants", "ctype", "depth", "dtype", "lanes", "name", "names", "private", "size", "strides", "values",
    )  # fmt: skip

    def __init__(
        self, buffer: Buffer, name: str, depth: int = 0, names: list[str] | None = None, lanes: int = 0, private: bool = False
    ) -> None:
        self.buffer, self.name, self.depth, self.names = buffer, name, depth, names
        self.lanes, self.private, self.values = lanes, private, buffer.values
        self.constants = [constant(v, buffer.dtype) for v in buffer.values or ()]
        self.dtype = COMPUTE.get(buffer.dtype, buffer.dtype)
        const = "const " if buffer.values is not None or (buffer.scope == "global" and buffer.access == "in") else ""
        self.ctype = const + C_TYPES[buffer.dtype][0]
        self.size = prod(buffer.shape)
        strides = [1]
        for n in reversed(buffer.shape[1:]):
            strides.append(strides[-1] * n)
        self.strides = tuple(reversed(strides)) if buffer.shape else ()


class Block:
    """A brace-enclosed C block: declarations, then lines. ``keys`` are forgotten when it closes."""

    __slots__ = ("allocs", "decls", "lines", "names", "pointers")

    def __init__(self) -> None:
        self.decls: list[str] = []
        self.lines: list[str] = []
        self.pointers: list[object] = []
        self.names: list[str] = []
        self.allocs: dict[tuple[Buffer, int], list[str]] = {}


class Function(ABC):
    """The state of one C function as it is printed: blocks, loop variables, buffers in scope, the vector lane."""

    #: C type of loop variables and index arithmetic
    index_type = "int64_t"

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.isa = unit.isa
        self.blocks = [Block()]
        self.used: set[str] = set()
        self.bind: dict[str, Binding] = {}
        self.vars: dict[str, str] = {}
        self.depths: dict[str, int] = {}
        self.ranges: dict[str, tuple[int, int]] = {}
        self.wide: dict[str, tuple[int, int]] = {}
        self.unrolled: set[str] = set()
        self.lane: str | None = None
        self.lanes = 0
        self.fixed: int | None = None
        self.pointers: dict[tuple[str, Terms], str] = {}
        self.atoms: dict[Expr, int] = {}
        self.atom_list: list[Expr] = []
        self.atom_names: dict[int, str] = {}
        self.counter = 0
        self.places: dict[tuple[int, int, int], int] = {}
        self.place = 0
        self.caches: list[dict[int, Plan]] = [{}]
        self.cache = self.caches[0]

    # -- lines and names ----------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """Append a statement to the current block."""
        self.blocks[-1].lines.append("  " * len(self.blocks) + text)

    def declare(self, depth: int, text: str) -> None:
        """Put a declaration at the top of the block at ``depth``."""
        self.blocks[depth].decls.append("  " * (depth + 1) + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """``head {`` … ``}`` around what is printed inside."""
        self.line(f"{head} {{")
        self.blocks.append(Block())
        yield
        inner = self.blocks.pop()
        for key in inner.pointers:
            if isinstance(key, int):
                del self.atom_names[key]
            else:
                del self.pointers[key]  # type: ignore[arg-type]
        self.used.difference_update(inner.names)
        lines = self.blocks[-1].lines
        lines += inner.decls
        lines += inner.lines
        self.line("}")

    def claim(self, name: str, depth: int = -1) -> str:
        """A C identifier near ``name`` that nothing else uses while the block at ``depth`` is open."""
        name = identifier(name)
        while name in self.used:
            name += "_"
        self.used.add(name)
        self.blocks[depth].names.append(name)
        return name

    def number(self) -> int:
        """A number no other temporary of this function has."""
        self.counter += 1
        return self.counter

    @contextmanager
    def at_place(self, key: int, extra: int = 0) -> Iterator[None]:
        """Plans are valid for one place in the loop tree, named by the loops around it."""
        outer, cache = self.place, self.cache
        full = (outer, key, extra)
        if full not in self.places:
            self.places[full] = len(self.caches)
            self.caches.append({})
        self.place = self.places[full]
        self.cache = self.caches[self.place]
        yield
        self.place, self.cache = outer, cache

    @contextmanager
    def lane_fixed(self, k: int) -> Iterator[None]:
        """Inside a vector loop: print scalars for lane ``k``."""
        assert self.lane is not None
        lane = self.lane
        outer = self.ranges[lane]
        first = self.wide[lane][0]
        self.lane, self.fixed = None, k
        self.ranges[lane] = (first + k, first + k)
        self.unrolled.add(lane)
        with self.at_place(-1):
            yield
        self.unrolled.discard(lane)
        self.ranges[lane] = outer
        self.lane, self.fixed = lane, None

    # -- addresses ----------------------------------------------------------------------------------------------------

    def address(self, node: Load | Store | Prefetch, b: Binding) -> Address:
        """Where ``node`` accesses ``b``."""
        plan = self.cache.get(id(node))
        if plan is None:
            plan = self.cache[id(node)] = self._plan(node.indices, b)
        const, exact, terms, stride, slow = plan
        ranges = self.ranges
        for name, k in exact:
            const += ranges[name][0] * k
        if slow:
            return self._fold(const, terms, stride, slow)
        return const, terms, stride

    def _plan(self, indices: tuple[Expr, ...], b: Binding) -> Plan:
        if len(indices) != len(b.strides):
            raise InternalError(f"{b.buffer.name} has {len(b.strides)} dimensions, found {len(indices)} indices")
        form = Linear(0, {})
        for index, stride in zip(self.physical(indices, b), b.strides, strict=True):
            form = form.plus(linear(index, self.wide), stride)
        form = self._rejoin(form)
        const, lane_stride = form.const, 0
        exact: list[tuple[str, int]] = []
        terms: list[tuple[Ref, int]] = []
        slow: list[tuple[Expr, int]] = []
        for atom, k in form.terms.items():
            if isinstance(atom, Var):
                if atom.name in self.unrolled:
                    exact.append((atom.name, k))
                elif atom.name == self.lane:
                    lane_stride += k
                    const += k * self.wide[atom.name][0]
                else:
                    terms.append((self.var(atom.name), k))
            elif self.unrolled.isdisjoint(free := free_vars(atom)) and self.lane not in free:
                terms.append((self.intern(atom), k))
            else:
                slow.append((atom, k))
        return const, tuple(exact), tuple(terms), lane_stride, tuple(slow)

    def physical(self, indices: tuple[Expr, ...], b: Binding) -> tuple[Expr, ...]:
        """Where an element lies, when that is not where its indices say."""
        return indices

    def _rejoin(self, form: Linear) -> Linear:
        """``k * c * (a // c) + k * (a % c)`` is ``k * a``: a fused loop that walks memory in order needs no division."""
        for atom, k in list(form.terms.items()):
            if isinstance(atom, Binary) and atom.op == "%" and isinstance(atom.b, Const):
                whole = Binary("//", atom.a, atom.b)
                if form.terms.get(whole) == k * int(atom.b.value):
                    rest = Linear(form.const, {a: c for a, c in form.terms.items() if a not in (atom, whole)})
                    return self._rejoin(rest.plus(linear(atom.a, self.wide), k))
        return form

    def _fold(self, const: int, terms: Terms, stride: int | None, slow: tuple[tuple[Expr, int], ...]) -> Address:
        """Atoms with unrolled variables in them, now that those are constants."""
        merged = dict(terms)
        for atom, k in slow:
            form = linear(atom, self.ranges)
            const += k * form.const
            for inner, c in form.terms.items():
                if self.lane is not None and self.lane in free_vars(inner):
                    if not isinstance(inner, Var) or stride is None:
                        stride = None
                        continue
                    stride += k * c
                    const += k * c * self.wide[self.lane][0]
                    continue
                ref = self.ref(inner)
                merged[ref] = merged.get(ref, 0) + k * c
        return const, tuple((r, c) for r, c in merged.items() if c), stride

    def var(self, name: str) -> str:
        """The C name of a loop variable. Raises InternalError outside its loop."""
        if name not in self.vars:
            raise InternalError(f"variable {name} is used outside its loop")
        return self.vars[name]

    def intern(self, atom: Expr) -> int:
        """A number for an index expression that is not linear."""
        if atom not in self.atoms:
            self.atoms[atom] = len(self.atom_list)
            self.atom_list.append(atom)
        return self.atoms[atom]

    def ref(self, atom: Expr) -> Ref:
        """How an atom of a linear form is referred to in terms."""
        return self.var(atom.name) if isinstance(atom, Var) else self.intern(atom)

    def pointer(self, b: Binding, terms: Terms) -> str:
        """An expression for ``b + terms``: a pointer declared where all the terms are known."""
        if not terms:
            return b.name
        key = (b.name, terms)
        name = self.pointers.get(key)
        if name is not None:
            return name
        depths = [self.ref_depth(r) for r, _ in terms]
        text = self.terms_text(0, terms)
        known = [d for d in depths if d is not None]
        if len(known) < len(depths):
            return f"({b.name} + {text})"
        depth = max(b.depth, *known)
        name = self.claim(f"{b.name}_{self.number()}", depth)
        self.declare(depth, f"{b.ctype} *{name} = {b.name} + {text};")
        self.blocks[depth].pointers.append(key)
        self.pointers[key] = name
        return name

    def ref_depth(self, ref: Ref) -> int | None:
        """The outermost block in which a term is known; None when it reads memory and must stay in place."""
        if isinstance(ref, str):
            return self.depths[ref]
        atom = self.atom_list[ref]
        if reads_memory(atom):
            return None
        return max((self.depths[self.vars[v]] for v in free_vars(atom) if v in self.vars), default=0)

    def terms_text(self, const: int, terms: Terms) -> str:
        """A sum as C text, positive terms first."""
        parts: list[str] = []
        if const > 0 and all(k < 0 for _, k in terms):
            parts, const = [str(const)], 0
        for ref, k in sorted(terms, key=lambda t: t[1] < 0):
            name = ref if isinstance(ref, str) else self.atom_text(ref)
            term = name if abs(k) == 1 else f"{name} * {abs(k)}"
            parts.append(("- " if k < 0 else "+ " if parts else "") + term)
        if const or not parts:
            parts.append(str(const) if not parts else f"{'-' if const < 0 else '+'} {abs(const)}")
        return " ".join(parts)

    def atom_text(self, number: int) -> str:
        """The name of the variable that holds an atom; its text when it reads memory."""
        name = self.atom_names.get(number)
        if name is not None:
            return name
        atom = self.atom_list[number]
        text, prec = self._atom(atom)
        depth = self.ref_depth(number)
        if depth is None:
            return within(text, prec, ATOM)
        name = self.claim(f"i{self.number()}", depth)
        self.declare(depth, f"const {self.index_type} {name} = {text};")
        self.blocks[depth].pointers.append(number)
        self.atom_names[number] = name
        return name

    def _atom(self, atom: Expr) -> tuple[str, int]:
        if not isinstance(atom, Binary) or atom.op not in ("//", "%", "min", "max", "*"):
            value = self.eval(atom)
            return str(value), value.prec
        a, b = linear(atom.a, self.ranges), linear(atom.b, self.ranges)
        x, y = self.form_val(a), self.form_val(b)
        if atom.op == "*":
            return f"{x.at(MUL)} * {y.at(ATOM)}", MUL
        if atom.op in ("min", "max"):
            return f"{self.unit.need(atom.op, 'int64', 0)}({x}, {y})", ATOM
        low, divisor = interval(a, self.ranges), interval(b, self.ranges)
        if low and low[0] >= 0 and divisor and divisor[0] > 0:
            return f"{x.at(MUL)} {atom.op[0]} {y.at(ATOM)}", MUL
        name = "floordiv" if atom.op == "//" else "floormod"
        return f"{self.unit.need(name, 'int64', 0)}({x}, {y})", ATOM

    def form_val(self, form: Linear) -> Val:
        """A linear form without the lane, as a value."""
        if form.is_const:
            return constant(form.const, "int64")
        terms = tuple((self.ref(a), k) for a, k in form.terms.items())
        alone = len(terms) == 1 and not form.const
        prec = (ATOM if terms[0][1] == 1 else MUL) if alone and terms[0][1] > 0 else ADD
        return Val(self.terms_text(form.const, terms), prec, 0, "int64")

    @abstractmethod
    def eval(self, e: Expr) -> Val:
        """The value of an expression."""


def free_vars(e: Expr) -> frozenset[str]:
    """Names of the variables in an expression."""
    match e:
        case Var():
            return frozenset((e.name,))
        case Load():
            return frozenset().union(*map(free_vars, e.indices))
        case Binary():
            return free_vars(e.a) | free_vars(e.b)
        case Select():
            return free_vars(e.cond) | free_vars(e.a) | free_vars(e.b)
        case Unary() | Cast():
            return free_vars(e.a)
    return frozenset()


def reads_memory(e: Expr) -> bool:
    """Does an expression contain a Load?"""
    match e:
        case Load():
            return True
        case Binary():
            return reads_memory(e.a) or reads_memory(e.b)
        case Select():
            return reads_memory(e.cond) or reads_memory(e.a) or reads_memory(e.b)
        case Unary() | Cast():
            return reads_memory(e.a)
    return False
