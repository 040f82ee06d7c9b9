"""Tensor cores of NVIDIA GPUs by ``ldmatrix`` and ``mma.sync``: a warp's tile of a matrix product, operands in shared memory.

One instruction here is a step of k (32 bytes) of a warp's whole tile: its ``rows × columns`` fragments of 16×8 accumulators, so
that fragments of the operands are loaded once. Its meaning is what one thread gets: with ``lane = 4 g + q``, elements
(16 i + 8 h + g, 8 j + 2 q + v), as PTX lays the accumulators out. Operands of tf32 are rounded to 10 bits of mantissa, which
the meaning leaves out.
"""

from __future__ import annotations

from wpk.core.errors import InternalError
from wpk.dsl.instr import Instr, Lanes, Operand, register
from wpk.dsl.ir import Cast, Const, Expr, For, Load, Stmt, Store, Var

#: element -> (C type, its name in PTX, elements of a step of k)
TYPES = {
    "float32": ("float", "tf32", 8), "float16": ("f16", "f16", 16), "bfloat16": ("bf16", "bf16", 16),
    "int8": ("int8_t", "s8", 32),
}  # fmt: skip

_PIECE = """\
// the element of a tile whose rows have ROW elements and a swizzle of SWIZZLE bytes
template <int ROW, int SWIZZLE, class T>
static __device__ __forceinline__ const T *mma_element(const T *tile, int row, int column) {
  int at = (row * ROW + column) * (int)sizeof(T);
  if constexpr (SWIZZLE != 0) at ^= at >> 3 & (SWIZZLE - 16);
  return (const T *)((const char *)tile + at);
}
static __device__ __forceinline__ unsigned mma_register(const float *p) { return to_tf32(*p); }
static __device__ __forceinline__ void mma_round(unsigned &r, const float *) { r = to_tf32(as_float(r)); }
template <class T> static __device__ __forceinline__ void mma_round(unsigned &, const T *) {}
static __device__ __forceinline__ void mma_step(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float *) {
  mma_m16n8k8_tf32(d, a, b);
}
static __device__ __forceinline__ void mma_step(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const f16 *) {
  mma_m16n8k16_f16(d, a, b);
}
static __device__ __forceinline__ void mma_step(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const bf16 *) {
  mma_m16n8k16_bf16(d, a, b);
}
static __device__ __forceinline__ void mma_step(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const int8_t *) {
  mma_m16n8k32_s8(d, a, b);
}
"""

_TILE = """\
// d += a × b for the MI × NI fragments of a warp. a is [m][k] ([k][m] when A_TURNED), b is [n][k] ([k][n] when B_TURNED)
template <int MI, int NI, bool A_TURNED, bool B_TURNED, int A_ROW, int B_ROW, int A_SWIZZLE, int B_SWIZZLE, class D, class T>
static __device__ __forceinline__ void mma_tile(D *d, const T *a, int a_at, const T *b, int b_at, int lane) {
  constexpr int PIECE = 16 / sizeof(T);
  unsigned x[MI][4], y[NI][2];
#pragma unroll
  for (int i = 0; i < MI; i++) {
    if constexpr (!A_TURNED) {
      ldmatrix_x4(x[i], mma_element<A_ROW, A_SWIZZLE>(a, i * 16 + lane % 16, a_at + lane / 16 * PIECE));
#pragma unroll
      for (int r = 0; r < 4; r++) mma_round(x[i][r], a);
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int r = 0; r < 4; r++)
        x[i][r] = mma_register(mma_element<A_ROW, A_SWIZZLE>(a, lane % 4 + r / 2 * 4, a_at + i * 16 + lane / 4 + r % 2 * 8));
    } else {
      ldmatrix_x4_trans(x[i], mma_element<A_ROW, A_SWIZZLE>(a, lane % 8 + lane / 16 * 8, a_at + i * 16 + lane / 8 % 2 * 8));
    }
  }
#pragma unroll
  for (int j = 0; j < NI; j += 2) {
    if constexpr (B_TURNED && sizeof(T) == 4) {
#pragma unroll
      for (int r = 0; r < 4; r++)
        if (j + r / 2 < NI)
          y[j + r / 2][r % 2] = mma_register(
              mma_element<B_ROW, B_SWIZZLE>(b, lane % 4 + r % 2 * 4, b_at + (j + r / 2) * 8 + lane / 4));
    } else if (j + 1 < NI) {
      unsigned both[4];
      if constexpr (B_TURNED)
        ldmatrix_x4_trans(both, mma_element<B_ROW, B_SWIZZLE>(b, lane % 16, b_at + j * 8 + lane / 16 * 8));
      else
        ldmatrix_x4(both, mma_element<B_ROW, B_SWIZZLE>(b, j * 8 + lane % 8 + lane / 16 * 8, b_at + lane / 8 % 2 * PIECE));
#pragma unroll
      for (int r = 0; r < 4; r++) mma_round(both[r], b), y[j + r / 2][r % 2] = both[r];
    } else {
      if constexpr (B_TURNED)
        ldmatrix_x2_trans(y[j], mma_element<B_ROW, B_SWIZZLE>(b, lane % 16, b_at + j * 8));
      else
        ldmatrix_x2(y[j], mma_element<B_ROW, B_SWIZZLE>(b, j * 8 + lane % 8, b_at + lane / 8 % 2 * PIECE));
      mma_round(y[j][0], b), mma_round(y[j][1], b);
    }
  }
#pragma unroll
  for (int i = 0; i < MI; i++)
#pragma unroll
    for (int j = 0; j < NI; j++) mma_step(*(D(*)[4])(d + (i * NI + j) * 4), x[i], y[j], a);
}
"""


def mma(dtype: str, rows: int, columns: int, a_turned: bool, b_turned: bool) -> Instr:
    """The step of k of a warp's tile of ``16 rows × 8 columns``; loops of the meaning: k, i, h, j, v (none of one iteration).

    Operands: ``acc`` (rows, columns, 2, 2) of float32 (int32 for int8), ``a`` and ``b`` in shared memory. Raises InternalError.
    """
    if dtype not in TYPES or (dtype == "int8" and (a_turned or b_turned)):
        raise InternalError(f"no mma of {dtype} with these layouts")
    _, short, k = TYPES[dtype]
    i, h, j, v, kk = (Var(x) for x in "ihjvk")
    row = _sum((16, i, rows), (8, h, 2))
    column = _sum((8, j, columns), (1, v, 2))
    a, b = Load("a", (kk, row) if a_turned else (row, kk)), Load("b", (kk, column) if b_turned else (column, kk))
    product = a * b if dtype != "int8" else Cast("int32", a) * Cast("int32", b)
    at = (i if rows > 1 else Const(0), j if columns > 1 else Const(0), h, v)
    body: Stmt = Store("acc", at, product, "+")
    for var, extent in ((v, 2), (j, columns), (h, 2), (i, rows), (kk, k)):
        body = For(var.name, Const(0), Const(extent), "unroll", (body,)) if extent > 1 else body
    m, n = 16 * rows, 8 * columns
    where: tuple[tuple[Lanes, ...], ...] = ((), ((4, 8, 1),)), ((), ((1, 4, 2),))
    a_lanes, b_lanes = where[0] if a_turned else where[0][::-1], where[1] if b_turned else where[1][::-1]
    operands = (
        Operand("acc", (rows, columns, 2, 2), "int32" if dtype == "int8" else "float32", "inout", "pointer"),
        Operand("a", (k, m) if a_turned else (m, k), dtype, kind="warp", lanes=a_lanes),
        Operand("b", (k, n) if b_turned else (n, k), dtype, kind="warp", lanes=b_lanes),
    )
    flags = f"{str(a_turned).lower()}, {str(b_turned).lower()}"
    template = (
        f"mma_tile<{rows}, {columns}, {flags}, {{a_row}}, {{b_row}}, {{a_swizzle}}, {{b_swizzle}}>"
        "({acc}, {a}, {a_at}, {b}, {b_at}, lane);"
    )
    layout = f"{'t' if a_turned else 'n'}{'t' if b_turned else 'n'}"
    name = f"cuda_mma_{short}_{rows}x{columns}_{layout}"
    return register(Instr(name, "cuda", operands, (body,), template, helper=_PIECE + _TILE))


def _sum(*terms: tuple[int, Var, int]) -> Expr:
    """The sum of factor * variable over variables of more than one value."""
    total: Expr = Const(0)
    for factor, var, extent in terms:
        if extent > 1:
            term: Expr = var * factor if factor > 1 else var
            total = term if total == Const(0) else total + term
    return total


__all__ = ["TYPES", "mma"]
