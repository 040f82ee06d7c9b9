"""The helper library of generated C: each helper is a static inline function, printed only when a kernel uses it.

One text serves vectors of every length and scalars. Functions are accurate to about 1e-6 relative in float32 (``pow`` to
1.2e-7 times the magnitude of its logarithm, when that is above ten); polynomials are least-squares minimax fits on the
reduced range, with coefficients rounded to float32.
"""

from __future__ import annotations

from wpk.core.errors import InternalError
from wpk.dsl.codegen.clanes import LANE_HELPERS
from wpk.dsl.codegen.cshape import CAST, PICK, Helper, Shape, bits, convert, less, pick, real, splat


def helper(name: str, shape: Shape) -> tuple[str, tuple[str, ...]]:
    """The text of helper ``name`` for ``shape``, and the helpers of the same shape that it calls."""
    make = LANE_HELPERS.get(name) or _MATH.get(name)
    if make is None:
        raise InternalError(f"no helper {name} for {shape.suffix}")
    text, needs = make(shape)
    return f"static inline __attribute__((always_inline, unused)) {text}\n", needs


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
        return _unary_text("fabs", s, f"  return {real(s, bits(s, 'x') + ' & 0x7fffffff')};"), CAST
    zero = splat(s, "0")
    return _unary_text("fabs", s, f"  return {pick(s, less(s, 'x', zero), '-x', 'x')};"), PICK


def _sqrt(s: Shape) -> tuple[str, tuple[str, ...]]:
    if not s.lanes:
        call = "__builtin_sqrtf" if s.dtype == "float32" else "__builtin_sqrt"
        return _unary_text("sqrt", s, f"  return {call}(x);"), ()
    if s.native and s.dtype == "float32":
        name = {128: "sqrtps(x)", 256: "sqrtps256(x)", 512: "sqrtps512_mask(x, x, -1, 4)"}[s.native]
        gcc, clang = f"  return __builtin_ia32_{name};", "  return __builtin_elementwise_sqrt(x);"
        return _unary_text("sqrt", s, f"#ifdef __clang__\n{clang}\n#else\n{gcc}\n#endif"), ()
    call = "__builtin_sqrtf" if s.dtype == "float32" else "__builtin_sqrt"
    return _unary_text("sqrt", s, f"  for (int i = 0; i < {s.lanes}; ++i) x[i] = {call}(x[i]);\n  return x;"), ()


def _rsqrt(s: Shape) -> tuple[str, tuple[str, ...]]:
    return _unary_text("rsqrt", s, f"  return {splat(s, '1.0f')} / sqrt_{s.suffix}(x);"), ("sqrt",)


def _floor(s: Shape) -> tuple[str, tuple[str, ...]]:
    """Through int32, where the value is small enough to have a fraction."""
    trunc = convert(s, f"__builtin_convertvector(safe, {s.ints})" if s.lanes else "(int32_t)safe")
    lines = [
        f"  {s.mask} small = {less(s, f'fabs_{s.suffix}(x)', splat(s, '8388608.0f'))};",
        f"  {s.type} safe = {pick(s, 'small', 'x', splat(s, '0.0f'))}, t = {trunc};",
        f"  t = {pick(s, less(s, 'safe', 't'), 't - 1.0f', 't')};",
        f"  return {pick(s, 'small', 't', 'x')};",
    ]
    return _unary_text("floor", s, "\n".join(lines)), ("fabs", *PICK)


def _ceil(s: Shape) -> tuple[str, tuple[str, ...]]:
    return _unary_text("ceil", s, f"  return -floor_{s.suffix}(-x);"), ("floor",)


def _exp(s: Shape) -> tuple[str, tuple[str, ...]]:
    """2^n * exp(r), |r| <= ln2/2; the scale in two steps, so that it overflows and underflows gradually."""
    poly = _poly("r", "0.5f", "0.16666512f", "0.041666187f", "0.008369599f", "0.0013951717f")
    lines = [
        f"  x = min_{s.suffix}({splat(s, '89.0f')}, max_{s.suffix}({splat(s, '-104.0f')}, x));",
        f"  {s.type} t = x * 1.44269504f + 12582912.0f;",
        f"  {s.ints} n = {bits(s, 't')} - 0x4b400000, h = n >> 1;",
        "  t = t - 12582912.0f;",
        f"  {s.type} r = (x - t * 0.693359375f) + t * 2.12194440e-4f;",
        f"  {s.type} p = ({poly}) * r * r + r + 1.0f;",
        f"  return p * {real(s, '(h + 127) << 23')} * {real(s, '(n - h + 127) << 23')};",
    ]
    return _unary_text("exp", s, "\n".join(lines)), ("min", "max", *CAST)


def _log(s: Shape) -> tuple[str, tuple[str, ...]]:
    """e * ln2 + log1p(r), the mantissa 1 + r in [sqrt(1/2), sqrt(2)); subnormals are scaled up first."""
    poly = _poly(
        "r", "0.33333316f", "-0.2500081f", "0.20002286f", "-0.16624554f",
        "0.14181197f", "-0.13128768f", "0.12881622f", "-0.07859546f",
    )  # fmt: skip
    tiny, zero, nan = (splat(s, c) for c in ("1.17549435e-38f", "0.0f", '__builtin_nanf("")'))
    infinite = splat(s, "__builtin_inff()")
    lines = [
        f"  {s.mask} small = {less(s, 'x', tiny)};",
        f"  {s.type} v = {pick(s, 'small', 'x * 8388608.0f', 'x')};",
        f"  {s.ints} i = {bits(s, 'v')} - 0x3f3504f3;",
        f"  {s.type} e = {convert(s, 'i >> 23')} - {pick(s, 'small', splat(s, '23.0f'), zero)};",
        f"  {s.type} r = {real(s, '(i & 0x7fffff) + 0x3f3504f3')} - 1.0f;",
        f"  {s.type} p = ({poly}) * r * r * r - 0.5f * r * r;",
        "  p = e * 0.693359375f + (r + (p - e * 2.12194440e-4f));",
        f"  p = {pick(s, less(s, 'x', infinite), 'p', 'x')};",
        f"  p = {pick(s, less(s, zero, 'x'), 'p', infinite.replace('__', '-__'))};",
        f"  p = {pick(s, less(s, 'x', zero), nan, 'p')};",
        f"  return {pick(s, f'eq_{s.suffix}(x, x)', 'p', 'x')};",
    ]
    return _unary_text("log", s, "\n".join(lines)), ("fabs", "eq", *CAST, *PICK)


def _with_sign(s: Shape, magnitude: str) -> str:
    """``magnitude`` with the sign of x."""
    sign = f"({bits(s, 'x')} & (int32_t)0x80000000)"
    return real(s, f"{bits(s, magnitude)} | {sign}")


def _erf(s: Shape) -> tuple[str, tuple[str, ...]]:
    """x + x P(x^2) up to one; beyond it 1 - exp(-a Q(a)), a = min(|x|, 4)."""
    near = _poly(
        "q", "0.12837917f", "-0.37612626f", "0.112836f", "-0.026854444f", "0.005189535f", "-0.0008020841f", "7.889119e-05f"
    )
    far = _poly(
        "a", "1.1286681f", "0.63505995f", "0.10640965f", "-0.023931608f", "0.003733459f", "-0.00034811854f", "1.4081667e-05f"
    )
    lines = [
        f"  {s.type} a = min_{s.suffix}({splat(s, '4.0f')}, fabs_{s.suffix}(x)), q = a * a;",
        f"  {s.type} near = ({near}) * a + a;",
        f"  {s.type} far = 1.0f - exp_{s.suffix}(-a * ({far}));",
        f"  near = {pick(s, less(s, splat(s, '1.0f'), 'a'), 'far', 'near')};",
        f"  return {_with_sign(s, 'near')};",
    ]
    return _unary_text("erf", s, "\n".join(lines)), ("fabs", "min", "exp", *CAST, *PICK)


def _tanh(s: Shape) -> tuple[str, tuple[str, ...]]:
    """x + x^3 P(x^2) up to 0.625; beyond it 1 - 2 / (exp(2 |x|) + 1)."""
    near = _poly("q", "-0.33333284f", "0.13331491f", "-0.053743497f", "0.020650579f", "-0.005717037f")
    lines = [
        f"  {s.type} a = fabs_{s.suffix}(x), q = a * a;",
        f"  {s.type} near = ({near}) * q * a + a;",
        f"  {s.type} far = 1.0f - 2.0f / (exp_{s.suffix}(a + a) + 1.0f);",
        f"  near = {pick(s, less(s, splat(s, '0.625f'), 'a'), 'far', 'near')};",
        f"  return {_with_sign(s, 'near')};",
    ]
    return _unary_text("tanh", s, "\n".join(lines)), ("fabs", "exp", *CAST, *PICK)


def _sigmoid(s: Shape) -> tuple[str, tuple[str, ...]]:
    return _unary_text("sigmoid", s, f"  return 1.0f / (exp_{s.suffix}(-x) + 1.0f);"), ("exp",)


def _pow(s: Shape) -> tuple[str, tuple[str, ...]]:
    """exp(y log|x|); a negative base with an odd integer y keeps its sign, with a fraction gives NaN."""
    v, zero, nan = s.suffix, splat(s, "0.0f"), splat(s, '__builtin_nanf("")')
    odd = f"le_{v}({splat(s, '0.5f')}, fabs_{v}(y * 0.5f - floor_{v}(y * 0.5f)))"
    lines = [
        f"{s.type} pow_{v}({s.type} x, {s.type} y) {{",
        f"  {s.type} p = exp_{v}(y * log_{v}(fabs_{v}(x)));",
        f"  {s.type} signed_p = {pick(s, odd, '-p', 'p')};",
        f"  signed_p = {pick(s, f'eq_{v}(floor_{v}(y), y)', 'signed_p', nan)};",
        f"  p = {pick(s, f'lt_{v}(x, {zero})', 'signed_p', 'p')};",
        f"  return {pick(s, f'eq_{v}(y, {zero})', splat(s, '1.0f'), 'p')};",
        "}",
    ]
    return "\n".join(lines), ("exp", "log", "fabs", "floor", "eq", "le", *PICK)


_MATH: dict[str, Helper] = {
    "fabs": _abs, "sqrt": _sqrt, "rsqrt": _rsqrt, "floor": _floor, "ceil": _ceil,
    "exp": _exp, "log": _log, "erf": _erf, "tanh": _tanh, "sigmoid": _sigmoid, "pow": _pow,
}  # fmt: skip

#: helpers that exist for float32 only; float64 arguments call the C library
FLOAT32_ONLY = frozenset({"exp", "log", "erf", "tanh", "sigmoid", "pow", "floor", "ceil"})
