"""Features of a lowered kernel: a vector of fixed length for cost models, and totals for an analytic estimate.

Sizes and counts are in doublings (log2 of one more), shares as they are. The leading leaf, the store whose work takes most
cycles, is described loop level by loop level: level 0 is the straight code of unrolled and vector loops, level 1 the loop
around it, and so on outwards. Caches are modelled as in Ansor's and Halide's cost models: an access is fetched again for
every iteration of the loops outside the largest loop body that fits. Nothing is run, and no clock is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2, prod

import numpy as np
from numpy.typing import NDArray

from wpk.core.target import Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.dsl.estimate import estimate
from wpk.dsl.footprint import LINE, Access, Leaf, Loop, Nest, walk
from wpk.dsl.gridfacts import GRID_NAMES, grid_facts
from wpk.dsl.ir import Kernel

#: Loop levels described, the straight code included.
LEVELS = 8
#: Vector units: float32 lanes by ISA; multiply-adds and loads a cycle are two of each, stores one.
_LANES = {"avx512": 16, "avx2": 8, "neon": 4, "scalar": 1}
_REGISTERS = {"avx512": 32, "avx2": 16, "neon": 32, "scalar": 16}
#: Cycles until a multiply-add can be added to, and that an iteration of a loop costs by itself.
_LATENCY, _TURN = 4.0, 1.2
#: Cycles of a load, two at a time; more than half of one, for their operands rarely come without any conflict.
_LOAD = 0.65
#: How an access meets the vector: neighbouring elements, one for all lanes, or elements apart.
_MANNERS = ("vector", "broadcast", "apart")

#: What is summed up over leaves.
_SUMMED = ("fma", "other", "loads", "stores", "apart", "split", "scalar", "guards")

Array = NDArray[np.float64]
Totals = dict[str, float]


@dataclass(slots=True)
class _Cost:
    """What one leaf costs in all: cycles of each kind, instructions, straight-code figures."""

    leaf: Leaf
    fma: float = 0.0
    other: float = 0.0
    loads: float = 0.0
    stores: float = 0.0
    apart: float = 0.0
    split: float = 0.0
    hints: float = 0.0
    chain: float = 0.0
    scalar: float = 0.0
    guards: float = 0.0
    accumulators: float = 1.0
    straight: float = 1.0
    held: float = 0.0
    filled: float = 1.0

    @property
    def cycles(self) -> float:
        """The slowest of the ports, no less than the chain of additions."""
        ports = max((self.fma + self.other) / 2, (self.loads + self.split + self.hints) * _LOAD + self.apart / 2, self.stores)
        return max(ports, self.chain) + self.guards


def kernel_features(kernel: Kernel, isa: str, target: Target) -> Array:
    """(FEATURES,) float64 of a kernel printed for ``isa`` on ``target``. Pure: equal kernels give equal vectors."""
    facts = kernel_facts(kernel, isa, target)
    return np.array([facts[name] for name in NAMES])


def kernel_facts(kernel: Kernel, isa: str, target: Target) -> Totals:
    """The same by name."""
    nest = walk(kernel)
    lanes = _LANES.get(isa, 1)
    costs = [_cost(leaf, lanes) for leaf in nest.leaves]
    _prefetch(nest, costs)
    memory = _Memory(nest)
    totals = _totals(nest, costs, memory, isa, target)
    leading = max(costs, key=lambda c: c.cycles, default=None)
    levels = _levels(leading, memory, target) if leading else {}
    counts, shares = totals
    grid = grid_facts(nest, target)
    rough = estimate({**counts, **shares, **grid}, target)
    found = {"estimate": rough, **{k: log2(v + 1) for k, v in counts.items()}, **shares, **levels, **grid}
    return {name: found.get(name, 0.0) for name in NAMES}


# Straight code


def _cost(leaf: Leaf, lanes: int) -> _Cost:
    """Instructions of a leaf, loads shared in the straight code counted once."""
    block = leaf.block
    vector = next((x for x in block if x.kind == "vector"), None)
    outside = float(leaf.times(len(leaf.loops) - len(block)))
    if vector is None and not block and (plain := _vectorizable(leaf)):
        vector, outside = plain, outside / plain.trip
    width = vector.trip if vector else 1
    pieces = -(-width // lanes)
    unrolled = [x for x in block if x.kind == "unroll"]
    straight = prod(x.trip for x in unrolled)
    cost = _Cost(leaf, straight=straight * pieces, filled=width / (pieces * lanes))
    issued = outside * straight * pieces
    cost.fma, cost.other = issued * leaf.work.fma, issued * (leaf.work.other + leaf.work.conditions)
    cost.guards = issued * leaf.guards * 0.5
    for access in leaf.accesses:
        _charge(cost, access, unrolled, vector, pieces, outside, leaf.reduces)
    if leaf.reduces and leaf.target.buffer.scope == "register":
        lanewise = pieces if _manner(leaf.target, vector) == "vector" else 1
        own = prod(x.trip for x in unrolled if leaf.target.moves(x.var)) * lanewise
        cost.accumulators = float(own)
        cost.chain = outside * straight * pieces / own * _LATENCY
    cost.scalar = issued if vector is None else 0.0
    return cost


def _vectorizable(leaf: Leaf) -> Loop | None:
    """The innermost loop, where a C compiler will make vectors of it: neighbours are stored, neighbours or one element loaded."""
    loop = leaf.loops[-1] if leaf.loops else None
    if loop is None or loop.kind != "serial" or leaf.target.strides(loop.var) != 1:
        return None
    return loop if all(abs(a.strides(loop.var)) in (0, 1) for a in leaf.accesses) else None


def _prefetch(nest: Nest, costs: Sequence[_Cost]) -> None:
    """Hints take the ports of loads: those of the leaf they are made for, the one with most work inside the loops around."""
    for path, _ in nest.prefetches:
        around = tuple(x for x in path if x.kind != "unroll")
        inside = [c for c in costs if c.leaf.loops[: len(around)] == around]
        if inside:
            max(inside, key=lambda c: c.cycles).hints += prod(x.trip for x in path)


def _charge(
    cost: _Cost, access: Access, unrolled: Sequence[Loop], vector: Loop | None, pieces: int, outside: float, reduces: bool
) -> None:
    """Add an access to the loads or stores of a leaf."""
    if access.buffer.scope == "register":
        return
    manner = _manner(access, vector)
    each = {"vector": pieces, "broadcast": 1, "apart": vector.trip if vector else 1}[manner]
    count = prod(x.trip for x in unrolled if access.moves(x.var)) * each
    if access.store:
        cost.stores += outside * count
        cost.loads += outside * count * reduces
    else:
        cost.loads += outside * count
        cost.held = max(cost.held, float(count if manner == "vector" else 1))
    cost.apart += outside * count * (manner == "apart")
    if manner == "vector" and vector is not None and pieces * 4 >= LINE // 16:
        cost.split += outside * count * _crossing(access, vector)


def _manner(access: Access, vector: Loop | None) -> str:
    if vector is None or not access.moves(vector.var):
        return "broadcast"
    return "vector" if access.strides(vector.var) == 1 else "apart"


def _crossing(access: Access, vector: Loop) -> float:
    """The share of vectors that begin inside a cache line and end in the next."""
    size = DTYPE_BYTES[access.buffer.dtype]
    line = LINE // size
    strides = {v: access.strides(v) for steps in access.steps for v in steps if v != vector.var}
    if access.at % line == 0 and all(s % line == 0 for s in strides.values()):
        return 0.0
    return min(vector.trip * size / LINE, 1.0)


# Memory


class _Memory:
    """Footprints of all loop bodies, and the traffic into caches that follows."""

    def __init__(self, nest: Nest) -> None:
        self._nest = nest
        bodies: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
        self._sizes: dict[str, int] = {}
        self._entries = [
            (leaf, i, access, _signature(access), _paths(leaf.loops))
            for leaf in nest.leaves
            for i, access in enumerate(leaf.accesses)
            if access.buffer.scope != "register"
        ]
        for leaf, i, access, signature, paths in self._entries:
            name = access.buffer.name
            self._sizes[name] = prod(access.buffer.shape) * DTYPE_BYTES[access.buffer.dtype]
            for path, nbytes in zip(paths, leaf.spans[i], strict=True):
                held = bodies[path][name]
                held[signature] = max(held.get(signature, 0), nbytes)
        self._bodies = {
            path: sum(min(sum(parts.values()), self._sizes[name]) for name, parts in names.items())
            for path, names in bodies.items()
        }

    def body(self, loops: Sequence[Loop]) -> int:
        """Bytes touched by one run of the body of the innermost of ``loops``."""
        return self._bodies.get(_paths(loops)[-1], 0)

    def traffic(self, size: int) -> dict[str, float]:
        """Bytes fetched into a cache of ``size`` bytes, by buffer; at least what is touched at all."""
        found: dict[tuple[str, str, str], float] = {}
        for leaf, i, access, signature, paths in self._entries:
            depth = next((d for d, p in enumerate(paths) if self._bodies[p] <= size), len(paths) - 1)
            above = max(depth - 1, 0)
            moved = float(leaf.spans[i][above] * leaf.times(above))
            key = (access.buffer.name, signature, paths[above])
            found[key] = max(found.get(key, 0.0), moved)
        by_buffer: dict[str, float] = defaultdict(float)
        for (name, _, _), moved in found.items():
            by_buffer[name] += moved
        return by_buffer


def _signature(access: Access) -> str:
    return ";".join(",".join(sorted(s)) for s in access.steps)


def _paths(loops: Sequence[Loop]) -> list[str]:
    """Keys of the bodies from the whole kernel inwards."""
    keys = [""]
    for loop in loops:
        keys.append(f"{keys[-1]}/{loop.var}")
    return keys


# Totals


def _totals(nest: Nest, costs: Sequence[_Cost], memory: _Memory, isa: str, target: Target) -> tuple[Totals, Totals]:
    """Counts as they are, and shares."""
    cycles, balanced = _balanced(nest, costs, target)
    sums = {k: float(sum(getattr(c, k) for c in costs)) for k in _SUMMED}
    leading = max(costs, key=lambda c: c.cycles)
    straight = sum(c.straight for c in costs)
    turns = sum(prod(x.trip for x in p) for p, _ in nest.loops if p[-1].kind not in ("unroll", "vector"))
    traffic = {n: memory.traffic(s) for n, s in (("l1", target.l1d), ("l2", target.l2), ("l3", max(target.l3, 1)))}
    moved = {n: sum(t.values()) for n, t in traffic.items()}
    registers = _registers(nest, leading, _LANES.get(isa, 1))
    most = _REGISTERS.get(isa, 32)
    counts = {
        **{f"n_{k}": v for k, v in sums.items()},
        "cycles": cycles, "balanced": balanced, "turns": turns, "straight": straight,
        "traffic_l1": moved["l1"], "traffic_l2": moved["l2"], "traffic_l3": moved["l3"],
        "touched": float(memory.body(())), "barriers": float(nest.barriers),
        "workspace_shared": _held(nest, "shared"), "workspace_thread": _held(nest, "thread"),
        "prefetches": float(sum(prod(x.trip for x in p) for p, _ in nest.prefetches)),
        "wasted": _wasted(nest, traffic["l1"]), "registers": registers,
        "spilled": max(registers - most, 0.0) * (leading.leaf.times() / max(leading.straight, 1)),
        "lead_straight": leading.straight, "lead_accumulators": leading.accumulators, "lead_cycles": leading.cycles,
        "leaves": float(len(costs)), **_parallel(nest, target),
    }  # fmt: skip
    shares = {
        "share_lead": leading.cycles / max(sum(c.cycles for c in costs), 1.0),
        "share_chain": sum(c.chain for c in costs) / max(sum(c.cycles for c in costs), 1.0),
        "share_other": sums["other"] / max(sums["fma"] + sums["other"], 1.0),
        "loads_per_fma": sums["loads"] / max(sums["fma"] + sums["other"], 1.0),
        "stores_per_fma": sums["stores"] / max(sums["fma"] + sums["other"], 1.0),
        "turns_per_cycle": turns / max(cycles, 1.0), "filled": leading.filled, "imbalance": balanced / max(cycles, 1.0),
        "l1_per_cycle": moved["l1"] / max(cycles, 1.0), "l2_per_cycle": moved["l2"] / max(cycles, 1.0),
        "l3_per_cycle": moved["l3"] / max(cycles, 1.0), "full": registers / most,
        "locality": max((p.locality for _, p in nest.prefetches), default=-1) + 1.0, "lanes": log2(_LANES.get(isa, 1)),
        "lead_loads_per_fma": leading.loads / max(leading.fma + leading.other, 1.0),
        "lead_split": leading.split / max(leading.loads, 1.0), "lead_chain": leading.chain / max(leading.cycles, 1.0),
        "lead_full": float(leading.accumulators + leading.held + 1) / most,
    }  # fmt: skip
    return counts, shares


def _balanced(nest: Nest, costs: Sequence[_Cost], target: Target) -> tuple[float, float]:
    """Cycles of all work, and those of the busiest thread times the threads."""
    total = balanced = 0.0
    for cost in costs:
        loops = cost.leaf.loops
        turns = sum(cost.leaf.times(d + 1) for d, x in enumerate(loops) if x.kind not in ("unroll", "vector"))
        cycles = cost.cycles + _TURN * turns / max(len(costs), 1)
        total += cycles
        balanced += cycles * _uneven(loops, target)
    return total, balanced


def _uneven(loops: Sequence[Loop], target: Target) -> float:
    """The busiest thread's share of a leaf's work, times the threads."""
    if target.gpu is not None:
        return 1.0
    outer = next((x for x in loops if x.kind == "parallel"), None)
    if outer is None:
        return float(target.threads)
    chunks = -(-outer.trip // outer.grain)
    rounds = -(-chunks // target.threads)
    return min(rounds * outer.grain, outer.trip) * target.threads / outer.trip


def _wasted(nest: Nest, traffic: Mapping[str, float]) -> float:
    """Prefetches of lines that are near already."""
    hints: dict[str, float] = defaultdict(float)
    for path, hint in nest.prefetches:
        hints[hint.buffer] += prod(x.trip for x in path)
    return sum(max(n - traffic.get(buffer, 0.0) / LINE, 0.0) for buffer, n in hints.items())


def _parallel(nest: Nest, target: Target) -> Totals:
    outer = {(p[0].var, top): p[0] for p, top in nest.loops if p[0].kind == "parallel"}
    chunks = [-(-x.trip // x.grain) for x in outer.values()]
    return {"regions": float(len(chunks)), "chunks": float(max(chunks, default=1)), "chunks_all": float(sum(chunks))}


def _registers(nest: Nest, cost: _Cost, lanes: int) -> float:
    """Vector registers alive in the leading leaf's straight code, roughly."""
    path = cost.leaf.loops
    alive = [b for at, b in nest.buffers if b.scope == "register" and path[: len(at)] == at]
    held = 0.0
    for b in alive:
        held += prod(b.shape) / lanes if b.shape and b.shape[-1] % lanes == 0 else prod(b.shape)
    return held + cost.held + 1


def _held(nest: Nest, scope: str) -> float:
    return float(sum(prod(b.shape) * DTYPE_BYTES[b.dtype] for _, b in nest.buffers if b.scope == scope))


# Levels


def _levels(cost: _Cost, memory: _Memory, target: Target) -> Totals:
    """The leading leaf from the straight code outwards."""
    leaf = cost.leaf
    inner, block = len(leaf.loops) - len(leaf.block), leaf.block
    vector = next((x for x in block if x.kind == "vector"), None)
    found: Totals = {}
    for level in range(min(LEVELS, inner + 1)):
        depth = inner - level
        loop = leaf.loops[depth] if level else None
        trip = loop.trip if loop else int(cost.straight)
        body = memory.body(leaf.loops[:depth])
        by_manner = dict.fromkeys(_MANNERS, 0)
        for i, access in enumerate(leaf.accesses[:-1]):
            if access.buffer.scope != "register":
                by_manner[_manner(access, vector)] += leaf.spans[i][depth]
        stored = 0 if leaf.target.buffer.scope == "register" else leaf.spans[-1][depth]
        work = prod(x.trip for x in leaf.loops[depth:])
        names = {"trip": float(trip), "body": float(body), **by_manner, "stored": float(stored), "reuse": work * 4 / max(body, 1)}
        found |= {f"level{level}_{k}": log2(v + 1) for k, v in names.items()}
    return found


def _names() -> tuple[str, ...]:
    totals = (
        "estimate", *(f"n_{k}" for k in _SUMMED),
        "cycles", "balanced", "turns", "straight", "traffic_l1", "traffic_l2", "traffic_l3", "touched", "barriers",
        "workspace_shared", "workspace_thread", "prefetches", "wasted", "registers", "spilled", "lead_straight",
        "lead_accumulators",
        "lead_cycles", "leaves", "regions", "chunks", "chunks_all", "share_lead", "share_chain", "share_other", "loads_per_fma",
        "stores_per_fma", "turns_per_cycle", "filled", "imbalance", "l1_per_cycle", "l2_per_cycle", "l3_per_cycle", "full",
        "locality", "lanes", "lead_loads_per_fma", "lead_split", "lead_chain", "lead_full",
    )  # fmt: skip
    kinds = ("trip", "body", *_MANNERS, "stored", "reuse")
    return (*totals, *(f"level{i}_{k}" for i in range(LEVELS) for k in kinds), *GRID_NAMES)


#: Names of the features, in the vector's order, and their number.
NAMES: tuple[str, ...] = _names()
FEATURES = len(NAMES)


def named(vector: Array) -> Mapping[str, float]:
    """A vector by name."""
    return dict(zip(NAMES, vector.tolist(), strict=True))
