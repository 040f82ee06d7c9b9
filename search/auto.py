"""The portfolio, ``auto``: genetic search and reinforcement learning on one history, and local refinement at the end.

It begins with the given configs (defaults, and the best of similar tasks): the default first, then as the screen or a trained
policy ranks them. Then a bandit shares the proposals out: each arm's credit is how often, lately, it brought a new best, the
latest counting most (the area under the curve of OpenTuner: Ansel et al., PACT 2014), plus a bonus for arms little tried. Every
result is told to every arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, log, sqrt
from typing import Protocol

from wpk.core.result import config_key
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.search.genetic import Genetic
from wpk.search.policy import Policy
from wpk.search.refine import Refine
from wpk.search.rl import Reinforced, RlOptions, Screen
from wpk.search.space import Config, Space


@dataclass(frozen=True)
class AutoOptions:
    """``window``: proposals that count for an arm's credit. ``curious``: weight of the bonus for arms little tried.

    ``head``: configs, besides the given ones, before the bandit starts; they are the learner's, or, with a screen
    and no policy, what the screen likes best of random ones. ``tail``: the share of the trials, where their number is known,
    kept for refinement at the end.
    """

    window: int = 60
    curious: float = 0.08
    head: int = 8
    tail: float = 0.1
    rl: RlOptions = field(default_factory=RlOptions)


class _Arm(Protocol):
    """A strategy; see :mod:`wpk.search.strategy`."""

    def ask(self, n: int) -> list[Config]: ...

    def tell(self, results: Sequence[tuple[Config, float]]) -> None: ...


class Portfolio:
    """See the module. ``trials``: how many configs will be asked for, where that is known."""

    def __init__(
        self, space: Space, seed: int, first: Sequence[Config] = (), options: AutoOptions | None = None,
        workload: Workload | None = None, target: Target | None = None, policy: Policy | None = None,
        screen: Screen | None = None, trials: int | None = None,
    ) -> None:  # fmt: skip
        self._options, self._trials, self._screen = options or AutoOptions(), trials, screen
        self._queue, self._sorted = [dict(c) for c in first], False
        self._learner = Reinforced(space, seed, (), self._options.rl, workload, target, policy, screen)
        self._refine = Refine(space, self._learner.expected)
        genetic = Genetic(space, seed, screen=screen)
        self._starter = "genetic" if screen is not None and policy is None else "rl"
        self._arms: dict[str, _Arm] = {"rl": self._learner, "genetic": genetic, "refine": self._refine}
        self._asked: dict[str, str] = {}
        self._told: set[str] = set()
        self._log: list[tuple[str, bool]] = []
        self._best = inf

    def ask(self, n: int) -> list[Config]:
        """``n`` configs, none asked or told before; fewer when the space is used up."""
        asked: list[Config] = []
        while self._queue and len(asked) < self._given(n):
            self._admit(asked, self._queue.pop(0), "first")
        shares = self._shares(n - len(asked))
        for arm in (*shares, "rl", "genetic"):
            count = min(shares.pop(arm, n), n - len(asked))
            for config in self._arms[arm].ask(count) if count else ():
                self._admit(asked, config, arm)
        while len(asked) < n and (more := self._learner.ask(n - len(asked))):
            for config in more:
                self._admit(asked, config, "rl")
        return asked

    def tell(self, results: Sequence[tuple[Config, float]]) -> None:
        """Results go to every arm; the one that asked gets the credit."""
        for config, seconds in results:
            key = config_key(config)
            arm = self._asked.get(key, "")
            if arm in self._arms and key not in self._told:
                self._log.append((arm, seconds < self._best))
            self._told.add(key)
            self._best = min(self._best, seconds)
        for one in self._arms.values():
            one.tell(results)

    def tell_failures(self, kinds: Sequence[tuple[Config, str]]) -> None:
        """See :meth:`wpk.search.rl.Reinforced.tell_failures`."""
        self._learner.tell_failures(kinds)

    def expected_gain(self, seconds: float = inf) -> float:
        """See :meth:`wpk.search.rl.Reinforced.expected_gain`; infinity while given configs are left to try."""
        return inf if self._queue else self._learner.expected_gain(seconds)

    def _given(self, n: int) -> int:
        """How many of the next ``n`` are given configs: all where a screen sorts them, half where only a trained policy does.

        The default comes first: it is what all else is compared with.
        """
        rest = self._queue if self._sorted else self._queue[1:]
        if self._screen is not None:
            if not self._sorted and rest:
                self._sort(self._screen(rest))
            return n
        opinion = self._learner.opinion(rest)
        if opinion is None:
            return n
        if not self._sorted:
            self._sort([-x for x in opinion])
        return max(n // 2, 1)

    def _sort(self, costs: Sequence[float]) -> None:
        """The default, then the others, cheapest first."""
        order = sorted(range(len(costs)), key=lambda i: costs[i])
        self._queue, self._sorted = [self._queue[0], *(self._queue[1 + i] for i in order)], True

    def _admit(self, asked: list[Config], config: Config, arm: str) -> None:
        key = config_key(config)
        if key not in self._asked and key not in self._told:
            self._asked[key] = arm
            asked.append(config)

    def _shares(self, n: int) -> dict[str, int]:
        """How many of the next ``n`` proposals each arm makes."""
        done = len(self._told)
        if self._trials is not None and done >= self._trials * (1 - self._options.tail) and isfinite(self._best):
            return {"refine": n}
        if len(self._log) < self._options.head:
            return {self._starter: n}
        shares: dict[str, int] = {}
        for _ in range(n):
            arm = max(self._arms, key=lambda a: self._credit(a, shares))
            shares[arm] = shares.get(arm, 0) + 1
        return shares

    def _credit(self, arm: str, shares: dict[str, int]) -> float:
        lately = self._log[-self._options.window :]
        mine = [better for who, better in lately if who == arm]
        uses, total = len(mine) + shares.get(arm, 0), len(lately) + sum(shares.values())
        if not uses:
            return inf
        area = sum(i * better for i, better in enumerate(mine, 1))
        credit = 2 * area / (len(mine) * (len(mine) + 1)) if mine else 0.0
        return credit + self._options.curious * sqrt(2 * log(total) / uses)
