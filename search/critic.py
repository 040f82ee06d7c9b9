"""The critic: what a config will be worth, and how sure that is, after the configs measured so far.

A Gaussian process on configs. Two configs are alike by exp(−Σ over knobs of relevance × distance), where the distance of two
values is how many steps apart they are (Ordered) or whether they differ (Choice); relevances and noise are those that make the
measurements likeliest, found by gradient. The prior mean may be another's opinion (the trained policy's critic head): believed
at first, then as much as it proves right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from wpk.search.choices import Ints
from wpk.search.features import Array
from wpk.search.knobs import Knob, Ordered

#: Variance of the prior on the logarithms of relevances, and the logarithm of their usual sum over knobs.
_LOOSE, _USUAL = 1.0, 0.7
#: Variance of the weight that an opinion deserves, around 1.
_DOUBT = 1.0
#: Bounds of the noise variance relative to the signal's.
_NOISE = (1e-4, 0.5)
_RATE = 0.25


@dataclass
class Critic:
    """See the module. ``knobs`` of V values at most; ``fit`` before asking anything."""

    knobs: tuple[Knob, ...]
    width: int
    relevance: Array = field(init=False)
    noise: float = 0.02

    def __post_init__(self) -> None:
        self._far = np.stack([_distances(k, self.width) for k in self.knobs])
        self._usual = _USUAL - np.log(max(sum(len(k.values) > 1 for k in self.knobs), 1))
        self.relevance = np.full(len(self.knobs), self._usual)
        self._log_noise = float(np.log(self.noise))
        self._walks = np.zeros((0, len(self.knobs)), np.int32)

    def fit(self, walks: Ints, worth: Array, opinion: Array, steps: int = 4) -> None:
        """Take in all measurements: walks (N, K), what they were worth (N,), the prior opinion of that up to a constant (N,)."""
        self._walks, self._centre, self._mean = walks, float(opinion.mean()), float(worth.mean())
        surprise = worth - self._mean - (opinion - self._centre)
        self._scale, self._variance = float(surprise.std()) or 1.0, float(worth.var())
        self._opinion = (opinion - self._centre) / self._scale * _DOUBT**0.5
        y = surprise / self._scale
        far = self._far[np.arange(walks.shape[1])[None, None], walks[:, None], walks[None]]
        for _ in range(steps):
            self._climb(far, y)
        self._solve(far, y)

    def predict(self, walks: Ints, opinion: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the worth of walks, (M,) each."""
        weighted = self._far * np.exp(self.relevance)[:, None, None]
        near = np.zeros((len(walks), len(self._walks)))
        for k in range(walks.shape[1]):
            near += weighted[k][:, self._walks[:, k]][walks[:, k]]
        scaled = (opinion - self._centre) / self._scale * _DOUBT**0.5
        cross = np.exp(-near) + np.outer(scaled, self._opinion)
        own = 1.0 + scaled**2
        variance = own - np.einsum("ij,ij->i", cross @ self._inverse, cross)
        deviation = np.sqrt(np.maximum(variance * self._amplitude, 1e-9))
        mean = self._mean + (opinion - self._centre) + self._scale * (cross @ self._alpha)
        return mean, self._scale * deviation

    @property
    def skill(self) -> float:
        """Share of the variance that it explains of measurements left out, one at a time; 0 or less: none."""
        missed = self._scale * self._alpha / np.diag(self._inverse)
        return 1 - float((missed**2).mean()) / max(self._variance, 1e-12)

    def _kernel(self, far: Array) -> Array:
        return np.asarray(np.exp(-(far @ np.exp(self.relevance))))

    def _solve(self, far: Array, y: Array) -> Array:
        alike = self._kernel(far)
        full = alike + np.outer(self._opinion, self._opinion)
        full[np.diag_indices(len(y))] += np.exp(self._log_noise)
        self._inverse = np.linalg.inv(full)
        self._alpha = self._inverse @ y
        self._amplitude = max(float(y @ self._alpha) / len(y), 1e-6)
        return alike

    def _climb(self, far: Array, y: Array) -> None:
        """A step that makes the measurements likelier, in the logarithms of the relevances and of the noise."""
        alike = self._solve(far, y)
        slope = 0.5 * (np.outer(self._alpha, self._alpha) / self._amplitude - self._inverse)
        of_relevance = -np.einsum("ij,ijk->k", slope * alike, far) * np.exp(self.relevance)
        of_relevance -= (self.relevance - self._usual) / _LOOSE
        of_noise = float(np.trace(slope)) * np.exp(self._log_noise) - (self._log_noise + 4.0) / 4
        self.relevance = self.relevance + _RATE * np.tanh(of_relevance)
        self._log_noise = float(np.clip(self._log_noise + _RATE * np.tanh(of_noise), *np.log(_NOISE)))


def _distances(knob: Knob, width: int) -> Array:
    """(V, V): how far apart values are, at most 1."""
    ranks = np.arange(width)
    if isinstance(knob, Ordered):
        steps: Array = np.minimum(np.abs(ranks[:, None] - ranks) / max(len(knob.values) - 1, 1), 1.0)
        return np.sqrt(steps)
    return np.asarray(ranks[:, None] != ranks, np.float64)
