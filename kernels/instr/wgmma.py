"""Tensor cores of Hopper GPUs by ``wgmma``: a warpgroup's tile of a matrix product, operands read from swizzled shared memory.

One instruction here is a step of k (128 bytes, a row of the swizzle) of a warpgroup's tile: its ``rows`` fragments of 64×n. Its
meaning is what one thread gets: with thread ``32 w + 4 g + q`` of the group, elements (64 i + 16 w + 8 h + g, 8 j + 2 q + v),
as PTX lays the accumulators out. It runs ahead: accumulators are there once it is settled.

Operands along k are rows of 128 bytes; the others are panels of 64 elements of m or n, in which k counts the rows. Those of
float32 lie along k; they are read as tf32: the hardware drops the bits that it has not, always toward zero, so constants are
rounded before, and TMA rounds what it fetches.
"""

from __future__ import annotations

from wpk.core.errors import InternalError
from wpk.core.tensor import DTYPE_BYTES
from wpk.dsl.instr import Instr, Lanes, Operand, register
from wpk.dsl.ir import Const, Expr, For, Load, Stmt, Store, Var
from wpk.kernels.instr.cuda import TYPES

#: bytes of k that one instruction takes of a row, rows of k and columns of a panel
STEP_BYTES, PANEL = 128, 64

_TILE = """\
static __device__ __forceinline__ uint64_t wgmma_operand(const void *tile, bool turned) {
  return matrix_desc(tile, turned ? 8192 : 16, 1024, 128);
}
template <int N, int TA, int TB>
static __device__ __forceinline__ void wgmma_step(float (&d)[N / 2], const f16 *a, const f16 *b) {
  wgmma_m64k16_f16<N, TA, TB>(d, wgmma_operand(a, TA), wgmma_operand(b, TB));
}
template <int N, int TA, int TB>
static __device__ __forceinline__ void wgmma_step(float (&d)[N / 2], const bf16 *a, const bf16 *b) {
  wgmma_m64k16_bf16<N, TA, TB>(d, wgmma_operand(a, TA), wgmma_operand(b, TB));
}
template <int N, int TA, int TB>
static __device__ __forceinline__ void wgmma_step(float (&d)[N / 2], const float *a, const float *b) {
  wgmma_m64k8_tf32<N>(d, wgmma_operand(a, false), wgmma_operand(b, false));
}
// d += a × b for the MI fragments of 64×N of a warpgroup, 128 bytes of k; [m][k] and [n][k], or panels [64 of m or n][k][64]
template <int MI, int N, int TA, int TB, class T>
static __device__ __forceinline__ void wgmma_tile(float *d, const T *a, const T *b) {
#pragma unroll
  for (int i = 0; i < MI; i++) wgmma_hold(*(float(*)[N / 2])(d + i * (N / 2)));
  constexpr int PIECE = 32 / sizeof(T), ROWS = 64 * 128 / sizeof(T);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; k++)
#pragma unroll
    for (int i = 0; i < MI; i++)
      wgmma_step<N, TA, TB>(
          *(float(*)[N / 2])(d + i * (N / 2)), a + i * ROWS + k * (TA ? 1024 : PIECE), b + k * (TB ? 1024 : PIECE));
  wgmma_commit();
#pragma unroll
  for (int i = 0; i < MI; i++) wgmma_hold(*(float(*)[N / 2])(d + i * (N / 2)));
}
"""


def step_of(dtype: str) -> int:
    """Elements of k that one instruction takes."""
    return STEP_BYTES // DTYPE_BYTES[dtype]


def wgmma(dtype: str, rows: int, n: int, a_turned: bool, b_turned: bool) -> Instr:
    """The step of k of a warpgroup's tile of ``64 rows × n``; loops of the meaning: k, i, h, o, j, v (none of one iteration).

    Operands: ``acc`` (rows, panels of n, pieces of 8 in each, 2, 2), float32, and ``a`` (64 rows, k) and ``b`` (n, k) in shared
    memory with a swizzle of 128 bytes. A turned operand is in panels, (rows, k, 64) and (n / 64, k, 64), which ``o`` counts for
    b; else b is one panel. Raises InternalError.
    """
    turned = a_turned or b_turned
    if dtype not in ("float32", "float16", "bfloat16") or (turned and dtype == "float32"):
        raise InternalError(f"no wgmma of {dtype} with these layouts")
    if n % (8 if n <= 64 else 16) or n > 256 or (b_turned and n % PANEL):
        raise InternalError(f"no wgmma for {n} columns")
    step = step_of(dtype)
    i, h, o, j, v, k = (Var(x) for x in "ihojvk")
    panels, pieces = (n // PANEL, PANEL // 8) if b_turned else (1, n // 8)
    one = {x.name: (x if extent > 1 else Const(0)) for x, extent in ((i, rows), (o, panels), (j, pieces))}
    a = Load("a", (one["i"], k, h * 8) if a_turned else (_plus(i * 64 if rows > 1 else None, h * 8), k))
    column = _plus(j * 8 if pieces > 1 else None, v)
    b = Load("b", (one["o"], k, column) if b_turned else (column, k))
    at = (one["i"], one["o"], one["j"], h, v)
    body: Stmt = Store("acc", at, a * b, "+")
    for var, extent in ((v, 2), (j, pieces), (o, panels), (h, 2), (i, rows), (k, step)):
        body = For(var.name, Const(0), Const(extent), "unroll", (body,)) if extent > 1 else body
    m_lanes: Lanes = ((32, 4, 16), (4, 8, 1))
    n_lanes: Lanes = ((1, 4, 2),)
    operands = (
        Operand("acc", (rows, panels, pieces, 2, 2), "float32", "inout", "pointer"),
        _operand("a", dtype, a_turned, (rows, step, PANEL), (64 * rows, step), m_lanes),
        _operand("b", dtype, b_turned, (panels, step, PANEL), (n, step), n_lanes),
    )
    template = f"wgmma_tile<{rows}, {n}, {int(a_turned)}, {int(b_turned)}>({{acc}}, {{a}}, {{b}});"
    layout = f"{'t' if a_turned else 'n'}{'t' if b_turned else 'n'}"
    name = f"cuda_wgmma_{TYPES[dtype][1]}_{rows}x{n}_{layout}"
    return register(Instr(name, "cuda", operands, (body,), template, helper=_TILE, ahead=True))


def _operand(
    name: str, dtype: str, turned: bool, panels: tuple[int, ...], rows: tuple[int, ...], lanes: Lanes
) -> Operand:
    where = ((), (), lanes) if turned else (lanes, ())
    return Operand(name, panels if turned else rows, dtype, kind="group", lanes=where)


def _plus(first: Expr | None, second: Expr) -> Expr:
    return second if first is None else first + second


__all__ = ["PANEL", "STEP_BYTES", "step_of", "wgmma"]
