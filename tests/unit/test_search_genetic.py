"""The strategies on simulated landscapes: what the genetic search is for is to beat random search."""

import random
from collections.abc import Sequence
from math import inf, log
from statistics import mean, stdev

import pytest
from search_landscapes import Landscape, best, epistatic, kernel_like, narrow, noise, search

from wpk.core.errors import UsageError
from wpk.core.result import config_key
from wpk.search.genetic import Genetic, GeneticOptions
from wpk.search.knobs import Ordered
from wpk.search.space import Config, Space
from wpk.search.strategy import STRATEGIES, beginning, make_strategy


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
