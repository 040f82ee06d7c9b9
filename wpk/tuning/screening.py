"""Cost models meet kernels: features by lowering, the shipped model, what logs and recorded spaces teach one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from wpk.core.errors import InvalidConfig
from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.features import NAMES
from wpk.providers.protocol import Provider
from wpk.search.cost_model import Array, CostModel, Examples, available
from wpk.search.prior import Features, Screening, ScreenOptions
from wpk.search.train import Lesson

_LEAVES = NAMES.index("leaves")


@runtime_checkable
class HasFeatures(Protocol):
    """A provider whose kernels can be looked at before they are built."""

    def features(self, workload: Workload, config: Config, target: Target) -> Array:
        """(wpk.dsl.features.FEATURES,) numbers. Raises InvalidConfig."""
        ...


def screening(
    provider: Provider, workload: Workload, target: Target, options: ScreenOptions | None, model: CostModel | None = None
) -> Screening | None:
    """A screen for configs of a provider on a task; None where there is nothing to look at, or no look is wanted."""
    if options is None or options.most < 1 or not isinstance(provider, HasFeatures):
        return None
    return Screening(features_of(provider, workload, target), model, options, effort=effort)


def effort(row: Array) -> float:
    """Lowering takes about 1.2 ms for each of a kernel's leaves; most have three or four, and count for one."""
    return float(max(2 ** row[_LEAVES] - 1, 4) / 4)


def features_of(provider: HasFeatures, workload: Workload, target: Target) -> Features:
    """Features of a config's kernel: lowers it, which takes milliseconds. None for a config without a kernel."""

    def features(config: Config) -> Array | None:
        try:
            return provider.features(workload, config, target)
        except InvalidConfig:
            return None

    return features


@cache
def shipped_cost_model() -> CostModel | None:
    """The model that comes with wpk; None without LightGBM, or where its features are not those of this version.

    It was trained by ``benchmarks/cost_model.py --ship`` on the recorded spaces of the tests, measured on Zen 5.
    """
    path = Path(str(files("wpk.configs"))) / "cost_model" / "cost_model.json"
    if not available() or not path.exists():
        return None
    model = CostModel.load(path)
    return model if model.names == NAMES else None


def examples_of(lessons: Iterable[Lesson], providers: Sequence[Provider]) -> list[Examples]:
    """Lessons of providers whose kernels can be looked at, with features; lowers every config."""
    known = {p.name: p for p in providers}
    found: list[Examples] = []
    for lesson in lessons:
        provider = known.get(lesson.provider)
        if not isinstance(provider, HasFeatures):
            continue
        look = features_of(provider, lesson.workload, lesson.target)
        rows = [(row, seconds) for config, seconds in lesson.results if (row := look(config)) is not None]
        if len(rows) > 1:
            features, seconds = np.stack([r for r, _ in rows]), np.array([s for _, s in rows])
            found.append(Examples(f"{lesson.provider} {lesson.workload.key}", features, seconds))
    return found
