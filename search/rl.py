"""The reinforcement-learning strategy: an agent that builds a config knob by knob and learns from what the config was worth.

Proximal policy optimization (Schulman et al., 2017): a clipped objective on small batches, an entropy bonus, a value baseline.
A hundred measurements are few for a policy gradient, so it also practises, as DyNA-PPO does (Angermueller et al., ICLR 2020):
between batches the agent builds configs in imagination, a critic fitted to the measurements (:mod:`wpk.search.critic`) says
what they might be worth, and the policy learns from both. Where the critic has no skill only measurements count. The best
measured configs are replayed (self-imitation), so that good luck is not forgotten.

With a trained policy (:func:`train_policy`) it begins where other tasks ended; without one, uniformly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import erf, exp, inf, isfinite, log, pi, sqrt
from random import Random

import numpy as np

from wpk.core.result import config_key
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.search.choices import Bools, Choices, Ints
from wpk.search.critic import Critic
from wpk.search.features import Array, task_features, token_features
from wpk.search.policy import Actor, Adam, Policy, Tables, earlier, one_hot
from wpk.search.space import Config, Space
from wpk.search.train import train_policy as train_policy
from wpk.search.train import worth

#: Predicts what configs cost, any unit, smaller is better: a cost model's opinion.
Screen = Callable[[Sequence[Config]], Sequence[float]]

#: What a failure is worth, in nats below the slowest that counts: what costs no time to find out is least bad, and what timed
#: out may just be slow. A kind that is not known counts as ``crash``.
PENALTIES: Mapping[str, float] = {
    "invalid": 0.1, "compile": 0.1, "timeout": 0.0, "memory": 0.1, "launch": 0.15, "crash": 0.2, "wrong": 0.2,
}  # fmt: skip

#: Configs of a space that are counted.
_SMALL = 500
#: How flat the policy's draws are among which a batch is chosen; the last are as good as uniform.
_HEATS = (1.0, 2.0, 100.0)
#: Standard deviation, in nats, of what a trained policy says of a config before anything was measured.
_UNSURE = 0.1
#: Where fewer of the draws than this share are new, the policy is too sure of itself: its logits shrink by this factor.
_NOVEL, _SHRINK = 0.5, 0.8


@dataclass(frozen=True)
class RlOptions:
    """Hyper-parameters; the reasons are in ``configs/effort/*.toml``.

    ``rounds`` of practice after each batch, of ``imagined`` configs and ``epochs`` steps of size ``rate``; ``clip`` of the
    probability ratio; ``entropy`` bonus at the start and ``calm``, measurements after which it has fallen to half; ``decay`` of
    credit along the knobs (GAE's λ); ``elite`` configs replayed; ``depth``, nats below the best at which all counts as equally
    bad; ``optimism``, standard deviations added to the critic's opinion; ``pool`` configs drawn at each of three heats to
    choose a batch from; ``free`` share of proposals that nobody screens; ``skill`` below which the critic is not believed.
    """

    rounds: int = 3
    imagined: int = 96
    epochs: int = 4
    rate: float = 0.05
    clip: float = 0.3
    entropy: float = 0.2
    calm: float = 40.0
    decay: float = 0.9
    elite: int = 8
    depth: float = 0.7
    optimism: float = 1.2
    pool: int = 96
    free: float = 0.1
    skill: float = 0.1


@dataclass
class _History:
    """All that was measured, as walks and seconds, in order."""

    walks: list[tuple[int, ...]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min(self.seconds, default=inf)


class Reinforced:
    """See the module. ``first`` are tried before anything else. Raises ValueError for an empty space."""

    def __init__(
        self, space: Space, seed: int, first: Sequence[Config] = (), options: RlOptions | None = None,
        workload: Workload | None = None, target: Target | None = None, policy: Policy | None = None,
        screen: Screen | None = None,
    ) -> None:  # fmt: skip
        self._space, self._options, self._screen = space, options or RlOptions(), screen
        self._seed, self._random, self._rng = seed, Random(seed), np.random.Generator(np.random.PCG64(seed))
        self._choices = Choices(space)
        self._queue, self._size = [dict(c) for c in first], space.size(_SMALL)
        self._seen: set[str] = set()
        self._history, self._learned = _History(), 0
        self._kinds: dict[str, str] = {}
        self._critic = Critic(space.knobs, self._choices.width)
        self._trained = policy is not None
        self._tables = _tables(self._choices, workload, target, policy)
        self._actor = Actor(self._choices, self._tables.actor.copy(), self._tables.actor_pairs.copy())
        self._pairs = earlier(len(space.knobs), self._choices.width)
        self._adam = Adam(self._options.rate)
        self._rest: Iterator[Config] | None = None

    def ask(self, n: int) -> list[Config]:
        """``n`` configs, none asked or told before; fewer when the space is used up."""
        asked: list[Config] = []
        while self._queue and len(asked) < n:
            config = self._queue.pop(0)
            if self._fresh(config):
                asked.append(config)
        if len(asked) < n:
            self._learn()
            asked += self._proposals(n - len(asked))
        return asked

    def tell(self, results: Sequence[tuple[Config, float]]) -> None:
        """Results enter the history; the next :meth:`ask` learns from them."""
        valid = [(c, s) for c, s in results if self._space.valid(c)]
        self._seen.update(config_key(c) for c, _ in valid)
        if valid:
            self._history.walks += map(tuple, self._choices.encode([c for c, _ in valid]).tolist())
            self._history.seconds += (s for _, s in valid)
            self._history.kinds += (self._kinds.get(config_key(c), "crash") for c, _ in valid)

    def tell_failures(self, kinds: Sequence[tuple[Config, str]]) -> None:
        """How configs failed that :meth:`tell` will say took forever."""
        self._kinds.update((config_key(c), kind) for c, kind in kinds)

    def expected(self, configs: Sequence[Config]) -> list[float]:
        """The critic's expectation of log(seconds / best seconds) of configs; 0 for all while nothing is known."""
        if not configs or not self._ready():
            return [0.0] * len(configs)
        walks = self._choices.encode(configs)
        mean, _ = self._critic.predict(walks, self._opinion(walks))
        return [float(-m) for m in mean]

    def opinion(self, configs: Sequence[Config]) -> list[float] | None:
        """What the trained policy thinks configs are worth, in nats; None without one."""
        if not self._trained or not configs:
            return None
        return [float(x) for x in self._opinion(self._choices.encode(configs))]

    def expected_gain(self, seconds: float = inf) -> float:
        """The share of the best time, or of ``seconds`` if less, that one more config is expected to save; infinity: unknown.

        It is the expected improvement (Jones et al., 1998) of the most promising config that the policy draws, by the critic,
        once that has skill.
        """
        self._learn()
        if not self._ready() or self._critic.skill < self._options.skill:
            return inf
        rng = np.random.Generator(np.random.PCG64([self._seed, self._learned]))  # asking changes no proposal
        pool = self._pool(rng)
        if not pool:
            return 0.0
        mean, deviation, _ = self._known_promise(pool)
        beyond = log(max(self._history.best / seconds, 1.0))
        return 1 - exp(-max(map(_improvement, (mean - beyond).tolist(), deviation.tolist())))

    # Proposing

    def _fresh(self, config: Config) -> bool:
        """True, once, for what was neither asked nor told."""
        key = config_key(config)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _proposals(self, n: int) -> list[Config]:
        pool = self._pool(self._rng)
        informed = self._ready() or self._trained or self._screen is not None
        ranked = self._ranked(pool, n) if informed else list(range(len(pool)))
        asked = [c for i in ranked[:n] if self._fresh(c := pool[i])]
        while len(asked) < n and (config := self._leftover()) is not None:
            asked.append(config)
        return asked

    def _pool(self, rng: np.random.Generator) -> list[Config]:
        """Distinct new configs, as the policy draws them: a part each as it is and ever flatter, the likeliest first."""
        walks = [self._actor.sample(self._options.pool, rng, heat) for heat in _HEATS]
        found: dict[str, Config] = {}
        for walk in dict.fromkeys(map(tuple, np.concatenate(walks).tolist())):
            config = self._choices.decode(walk, self._random)
            if (key := config_key(config)) not in self._seen:
                found.setdefault(key, config)
        return list(found.values())

    def _ranked(self, pool: Sequence[Config], n: int) -> list[int]:
        """Indices of a batch of ``n``: the most promising, but not all alike, and a share just as they were drawn."""
        if not pool:
            return []
        mean, deviation, walks = self._promise(pool)
        chosen: list[int] = []
        while len(chosen) < min(n, len(pool)):
            free = self._rng.random() < (self._options.free if self._ready() else 0.5)
            merit = np.arange(len(pool), 0, -1.0) if free else mean + self._options.optimism * deviation
            merit[chosen] = -np.inf
            chosen.append(int(np.argmax(merit)))
            deviation = deviation * (1 - 0.9 * (walks == walks[chosen[-1]]).mean(axis=1) ** 4)
        return chosen

    def _known_promise(self, pool: Sequence[Config]) -> tuple[Array, Array, Ints]:
        """Mean and deviation of the worth of configs, by what was measured or else by the trained policy; and their walks."""
        walks = self._choices.encode(pool)
        mean, deviation = self._opinion(walks), np.full(len(pool), _UNSURE)
        if self._ready():
            mean, deviation = self._critic.predict(walks, mean)
        return mean, deviation, walks

    def _promise(self, pool: Sequence[Config]) -> tuple[Array, Array, Ints]:
        """The same, heeding the screen."""
        mean, deviation, walks = self._known_promise(pool)
        if self._screen is not None:
            cost = np.argsort(np.argsort(self._screen(pool))) / len(pool)
            mean = mean - cost * (mean.std() + 0.02)
        return mean, deviation, walks

    def _leftover(self) -> Config | None:
        """The policy finds nothing new: draw anything, then go through what remains."""
        for _ in range(60):
            if self._rest is None and self._fresh(config := self._space.sample(self._random)):
                return config
        self._rest = self._rest or self._space.enumerate()
        return next(filter(self._fresh, self._rest), None)

    # Learning

    def _ready(self) -> bool:
        """True once the critic was fitted."""
        return self._learned > 0

    def _learn(self) -> None:
        history, options = self._history, self._options
        if len(history.walks) == self._learned or sum(map(isfinite, history.seconds)) < 2:
            return
        walks, values = np.array(history.walks, np.int32), self._worth()
        self._critic.fit(walks, values, self._opinion(walks))
        fresh, self._learned = len(walks) - self._learned, len(walks)
        elite = np.argsort(-values, kind="stable")[: options.elite]
        kept = np.unique(np.concatenate([elite, np.arange(len(walks) - fresh, len(walks))]))
        for _ in range(options.rounds):
            self._loosen()
            self._practise(walks[kept], values[kept])

    def _loosen(self) -> None:
        """Flatten the policy until enough of what it draws is new."""
        known = set(self._history.walks)
        for _ in range(20):
            drawn = self._actor.sample(48, self._rng).tolist()
            new = {w for w in map(tuple, drawn) if w not in known}
            if len(new) >= _NOVEL * len(drawn) or len(known) >= _NOVEL * self._size:
                break
            self._actor.bias *= _SHRINK
            self._actor.pairs *= _SHRINK

    def _worth(self) -> Array:
        """What each measurement was worth: nats of speed below the best, flattened where far, less for failures.

        The reward is the log-speedup over the task's default; only differences count, so the best serves as zero.
        """
        depth, best = self._options.depth, self._history.best
        return np.array([
            worth(s / best, depth) - (0.0 if isfinite(s) else PENALTIES.get(kind, PENALTIES["crash"]))
            for s, kind in zip(self._history.seconds, self._history.kinds, strict=True)
        ])  # fmt: skip

    def _opinion(self, walks: Ints) -> Array:
        """The trained critic's opinion of what walks are worth."""
        hot = one_hot(walks, self._choices.width)
        return np.asarray(hot @ self._tables.critic + ((hot @ self._tables.critic_pairs) * hot).sum(1))

    def _practise(self, measured: Ints, values: Array) -> None:
        """One round: imagine, value, and follow the gradient for some epochs."""
        walks, reward = measured, values
        if self._critic.skill >= self._options.skill:
            imagined = self._actor.sample(self._options.imagined, self._rng)
            mean, deviation = self._critic.predict(imagined, self._opinion(imagined))
            walks = np.concatenate([measured, imagined])
            reward = np.concatenate([values, mean + self._options.optimism * deviation])
        hot, masks = one_hot(walks, self._choices.width), self._choices.masks(walks)
        probs, logs = self._actor.probabilities(hot, masks)
        advantage = _advantages(hot, probs, reward, self._options.decay)
        old = _chosen(logs, walks)
        for _ in range(self._options.epochs):
            self._step(walks, hot, masks, old, advantage)

    def _step(self, walks: Ints, hot: Array, masks: Bools, old: Array, advantage: Array) -> None:
        """The gradient of the clipped objective plus the entropy bonus."""
        options = self._options
        probs, logs = self._actor.probabilities(hot, masks)
        ratio = np.exp(np.clip(_chosen(logs, walks) - old, -5, 5))
        clipped = np.where(advantage > 0, ratio > 1 + options.clip, ratio < 1 - options.clip)
        weight = np.where(clipped, 0.0, ratio * advantage)[:, :, None]
        slope = weight * (hot.reshape(masks.shape) - probs)
        entropy = -(probs * logs).sum(axis=2, keepdims=True)
        bonus = options.entropy * 0.5 ** (self._learned / options.calm)
        slope = (slope - bonus * probs * (logs + entropy)).reshape(len(walks), -1) / len(walks)
        gradient = {"bias": slope.sum(axis=0), "pairs": hot.T @ slope * self._pairs}
        self._adam.step({"bias": self._actor.bias, "pairs": self._actor.pairs}, gradient)


def _tables(
    choices: Choices, workload: Workload | None, target: Target | None, policy: Policy | None
) -> Tables:
    if policy is not None:
        return policy.tables(task_features(workload, target), token_features(choices.space, choices.width))
    size = len(choices.knobs) * choices.width
    zero, square = np.zeros(size), np.zeros((size, size))
    return Tables(zero, square, zero, square)


def _improvement(mean: float, deviation: float) -> float:
    """How much a normal variable is expected to exceed 0, counting 0 where it does not."""
    z = mean / deviation
    return mean * (1 + erf(z / sqrt(2))) / 2 + deviation * exp(-z * z / 2) / sqrt(2 * pi)


def _chosen(logs: Array, walks: Ints) -> Array:
    """(N, K): of each knob's values the chosen one's."""
    return np.take_along_axis(logs, walks[:, :, None].astype(np.int64), axis=2)[:, :, 0]


def _advantages(hot: Array, probs: Array, reward: Array, decay: float) -> Array:
    """(N, K) advantages of each choice: generalized advantage estimation over the value baseline.

    The baseline of a half-built config is what is expected of the knobs chosen so far: the mean reward plus, for each of them,
    how much its value is better than the policy's average choice; a ridge regression on the batch says how much that is.
    """
    surplus = hot.reshape(probs.shape) - probs
    design = surplus.reshape(len(hot), -1)
    centred = reward - reward.mean()
    gram = design @ design.T
    gram[np.diag_indices(len(gram))] += 0.1 * len(gram)
    gains = (surplus * (design.T @ np.linalg.solve(gram, centred)).reshape(probs.shape[1:])).sum(axis=2)
    found, ahead = np.zeros_like(gains), centred - gains.sum(axis=1)
    for k in range(gains.shape[1] - 1, -1, -1):
        ahead = gains[:, k] + decay * ahead
        found[:, k] = ahead
    return np.asarray(found / (found.std() + 1e-8))
