"""The cost model and screening, on features made up so that it is known what can be learned."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from math import exp, inf
from pathlib import Path

import numpy as np
import pytest
from recorded_fakes import made_up

from benchmarks.cost_model import ranked, relatives, spearman
from wpk.core.errors import InvalidConfig, LogError, UsageError
from wpk.core.result import Config
from wpk.dsl.features import NAMES
from wpk.search import cost_model
from wpk.search.cost_model import Adapted, CostModel, CostModelOptions, Examples, centre_of, train
from wpk.search.genetic import Genetic, GeneticOptions
from wpk.search.knobs import Ordered
from wpk.search.prior import Screening, ScreenOptions
from wpk.search.space import Space
from wpk.search.strategy import Context, make_strategy
from wpk.settings import effort
from wpk.tuning.screening import examples_of, screening, shipped_cost_model

pytest.importorskip("lightgbm")

SMALL = CostModelOptions(trees=100, rate=0.2, smallest=5, fall=0.5)
KNOBS = ("estimate", "a", "b")


def task(name: str, seed: int, count: int = 200, effect: float = 1.0) -> Examples:
    """Seconds = exp(estimate + effect * a), around a level of the task's own."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 3)) * (0.3, 1, 1) + (seed, 0, 0)
    logs = features[:, 0] + effect * features[:, 1] - seed * 0.5
    return Examples(name, features, np.exp(logs + 0.02 * rng.normal(size=count)))


@pytest.fixture(scope="module")
def model() -> CostModel:
    return train([task("one", 1), task("two", 2), task("three", 3)], KNOBS, 0, SMALL)


def fit_of(costs: np.ndarray, e: Examples) -> float:
    return spearman(costs, e.seconds)


def test_it_learns_what_the_estimate_does_not_know(model: CostModel) -> None:
    unseen = task("four", 7)
    prior = fit_of(unseen.features[:, 0], unseen)
    learned = fit_of(model.score(unseen.features, centre_of(unseen.features)), unseen)
    assert prior < 0.7 and learned > 0.75, (prior, learned)


def test_the_same_examples_and_seed_give_the_same_file(model: CostModel, tmp_path: Path) -> None:
    again = train([task("one", 1), task("two", 2), task("three", 3)], KNOBS, 0, SMALL)
    model.save(tmp_path / "a")
    again.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded, e = CostModel.load(tmp_path / "a"), task("four", 7)
    assert loaded.names == KNOBS
    assert np.allclose(loaded.score(e.features, e.features[0]), model.score(e.features, e.features[0]))


def test_files_of_another_kind_are_refused(model: CostModel, tmp_path: Path) -> None:
    with pytest.raises(LogError, match="cannot read the cost model"):
        CostModel.load(tmp_path / "none")
    model.save(tmp_path / "a")
    data = json.loads((tmp_path / "a").read_text())
    (tmp_path / "a").write_text(json.dumps({**data, "schema": 99}))
    with pytest.raises(LogError, match="expected schema 1, found 99"):
        CostModel.load(tmp_path / "a")


def test_failures_and_lone_configs_teach_nothing() -> None:
    one = task("one", 1)
    broken = Examples("broken", one.features, np.full(len(one.seconds), inf))
    with pytest.raises(ValueError, match="at least one task with two measured configs"):
        train([broken], KNOBS, 0, SMALL)
    assert train([broken, one], KNOBS, 0, SMALL).text == train([one], KNOBS, 0, SMALL).text


def test_a_run_corrects_a_model_that_errs(model: CostModel) -> None:
    other = task("other", 5, effect=-1.0)
    adapted = Adapted(model, centre_of(other.features))
    before = fit_of(adapted.score(other.features[50:]), Examples("", other.features[50:], other.seconds[50:]))
    adapted.fit(other.features[:10], other.seconds[:10])
    assert (adapted.score(other.features) == model.score(other.features, adapted.centre)).all(), "ten are not enough"
    adapted.fit(other.features[:50], np.where(np.arange(50) % 9 == 8, inf, other.seconds[:50]))
    after = fit_of(adapted.score(other.features[50:]), Examples("", other.features[50:], other.seconds[50:]))
    assert before < 0.2 and after > 0.75


def test_without_lightgbm_the_error_is_clear(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: CostModel) -> None:
    model.save(tmp_path / "a")
    real = importlib.util.find_spec
    monkeypatch.setattr(cost_model, "find_spec", lambda name: None if name == "lightgbm" else real(name))
    with pytest.raises(UsageError, match=r"needs LightGBM: pip install 'wpk\[learn\]'"):
        train([task("one", 1)], KNOBS, 0, SMALL)
    with pytest.raises(UsageError, match="needs LightGBM"):
        CostModel.load(tmp_path / "a")
    shipped_cost_model.cache_clear()
    assert shipped_cost_model() is None
    shipped_cost_model.cache_clear()
    screen = Screening(vector)
    screen.tell([({"a": i, "b": 0}, 1.0) for i in range(40)])
    assert screen([{"a": 3, "b": 0}, {"a": 1, "b": 0}]) == pytest.approx([1.0, -1.0]), "the estimate alone"


# Screening

LINE = Space((Ordered("a", tuple(range(40)), 0), Ordered("b", tuple(range(10)), 0)))


def vector(config: Config) -> np.ndarray:
    return np.array([float(config["a"]), float(config["b"]), 0.0])


def test_the_estimate_orders_the_first_candidates() -> None:
    screen = Screening(vector)
    configs = [{"a": a, "b": 1} for a in (5, 1, 9, 3)]
    assert np.argsort(screen(configs)).tolist() == [1, 3, 0, 2]
    calls: list[Config] = []
    few = Screening(lambda c: calls.append(c) or vector(c), None, ScreenOptions(most=1, first=3))  # type: ignore[func-returns-value]
    costs = few(configs)
    assert len(calls) == 3 and costs[3] == pytest.approx(np.mean(costs[:3])), "what was not looked at is average"
    assert few(configs) == costs and len(calls) == 3
    few.tell([])
    assert few(configs)[3] < costs[0] and len(calls) == 4


def test_a_config_without_a_kernel_comes_last() -> None:
    screen = Screening(lambda c: None if c["a"] == 1 else vector(c))
    assert np.argmax(screen([{"a": a, "b": 1} for a in (5, 1, 9)])) == 1
    assert screen([{"a": 1, "b": 1}]) == [0.0]


def test_screening_learns_from_a_run() -> None:
    screen = Screening(vector, None, ScreenOptions(first=64))
    told = [({"a": a, "b": b}, exp(-0.2 * a + 0.1 * b)) for a in range(0, 40, 3) for b in (0, 5, 9)]
    first = screen([c for c, _ in told])
    screen.tell(told)
    later = screen([c for c, _ in told])
    seconds = np.array([s for _, s in told])
    assert spearman(np.array(first), seconds) < 0 < 0.5 < spearman(np.array(later), seconds)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_a_stated_share_of_proposals_passes_unscreened(share: float) -> None:
    asked = 0

    def screen(configs: Sequence[Config]) -> list[float]:
        nonlocal asked
        asked += 1
        return [float(c["a"]) for c in configs]

    strategy = Genetic(LINE, 3, options=GeneticOptions(blind=share), screen=screen)
    for _ in range(25):
        strategy.tell([(c, 1.0 + float(c["a"])) for c in strategy.ask(8)])
    assert 200 - asked == pytest.approx(200 * share, abs=10 if share < 0.5 else 20)


def test_a_good_screen_finds_the_best_sooner() -> None:
    def first(screen: Screening | None, name: str) -> float:
        strategy = make_strategy(name, LINE, 1, (), Context(screen=screen))
        return min(float(c["a"]) + float(c["b"]) for c in strategy.ask(8)[1:])

    for name in ("genetic", "auto"):
        assert first(Screening(vector), name) <= first(None, name)
    bad = Screening(lambda c: -vector(c))
    strategy = make_strategy("genetic", LINE, 1, (), Context(screen=bad))
    best = inf
    for _ in range(12):
        told = [(c, 1.0 + float(c["a"]) + float(c["b"])) for c in strategy.ask(8)]
        strategy.tell(told)
        bad.tell(told)
        best = min(best, *(s for _, s in told))
    assert best <= 3, "what a screen dislikes is found all the same"


# Kernels


class Kernels:
    """A provider of which odd configs have no kernel."""

    name = "generated:fake"

    def features(self, workload: object, config: Config, target: object) -> np.ndarray:
        if int(config["a"]) % 2:
            raise InvalidConfig("odd")
        return np.full(len(NAMES), float(config["a"]))


def test_only_providers_with_features_are_screened() -> None:
    space = made_up()
    assert screening(object(), space.workload, space.target, ScreenOptions()) is None  # type: ignore[arg-type]
    assert screening(Kernels(), space.workload, space.target, None) is None  # type: ignore[arg-type]
    assert screening(Kernels(), space.workload, space.target, ScreenOptions(most=0)) is None  # type: ignore[arg-type]
    screen = screening(Kernels(), space.workload, space.target, ScreenOptions())  # type: ignore[arg-type]
    assert screen is not None and np.argsort(screen([{"a": 4}, {"a": 3}, {"a": 2}])).tolist() == [2, 0, 1]


def test_lessons_become_examples() -> None:
    from wpk.search.train import Lesson

    space = made_up()
    results = (({"a": 2}, 1.0), ({"a": 3}, 2.0), ({"a": 4}, inf))
    lessons = [Lesson(LINE, space.workload, space.target, results, who) for who in ("generated:fake", "library")]
    (found,) = examples_of(lessons, [Kernels()])  # type: ignore[list-item]
    assert found.features[:, 0].tolist() == [2.0, 4.0] and found.seconds.tolist() == [1.0, inf]


def test_the_shipped_model_fits_this_version() -> None:
    found = shipped_cost_model()
    assert found is not None and found.names == NAMES
    assert np.isfinite(found.score(np.ones((2, len(NAMES))), np.zeros(len(NAMES)))).all()


def test_effort_levels_look_at_more_the_more_time_there_is() -> None:
    most = [effort(name).screen.most for name in ("quick", "normal", "thorough")]
    assert 0 < most[0] < most[1] < most[2] and effort("normal").screen == ScreenOptions()


# What the benchmark reports


def test_figures_of_a_ranking() -> None:
    seconds = np.arange(1.0, 1001.0)
    perfect, worst = ranked(seconds, seconds), ranked(-seconds, seconds)
    assert (perfect.spearman, perfect.recall, perfect.best) == (pytest.approx(1), 1.0, 1.0)
    assert (worst.spearman, worst.recall, worst.best) == (pytest.approx(-1), 0.0, 991.0)
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(0.866, abs=1e-3)
    assert spearman(np.ones(3), np.arange(3.0)) == 0
    assert relatives("conv3x3-64x56") == relatives("conv3x3-512x7") != relatives("conv3x3s2-row-128x56")
