"""The portfolio: one history for all arms, proposals shared out by what they bring, refinement at the end."""

from collections.abc import Sequence
from math import inf, log
from statistics import mean

import pytest
from search_landscapes import best, epistatic, kernel_like, narrow, search

from wpk.core.result import config_key
from wpk.search.auto import AutoOptions, Portfolio
from wpk.search.knobs import Ordered
from wpk.search.randomly import Randomly
from wpk.search.refine import Refine
from wpk.search.space import Config, Space
from wpk.search.strategy import Context, Learner, make_strategy


@pytest.mark.parametrize("landscape", [kernel_like(), epistatic(2), narrow(4)], ids=["kernel_like", "epistatic", "narrow"])
def test_it_beats_random(landscape) -> None:  # type: ignore[no-untyped-def]
    space, seconds = landscape

    def run(name: str, seed: int) -> float:
        return log(best(search(make_strategy(name, space, seed, context=Context(trials=80)), seconds, 80)))

    gains = [run("random", s) - run("auto", s) for s in range(4)]
    assert mean(gains) > 0.05 and min(gains) > -0.05


def test_every_arm_gets_a_turn_and_every_result() -> None:
    space, seconds = kernel_like()
    portfolio = Portfolio(space, 0)
    history = search(portfolio, seconds, 100)
    by_arm = {arm: [k for k, who in portfolio._asked.items() if who == arm] for arm in ("rl", "genetic", "refine")}
    assert all(len(keys) >= 8 for keys in by_arm.values())
    told = {config_key(c) for c, _ in history}
    assert set(portfolio._learner._seen) >= told and set(portfolio._refine._seen) >= told


def test_the_bandit_prefers_who_brings_progress() -> None:
    space, _ = kernel_like()
    portfolio = Portfolio(space, 0, options=AutoOptions(curious=0.05))
    portfolio._log = [(arm, arm == "genetic" and i % 2 == 0) for i in range(12) for arm in ("rl", "genetic", "refine")]
    shares = portfolio._shares(8)
    assert shares.get("genetic", 0) >= 6


def test_the_last_trials_refine_the_best() -> None:
    space, seconds = narrow(3)
    portfolio = Portfolio(space, 0, trials=60)
    history = search(portfolio, seconds, 54, batch=6)
    winner = min(history, key=lambda r: r[1])[0]
    near = list(map(config_key, space.neighbours(winner)))
    tried = {config_key(c) for c, _ in history}
    last = portfolio.ask(6)
    fresh = [c for c in near if c not in tried]
    assert sum(config_key(c) in near for c in last) == min(len(fresh), 6)


def test_given_configs_come_first_and_gain_is_unknown_till_then() -> None:
    space, _ = kernel_like()
    given: list[Config] = [space.default(), *list(space.neighbours(space.default()))[:3]]
    portfolio = Portfolio(space, 0, given)
    assert portfolio.expected_gain() == inf
    assert portfolio.ask(4) == given


def test_batches_under_way_do_not_repeat() -> None:
    """A fleet asks for the next batch before it tells the last."""
    space, seconds = kernel_like()
    portfolio = Portfolio(space, 1)
    search(portfolio, seconds, 24)
    keys = [config_key(c) for _ in range(4) for c in portfolio.ask(8)]
    assert len(keys) == len(set(keys)) == 32


def test_learners_are_told_apart() -> None:
    space, _ = kernel_like()
    assert isinstance(make_strategy("auto", space, 0), Learner) and isinstance(make_strategy("rl", space, 0), Learner)
    assert not isinstance(Randomly(space, 0), Learner)


# Refinement


def grid() -> Space:
    return Space((Ordered("a", tuple(range(6)), 0), Ordered("b", tuple(range(6)), 0)))


def test_refine_proposes_untried_neighbours_of_the_best() -> None:
    refine = Refine(grid())
    assert refine.ask(3) == [], "nothing is known"
    refine.tell([({"a": 2, "b": 2}, 1.0), ({"a": 2, "b": 3}, 2.0), ({"a": 5, "b": 5}, inf)])
    asked = refine.ask(3)
    assert [sorted(c.items()) for c in asked] == [
        [("a", 1), ("b", 2)], [("a", 3), ("b", 2)], [("a", 2), ("b", 1)],
    ]  # fmt: skip
    assert {"a": 2, "b": 4} in refine.ask(3), "then those of the second best"


def test_refine_asks_for_the_most_promising_neighbours() -> None:
    def order(configs: Sequence[Config]) -> list[float]:
        return [-float(c["b"]) for c in configs]

    refine = Refine(grid(), order)
    refine.tell([({"a": 2, "b": 2}, 1.0)])
    assert refine.ask(1) == [{"a": 2, "b": 3}]


def test_refine_ends_where_a_hill_ends() -> None:
    refine = Refine(grid())

    def seconds(config: Config) -> float:
        return 1.0 + (int(config["a"]) - 4) ** 2 + (int(config["b"]) - 1) ** 2

    refine.tell([({"a": 0, "b": 5}, seconds({"a": 0, "b": 5}))])
    history = search(refine, seconds, 100, batch=4)
    assert best(history) == 1.0 and len(history) < 36
