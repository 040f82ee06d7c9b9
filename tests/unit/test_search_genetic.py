"""The strategies on simulated landscapes: what the genetic search is for is to beat random search."""

import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import exp, inf, log
from random import Random
from statistics import mean, stdev

import pytest

from wpk.core.errors import UsageError
from wpk.core.result import config_key
from wpk.search.genetic import Genetic, GeneticOptions
from wpk.search.knobs import Choice, Ordered
from wpk.search.space import Config, Space
from wpk.search.strategy import STRATEGIES, Strategy, beginning, make_strategy

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


def advantage(landscape: tuple[Space, Landscape], seeds: int, trials: int) -> list[float]:
    """log(random's best / genetic's best) for each seed."""
    space, seconds = landscape

    def run(name: str, seed: int) -> float:
        return log(best(search(make_strategy(name, space, seed), seconds, trials)))

    return [run("random", seed) - run("genetic", seed) for seed in range(seeds)]


@pytest.mark.parametrize(
    "landscape", [kernel_like(), epistatic(1), epistatic(2), narrow(3), narrow(4)],
    ids=["kernel_like", "epistatic1", "epistatic2", "narrow3", "narrow4"],
)  # fmt: skip
def test_genetic_beats_random_on_every_landscape(landscape: tuple[Space, Landscape]) -> None:
    gains = advantage(landscape, seeds=8, trials=150)
    standard_error = stdev(gains) / len(gains) ** 0.5
    assert mean(gains) > 2 * standard_error, f"advantage {mean(gains):.3f} ± {standard_error:.3f}"
    assert mean(gains) > 0.02


@pytest.mark.parametrize("name", STRATEGIES)
def test_same_seed_and_answers_give_same_proposals(name: str) -> None:
    space, seconds = kernel_like()
    one, two = (search(make_strategy(name, space, 5), seconds, 80) for _ in range(2))
    assert one == two
    if name != "exhaustive":
        assert one != search(make_strategy(name, space, 6), seconds, 80)


@pytest.mark.parametrize("name", STRATEGIES)
def test_global_random_state_is_neither_used_nor_changed(name: str) -> None:
    space, seconds = kernel_like()
    random.seed(1)
    state = random.getstate()
    one = search(make_strategy(name, space, 5), seconds, 60)
    assert random.getstate() == state
    random.seed(2)
    assert search(make_strategy(name, space, 5), seconds, 60) == one


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_small_space_is_used_up_without_repetition(name: str) -> None:
    space = Space(
        tuple(Ordered(f"k{i}", (0, 1, 2, 3), 0) for i in range(4)),
        (lambda c: (int(c["k0"]) + int(c["k3"])) % 2 == 0,),
    )
    strategy = make_strategy(name, space, 1)
    history = search(strategy, lambda c: 1.0 + noise(config_key(c)), trials=1000, batch=7)
    assert sorted(config_key(c) for c, _ in history) == sorted(map(config_key, space.enumerate()))
    assert len(history) == 128 and strategy.ask(3) == []


@pytest.mark.parametrize("name", STRATEGIES)
def test_first_configs_come_first_and_known_ones_never(name: str) -> None:
    knobs = tuple(Ordered(f"k{i}", tuple(range(8)), 0) for i in range(4))
    guess: Config = {"k0": 5, "k1": 5, "k2": 5, "k3": 5}
    hint: Config = {"k0": 1, "k1": 2, "k2": 3, "k3": 4}
    space = Space(knobs, first=(guess,))
    assert make_strategy(name, space, 1, [hint, {"k0": 99}]).ask(2) == [guess, hint]
    strategy = make_strategy(name, space, 1, [hint])
    strategy.tell([(guess, 1.0), (hint, 2.0)])
    proposals = strategy.ask(50)
    assert len(proposals) == 50 and guess not in proposals and hint not in proposals


def test_hints_of_other_spaces_are_repaired_or_left_out() -> None:
    space = Space(
        (Ordered("a", (1, 2, 4), 1), Ordered("b", (1, 2, 4), 1)), (lambda c: int(c["a"]) * int(c["b"]) <= 4,)
    )
    hints: list[Config] = [{"a": 4, "b": 4}, {"a": 28, "b": 2}, {"c": 1}, {"a": 2, "b": 2}]
    begun = beginning(space, hints)
    assert begun[0] == space.default() and all(map(space.valid, begun)) and {"a": 2, "b": 2} in begun
    assert 3 <= len(begun) <= 4 and any(c["a"] == 4 or c["b"] == 4 for c in begun)
    assert tuple(make_strategy("random", space, 0, hints).ask(len(begun))) == begun


def test_an_unknown_strategy_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"annealing.*genetic, random, exhaustive"):
        make_strategy("annealing", kernel_like()[0], 1)


def test_genetic_survives_failures_only() -> None:
    space, _ = kernel_like()
    strategy = Genetic(space, 3, [space.default()])
    history = search(strategy, lambda c: inf, 60)
    assert len({config_key(c) for c, _ in history}) == 60 and strategy.best is None


def test_genetic_keeps_its_elite() -> None:
    space, seconds = epistatic(7)
    strategy = Genetic(space, 1, options=GeneticOptions(population=8))
    history = search(strategy, seconds, 120)
    assert strategy.best is not None and strategy.best[1] == best(history)


def test_earlier_results_are_built_upon() -> None:
    """A strategy told of good configs at its start does better than one that begins anew."""
    space, seconds = epistatic(9)
    old = sorted(search(make_strategy("genetic", space, 100), seconds, 400), key=lambda r: r[1])[:30]

    def run(seed: int, known: Sequence[tuple[Config, float]]) -> float:
        strategy = make_strategy("genetic", space, seed)
        strategy.tell(known)
        return best([*search(strategy, seconds, 60), *known])

    assert mean(run(s, old) for s in range(4)) < 0.95 * mean(run(s, []) for s in range(4))
