"""Simulated landscapes for tests of strategies: spaces, and seconds computed from configs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import exp, inf, log
from random import Random
from statistics import mean

from wpk.core.result import config_key
from wpk.search.knobs import Choice, Ordered
from wpk.search.space import Config, Space
from wpk.search.strategy import Strategy

Landscape = Callable[[Config], float]


def noise(*parts: object) -> float:
    """A fixed pseudo-random number in 0..1 of its arguments."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def kernel_like() -> tuple[Space, Landscape]:
    """Tiles, unrolling and orders whose penalties multiply; a register limit; ruggedness; some configs crash."""
    knobs = (
        Choice("isa", ("avx512", "avx2", "scalar"), "avx512"),
        Ordered("tile_w", (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28), 4),
        Ordered("tile_k", (1, 2, 3, 4), 1),
        Ordered("unroll", (1, 2, 4, 8, 16), 1),
        Choice("reduce", ("abc", "bca", "bac"), "bac"),
        Ordered("rows", (1, 2, 4, 7, 14, 28), 1),
        Ordered("chunk", (1, 2, 4, 8, 16, 32), 32),
        Choice("order", ("k", "row"), "row"),
        Choice("parallel", ("pixels", "channels", "both"), "channels"),
        Ordered("prefetch", (0, 4, 8, 16), 0),
    )

    def fits(c: Config) -> bool:
        return (int(c["tile_w"]) + 1) * int(c["tile_k"]) < (32 if c["isa"] == "avx512" else 16)

    def seconds(c: Config) -> float:
        w, k = int(c["tile_w"]), int(c["tile_k"])
        cost = {"avx512": 1.0, "avx2": 1.9, "scalar": 9.0}[str(c["isa"])]
        cost *= max(1.0, 8 / (w * k)) * (1 + 0.6 * abs((w + k) / (w * k) - 0.55))
        cost *= 1 + 0.15 * abs(log(int(c["unroll"]) / (8 if c["reduce"] == "abc" else 2)))
        cost *= 1 + 0.1 * abs(log(int(c["rows"]) * w * int(c["chunk"]) / 200))
        cost *= 1.0 if (c["order"] == "k") == (int(c["chunk"]) > 4) else 1.25
        cost *= {"pixels": 1.1, "channels": 1.4, "both": 1.0}[str(c["parallel"])]
        if noise("crash", c["isa"], w, c["unroll"], c["order"]) < 0.08:
            return inf
        return 1e-3 * cost * (1 + 0.25 * noise(config_key(c)))

    return Space(knobs, (fits,)), seconds


def epistatic(seed: int) -> tuple[Space, Landscape]:
    """An NK landscape: every knob's merit depends on two others."""
    knobs = tuple(Ordered(f"k{i}", tuple(range(6)), 0) for i in range(10))

    def merit(c: Config, i: int) -> float:
        return noise(seed, i, c[f"k{i}"], c[f"k{(i + 1) % 10}"], c[f"k{(i + 4) % 10}"])

    return Space(knobs), lambda c: exp(-3 * mean(merit(c, i) for i in range(10)))


def narrow(seed: int) -> tuple[Space, Landscape]:
    """A bumpy valley in a space where constraints leave about one in a hundred assignments."""
    knobs = tuple(Ordered(f"t{i}", (1, 2, 4, 8, 16, 32, 64), 1) for i in range(7))
    rng = Random(seed)
    goal = [rng.choice((2, 4, 8, 16)) for _ in knobs]

    def capacity(c: Config) -> bool:
        return int(c["t0"]) * int(c["t1"]) * int(c["t2"]) <= 256 and int(c["t3"]) * int(c["t4"]) <= 64

    def divides(c: Config) -> bool:
        return int(c["t5"]) % int(c["t0"]) == 0 and int(c["t6"]) % int(c["t3"]) == 0

    def seconds(c: Config) -> float:
        off = sum(abs(log(int(c[f"t{i}"]) / g)) for i, g in enumerate(goal))
        return 1e-4 * (1 + 0.3 * off) * (1 + 0.2 * noise(seed, config_key(c)))

    return Space(knobs, (capacity, divides)), seconds


def search(strategy: Strategy, seconds: Landscape, trials: int, batch: int = 8) -> list[tuple[Config, float]]:
    """All results, in order."""
    history: list[tuple[Config, float]] = []
    while len(history) < trials and (asked := strategy.ask(min(batch, trials - len(history)))):
        results = [(c, seconds(c)) for c in asked]
        strategy.tell(results)
        history += results
    return history


def best(history: Sequence[tuple[Config, float]]) -> float:
    return min(s for _, s in history)


def matmul_like(rows: int, inner: int, columns: int) -> tuple[Space, Landscape]:
    """Tiles of a product: best is what fits the shape, the registers and a cache; a family of tasks that resemble each other."""
    knobs = (
        Ordered("tile_m", (1, 2, 4, 6, 8, 12), 1),
        Ordered("tile_n", (1, 2, 3, 4), 1),
        Ordered("block_k", (16, 32, 64, 128, 256, 512), 16),
        Choice("order", ("mn", "nm"), "mn"),
        Ordered("unroll", (1, 2, 4, 8), 1),
        Choice("pack", (False, True), False),
    )

    def fits(c: Config) -> bool:
        return int(c["tile_m"]) * int(c["tile_n"]) <= 28

    def seconds(c: Config) -> float:
        m, n, k = int(c["tile_m"]), int(c["tile_n"]), int(c["block_k"])
        cost = 1 + 1.5 * abs((m + n) / (m * n) - 0.4)
        cost *= 1 + 0.2 * (-rows % m) / rows + 0.2 * abs(log(min(k, inner) * n / 256))
        cost *= 1.0 if (c["order"] == "mn") == (rows > columns) else 1.3
        cost *= 1 + 0.1 * abs(log(int(c["unroll"]) / 4))
        cost *= 1.0 if bool(c["pack"]) == (inner * columns > 32768) else 1.25
        return 1e-6 * cost * (1 + 0.02 * noise(rows, inner, columns, config_key(c)))

    return Space(knobs, (fits,)), seconds
