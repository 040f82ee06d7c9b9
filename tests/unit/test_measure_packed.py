"""Configs that pack alike share one packing; how much is kept is bounded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from measure_fakes import Fakes, add_relu

from wpk.core.result import Config
from wpk.core.target import Target, host_target
from wpk.core.workload import Workload
from wpk.measure import packed
from wpk.measure.inputs import Folder
from wpk.measure.packed import Packs, packing_key

ONES = [np.ones(8, np.float32)]


@dataclass(frozen=True)
class Packing(Fakes):
    """Fakes that notes each config it packs for."""

    packing: tuple[str, ...] | None = ("way",)  # type: ignore[assignment]
    asked: list[Config] = field(default_factory=list)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """As they are."""
        self.asked.append(config)
        if config["way"] == "broken":
            raise ValueError("cannot pack")
        return list(constants)


@pytest.fixture
def folder() -> Iterator[Folder]:
    made = Folder()
    yield made
    made.close()


def test_only_the_named_knobs_tell_packings_apart() -> None:
    a, b = {"way": "good", "work": 1}, {"way": "good", "work": 2}
    assert packing_key(Packing(), a) == packing_key(Packing(), b)
    assert packing_key(Packing(packing=None), a) != packing_key(Packing(packing=None), b)


def test_a_packing_is_made_once(folder: Folder) -> None:
    packs, provider = Packs(folder, host_target(1)), Packing()
    files = {
        packs.of(add_relu(), provider, {"way": w, "work": i}, ONES)
        for i in range(3)
        for w in ("good", "late")
    }
    assert len(provider.asked) == len(files) == 2
    assert all(size == ONES[0].nbytes for _, size in files)


def test_a_packing_that_fails_fails_again(folder: Folder) -> None:
    packs, provider = Packs(folder, host_target(1)), Packing()
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot pack"):
            packs.of(add_relu(), provider, {"way": "broken"}, ONES)
    assert len(provider.asked) == 2


def test_the_oldest_go_when_there_are_too_many(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    packs, provider = Packs(folder, host_target(1)), Packing()
    monkeypatch.setattr(packed, "_KEEP", 2 * ONES[0].nbytes)
    for way in ("good", "late", "null"):
        packs.of(add_relu(), provider, {"way": way}, ONES)
    packs.make_room()
    assert len(list(folder.path.iterdir())) == 2
    packs.of(add_relu(), provider, {"way": "null"}, ONES)
    packs.of(add_relu(), provider, {"way": "good"}, ONES)
    assert [c["way"] for c in provider.asked] == ["good", "late", "null", "good"]
