"""Engines take turns, inputs are seeded, errors are measured; files hold feeds and results."""

from pathlib import Path

import numpy as np
import pytest

from wpk.core.errors import FeedError, StorageError, UsageError
from wpk.report.arrays import read_feeds, write_results
from wpk.report.engines import Engine, in_turns, random_feeds, relative_l2, rival_engine
from wpk.runtime.plan import Port

PORTS = (Port("x", "float32", (2, 3)), Port("ids", "int64", (4,)))


def test_engines_take_turns() -> None:
    calls: list[str] = []

    def engine(name: str) -> Engine:
        return Engine(name, lambda feeds: calls.append(name) or [])  # type: ignore[func-returns-value]

    timings = in_turns([engine("a"), engine("b")], {}, rounds=2, block=0.0, settle=0.0)
    blocks = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert blocks == ["a", "b", "a"]  # the second round starts with b
    assert [(t.name, len(t.samples)) for t in timings] == [("a", 10), ("b", 10)]


def test_random_feeds_are_seeded_and_typed() -> None:
    feeds = random_feeds(PORTS, 3)
    assert feeds["x"].dtype == np.float32 and feeds["x"].shape == (2, 3)
    assert feeds["ids"].dtype == np.int64 and set(feeds["ids"]) <= {0, 1}
    assert np.array_equal(feeds["x"], random_feeds(PORTS, 3)["x"])
    assert not np.array_equal(feeds["x"], random_feeds(PORTS, 4)["x"])


def test_relative_l2() -> None:
    one = np.ones(4, np.float32)
    assert relative_l2(one, one) == 0.0
    assert relative_l2(one * 1.1, one) == pytest.approx(0.1)
    assert relative_l2(np.zeros(3), np.zeros(3)) == 0.0
    assert relative_l2(np.array([1.0, np.nan]), np.array([1.0, 2.0])) == float("inf")
    assert relative_l2(np.array([1.0, -np.inf]), np.array([1.0, -np.inf])) == 0.0
    assert relative_l2(np.ones(3), np.ones(4)) == float("inf")


def test_unknown_rival_lists_the_known() -> None:
    with pytest.raises(UsageError, match="expected onnxruntime or openvino"):
        rival_engine("tensorrt", b"", 1, ())


def test_feeds_from_npz_by_name_and_npy_by_order(tmp_path: Path) -> None:
    x, ids = np.ones((2, 3), np.float32), np.arange(4)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "named.npz", ids=ids)
    found = read_feeds([tmp_path / "named.npz", tmp_path / "x.npy"], PORTS)
    assert set(found) == {"x", "ids"} and np.array_equal(found["ids"], ids)


@pytest.mark.parametrize("content", [b"", b"hello, I am text"])
def test_feed_that_is_no_array(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.npy"
    file.write_bytes(content)
    with pytest.raises(FeedError, match=r"x\.npy"):
        read_feeds([file], PORTS)


def test_pickled_feed_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(FeedError, match="plain numbers"):
        read_feeds([tmp_path / "x.npy"], PORTS)


def test_missing_and_surplus_feeds(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="no such file"):
        read_feeds([tmp_path / "none.npy"], PORTS)
    np.save(tmp_path / "x.npy", np.ones(1))
    with pytest.raises(FeedError, match="only 1"):
        read_feeds([tmp_path / "x.npy"] * 2, PORTS[:1])


def test_results_round_trip(tmp_path: Path) -> None:
    y = np.arange(3.0)
    write_results(tmp_path / "y.npz", {"y": y, "z": y + 1})
    write_results(tmp_path / "y.npy", {"y": y})
    assert np.array_equal(np.load(tmp_path / "y.npz")["z"], y + 1) and np.array_equal(
        np.load(tmp_path / "y.npy"), y
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["y.npy", "y.npz"]


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="npz"):
        write_results(tmp_path / "y.txt", {"y": np.ones(1)})
    with pytest.raises(UsageError, match="2 outputs"):
        write_results(tmp_path / "y.npy", {"y": np.ones(1), "z": np.ones(1)})
    with pytest.raises(StorageError, match="nowhere"):
        write_results(tmp_path / "nowhere" / "y.npy", {"y": np.ones(1)})
