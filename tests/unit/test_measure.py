"""Candidates of every kind of failure become Measurements of that kind; the good are timed; nothing is left behind."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from measure_fakes import Fakes, add_relu, config, oracle

from wpk.core.result import Measurement
from wpk.core.target import host_target
from wpk.measure.inputs import random_inputs
from wpk.measure.measurer import MeasureOptions, Measurer, _Built, cpu_measurer
from wpk.measure.timer import Timing
from wpk.measure.toolchain import find_compiler
from wpk.measure.worker import request_of

OPTIONS = MeasureOptions(seconds=2.0, nbytes=256 << 20, timing=Timing(max_seconds=0.01))


@pytest.fixture(scope="module")
def measurer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measurer]:
    with cpu_measurer(host_target(2), tmp_path_factory.mktemp("cache"), find_compiler(), oracle, OPTIONS) as made:
        yield made


def one(measurer: Measurer, way: str, work: int = 0) -> Measurement:
    return measurer.measure(add_relu(), Fakes(), [config(way, work)])[0]


def test_a_good_candidate_is_timed(measurer: Measurer) -> None:
    found = one(measurer, "good")
    assert found.ok and found.failure is None and len(found.samples) >= 5
    assert 0 < found.time < 0.01 and found.error < 1e-7 < found.tolerance < 1e-5
    assert found.build_s > 0 and found.measure_s > 0 and found.cache_state == "cold-weights"


@pytest.mark.parametrize(
    ("way", "kind", "detail"),
    [
        ("null", "crash", "signal 11"),
        ("hang", "timeout", "after 2.0 s"),
        ("eater", "memory", "MiB"),
        ("wrong", "wrong", "output 0: relative error"),
        ("past_end", "wrong", "wrote outside output 0"),
        ("far_past_end", "crash", "signal 11"),
        ("before_start", "wrong", "wrote outside output 0"),
        ("input_writer", "crash", "signal 11"),
        ("past_workspace", "crash", "signal 11"),
        ("lazy", "wrong", "found nan"),
        ("code7", "launch", "error 7"),
        ("exits", "crash", "status 3"),
        ("state", "wrong", "after repeated calls"),
        ("syntax", "compile", "error"),
        ("invalid", "invalid", "no such tile"),
        ("bug", "invalid", "ZeroDivisionError: in the family"),
    ],
)
def test_a_failure_is_a_measurement_of_its_kind(measurer: Measurer, way: str, kind: str, detail: str) -> None:
    found = one(measurer, way)
    assert (found.failure, found.samples, found.time) == (kind, (), float("inf"))
    assert detail in found.detail


def test_a_library_may_load_and_compile_whatever_is_known_by_then(measurer: Measurer) -> None:
    """Its first call in a worker takes seconds, which must not end the worker again and again."""
    ours, library = (_Built(request=request_of(kind=kind)) for kind in ("cuda", "cudnn"))
    with Measurer(measurer.target, measurer._backend, oracle, replace(OPTIONS, seconds=20.0)) as patient:
        assert patient._limits(ours, 1e-5).seconds < 3.0
        assert patient._limits(library, 1e-5).seconds == patient._limits(ours, None).seconds == 20.0


def test_the_good_among_the_bad_are_timed_in_order(measurer: Measurer) -> None:
    ways = ["good", "null", "good", "syntax", "wrong", "good", "exits", "good"]
    found = measurer.measure(add_relu(), Fakes(), [config(w) for w in ways])
    assert [m.ok for m in found] == [w == "good" for w in ways]


def test_slower_code_takes_longer(measurer: Measurer) -> None:
    fast, slow = measurer.measure(add_relu(), Fakes(), [config(work=0), config(work=2000)])
    assert slow.time > 3 * fast.time


def test_the_hopeless_get_few_samples(measurer: Measurer) -> None:
    found = measurer.measure(add_relu(), Fakes(), [config(work=2000)], limit=1e-7)[0]
    assert found.ok and len(found.samples) <= 3


def test_rivals_are_timed_in_turns(measurer: Measurer) -> None:
    rivals = [(Fakes(), config(work=w)) for w in (500, 0)] + [(Fakes(), config("wrong")), (Fakes(), config("syntax"))]
    found = measurer.measure_again(add_relu(), rivals, rounds=3)
    assert [m.failure for m in found] == [None, None, "wrong", "compile"]
    assert len(found[0].samples) >= 3 and found[1].time < found[0].time


def test_workloads_may_change_and_sizes_differ(measurer: Measurer) -> None:
    for size in (1, 17, 100_000, 16):
        assert measurer.measure(add_relu(size), Fakes(), [config()])[0].ok


def test_files_do_not_pile_up(measurer: Measurer) -> None:
    measurer.measure(add_relu(), Fakes(), [config()])
    before = sorted(measurer._folder.path.iterdir())
    measurer.measure(add_relu(), Fakes(), [config(), config("null"), config("invalid")])
    next(measurer.measure_each(add_relu(), Fakes(), [config(work=w) for w in range(3)]))
    assert sorted(measurer._folder.path.iterdir()) == before


def test_warm_constants(tmp_path: Path) -> None:
    with cpu_measurer(host_target(1), tmp_path, find_compiler(), oracle, replace(OPTIONS, cold=False)) as measurer:
        assert one(measurer, "good").cache_state == "warm"
        folder = measurer._folder.path
    assert not folder.exists()


def test_inputs_depend_on_workload_and_seed_only() -> None:
    a, b = random_inputs(add_relu(), 1), random_inputs(add_relu(), 1)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a[0], random_inputs(add_relu(), 2)[0])
