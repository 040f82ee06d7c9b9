"""Features of lowered kernels: facts that must hold, whatever a model makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import log2

import numpy as np
import pytest

from benchmarks.recorded_tasks import SUBJECTS
from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.features import FEATURES, LEVELS, NAMES, kernel_facts, kernel_features, named
from wpk.dsl.footprint import walk
from wpk.dsl.ir import Alloc, Binary, Buffer, Const, Expr, For, Kernel, Load, Prefetch, Stmt, Store, Var
from wpk.kernels import families
from wpk.kernels.cuda import FAMILIES as CUDA
from wpk.kernels.family import Family
from wpk.settings import shipped_target

CPU, GPU = shipped_target("zen5-2c"), shipped_target("h200-sm_90a")
I, J, K = Var("i"), Var("j"), Var("k")


def loop(var: Var, trip: int, kind: str, *body: Stmt, grain: int = 1) -> For:
    return For(var.name, Const(0), Const(trip), kind, tuple(body), grain)  # type: ignore[arg-type]


def product(
    rows: int = 64, inner: int = 32, tile: int = 4, kind: str = "parallel", grain: int = 1, at: int = 0,
    columns: Callable[[Expr], Expr] = lambda v: v, hint: int = 0,
) -> Kernel:  # fmt: skip
    """out[i, :16] = sum over k of a[i, k] * b[k, :16], ``tile`` rows in registers; b's columns read at ``at`` + columns(lane)."""
    a, b = Buffer("a", (rows, inner)), Buffer("b", (inner, 64))
    out, acc = Buffer("out", (rows, 16), access="out"), Buffer("acc", (tile, 16), scope="register")
    row = I * tile + J
    value = Load("a", (row, K)) * Load("b", (K, columns(Var("v")) + at))
    add = Store("acc", (J, Var("v")), value, "+")
    ahead = (Prefetch("b", (K + 8, Const(0))),) * hint
    sums = loop(K, inner, "serial", *ahead, loop(J, tile, "unroll", loop(Var("v"), 16, "vector", add)))
    store = loop(J, tile, "unroll", loop(Var("v"), 16, "vector", Store("out", (row, Var("v")), Load("acc", (J, Var("v"))))))
    return Kernel("k", (a, b, out), (loop(I, rows // tile, kind, Alloc(acc, (sums, store)), grain=grain),))


def facts(kernel: Kernel, target: Target = CPU) -> dict[str, float]:
    return kernel_facts(kernel, "avx512", target)


@cache
def family(name: str) -> Family:
    return next(f for f in families() if f.name == name)


def test_counts_are_those_of_the_loops() -> None:
    f = facts(product())
    assert f["n_fma"] == pytest.approx(log2(64 * 32 + 1)), "one multiply-add a row and k: a vector of 16 each"
    assert f["n_loads"] == pytest.approx(log2(16 * 32 * (4 + 1) + 1)), "four broadcasts share one vector of b"
    assert f["n_stores"] == pytest.approx(log2(64 + 1))
    assert f["level0_trip"] == log2(4 + 1) and f["level1_trip"] == log2(32 + 1) and f["level2_trip"] == log2(16 + 1)
    assert f["level3_trip"] == 0 and f["lead_accumulators"] == log2(4 + 1)


def test_footprints_grow_outwards_and_reuse_is_seen() -> None:
    f = facts(product())
    bodies = [f[f"level{i}_body"] for i in range(3)]
    assert bodies == sorted(bodies) and bodies[0] > 0
    assert f["level1_vector"] == pytest.approx(log2(32 * 64 + 1)), "a line of b for each k"
    assert f["level2_vector"] == f["level1_vector"], "other rows read the same b"
    assert f["touched"] >= log2(64 * 32 * 4 + 32 * 64)


PAIRS: dict[str, tuple[Kernel, Kernel]] = {
    "more rows": (product(rows=128), product()),
    "more products": (product(inner=64), product()),
    "one accumulator": (product(tile=1), product(tile=8)),
    "one thread": (product(rows=1024, kind="serial"), product(rows=1024)),
    "uneven threads": (product(rows=1024, tile=8, grain=96), product(rows=1024, tile=8)),
    "elements apart": (product(columns=lambda v: v * 4), product()),
    "prefetches of what is near": (product(hint=4), product()),
    "registers that run out": (product(tile=64), product(tile=16)),
}


@pytest.mark.parametrize("why", PAIRS)
def test_what_costs_more_is_estimated_to(why: str) -> None:
    slower, faster = PAIRS[why]
    assert facts(slower)["estimate"] > facts(faster)["estimate"]


def test_starting_threads_does_not_pay_for_little_work() -> None:
    assert facts(product(kind="serial"))["estimate"] < facts(product())["estimate"]


def test_vectors_across_lines_and_apart_are_told_from_good_ones() -> None:
    good, across, apart = facts(product()), facts(product(at=3)), facts(product(columns=lambda v: v * 4))
    assert good["n_split"] == 0 < across["n_split"] and good["n_apart"] == 0 < apart["n_apart"]
    assert across["n_loads"] == good["n_loads"] < apart["n_loads"]


def test_balance_and_traffic_follow_the_target() -> None:
    one, many = (replace(CPU, threads=n) for n in (1, 16))
    assert facts(product(), one)["imbalance"] == pytest.approx(1)
    assert facts(product(grain=16), many)["imbalance"] == pytest.approx(16)
    tiny, huge = replace(CPU, l1d=256), replace(CPU, l1d=1 << 20)
    assert facts(product(), tiny)["traffic_l1"] > facts(product(), huge)["traffic_l1"]
    assert facts(product(), huge)["traffic_l1"] == pytest.approx(facts(product(), huge)["touched"], rel=0.05)


def test_division_and_remainder_do_not_hide_a_footprint() -> None:
    x, out = Buffer("x", (8, 8)), Buffer("out", (64,), access="out")
    body = Store("out", (I,), Load("x", (Binary("//", I, Const(8)), Binary("%", I, Const(8)))))
    leaf = walk(Kernel("k", (x, out), (loop(I, 64, "serial", body),))).leaves[0]
    assert leaf.spans[0][0] == 64 * 4 and leaf.spans[0][1] == 64, "all of it, and a line"


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)
def test_every_family_has_features_and_always_the_same(subject: object) -> None:
    workload: Workload = subject.workload  # type: ignore[attr-defined]
    made = family(subject.family)  # type: ignore[attr-defined]
    configs = [made.space(workload, CPU).default(), *made.space(workload, CPU).first][:2]
    for config in configs:
        first, second = (features(made, workload, config, CPU) for _ in range(2))
        assert first.shape == (FEATURES,) and np.isfinite(first).all() and (first == second).all()
        assert named(first)["touched"] > 0 and named(first)["leaves"] > 0 and named(first)["grid_blocks"] == 0


def features(made: Family, workload: Workload, config: Config, target: Target) -> np.ndarray:
    built = made.build(workload, config, target)
    return kernel_features(built.kernel, built.isa, target)


def test_a_gpu_kernel_has_a_launch() -> None:
    workload = next(s.workload for s in SUBJECTS if s.name == "gemm-128x768x768")
    made = next(f for f in CUDA if f.matches(workload, GPU) is None)
    f = named(features(made, workload, made.space(workload, GPU).default(), GPU))
    assert f["grid_blocks"] > 0 and f["grid_threads"] >= log2(32 + 1) and f["grid_registers"] > log2(24)
    assert f["grid_sectors"] >= 1 and f["grid_conflicts"] >= 1 and f["grid_resident"] > 0


def test_names_are_distinct_and_begin_with_the_estimate() -> None:
    assert len(set(NAMES)) == FEATURES and NAMES[0] == "estimate"
    assert f"level{LEVELS - 1}_trip" in NAMES
