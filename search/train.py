"""Training the RL strategy's policy offline, on what was measured before: recorded spaces and logs.

Logged configs were not drawn from the policy, so the gradient is that of reward-weighted regression (Peters and Schaal, 2007):
the likelihood of logged configs, each weighted by exp(reward / heat), which draws the policy to π ∝ exp(reward / heat). The
critic head learns the same rewards by least squares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite, log

import numpy as np
from numpy.typing import NDArray

from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.search.choices import Bools, Choices
from wpk.search.features import TOKEN, Array, task_features, token_features
from wpk.search.policy import RANK, Actor, Adam, Parameters, Policy, backward, earlier, initial, one_hot
from wpk.search.recorded import RecordedSpace
from wpk.search.space import Config, Space

#: Weight of the critic's squared error, whose residuals are a few tenths, beside the actor's likelihood.
_LOUD = 10.0


@dataclass(frozen=True)
class Lesson:
    """A task and what was measured of it: configs with their seconds, infinity for a failure. ``provider``: whose space it is."""

    space: Space
    workload: Workload
    target: Target
    results: tuple[tuple[Config, float], ...]
    provider: str = ""


@dataclass(frozen=True)
class TrainOptions:
    """``steps`` of Adam at ``rate``, each on ``batch`` configs of one lesson. ``heat``: nats of speed that make a config e times
    likelier. ``depth``: nats below the best at which all counts as equally bad, failures too. ``decay`` of the weights and
    ``blur`` of the task's features keep the network from learning tasks by heart; a ``blind`` share of steps sees no task.
    """

    steps: int = 4000
    rate: float = 3e-3
    batch: int = 96
    heat: float = 0.1
    depth: float = 0.7
    decay: float = 1e-3
    blur: float = 0.1
    blind: float = 0.1


@dataclass(frozen=True)
class _Prepared:
    """A lesson as arrays: ``hot`` (N, D), ``masks`` (N, K, V); (N,) the actor's ``odds`` to draw each, the critic's ``worth``."""

    tokens: Array
    task: Array
    hot: Array
    masks: Bools
    odds: Array
    worth: Array
    actor: Actor
    order: Array


def train_policy(lessons: Iterable[Lesson], seed: int = 0, options: TrainOptions | None = None) -> Policy:
    """A policy that has learned from ``lessons``; the same ones and the same seed give the same policy.

    Lessons with fewer than two successes teach nothing. Raises ValueError when none is left.
    """
    options = options or TrainOptions()
    rng = np.random.Generator(np.random.PCG64(seed))
    prepared = [_prepare(lesson, options) for lesson in lessons if _teaches(lesson)]
    if not prepared:
        raise ValueError("expected at least one task with two measured configs")
    parameters: Parameters = initial(rng)
    policy, adam = Policy(parameters), Adam(options.rate, beta2=0.999)
    chances = np.sqrt([len(p.hot) for p in prepared])
    chances = chances / chances.sum()
    for step in range(options.steps):
        adam.rate = options.rate * (1 - 0.9 * step / options.steps)
        gradient = _gradient(policy, prepared[int(rng.choice(len(prepared), p=chances))], rng, options)
        adam.step(parameters, {k: g - options.decay * parameters[k] for k, g in gradient.items()})
    return policy


def lessons_of(spaces: Iterable[RecordedSpace]) -> list[Lesson]:
    """Recorded spaces as lessons."""
    return [Lesson(s.space, s.workload, s.target, tuple(s.tell(s.space.listed or ())), s.provider) for s in spaces]


def _teaches(lesson: Lesson) -> bool:
    return sum(isfinite(s) for _, s in lesson.results) > 1


def _prepare(lesson: Lesson, options: TrainOptions) -> _Prepared:
    choices = Choices(lesson.space)
    results = [(c, s) for c, s in lesson.results if lesson.space.valid(c)]
    walks = choices.encode([c for c, _ in results])
    best = min(s for _, s in results)
    reward = np.array([worth(s / best, options.depth) for _, s in results])
    odds = np.exp(reward / options.heat)
    size = len(choices.knobs) * choices.width
    return _Prepared(
        token_features(lesson.space, choices.width), task_features(lesson.workload, lesson.target),
        one_hot(walks, choices.width), choices.masks(walks), odds / odds.sum(),
        reward - reward.mean(), Actor(choices, np.zeros(size), np.zeros((size, size))),
        earlier(len(choices.knobs), choices.width),
    )  # fmt: skip


def worth(slowdown: float, depth: float) -> float:
    """The logarithm of a speed relative to the best, flattened to no less than -``depth``; infinite slowdown is a failure."""
    return -depth * log(slowdown) / (log(slowdown) + depth) if isfinite(slowdown) else -depth


def _gradient(policy: Policy, lesson: _Prepared, rng: np.random.Generator, options: TrainOptions) -> Parameters:
    """Up the likelihood of good configs and down the critic's squared error, on a sample of each."""
    task = lesson.task + options.blur * rng.normal(size=lesson.task.shape)
    layers = policy.forward(task * (rng.random() >= options.blind), lesson.tokens.reshape(-1, TOKEN))
    heads = layers[-1]
    good = rng.choice(len(lesson.hot), options.batch, p=lesson.odds)
    anyone = rng.integers(0, len(lesson.hot), options.batch)
    return backward(policy, layers, {**_actor(lesson, heads, good), **_critic(lesson, heads, anyone)})


def _actor(lesson: _Prepared, heads: dict[str, Array], rows: NDArray[np.int64]) -> dict[str, Array]:
    actor, hot, masks = lesson.actor, lesson.hot[rows], lesson.masks[rows]
    actor.bias = heads["actor"][:, 0]
    actor.pairs = heads["actor_a"] @ heads["actor_b"].T * lesson.order / RANK
    probs, _ = actor.probabilities(hot, masks)
    slope = (hot - probs.reshape(hot.shape)) / len(rows)
    pairs = hot.T @ slope * lesson.order / RANK
    return {"actor": slope.sum(0)[:, None], "actor_a": pairs @ heads["actor_b"], "actor_b": pairs.T @ heads["actor_a"]}


def _critic(lesson: _Prepared, heads: dict[str, Array], rows: NDArray[np.int64]) -> dict[str, Array]:
    hot = lesson.hot[rows]
    pairs = heads["critic_a"] @ heads["critic_b"].T * lesson.order / RANK
    error = _LOUD * (lesson.worth[rows] - hot @ heads["critic"][:, 0] - ((hot @ pairs) * hot).sum(1))
    slope = (hot * error[:, None] / len(rows)).T
    of_pairs = slope @ hot * lesson.order / RANK
    return {
        "critic": slope.sum(1)[:, None], "critic_a": of_pairs @ heads["critic_b"], "critic_b": of_pairs.T @ heads["critic_a"],
    }  # fmt: skip
