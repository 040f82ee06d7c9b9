"""Expressions as C: scalars stay scalar until they meet a vector; lane-dependent conditions become masks.

A load in a vector loop is a vector load when its lane stride is one, a scalar when it is zero, and built lane by lane
otherwise. Under a mask, memory of inactive lanes is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from wpk.core.errors import InternalError
from wpk.dsl.affine import Linear, interval, is_integer, linear
from wpk.dsl.codegen.address import Binding, Function, Unit, free_vars
from wpk.dsl.codegen.cmath import FLOAT32_ONLY, Shape
from wpk.dsl.codegen.cstyle import (
    ADD,
    AND,
    ATOM,
    BITAND,
    C_TYPES,
    COMPUTE,
    EQUAL,
    FLOATS,
    LESS,
    MUL,
    OR,
    TERNARY,
    UNARY,
    Val,
    add,
    constant,
    divide,
    multiply,
    negate,
    promote,
    vector_type,
)
from wpk.dsl.ir import Binary, Cast, Const, Expr, Load, Select, Unary, Var

T = TypeVar("T")
_COMPARE = {"<": "lt", "<=": "le", "==": "eq"}
_BOOLEAN = frozenset({"and", "or", *_COMPARE})
_HELPERS = {"exp", "log", "sqrt", "rsqrt", "erf", "tanh", "sigmoid", "floor", "ceil"}


class Expressions(Function):
    """Prints expressions in the current place: loop ranges, vector lane, mask."""

    def __init__(self, unit: Unit) -> None:
        super().__init__(unit)
        self.mask: str | None = None
        self.lazy = 0
        self.literals: dict[int, Val] = {}
        self.indices: dict[int, bool] = {}
        self.shared: frozenset[int] = frozenset()
        self.known: dict[int, Val] = {}
        self.table: dict[type, Callable[..., Val]] = {
            Const: self._const, Load: self._load, Binary: self._binary, Var: self._var,
            Unary: self._unary, Select: self._select, Cast: self._cast,
        }  # fmt: skip

    def eval(self, e: Expr) -> Val:
        """The value of an expression. Values used more than once in a statement go into a temporary."""
        if id(e) not in self.shared:
            return self.table[type(e)](e)
        if id(e) in self.known:
            value = self.known[id(e)]
            if value.lanes and self.fixed is not None:
                return Val(f"{value.text}[{self.fixed}]", ATOM, 0, value.dtype)
            return value
        value = self.table[type(e)](e)
        here = self.mask is None and self.fixed is None and not self.lazy
        if here and value.const is None and value.dtype != "bool":
            name = self.temporary(str(value), vector_type(value.dtype, value.lanes))
            value = self.known[id(e)] = Val(name, ATOM, value.lanes, value.dtype)
        return value

    def temporary(self, text: str, ctype: str) -> str:
        """A name for a value; its own text where evaluation must stay in place."""
        if self.lazy:
            return f"({text})"
        name = self.claim(f"t{self.number()}")
        self.line(f"const {ctype} {name} = {text};")
        return name

    # -- leaves -------------------------------------------------------------------------------------------------------

    def _const(self, e: Const) -> Val:
        value = self.literals.get(id(e))
        if value is None:
            value = self.literals[id(e)] = constant(e.value, e.dtype)
        return value

    def _var(self, e: Var) -> Val:
        return self.index(e)

    def index(self, e: Expr) -> Val:
        """Index arithmetic, folded; a vector of int32 when it depends on the lane."""
        form = linear(e, self.ranges)
        if self.lane is None or self.lane not in _atoms_vars(form):
            return self.form_val(form)
        stride = form.terms.pop(Var(self.lane), 0)
        if self.lane in _atoms_vars(form):
            return self.by_lane(e, "int32")
        form.const += stride * self.wide[self.lane][0]
        lanes = ", ".join(str(stride * k) for k in range(self.lanes))
        base = self.form_val(form)
        text = f"({vector_type('int32', self.lanes)}){{{lanes}}}"
        if base.const == 0:
            return Val(text, ATOM, self.lanes, "int32")
        return Val(f"{text} + (int32_t){base.at(UNARY)}", ADD, self.lanes, "int32")

    def _load(self, e: Load) -> Val:
        b = self.buffer(e.buffer)
        const, terms, stride = self.address(e, b)
        if b.names is not None and not terms:
            return self._register(e, b, const, stride)
        if b.values is not None and not terms and stride == 0:
            return self._inside(b, const, b.constants)
        if stride is None or stride not in (0, 1) or (b.values is not None and not terms):
            return self.by_lane(e, b.dtype)
        if b.values is not None:
            b.name = self.unit.table(b.buffer)
        p = self.pointer(b, terms)
        guarded = self.mask is not None and not self.in_bounds(e, b)
        if stride == 0:
            return self._scalar_load(b, f"{p}[{const}]", guarded)
        at = offset(p, const)
        if guarded:
            raw = f"{self.unit.need('loadm', b.buffer.dtype, self.lanes)}({at}, {self.mask})"
        else:
            raw = f"{vector_type(b.buffer.dtype, self.lanes)}_at({at})"
        return self.widen(Val(raw, ATOM, self.lanes, b.buffer.dtype))

    def buffer(self, name: str) -> Binding:
        """The binding of a buffer in scope. Raises InternalError when there is none."""
        if name not in self.bind:
            raise InternalError(f"unknown buffer {name}")
        return self.bind[name]

    def _inside(self, b: Binding, i: int, items: Sequence[T]) -> T:
        if not 0 <= i < len(items):
            raise InternalError(f"element {i} is out of range of {b.buffer.name}{b.buffer.shape}")
        return items[i]

    def _scalar_load(self, b: Binding, text: str, guarded: bool) -> Val:
        value = self.widen(Val(text, ATOM, 0, b.buffer.dtype))
        if not guarded:
            return value
        if not self.shape("float32").has_k:
            any_lane = " | ".join(self.bit(k) for k in range(self.lanes))
            return Val(f"(({any_lane}) ? {value} : 0)", ATOM, 0, value.dtype)
        return Val(f"({self.mask} ? {value} : 0)", ATOM, 0, value.dtype)

    def widen(self, raw: Val) -> Val:
        """An element as loaded, in the dtype it computes as."""
        compute = COMPUTE.get(raw.dtype)
        if compute is None:
            return raw
        if raw.dtype == "bfloat16":
            return Val(f"{self.unit.need('widen', raw.dtype, raw.lanes)}({raw.text})", ATOM, raw.lanes, compute)
        if raw.lanes:
            text = f"__builtin_convertvector({raw.text}, {vector_type(compute, raw.lanes)})"
            return Val(text, ATOM, raw.lanes, compute)
        return Val(f"(float){raw.at(UNARY)}", UNARY, 0, compute)

    def _register(self, e: Load, b: Binding, const: int, stride: int | None) -> Val:
        names = b.names or []
        if b.private:
            name = self._inside(b, const, names)
            if self.fixed is not None:
                return Val(f"{name}[{self.fixed}]", ATOM, 0, b.dtype)
            return Val(name, ATOM, b.lanes, b.dtype)
        if not b.lanes:
            if stride != 0:
                return self.by_lane(e, b.dtype)
            return Val(self._inside(b, const, names), ATOM, 0, b.dtype)
        q, r = divmod(const, b.lanes)
        if stride == 0:
            return Val(f"{self._inside(b, q, names)}[{r}]", ATOM, 0, b.dtype)
        if stride != 1 or r or self.lanes != b.lanes:
            return self.by_lane(e, b.dtype)
        return Val(self._inside(b, q, names), ATOM, b.lanes, b.dtype)

    def in_bounds(self, e: Load, b: Binding) -> bool:
        """Are the indices in range for every value of the loop variables and the lane?"""
        for i, n in zip(e.indices, b.buffer.shape, strict=True):
            span = interval(linear(i, self.ranges), self.ranges)
            if span is None or span[0] < 0 or span[1] >= n:
                return False
        return True

    # -- lanes and masks ----------------------------------------------------------------------------------------------

    def shape(self, dtype: str) -> Shape:
        """The helper shape of the current lanes."""
        return Shape(self.isa, dtype, self.lanes)

    def bit(self, k: int) -> str:
        """C text: is lane ``k`` active?"""
        return self.shape("float32").bit(self.mask or "", k)

    def by_lane(self, e: Expr, dtype: str) -> Val:
        """A vector built of one scalar a lane; inactive lanes are zero."""
        bits = [self.bit(k) for k in range(self.lanes)] if self.mask is not None else None
        outer, self.mask = self.mask, None
        texts = []
        self.lazy += bits is not None
        for k in range(self.lanes):
            with self.lane_fixed(k):
                value = self.convert(self.eval(e), dtype)
            texts.append(str(value) if bits is None else f"{bits[k]} ? {value.at(OR)} : 0")
        self.lazy -= bits is not None
        self.mask = outer
        return Val(f"({vector_type(dtype, self.lanes)}){{{', '.join(texts)}}}", ATOM, self.lanes, dtype)

    def splat(self, v: Val) -> str:
        """The text of a value as a vector of the current lanes."""
        if v.lanes:
            return str(v)
        zero = f"({vector_type(v.dtype, self.lanes)}){{}}"
        return zero if v.const == 0 else f"({zero} + {v.at(MUL)})"

    @contextmanager
    def masked(self, mask: str, invert: bool = False) -> Iterator[None]:
        """Inside: only lanes of ``mask`` (or the others) are active, of those that were."""
        outer = self.mask
        mine = self._not(mask) if invert else mask
        self.mask = mine if outer is None else f"({outer} & {mine})"
        yield
        self.mask = outer

    def _not(self, mask: str) -> str:
        return f"({mask} ^ {(1 << self.lanes) - 1:#x})" if self.shape("float32").has_k else f"(~{mask})"

    def name_mask(self, mask: Val) -> str:
        """A mask in a variable."""
        return self.temporary(str(mask), self.shape("float32").mask)

    def mask_of(self, cond: Val) -> Val:
        """A condition as a mask."""
        if cond.lanes:
            return cond
        if self.shape("float32").has_k:
            return Val(f"({cond.at(OR)} ? {(1 << self.lanes) - 1:#x} : 0)", ATOM, self.lanes, "bool")
        zero = f"({vector_type('int32', self.lanes)}){{}}"
        return Val(f"({zero} - ({cond.at(OR)} ? 1 : 0))", ATOM, self.lanes, "bool")

    # -- conditions ---------------------------------------------------------------------------------------------------

    def cond(self, e: Expr) -> Val:
        """A condition: a known constant, a scalar, or (with lanes) a mask."""
        if isinstance(e, Binary) and e.op in ("and", "or"):
            return self._connective(e)
        if isinstance(e, Binary) and e.op in _COMPARE:
            return self._comparison(e)
        if isinstance(e, Unary) and e.op == "not":
            a = self.cond(e.a)
            if a.const is not None:
                return constant(not a.const, "bool")
            if a.lanes:
                return Val(self._not(a.at(ATOM)), ATOM, a.lanes, "bool")
            return Val(f"!{a.at(UNARY)}", UNARY, 0, "bool")
        if isinstance(e, Const):
            return constant(bool(e.value), "bool")
        if isinstance(e, Select):
            return self._choice(e)
        value = self.eval(e)
        if not value.lanes:
            return Val(f"{value.at(EQUAL)} != 0", EQUAL, 0, "bool")
        if value.dtype == "bool" and not isinstance(e, Load):
            return value
        ints = f"__builtin_convertvector({value}, {vector_type('int32', value.lanes)})"
        return Val(f"{self.unit.need('mask', 'int32', value.lanes)}({ints})", ATOM, value.lanes, "bool")

    def _choice(self, e: Select) -> Val:
        """A Select of conditions, as ``(c and a) or (not c and b)``."""
        return self.cond(Binary("or", Binary("and", e.cond, e.a), Binary("and", Unary("not", e.cond), e.b)))

    def _connective(self, e: Binary) -> Val:
        a = self.cond(e.a)
        if a.const is not None:
            return self.cond(e.b) if bool(a.const) == (e.op == "and") else a
        if a.lanes:
            name = self.name_mask(a)
            with self.masked(name, invert=e.op == "or"):
                b = self.cond(e.b)
            a = Val(name, ATOM, a.lanes, "bool")
        else:
            self.lazy += 1
            b = self.cond(e.b)
            self.lazy -= 1
        if b.const is not None:
            return a if bool(b.const) == (e.op == "and") else b
        if a.lanes or b.lanes:
            sign = "&" if e.op == "and" else "|"
            x, y = self.mask_of(a), self.mask_of(b)
            return Val(f"({x.at(ATOM)} {sign} {y.at(ATOM)})", ATOM, self.lanes, "bool")
        prec, sign = (AND, "&&") if e.op == "and" else (OR, "||")
        return Val(f"{a.at(BITAND)} {sign} {b.at(BITAND)}", prec, 0, "bool")

    def _comparison(self, e: Binary) -> Val:
        if is_integer(e.a) and is_integer(e.b):
            return self._index_comparison(e)
        a, b = self.same(self.eval(e.a), self.eval(e.b))
        if a.const is not None and b.const is not None:
            return constant({"<": a.const < b.const, "<=": a.const <= b.const, "==": a.const == b.const}[e.op], "bool")
        if not (a.lanes or b.lanes):
            prec = EQUAL if e.op == "==" else LESS
            return Val(f"{a.at(ADD)} {e.op} {b.at(ADD)}", prec, 0, "bool")
        name = self.unit.need(_COMPARE[e.op], a.dtype, self.lanes)
        return Val(f"{name}({self.splat(a)}, {self.splat(b)})", ATOM, self.lanes, "bool")

    def _index_comparison(self, e: Binary) -> Val:
        """``b - a`` against zero: known from the ranges, a prefix of the lanes, or a comparison."""
        form = linear(e.b, self.ranges).plus(linear(e.a, self.ranges), -1)
        if e.op == "<":
            form.const -= 1  # from here on: form >= 0, or form == 0
        known = _sign(interval(form, self.ranges), e.op == "==")
        if known is not None:
            return constant(known, "bool")
        if self.lane is not None and self.lane in _atoms_vars(form):
            return self._lane_comparison(e, form)
        return self._two_sided(form, e.op)

    def _two_sided(self, form: Linear, op: str) -> Val:
        """``form >= 0`` (or ``== 0``) with negative terms on the left, positive ones and the constant on the right."""
        left = Linear(0, {a: -k for a, k in form.terms.items() if k < 0})
        right = Linear(form.const + (op == "<"), {a: k for a, k in form.terms.items() if k > 0})
        prec = EQUAL if op == "==" else LESS
        if right.const < 0 and right.terms:
            left.const, right.const = -right.const, 0
        return Val(f"{self.form_val(left).at(ADD)} {op} {self.form_val(right).at(ADD)}", prec, 0, "bool")

    def _lane_comparison(self, e: Binary, form: Linear) -> Val:
        lane = Var(self.lane or "")
        stride = form.terms.get(lane, 0)
        rest = Linear(form.const, {a: k for a, k in form.terms.items() if a != lane})
        if stride not in (1, -1) or e.op == "==" or self.lane in _atoms_vars(rest):
            a, b = self.same(self.index(e.a), self.index(e.b), "int32")
            name = self.unit.need(_COMPARE[e.op], "int32", self.lanes)
            return Val(f"{name}({self.splat(a)}, {self.splat(b)})", ATOM, self.lanes, "bool")
        base = self.wide[self.lane or ""][0]
        rest.const += stride * base
        first = self.unit.need("first", "float32", self.lanes)
        if stride == -1:  # k <= rest
            rest.const += 1
            return Val(f"{first}({self.form_val(rest)})", ATOM, self.lanes, "bool")
        bound = rest.times(-1)  # k >= -rest
        return Val(self._not(f"{first}({self.form_val(bound)})"), ATOM, self.lanes, "bool")

    # -- operators ----------------------------------------------------------------------------------------------------

    def same(self, a: Val, b: Val, dtype: str | None = None) -> tuple[Val, Val]:
        """Two operands in their common dtype."""
        if a.dtype == b.dtype and dtype is None:
            return a, b
        common = dtype or promote(a.dtype, b.dtype)
        return self.convert(a, common), self.convert(b, common)

    def convert(self, v: Val, dtype: str) -> Val:
        """A value in another dtype."""
        if v.dtype == dtype:
            return v
        if v.const is not None:
            return constant(float(v.const) if dtype in FLOATS else int(v.const), dtype)
        if v.lanes and v.dtype == "bool":
            one, zero = (self.splat(constant(c, dtype)) for c in (1, 0))
            return Val(f"{self.unit.need('blend', dtype, v.lanes)}({v}, {one}, {zero})", ATOM, v.lanes, dtype)
        if v.lanes:
            return Val(f"__builtin_convertvector({v}, {vector_type(dtype, v.lanes)})", ATOM, v.lanes, dtype)
        return Val(f"({C_TYPES[dtype][0]}){v.at(UNARY)}", UNARY, 0, dtype)

    def call(self, name: str, dtype: str, *args: Val) -> Val:
        """A helper on values of one dtype; vectors when any argument is one."""
        lanes = max(a.lanes for a in args)
        texts = [self.splat(a) if lanes else str(a) for a in args]
        return Val(f"{self.unit.need(name, dtype, lanes)}({', '.join(texts)})", ATOM, lanes, dtype)

    def _binary(self, e: Binary) -> Val:
        op = e.op
        index = self.indices.get(id(e))
        if index is None:
            index = self.indices[id(e)] = is_integer(e)
        if index:
            return self.index(e)
        if op in _BOOLEAN:
            return self.cond(e)
        a = self.eval(e.a)
        if op == "*" and a.const == 0 and a.dtype == "float32":
            return a
        b = self.eval(e.b)
        if a.dtype != b.dtype:
            a, b = self.same(a, b)
        if op == "+":
            return add(a, b)
        return multiply(a, b) if op == "*" else self.combine(op, a, b, e)

    def combine(self, op: str, a: Val, b: Val, e: Expr) -> Val:
        """``a op b`` of one dtype; ``e`` is the expression it stands for."""
        if op == "-":
            return add(a, negate(b))
        if op == "/":
            return divide(a, b)
        if op == "pow":
            return self._pow(a, b, e)
        if op in ("min", "max"):
            if a.const is not None and b.const is not None:
                return a if (a.const > b.const) == (op == "max") else b
            return self.call(op, a.dtype, a, b)
        if op in ("//", "%"):
            if a.lanes or b.lanes:
                return self.by_lane(e, a.dtype)
            return self.call("floordiv" if op == "//" else "floormod", a.dtype, a, b)
        raise InternalError(f"unknown operator {op}")

    def _pow(self, a: Val, b: Val, e: Expr) -> Val:
        """Quarter powers through square roots, the rest through exp and log."""
        if a.dtype != "float32":
            return self._library("pow", e, a, b)
        if b.const in (0.75, -0.75):
            x = self.named(a)
            root = self.call("sqrt", a.dtype, x)
            value = self.call("sqrt", a.dtype, multiply(x, root))
            return value if b.const == 0.75 else divide(constant(1.0, a.dtype), value)
        if b.const in (0.5, -0.5):
            return self.call("sqrt" if b.const == 0.5 else "rsqrt", a.dtype, a)
        if b.const in (1.0, -1.0):
            return a if b.const == 1.0 else divide(constant(1.0, a.dtype), a)
        if b.const in (2.0, 3.0):
            x = self.named(a)
            square = multiply(x, x)
            return square if b.const == 2.0 else multiply(square, x)
        return self.call("pow", a.dtype, a, b)

    def named(self, v: Val) -> Val:
        """The value in a variable, unless it is a name already."""
        if v.prec == ATOM and "(" not in v.text and not v.neg:
            return v
        return Val(self.temporary(str(v), vector_type(v.dtype, v.lanes)), ATOM, v.lanes, v.dtype)

    def _library(self, name: str, e: Expr, *args: Val) -> Val:
        """float64: the C library, a lane at a time."""
        if any(a.lanes for a in args):
            return self.by_lane(e, args[0].dtype)
        return Val(f"__builtin_{name}({', '.join(map(str, args))})", ATOM, 0, args[0].dtype)

    def _unary(self, e: Unary) -> Val:
        if e.op == "not":
            return self.cond(e)
        a = self.eval(e.a)
        if e.op == "neg":
            return negate(a)
        if e.op == "abs":
            return self.call("fabs", a.dtype, a)
        if a.dtype not in FLOATS:
            a = self.convert(a, "float32")
        if e.op == "recip":
            return divide(constant(1.0, a.dtype), a)
        if e.op not in _HELPERS:
            raise InternalError(f"unknown operator {e.op}")
        if a.dtype == "float64" and e.op in FLOAT32_ONLY:
            return self._double(e, a)
        return self.call(e.op, a.dtype, a)

    def _double(self, e: Unary, a: Val) -> Val:
        if e.op != "sigmoid" or a.lanes:
            return self._library(e.op, e, a)
        return Val(f"1.0 / (1.0 + __builtin_exp(-{a.at(UNARY)}))", MUL, 0, a.dtype)

    def _select(self, e: Select) -> Val:
        c = self.cond(e.cond)
        if c.const is not None:
            return self.eval(e.a if c.const else e.b)
        if c.lanes:
            return self._blend(self.name_mask(c), e)
        self.lazy += 1
        a, b = self.same(self.eval(e.a), self.eval(e.b))
        self.lazy -= 1
        lanes = a.lanes or b.lanes
        x, y = a.at(OR), b.at(OR)
        if lanes:  # C wants both arms of one type, and a load has the type of unaligned memory
            x, y = self._aligned(a), self._aligned(b)
        return Val(f"{c.at(OR)} ? {x} : {y}", TERNARY, lanes, a.dtype)

    def _aligned(self, v: Val) -> str:
        """A value as a vector of the type that variables have."""
        text = self.splat(v)
        if text.startswith("(("):
            return text
        return f"({vector_type(v.dtype, self.lanes)}){text if v.prec == ATOM and not v.neg else f'({text})'}"

    def _blend(self, mask: str, e: Select) -> Val:
        with self.masked(mask):
            a = self.eval(e.a)
        with self.masked(mask, invert=True):
            b = self.eval(e.b)
        a, b = self.same(a, b)
        if b.const == 0 and a.text.startswith("loadm_") and a.prec == ATOM:
            return a  # inactive lanes are zero already
        text = f"{self.unit.need('blend', a.dtype, self.lanes)}({mask}, {self.splat(a)}, {self.splat(b)})"
        return Val(text, ATOM, self.lanes, a.dtype)

    def _cast(self, e: Cast) -> Val:
        a = self.eval(e.a)
        return self.cast(a, e.dtype)

    def cast(self, a: Val, dtype: str) -> Val:
        """``a`` converted to ``dtype``; storage formats round and come back as float32."""
        if dtype == "bool":
            return a if a.dtype == "bool" else Val(f"{a.at(EQUAL)} != 0", EQUAL, a.lanes, "bool")
        if dtype not in COMPUTE:
            return self.convert(a, dtype)
        return self.widen(self.narrow(self.convert(a, "float32"), dtype))

    def narrow(self, v: Val, dtype: str) -> Val:
        """A computed value as the element of storage that it is written to."""
        if dtype == "bfloat16":
            text = f"{self.unit.need('shorten', dtype, v.lanes)}({self.convert(v, 'float32')})"
            return Val(text, ATOM, v.lanes, dtype)
        if v.lanes:
            text = f"__builtin_convertvector({v}, {vector_type(dtype, v.lanes)})"
            return v if v.dtype == dtype else Val(text, ATOM, v.lanes, dtype)
        return v if v.dtype == dtype else Val(f"({C_TYPES[dtype][0]}){v.at(UNARY)}", UNARY, 0, dtype)


def offset(pointer: str, const: int) -> str:
    """``pointer + const`` as C text."""
    if not const:
        return pointer
    return f"{pointer} + {const}" if const > 0 else f"{pointer} - {-const}"


def _sign(span: tuple[int, int] | None, equal: bool) -> bool | None:
    """Is a form with this range >= 0 (or == 0) always, never, or (None) sometimes?"""
    if span is None:
        return None
    lo, hi = span
    if equal:
        return True if lo == hi == 0 else False if hi < 0 or lo > 0 else None
    return True if lo >= 0 else False if hi < 0 else None


def _atoms_vars(form: Linear) -> frozenset[str]:
    return frozenset().union(*(free_vars(a) for a in form.terms))
