"""Helpers of generated C that are not arithmetic: comparison and choice, masks, reductions across lanes, storage formats.

Each is a portable GNU C text (vector extensions), with the instruction of x86 in its place where there is one.
"""

from __future__ import annotations

from wpk.dsl.codegen.cshape import PICK, Helper, Shape
from wpk.dsl.codegen.cstyle import C_TYPES, vector_type


def _bits(s: Shape) -> tuple[str, tuple[str, ...]]:
    body = f"return ({s.ints})x;" if s.lanes else "int32_t i; __builtin_memcpy(&i, &x, 4); return i;"
    return f"{s.ints} bits_{s.suffix}({s.type} x) {{ {body} }}", ()


def _real(s: Shape) -> tuple[str, tuple[str, ...]]:
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
        return f"{head} {{ return blend_{s.suffix}(lt_{s.suffix}({first}, {second}), a, b); }}", PICK

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


def _by_compiler(s: Shape, call: str, pointee: str) -> str:
    """A call whose pointer ``p`` clang wants as a vector's below 512 bits, and gcc as a float's."""
    gcc = "  " + call.format(bits=s.native, type=s.type, p="p")
    if s.native == 512:
        return gcc
    clang = "  " + call.format(bits=s.native, type=s.type, p=f"({pointee} *)p")
    return f"#ifdef __clang__\n{clang}\n#else\n{gcc}\n#endif"


def _load_masked(s: Shape) -> tuple[str, tuple[str, ...]]:
    """The active lanes from memory, zero elsewhere; memory of inactive lanes is not touched."""
    head = f"{s.type} loadm_{s.suffix}(const {s.scalar} *p, {s.mask} m)"
    if s.native and s.dtype == "float32":
        if s.has_k:
            call = "return __builtin_ia32_loadups{bits}_mask({p}, ({type}){{}}, m);"
            return f"{head} {{\n{_by_compiler(s, call, f'const {s.type}')}\n}}", ()
        size = "256" if s.native == 256 else ""
        return f"{head} {{ return __builtin_ia32_maskloadps{size}((const {s.type} *)p, m); }}", ()
    loop = f"for (int i = 0; i < {s.lanes}; ++i) if ({s.bit('m', 'i')}) r[i] = p[i];"
    return f"{head} {{ {s.type} r = {{}}; {loop} return r; }}", ()


def _store_masked(s: Shape) -> tuple[str, tuple[str, ...]]:
    """The active lanes to memory; the rest is not touched."""
    head = f"void storem_{s.suffix}({s.scalar} *p, {s.mask} m, {s.type} v)"
    if s.native and s.dtype == "float32":
        if s.has_k:
            call = "__builtin_ia32_storeups{bits}_mask({p}, v, m);"
            return f"{head} {{\n{_by_compiler(s, call, s.type)}\n}}", ()
        size = "256" if s.native == 256 else ""
        return f"{head} {{ __builtin_ia32_maskstoreps{size}(({s.type} *)p, m, v); }}", ()
    loop = f"for (int i = 0; i < {s.lanes}; ++i) if ({s.bit('m', 'i')}) p[i] = v[i];"
    return f"{head} {{ {loop} }}", ()


# -- across lanes -------------------------------------------------------------------------------------------------


def _sum(s: Shape) -> tuple[str, tuple[str, ...]]:
    """The upper half onto the lower, until one lane is left."""
    lines = [f"{s.scalar} sum_{s.suffix}({s.type} v) {{"]
    lanes, source = s.lanes, "v"
    while lanes > 2:
        half = lanes // 2
        low, high = (", ".join(map(str, range(k, k + half))) for k in (0, half))
        halves = f"__builtin_shufflevector({source}, {source}, {low}) + __builtin_shufflevector({source}, {source}, {high})"
        lines.append(f"  {vector_type(s.dtype, half)} s{half} = {halves};")
        lanes, source = half, f"s{half}"
    return "\n".join([*lines, f"  return {source}[0] + {source}[1];", "}"]), ()


def _across(name: str, combine: str) -> Helper:
    """All lanes into one value: each step combines lanes half as far apart, at full width."""

    def make(s: Shape) -> tuple[str, tuple[str, ...]]:
        lines = [f"{s.scalar} {name}_{s.suffix}({s.type} v) {{"]
        half = s.lanes // 2
        while half:
            turned = ", ".join(str((i + half) % s.lanes) for i in range(s.lanes))
            lines.append(f"  v = {combine}_{s.suffix}(v, __builtin_shufflevector(v, v, {turned}));")
            half //= 2
        return "\n".join([*lines, "  return v[0];", "}"]), (combine,)

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
        body = "uint32_t i = (uint32_t)h << 16; float x; __builtin_memcpy(&x, &i, 4); return x;"
        return f"float widen_bf16(uint16_t h) {{ {body} }}", ()
    u, f = vector_type("uint32", s.lanes), vector_type("float32", s.lanes)
    return f"{f} widen_{s.suffix}({s.type} h) {{ return ({f})(__builtin_convertvector(h, {u}) << 16); }}", ()


def _shorten(s: Shape) -> tuple[str, tuple[str, ...]]:
    """float32 rounded to the nearest bfloat16, ties to even."""
    u, f = vector_type("uint32", s.lanes), vector_type("float32", s.lanes)
    rounding = "i = i + 0x7fffu + (i >> 16 & 1u)"
    if not s.lanes:
        body = f"uint32_t i; __builtin_memcpy(&i, &x, 4); {rounding}; return (uint16_t)(i >> 16);"
        return f"uint16_t shorten_bf16(float x) {{ {body} }}", ()
    body = f"{u} i = ({u})x; {rounding}; return __builtin_convertvector(i >> 16, {s.type});"
    return f"{s.type} shorten_{s.suffix}({f} x) {{ {body} }}", ()


LANE_HELPERS: dict[str, Helper] = {
    "bits": _bits, "real": _real,
    "lt": _compare("lt"), "le": _compare("le"), "eq": _compare("eq"), "blend": _blend,
    "max": _extreme("max", ">"), "min": _extreme("min", "<"),
    "first": _first, "mask": _bit_mask, "loadm": _load_masked, "storem": _store_masked,
    "sum": _sum, "most": _across("most", "max"), "least": _across("least", "min"),
    "floordiv": _floordiv, "floormod": _floormod, "widen": _widen, "shorten": _shorten,
}  # fmt: skip
