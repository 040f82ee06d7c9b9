"""Fully connected layers at small batch: reading the weights is all the work, so the kernel is a set of sequential streams.

Weights lie in panels (panel, k, width) and each is read once, front to back. To keep enough of memory in flight a thread
follows several streams at once: ``strands`` parts of k, each with accumulators of its own that are added at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    CacheRead,
    ComputeAt,
    Parallel,
    Prefetch,
    Reorder,
    RFactor,
    Split,
    Step,
    StoreAs,
    Unroll,
    Vectorize,
    schedule,
)  # fmt: skip
from wpk.kernels import gemm
from wpk.kernels.family import Built
from wpk.kernels.gemm import VECTOR, Product, algorithm, product_of, width_of
from wpk.kernels.nests import REGISTERS, isas
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Space

#: rows above which the weights are reused so often that :mod:`wpk.kernels.gemm` is the right family
MOST_ROWS = 4

# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(p: Product, target: Target) -> Space:
    """Panel width, strands, unroll, prefetch distance and locality, panels a job and jobs a chunk, rows together, ISA."""
    choices = isas(target)
    vectors = tuple(
        t for t in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16) if t == 1 or (t - 1) * VECTOR[choices[-1]] < p.n
    )
    knobs: tuple[Knob, ...] = (
        Choice("isa", choices, choices[0]),
        Ordered("tile_n", vectors, vectors[0]),
        Ordered("strands", tuple(s for s in (1, 2, 4, 8) if p.k % s == 0), 1),
        Ordered("unroll_k", tuple(u for u in (1, 2, 4, 8, 16) if u <= p.k), 1),
        Ordered("prefetch", (0, 2, 4, 8, 16, 32, 64), 0),
        Ordered("locality", (0, 1, 2, 3), 3),
        Ordered("panels", (1, 2, 4, 8), 1),
        Ordered("grain", (1, 2, 4, 8), 1),
        Choice("inner", ("strand", "vector"), "strand"),
        Choice("rows", ("apart", "together") if p.m > 1 else ("apart",), "apart"),
    )

    def fits(c: Config) -> bool:
        sums = int(c["tile_n"]) * int(c["strands"]) * p.m
        return sums + (1 if p.m == 1 else 2) + 1 <= REGISTERS[str(c["isa"])]

    def sane(c: Config) -> bool:
        jobs = -(-p.panels(width_of(c)) // int(c["panels"]))
        few = int(c["panels"]) * int(c["grain"]) == 1 or jobs >= target.threads * int(c["grain"])
        return few and (int(c["prefetch"]) > 0 or c["locality"] == 3)

    def short(c: Config) -> bool:
        body = int(c["unroll_k"]) * int(c["strands"]) * int(c["tile_n"]) * p.m
        return body <= 256 and int(c["unroll_k"]) * int(c["strands"]) <= p.k

    return Space(knobs, (fits, short, sane), first_configs(p, target, knobs))


def first_configs(p: Product, target: Target, knobs: tuple[Knob, ...]) -> tuple[Config, ...]:
    """Eight or more accumulators for each row, widths that waste few columns and divide evenly among the threads."""
    base: Config = {k.name: k.default for k in knobs}
    widths, lanes = [int(t) for t in knobs[1].values], VECTOR[str(base["isa"])]
    found: list[Config] = []
    streams = (
        ((4, 4, 0), (1, 8, 0), (2, 4, 16), (1, 4, 16)) if p.m == 1 else ((1, 2, 16), (2, 4, 16), (1, 4, 16))
    )
    for strands, unroll, ahead in streams:
        most = max(24 // (p.m * strands), 1)

        def waste(t: int, most: int = most, strands: int = strands) -> float:
            panels = p.panels(t * lanes)
            rounds = -(-panels // target.threads) * target.threads
            slow = max(8 - t * strands * p.m, 0) * 0.05
            return rounds * t * lanes / p.n + slow - t / (64 * most)

        t = min((t for t in widths if t <= most), key=waste)
        found.append({**base, "tile_n": t, "strands": strands, "unroll_k": unroll, "prefetch": ahead})
    return tuple(found)


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(p: Product, c: Config) -> list[Step]:
    """parallel panels: for k: for each strand: sums += x * w, all in registers; then add the strands and store."""
    strands, unroll = int(c["strands"]), int(c["unroll_k"])
    plan: list[Step] = [
        Split("out", "nb", int(c["panels"]), "n_c", "n_m", "shift"),
        Reorder("out", ("n_c", "n_m", "m", "nt", "nv")),
        Parallel("out", "n_c", int(c["grain"])),
        Unroll("out", "m"), Unroll("out", "nt"), Vectorize("out", "nv"),
        *(added_strands(p.k // strands) if strands > 1 else []),
        ComputeAt("acc", "out", "n_m", "register"),
    ]  # fmt: skip
    stage, k, lead = ("part", "k_i", ("k_o",)) if strands > 1 else ("acc", "k", ())
    inner = ("m", *lead, "nt", "nv") if c["inner"] == "strand" and strands > 1 else (*lead, "m", "nt", "nv")
    plan += [
        Split(stage, k, unroll, "k_m", "k_u"),
        Reorder(stage, ("nb", "k_m", "k_u", *inner)),
        *(Unroll(stage, loop) for loop in ("k_u", *inner[:-1])), Vectorize(stage, "nv"),
    ]  # fmt: skip
    if int(c["prefetch"]):
        at = "k_u" if unroll > 1 else "k_m"
        plan.append(Prefetch(stage, "bp", at, int(c["prefetch"]), int(c["locality"])))
    if c["rows"] == "together":
        plan += [CacheRead("a", "ap", stage), StoreAs("ap", ("d0", "d1") if p.trans_a else ("d1", "d0"))]
    return plan


def added_strands(length: int) -> list[Step]:
    """acc = the sum of the strands, each of ``length``."""
    return [
        RFactor("acc", "k", length, "part"),
        ComputeAt("part", "out", "n_m", "register"),
        Reorder("acc", ("nb", "k_o", "m", "nt", "nv")),
        Unroll("acc", "k_o"), Unroll("acc", "m"), Unroll("acc", "nt"), Vectorize("acc", "nv"),
    ]  # fmt: skip


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FullyConnected:
    """Matrix product with few rows and constant weights; see the module's docstring."""

    name: str = "fc"
    version: int = 1
    packing: tuple[str, ...] = ("isa", "tile_n")

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 gemm or matmul in layout ROW with at most MOST_ROWS rows and a constant right operand."""
        if workload.op not in ("gemm", "matmul"):
            return f"op is {workload.op}, expected gemm or matmul"
        if 1 not in workload.constants:
            return "the right operand is not constant"
        reason = gemm.unfit(workload)
        if reason:
            return reason
        p = product_of(workload)
        if p.batch or p.m > MOST_ROWS:
            return f"{p.m} rows in batches {p.batch}, expected at most {MOST_ROWS} rows and no batches"
        return None

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(product_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        p, isa = product_of(workload), str(config["isa"])
        plain = algorithm(workload, p, int(config["tile_n"]), VECTOR[isa])
        name = f"f32_fc_{p.m}x{width_of(config)}x{config['strands']}__{isa}"
        return Built(lower(schedule(plain, steps(p, config)), name), isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """See :func:`wpk.kernels.gemm.pack`."""
        return gemm.pack(workload, width_of(config), constants)
