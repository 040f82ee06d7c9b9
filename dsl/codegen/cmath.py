"""The helper library of generated C: each helper is a static inline function, printed only when a kernel uses it.

One text serves vectors of every length and scalars. Functions are accurate to about 1e-6 relative in float32 (``pow`` to
1.2e-7 times the magnitude of its logarithm, when that is above ten); polynomials are least-squares minimax fits on the
reduced range, with coefficients rounded to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wpk.core.errors import InternalError
from wpk.dsl.codegen.cstyle import C_TYPES, Isa, vector_type


@dataclass(frozen=True)
class Shape:
    """What a helper is printed for: an ISA, an element dtype and lanes (0: scalar)."""

    isa: Isa
    dtype: str
    lanes: int

    @property
    def suffix(self) -> str:
        """The end of helper names: ``f32x16``, or ``f32`` for scalars."""
        return vector_type(self.dtype, self.lanes) if self.lanes else C_TYPES[self.dtype][1]

    @property
    def type(self) -> str:
        """The C type of a value."""
        return vector_type(self.dtype, self.lanes)

    @property
    def ints(self) -> str:
        """The int32 type with as many lanes."""
        return vector_type("int32", self.lanes)

    @property
    def scalar(self) -> str:
        """The C type of an element."""
        return C_TYPES[self.dtype][0]

    @property
    def mask(self) -> str:
        """The C type of a lane mask; ``int`` for scalars."""
        if not self.lanes:
            return "int"
        return ("uint16_t" if self.lanes == 16 else "uint8_t") if self.has_k else self.ints

    @property
    def has_k(self) -> bool:
        """Masks are AVX-512 mask registers, one bit a lane; else they are int32 vectors of 0 and -1."""
        return self.lanes in self.isa.mask_lanes

    @property
    def native(self) -> int:
        """Bits of the x86 register that holds exactly this shape of 32-bit elements, else 0."""
        bits = 32 * self.lanes
        if C_TYPES[self.dtype][2] != 4 or self.isa.name not in ("avx512", "avx2") or bits > 8 * self.isa.bytes:
            return 0
        return bits if bits in (128, 256, 512) else 0

    def bit(self, mask: str, lane: str | int) -> str:
        """C text: is ``lane`` active in the mask named ``mask``?"""
        return f"({mask} >> {lane} & 1)" if self.has_k else f"{mask}[{lane}]"


Helper = Callable[[Shape], tuple[str, tuple[str, ...]]]


def helper(name: str, shape: Shape) -> tuple[str, tuple[str, ...]]:
    """The text of helper ``name`` for ``shape``, and the helpers of the same shape that it calls."""
    if name not in _HELPERS:
        raise InternalError(f"no helper {name} for {shape.suffix}")
    text, needs = _HELPERS[name](shape)
    return f"static inline __attribute__((always_inline, unused)) {text}\n", needs


def _splat(s: Shape, text: str) -> str:
    return f"(({s.type}){{}} + {text})" if s.lanes else text


def _real(s: Shape, bits: str) -> str:
    return f"({s.type})({bits})" if s.lanes else f"real_{s.suffix}({bits})"


def _bits(s: Shape, real: str) -> str:
    return f"({s.ints})({real})" if s.lanes else f"bits_{s.suffix}({real})"


def _convert(s: Shape, ints: str) -> str:
    return f"__builtin_convertvector({ints}, {s.type})" if s.lanes else f"(float)({ints})"


def _less(s: Shape, a: str, b: str) -> str:
    """A mask of ``a < b``, for :func:`_pick`."""
    return f"lt_{s.suffix}({a}, {b})"


def _pick(s: Shape, mask: str, a: str, b: str) -> str:
    return f"blend_{s.suffix}({mask}, {a}, {b})"


_CAST = ("bits", "real")
_PICK = ("lt", "blend")


def _bits_helper(s: Shape) -> tuple[str, tuple[str, ...]]:
    body = f"return ({s.ints})x;" if s.lanes else "int32_t i; __builtin_memcpy(&i, &x, 4); return i;"
    return f"{s.ints} bits_{s.suffix}({s.type} x) {{ {body} }}", ()


def _real_helper(s: Shape) -> tuple[str, tuple[str, ...]]:
    body = f"return ({s.type})i;" if s.lanes else "float x; __builtin_memcpy(&x, &i, 4); return x;"
    return f"{s.type} real_{s.suffix}({s.ints} i) {{ {body} }}", ()


# -- comparison, choice, masks ------------------------------------------------------------------------------------

_PREDICATES = {"lt": ("<", 17, 1), "le": ("<=", 18, 2), "eq": ("==", 0, 0)}


def _compare(name: str) -> Helper:
    op, real, integer = _PREDICATES[name]

    def make(s: Shape) -> tuple[str, tuple[str, ...]]:
        head = f"{s.mask} {name}_{s.suffix}({s.type} a, {s.type} b)"
        if not s.lanes:
            return f"{head} {{ return a {op} b; }}", ()
        if s.has_k and s.native and s.dtype in ("float32", "int32"):
            everything = "-1, 4" if s.native == 512 and s.dtype == "float32" else "-1"
            if s.dtype == "float32":
                call = f"__builtin_ia32_cmpps{s.native}_mask(a, b, {real}, {everything})"
            else:
                call = f"__builtin_ia32_cmpd{s.native}_mask(a, b, {integer}, {everything})"
            return f"{head} {{ return {call}; }}", ()
        if s.has_k:
            loop = f"for (int i = 0; i < {s.lanes}; ++i) m |= (unsigned)(a[i] {op} b[i]) << i;"
            return f"{head} {{ unsigned m = 0; {loop} return m; }}", ()
        if C_TYPES[s.dtype][2] == 4:
            return f"{head} {{ return a {op} b; }}", ()
        return f"{head} {{ return __builtin_convertvector(a {op} b, {s.ints}); }}", ()

    return make


def _blend(s: Shape) -> tuple[str, tuple[str, ...]]:
    head = f"{s.type} blend_{s.suffix}({s.mask} m, {s.type} a, {s.type} b)"
    if not s.lanes:
        return f"{head} {{ return m ? a : b; }}", ()
    if s.has_k and s.native and s.dtype in ("float32", "int32"):
        kind, elem = ("ps", s.type) if s.dtype == "float32" else ("d", s.type)
        clang = f"return ({elem})__builtin_ia32_select{kind}_{s.native}(m, a, b);"
        gcc = f"return __builtin_ia32_blendm{kind}_{s.native}_mask(b, a, m);"
        return f"{head} {{\n#ifdef __clang__\n  {clang}\n#else\n  {gcc}\n#endif\n}}", ()
    if C_TYPES[s.dtype][2] == 4 and not s.has_k:
        return f"{head} {{ return ({s.type})((m & ({s.ints})a) | (~m & ({s.ints})b)); }}", ()
    loop = f"for (int i = 0; i < {s.lanes}; ++i) r[i] = {s.bit('m', 'i')} ? a[i] : b[i];"
    return f"{head} {{ {s.type} r; {loop} return r; }}", ()


def _extreme(name: str, op: str) -> Helper:
    """``a op b ? a : b``: the second operand when either is NaN, as the x86 instructions have it."""

    def make(s: Shape) -> tuple[str, tuple[str, ...]]:
        head = f"{s.type} {name}_{s.suffix}({s.type} a, {s.type} b)"
        if not s.lanes:
            return f"{head} {{ return a {op} b ? a : b; }}", ()
        if s.native and s.dtype == "float32":
            return f"{head} {{\n{_native_extreme(name, s)}\n}}", ()
        first, second = ("b", "a") if op == ">" else ("a", "b")
        return f"{head} {{ return blend_{s.suffix}(lt_{s.suffix}({first}, {second}), a, b); }}", _PICK

    return make


def _native_extreme(name: str, s: Shape) -> str:
    if s.native != 512:
        return f"  return __builtin_ia32_{name}ps{'' if s.native == 128 else s.native}(a, b);"
    clang = f"  return __builtin_ia32_{name}ps512(a, b, 4);"
    return f"#ifdef __clang__\n{clang}\n#else\n  return __builtin_ia32_{name}ps512_mask(a, b, a, -1, 4);\n#endif"


def _first(s: Shape) -> tuple[str, tuple[str, ...]]:
    """The mask of the first n lanes; n may be any integer."""
    if s.has_k:
        count = f"n < 0 ? 0 : n > {s.lanes} ? {s.lanes} : n"
        return f"{s.mask} first_{s.suffix}(int64_t n) {{ return ({s.mask})((1u << ({count})) - 1); }}", ()
    lanes = ", ".join(map(str, range(s.lanes)))
    return f"{s.mask} first_{s.suffix}(int64_t n) {{ return ({s.ints}){{{lanes}}} < (int32_t)n; }}", ()


def _bit_mask(s: Shape) -> tuple[str, tuple[str, ...]]:
    """A mask from one int a lane (0 or 1)."""
    head = f"{s.mask} mask_{s.suffix}({s.ints} v)"
    if not s.has_k:
        return f"{head} {{ return v != 0; }}", ()
    loop = f"for (int i = 0; i < {s.lanes}; ++i) m |= (unsigned)(v[i] != 0) << i;"
    return f"{head} {{ unsigned m = 0; {loop} return m; }}", ()


def _load_masked(s: Shape) -> tuple[str, tuple[str, ...]]:
    """The active lanes from memory, zero elsewhere; memory of inactive lanes is not touched."""
    head = f"{s.type} loadm_{s.suffix}(const {s.scalar} *p, {s.mask} m)"
    if s.native and s.dtype == "float32":
        if s.has_k:
            gcc = f"return __builtin_ia32_loadups{s.native}_mask(p, ({s.type}){{}}, m);"
            clang = f"return __builtin_ia32_loadups{s.native}_mask((const {s.type} *)p, ({s.type}){{}}, m);"
            return f"{head} {{\n#ifdef __clang__\n  {clang}\n#else\n  {gcc}\n#endif\n}}", ()
        size = "256" if s.native == 256 else ""
        return f"{head} {{ return __builtin_ia32_maskloadps{size}((const {s.type} *)p, m); }}", ()
    loop = f"for (int i = 0; i < {s.lanes}; ++i) if ({s.bit('m', 'i')}) r[i] = p[i];"
    return f"{head} {{ {s.type} r = {{}}; {loop} return r; }}", ()


def _store_masked(s: Shape) -> tuple[str, tuple[str, ...]]:
    """The active lanes to memory; the rest is not touched."""
    head = f"void storem_{s.suffix}({s.scalar} *p, {s.mask} m, {s.type} v)"
    if s.native and s.dtype == "float32":
        if s.has_k:
            gcc = f"__builtin_ia32_storeups{s.native}_mask(p, v, m);"
            clang = f"__builtin_ia32_storeups{s.native}_mask(({s.type} *)p, v, m);"
            return f"{head} {{\n#ifdef __clang__\n  {clang}\n#else\n  {gcc}\n#endif\n}}", ()
        size = "256" if s.native == 256 else ""
        return f"{head} {{ __builtin_ia32_maskstoreps{size}(({s.type} *)p, m, v); }}", ()
    loop = f"for (int i = 0; i < {s.lanes}; ++i) if ({s.bit('m', 'i')}) p[i] = v[i];"
    return f"{head} {{ {loop} }}", ()


# -- across lanes -------------------------------------------------------------------------------------------------


def _across(name: str, combine: str, needs: tuple[str, ...] = ()) -> Helper:
    """All lanes into one value, in a tree: the upper half onto the lower, until one is left."""

    def make(s: Shape) -> tuple[str, tuple[str, ...]]:
        lines = [f"{s.scalar} {name}_{s.suffix}({s.type} v) {{"]
        lanes, source = s.lanes, "v"
        while lanes > 1:
            half = lanes // 2
            terms = (combine.format(f"{source}[{i}]", f"{source}[{i + half}]", t=s.scalar) for i in range(half))
            if half == 1:
                lines.append(f"  return {next(terms)};")
            elif half >= 4 and combine == "{0} + {1}":
                ids = [", ".join(map(str, range(k, k + half))) for k in (0, half)]
                parts = " + ".join(f"__builtin_shufflevector({source}, {source}, {i})" for i in ids)
                lines.append(f"  {vector_type(s.dtype, half)} s{half} = {parts};")
            else:
                lines.append(f"  {s.scalar} s{half}[{half}] = {{{', '.join(terms)}}};")
            lanes, source = half, f"s{half}"
        return "\n".join([*lines, "}"]), needs

    return make


# -- integers and storage formats -----------------------------------------------------------------------------------


def _floordiv(s: Shape) -> tuple[str, tuple[str, ...]]:
    t = s.type
    return f"{t} floordiv_{s.suffix}({t} a, {t} b) {{ return a / b - ((a % b != 0) & ((a < 0) != (b < 0))); }}", ()


def _floormod(s: Shape) -> tuple[str, tuple[str, ...]]:
    t = s.type
    return f"{t} floormod_{s.suffix}({t} a, {t} b) {{ {t} r = a % b; return r + (r != 0 && (r < 0) != (b < 0) ? b : 0); }}", ()


def _widen(s: Shape) -> tuple[str, tuple[str, ...]]:
    """bfloat16 bits as float32."""
    if not s.lanes:
        return "float widen_bf16(uint16_t h) { uint32_t i = (uint32_t)h << 16; float x; __builtin_memcpy(&x, &i, 4); return x; }", ()
    u, f = vector_type("uint32", s.lanes), vector_type("float32", s.lanes)
    return f"{f} widen_{s.suffix}({s.type} h) {{ return ({f})(__builtin_convertvector(h, {u}) << 16); }}", ()


def _shorten(s: Shape) -> tuple[str, tuple[str, ...]]:
    """float32 rounded to the nearest bfloat16, ties to even."""
    u, f = vector_type("uint32", s.lanes), vector_type("float32", s.lanes)
    rounding = "i = i + 0x7fffu + (i >> 16 & 1u)"
    if not s.lanes:
        return f"uint16_t shorten_bf16(float x) {{ uint32_t i; __builtin_memcpy(&i, &x, 4); {rounding}; return (uint16_t)(i >> 16); }}", ()
    return f"{s.type} shorten_{s.suffix}({f} x) {{ {u} i = ({u})x; {rounding}; return __builtin_convertvector(i >> 16, {s.type}); }}", ()


# -- elementary functions ---------------------------------------------------------------------------------------------


def _unary_text(name: str, s: Shape, body: str) -> str:
    return f"{s.type} {name}_{s.suffix}({s.type} x) {{\n{body}\n}}"


def _poly(var: str, *coefficients: str) -> str:
    """Horner's rule, highest coefficient last in the arguments."""
    text = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        text = f"({text}) * {var} + {c}"
    return text


def _abs(s: Shape) -> tuple[str, tuple[str, ...]]:
    if s.dtype == "float32":
        return _unary_text("fabs", s, f"  return {_real(s, _bits(s, 'x') + ' & 0x7fffffff')};"), _CAST
    zero = _splat(s, "0")
    return _unary_text("fabs", s, f"  return {_pick(s, _less(s, 'x', zero), '-x', 'x')};"), _PICK


def _sqrt(s: Shape) -> tuple[str, tuple[str, ...]]:
    if not s.lanes:
        call = "__builtin_sqrtf" if s.dtype == "float32" else "__builtin_sqrt"
        return _unary_text("sqrt", s, f"  return {call}(x);"), ()
    if s.native == 512 and s.dtype == "float32":
        gcc = "  return __builtin_ia32_sqrtps512_mask(x, x, -1, 4);"
        return _unary_text("sqrt", s, f"#ifdef __clang__\n  return __builtin_ia32_sqrtps512(x, 4);\n#else\n{gcc}\n#endif"), ()
    if s.native and s.dtype == "float32":
        return _unary_text("sqrt", s, f"  return __builtin_ia32_sqrtps{'' if s.native == 128 else 256}(x);"), ()
    call = "__builtin_sqrtf" if s.dtype == "float32" else "__builtin_sqrt"
    return _unary_text("sqrt", s, f"  for (int i = 0; i < {s.lanes}; ++i) x[i] = {call}(x[i]);\n  return x;"), ()


def _rsqrt(s: Shape) -> tuple[str, tuple[str, ...]]:
    return _unary_text("rsqrt", s, f"  return {_splat(s, '1.0f')} / sqrt_{s.suffix}(x);"), ("sqrt",)


def _floor(s: Shape) -> tuple[str, tuple[str, ...]]:
    """Through int32, where the value is small enough to have a fraction."""
    trunc = _convert(s, f"__builtin_convertvector(safe, {s.ints})" if s.lanes else "(int32_t)safe")
    lines = [
        f"  {s.mask} small = {_less(s, f'fabs_{s.suffix}(x)', _splat(s, '8388608.0f'))};",
        f"  {s.type} safe = {_pick(s, 'small', 'x', _splat(s, '0.0f'))}, t = {trunc};",
        f"  t = {_pick(s, _less(s, 'safe', 't'), 't - 1.0f', 't')};",
        f"  return {_pick(s, 'small', 't', 'x')};",
    ]
    return _unary_text("floor", s, "\n".join(lines)), ("fabs", *_PICK)


def _ceil(s: Shape) -> tuple[str, tuple[str, ...]]:
    return _unary_text("ceil", s, f"  return -floor_{s.suffix}(-x);"), ("floor",)


def _exp(s: Shape) -> tuple[str, tuple[str, ...]]:
    """2^n * exp(r), |r| <= ln2/2; the scale in two steps, so that it overflows and underflows gradually."""
    poly = _poly("r", "0.5f", "0.16666512f", "0.041666187f", "0.008369599f", "0.0013951717f")
    lines = [
        f"  x = min_{s.suffix}({_splat(s, '89.0f')}, max_{s.suffix}({_splat(s, '-104.0f')}, x));",
        f"  {s.type} t = x * 1.44269504f + 12582912.0f;",
        f"  {s.ints} n = {_bits(s, 't')} - 0x4b400000, h = n >> 1;",
        "  t = t - 12582912.0f;",
        f"  {s.type} r = (x - t * 0.693359375f) + t * 2.12194440e-4f;",
        f"  {s.type} p = ({poly}) * r * r + r + 1.0f;",
        f"  return p * {_real(s, '(h + 127) << 23')} * {_real(s, '(n - h + 127) << 23')};",
    ]
    return _unary_text("exp", s, "\n".join(lines)), ("min", "max", *_CAST)


def _log(s: Shape) -> tuple[str, tuple[str, ...]]:
    """e * ln2 + log1p(r), the mantissa 1 + r in [sqrt(1/2), sqrt(2)); subnormals are scaled up first."""
    poly = _poly(
        "r", "0.33333316f", "-0.2500081f", "0.20002286f", "-0.16624554f",
        "0.14181197f", "-0.13128768f", "0.12881622f", "-0.07859546f",
    )  # fmt: skip
    tiny, zero, nan = (_splat(s, c) for c in ("1.17549435e-38f", "0.0f", '__builtin_nanf("")'))
    infinite = _splat(s, "__builtin_inff()")
    lines = [
        f"  {s.mask} small = {_less(s, 'x', tiny)};",
        f"  {s.type} v = {_pick(s, 'small', 'x * 8388608.0f', 'x')};",
        f"  {s.ints} i = {_bits(s, 'v')} - 0x3f3504f3;",
        f"  {s.type} e = {_convert(s, 'i >> 23')} - {_pick(s, 'small', _splat(s, '23.0f'), zero)};",
        f"  {s.type} r = {_real(s, '(i & 0x7fffff) + 0x3f3504f3')} - 1.0f;",
        f"  {s.type} p = ({poly}) * r * r * r - 0.5f * r * r;",
        "  p = e * 0.693359375f + (r + (p - e * 2.12194440e-4f));",
        f"  p = {_pick(s, _less(s, 'x', infinite), 'p', 'x')};",
        f"  p = {_pick(s, _less(s, zero, 'x'), 'p', infinite.replace('__', '-__'))};",
        f"  p = {_pick(s, _less(s, 'x', zero), nan, 'p')};",
        f"  return {_pick(s, f'eq_{s.suffix}(x, x)', 'p', 'x')};",
    ]
    return _unary_text("log", s, "\n".join(lines)), ("fabs", "eq", *_CAST, *_PICK)


def _with_sign(s: Shape, magnitude: str) -> str:
    """``magnitude`` with the sign of x."""
    sign = f"({_bits(s, 'x')} & (int32_t)0x80000000)"
    return _real(s, f"{_bits(s, magnitude)} | {sign}")


def _erf(s: Shape) -> tuple[str, tuple[str, ...]]:
    """x + x P(x^2) up to one; beyond it 1 - exp(-a Q(a)), a = min(|x|, 4)."""
    near = _poly(
        "q", "0.12837917f", "-0.37612626f", "0.112836f", "-0.026854444f", "0.005189535f", "-0.0008020841f", "7.889119e-05f"
    )
    far = _poly(
        "a", "1.1286681f", "0.63505995f", "0.10640965f", "-0.023931608f", "0.003733459f", "-0.00034811854f", "1.4081667e-05f"
    )
    lines = [
        f"  {s.type} a = min_{s.suffix}({_splat(s, '4.0f')}, fabs_{s.suffix}(x)), q = a * a;",
        f"  {s.type} near = ({near}) * a + a;",
        f"  {s.type} far = 1.0f - exp_{s.suffix}(-a * ({far}));",
        f"  near = {_pick(s, _less(s, _splat(s, '1.0f'), 'a'), 'far', 'near')};",
        f"  return {_with_sign(s, 'near')};",
    ]
    return _unary_text("erf", s, "\n".join(lines)), ("fabs", "min", "exp", *_CAST, *_PICK)


def _tanh(s: Shape) -> tuple[str, tuple[str, ...]]:
    """x + x^3 P(x^2) up to 0.625; beyond it 1 - 2 / (exp(2 |x|) + 1)."""
    near = _poly("q", "-0.33333284f", "0.13331491f", "-0.053743497f", "0.020650579f", "-0.005717037f")
    lines = [
        f"  {s.type} a = fabs_{s.suffix}(x), q = a * a;",
        f"  {s.type} near = ({near}) * q * a + a;",
        f"  {s.type} far = 1.0f - 2.0f / (exp_{s.suffix}(a + a) + 1.0f);",
        f"  near = {_pick(s, _less(s, _splat(s, '0.625f'), 'a'), 'far', 'near')};",
        f"  return {_with_sign(s, 'near')};",
    ]
    return _unary_text("tanh", s, "\n".join(lines)), ("fabs", "exp", *_CAST, *_PICK)


def _sigmoid(s: Shape) -> tuple[str, tuple[str, ...]]:
    return _unary_text("sigmoid", s, f"  return 1.0f / (exp_{s.suffix}(-x) + 1.0f);"), ("exp",)


def _pow(s: Shape) -> tuple[str, tuple[str, ...]]:
    """exp(y log|x|); a negative base with an odd integer y keeps its sign, with a fraction gives NaN."""
    v, zero, nan = s.suffix, _splat(s, "0.0f"), _splat(s, '__builtin_nanf("")')
    odd = f"le_{v}({_splat(s, '0.5f')}, fabs_{v}(y * 0.5f - floor_{v}(y * 0.5f)))"
    lines = [
        f"{s.type} pow_{v}({s.type} x, {s.type} y) {{",
        f"  {s.type} p = exp_{v}(y * log_{v}(fabs_{v}(x)));",
        f"  {s.type} signed_p = {_pick(s, odd, '-p', 'p')};",
        f"  signed_p = {_pick(s, f'eq_{v}(floor_{v}(y), y)', 'signed_p', nan)};",
        f"  p = {_pick(s, f'lt_{v}(x, {zero})', 'signed_p', 'p')};",
        f"  return {_pick(s, f'eq_{v}(y, {zero})', _splat(s, '1.0f'), 'p')};",
        "}",
    ]
    return "\n".join(lines), ("exp", "log", "fabs", "floor", "eq", "le", *_PICK)


_HELPERS: dict[str, Helper] = {
    "bits": _bits_helper, "real": _real_helper,
    "lt": _compare("lt"), "le": _compare("le"), "eq": _compare("eq"), "blend": _blend,
    "max": _extreme("max", ">"), "min": _extreme("min", "<"),
    "first": _first, "mask": _bit_mask, "loadm": _load_masked, "storem": _store_masked,
    "sum": _across("sum", "{0} + {1}"),
    "most": _across("most", "({0} > {1} ? {0} : {1})"), "least": _across("least", "({0} < {1} ? {0} : {1})"),
    "floordiv": _floordiv, "floormod": _floormod, "widen": _widen, "shorten": _shorten,
    "fabs": _abs, "sqrt": _sqrt, "rsqrt": _rsqrt, "floor": _floor, "ceil": _ceil,
    "exp": _exp, "log": _log, "erf": _erf, "tanh": _tanh, "sigmoid": _sigmoid, "pow": _pow,
}  # fmt: skip

#: helpers that exist for float32 only; float64 arguments call the C library
FLOAT32_ONLY = frozenset({"exp", "log", "erf", "tanh", "sigmoid", "pow", "floor", "ceil"})
