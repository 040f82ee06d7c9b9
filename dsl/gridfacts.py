"""What a GPU kernel asks of the device: blocks, threads, shared memory, registers, occupancy, coalescing, bank conflicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2, prod

from wpk.core.target import Gpu, Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.dsl.footprint import Access, Leaf, Loop, Nest
from wpk.dsl.ir import BLOCK_KINDS, Binary, Const, Expr, Select, Var

GRID_NAMES = (
    "grid_blocks", "grid_threads", "grid_shared", "grid_registers", "grid_resident", "grid_waves", "grid_tail", "grid_sectors",
    "grid_conflicts", "grid_kernels",
)  # fmt: skip

WARP, SECTOR, BANKS = 32, 32, 32
#: Registers that addresses and loop counters take.
_OVERHEAD = 24


def grid_facts(nest: Nest, target: Target) -> dict[str, float]:
    """By the names of GRID_NAMES; all zero for a CPU. Those of the launch with most blocks times threads."""
    if target.gpu is None:
        return dict.fromkeys(GRID_NAMES, 0.0)
    tops = sorted({leaf.top for leaf in nest.leaves})
    launches = [[leaf for leaf in nest.leaves if leaf.top == top] for top in tops]
    facts = max((_launch(leaves, nest, target.gpu) for leaves in launches), key=lambda f: f["grid_work"])
    return {k: facts[k] for k in GRID_NAMES if k in facts} | {"grid_kernels": float(len(tops))}


def _launch(leaves: Sequence[Leaf], nest: Nest, gpu: Gpu) -> dict[str, float]:
    loops = {x.var: x for leaf in leaves for x in leaf.loops}
    blocks = prod(x.trip for x in loops.values() if x.kind in BLOCK_KINDS)
    threads = max((x.trip for x in loops.values() if x.kind == "thread"), default=1)
    shared = sum(_bytes(at, nest) for at in _paths(leaves))
    registers = _OVERHEAD + max((_words(leaf, nest) for leaf in leaves), default=0)
    per_sm = max(min(
        gpu.threads_per_sm // max(threads, 1), gpu.shared_per_sm // max(shared, 1),
        gpu.registers_per_sm // max(registers * threads, 1), 32,
    ), 1)  # fmt: skip
    waves = blocks / (per_sm * gpu.sms)
    sectors = [s for leaf in leaves for a in leaf.accesses if (s := _sectors(a, leaf.loops)) is not None]
    conflicts = [c for leaf in leaves for a in leaf.accesses if (c := _conflicts(a, leaf.loops)) is not None]
    counts = {"grid_blocks": blocks, "grid_threads": threads, "grid_shared": shared, "grid_registers": registers}
    return {
        **{k: log2(v + 1) for k, v in counts.items()},
        "grid_resident": per_sm * threads / gpu.threads_per_sm, "grid_waves": log2(waves + 1),
        "grid_tail": -(-waves // 1) / max(waves, 1e-9) if waves > 1 else gpu.sms / min(blocks, gpu.sms),
        "grid_sectors": max(sectors, default=1.0), "grid_conflicts": max(conflicts, default=1.0),
        "grid_work": float(sum(leaf.times() for leaf in leaves)),
    }  # fmt: skip


def _paths(leaves: Sequence[Leaf]) -> set[str]:
    return {x.var for leaf in leaves for x in leaf.loops if x.kind in BLOCK_KINDS}


def _bytes(block: str, nest: Nest) -> int:
    """Shared memory allocated under the block loop ``block``, as the innermost of its kind."""
    return sum(
        prod(b.shape) * DTYPE_BYTES[b.dtype] * max(b.slots if b.shape and b.shape[0] != b.slots else 1, 1)
        for at, b in nest.buffers
        if b.scope == "block" and [x.var for x in at if x.kind in BLOCK_KINDS][-1:] == [block]
    )


def _words(leaf: Leaf, nest: Nest) -> int:
    """32-bit registers of the buffers alive at a leaf."""
    alive = [b for at, b in nest.buffers if b.scope == "register" and leaf.loops[: len(at)] == at]
    return sum(-(-prod(b.shape) * DTYPE_BYTES[b.dtype] // 4) for b in alive)


def _sectors(access: Access, loops: Sequence[Loop]) -> float | None:
    """Sectors a warp fetches over the fewest that hold its elements; None for what is not device memory."""
    thread = _thread(loops)
    if thread is None or access.buffer.scope not in ("global", "shared"):
        return None
    width = _width(access, loops)
    size = DTYPE_BYTES[access.buffer.dtype]
    touched = {(at + i) * size // SECTOR for at in _lanes(access, thread) for i in range(width)}
    elements = {at + i for at in _lanes(access, thread) for i in range(width)}
    return len(touched) / max(-(-len(elements) * size // SECTOR), 1)


def _conflicts(access: Access, loops: Sequence[Loop]) -> float | None:
    """Most words of a warp that share a bank; None for what is not in shared memory, or is swizzled against that."""
    thread = _thread(loops)
    if thread is None or access.buffer.scope != "block" or access.buffer.swizzle:
        return None
    words = {at * DTYPE_BYTES[access.buffer.dtype] // 4 for at in _lanes(access, thread)}
    banks = [w // max(_width(access, loops), 1) % BANKS for w in words]
    return float(max(map(banks.count, banks)))


def _thread(loops: Sequence[Loop]) -> Loop | None:
    return next((x for x in loops if x.kind == "thread"), None)


def _width(access: Access, loops: Sequence[Loop]) -> int:
    """Elements of the vector that one thread takes at once."""
    inner = loops[-1]
    return inner.trip if inner.kind == "vector" and access.strides(inner.var) == 1 else 1


def _lanes(access: Access, thread: Loop) -> list[int]:
    """Addresses, in elements, of the threads of the first warp; all other loops at their start."""
    found = []
    for lane in range(min(WARP, thread.trip)):
        at = 0
        for index, extent in zip(access.indices, access.buffer.shape, strict=True):
            at = at * extent + int(_evaluate(index, {thread.var: lane}))
        found.append(at)
    return found


def _evaluate(e: Expr, env: Mapping[str, int]) -> int:
    match e:
        case Const():
            return int(e.value)
        case Var():
            return env.get(e.name, 0)
        case Binary():
            return _apply(e.op, _evaluate(e.a, env), _evaluate(e.b, env))
        case Select():
            return _evaluate(e.a if _evaluate(e.cond, env) else e.b, env)
    return 0


def _apply(op: str, a: int, b: int) -> int:
    match op:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
        case "//":
            return a // b if b else 0
        case "%":
            return a % b if b else 0
        case "min":
            return min(a, b)
        case "max":
            return max(a, b)
        case "<":
            return int(a < b)
        case "and":
            return int(bool(a and b))
    return 0
