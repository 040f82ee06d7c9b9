"""A learned cost model: gradient-boosted trees that rank configs of a task by features of their kernels.

It knows no kernels: whoever uses it brings features, rows of numbers of which the first is the logarithm of an analytic
estimate. The trees begin at that estimate and learn where it errs, by LambdaMART (Burges, 2010) with one query a task, as
in learned compilers' cost models (Chen et al., "Learning to Optimize Tensor Programs", NeurIPS 2018). Features are centred
on those of a few configs of the same task, so that what is learned of one task carries over to another. Within a run more trees
are grown on the task's own measurements. LightGBM is an optional extra, ``learn``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wpk.core.errors import LogError, UsageError

Array = NDArray[np.float64]

#: Version of the files' form. A reader refuses others.
SCHEMA = 1
#: What to do without LightGBM, for messages.
HOW_TO_INSTALL = "the cost model needs LightGBM: pip install 'wpk[learn]'"
#: Grades of relevance: a config as fast as the best, down to one several times slower.
_GRADES = 31
#: Measurements that a model's score counts for when it is compared with those of a run.
_CONFIRMED = 8.0


@dataclass(frozen=True)
class CostModelOptions:
    """``trees`` of ``leaves`` leaves, each worth ``rate``; ``smallest`` leaf, in configs. ``trust``: what a nat of the analytic
    estimate is worth in the trees' score. ``fall``: how fast relevance falls with nats of slowdown. ``query``: configs that are
    compared with each other at most.

    In a run: ``own_trees`` of ``own_leaves`` leaves at ``own_rate``, grown once there are ``enough`` measurements.
    """

    trees: int = 150
    leaves: int = 15
    rate: float = 0.05
    smallest: int = 20
    trust: float = 6.0
    fall: float = 2.0
    query: int = 256
    own_trees: int = 60
    own_leaves: int = 6
    own_rate: float = 0.1
    enough: int = 16


@dataclass(frozen=True)
class Examples:
    """What was measured of a task: ``features`` (N, F) and ``seconds`` (N,), infinity for a failure. Needs two successes."""

    task: str
    features: Array
    seconds: Array


@dataclass
class CostModel:
    """Trees as LightGBM's text, and the names of the features they were grown on. Immutable in effect."""

    names: tuple[str, ...]
    text: str
    options: CostModelOptions = field(default_factory=CostModelOptions)
    _booster: Any = None

    def score(self, features: Array, centre: Array) -> Array:
        """(N,) costs in nats, roughly and up to a constant, of ``features`` (N, F) around a task's ``centre`` (F,)."""
        if not len(features):
            return np.zeros(0)
        raw = np.asarray(self._trees().predict(features - centre, raw_score=True), np.float64)
        return np.asarray(features[:, 0] - centre[0] - raw / self.options.trust)

    def save(self, path: Path) -> None:
        """Write JSON."""
        data = {"schema": SCHEMA, "names": self.names, "trust": self.options.trust, "trees": self.text.split("\n")}
        path.write_text(json.dumps(data, indent=0) + "\n")

    @staticmethod
    def load(path: Path) -> CostModel:
        """Read what :meth:`save` wrote. Raises LogError when unreadable or of another schema, UsageError without LightGBM."""
        lightgbm()
        try:
            data = json.loads(path.read_text())
            if data["schema"] != SCHEMA:
                raise LogError(f"{path}: expected schema {SCHEMA}, found {data['schema']}")
            options = CostModelOptions(trust=float(data["trust"]))
            return CostModel(tuple(data["names"]), "\n".join(data["trees"]), options)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LogError(f"cannot read the cost model {path}: {error}") from error

    def _trees(self) -> Any:
        if self._booster is None:
            self._booster = lightgbm().Booster(model_str=self.text)
        return self._booster


@dataclass
class Adapted:
    """A model, or the bare estimate without one, corrected by a task's own measurements."""

    model: CostModel | None
    centre: Array
    options: CostModelOptions = field(default_factory=CostModelOptions)
    _own: Any = None
    _slope: float = 1.0

    def score(self, features: Array) -> Array:
        """(N,) costs of configs of the task, as :meth:`CostModel.score`."""
        start = self._start(features)
        if self._own is None or not len(features):
            return start
        return start + np.asarray(self._own.predict(features - self.centre), np.float64)

    def fit(self, features: Array, seconds: Array) -> None:
        """Grow trees on all measurements so far (N, F), (N,); nothing while they are fewer than ``enough``."""
        ran = np.isfinite(seconds)
        if ran.sum() < self.options.enough:
            return
        logs = np.where(ran, np.log(np.where(ran, seconds, 1.0)), 0.0)
        logs = np.where(ran, logs, logs[ran].max() + 0.5)
        self._slope = 1.0
        start, options = self._start(features), self.options
        self._slope = _slope(start, logs)
        surprise = logs - logs.mean() - self._slope * (start - start.mean())
        settings = {
            **_COMMON, "objective": "regression", "num_leaves": options.own_leaves, "learning_rate": options.own_rate,
            "min_data_in_leaf": 3, "feature_fraction": 0.3, "bagging_fraction": 1.0, "bagging_freq": 0, "lambda_l2": 1.0,
        }  # fmt: skip
        weight = np.exp(-(logs - logs.min())) + 0.2
        data = lightgbm().Dataset(features - self.centre, surprise, weight=weight)
        self._own = lightgbm().train(settings, data, options.own_trees)

    def _start(self, features: Array) -> Array:
        if self.model is None:
            return self._slope * np.asarray(features[:, 0] - self.centre[0], np.float64)
        return self._slope * self.model.score(features, self.centre)


def _slope(start: Array, logs: Array) -> float:
    """How far a starting score is to be believed: least squares, as if some measurements had confirmed it before."""
    x, y = start - start.mean(), logs - logs.mean()
    doubt = _CONFIRMED * float(x.var()) + 1e-9
    return max((float(x @ y) + doubt) / (float(x @ x) + doubt), 0.0)


_COMMON: dict[str, Any] = {
    "verbose": -1, "num_threads": 1, "deterministic": True, "force_row_wise": True, "seed": 0, "feature_pre_filter": False,
}  # fmt: skip


def lightgbm() -> Any:
    """The library. Raises UsageError, saying how to get it, where it is not installed."""
    if not available():
        raise UsageError(HOW_TO_INSTALL)
    import lightgbm

    return lightgbm


def available() -> bool:
    """Whether LightGBM is installed."""
    return find_spec("lightgbm") is not None


def train(
    examples: Iterable[Examples], names: Sequence[str], seed: int = 0, options: CostModelOptions | None = None
) -> CostModel:
    """A model of all tasks; the same examples and seed give the same model.

    Raises ValueError when no task has two configs that ran, UsageError without LightGBM.
    """
    options, rng = options or CostModelOptions(), np.random.Generator(np.random.PCG64(seed))
    parts = [part for e in examples if np.isfinite(e.seconds).sum() > 1 for part in _queries(e, rng, options)]
    if not parts:
        raise ValueError("expected at least one task with two measured configs")
    rows, grades, starts, weights = (np.concatenate(x) for x in zip(*parts, strict=True))
    groups = [len(p[1]) for p in parts]
    data = lightgbm().Dataset(rows, grades, group=groups, init_score=starts, weight=weights)
    settings = {
        **_COMMON, "objective": "lambdarank", "num_leaves": options.leaves, "learning_rate": options.rate, "seed": seed,
        "min_data_in_leaf": options.smallest, "feature_fraction": 0.5, "bagging_fraction": 0.7, "bagging_freq": 1,
        "lambda_l2": 5.0, "lambdarank_truncation_level": 64, "label_gain": [float(i) for i in range(_GRADES + 1)],
    }  # fmt: skip
    booster = lightgbm().train(settings, data, options.trees)
    return CostModel(tuple(names), _plain(booster.model_to_string()), options)


def centre_of(features: Array) -> Array:
    """(F,) what features of a task are centred on: the mean of a few of its configs."""
    return np.asarray(features.mean(axis=0))


def _queries(e: Examples, rng: np.random.Generator, options: CostModelOptions) -> list[tuple[Array, Array, Array, Array]]:
    """Rows, grades, starting scores and weights of a task, in queries of comparable size."""
    ran = np.isfinite(e.seconds)
    features, logs = e.features[ran], np.log(e.seconds[ran])
    few = rng.permutation(len(features))[:64]
    rows = features - centre_of(features[few])
    grades = np.round(_GRADES * np.exp(-options.fall * (logs - logs.min())))
    weights = np.full(len(rows), len(rows) ** -0.5 * 30)
    order = rng.permutation(len(rows))
    pieces = np.array_split(order, max(round(len(rows) / options.query), 1))
    return [(rows[p], grades[p], -options.trust * rows[p, 0], weights[p]) for p in pieces]


def _plain(text: str) -> str:
    """The trees without the settings they were grown with."""
    return text.split("\nparameters:")[0].rstrip() + "\n"
