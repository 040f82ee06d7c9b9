"""The native runtime: loops cover their range exactly, timing rotates and stops as told, regions and libraries run in place."""

import ctypes
import multiprocessing
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from wpk.core.errors import ArtifactError, InternalError
from wpk.core.target import host_target
from wpk.measure.builder import build
from wpk.measure.toolchain import find_compiler
from wpk.runtime import binaries
from wpk.runtime.memory import Arena, address_of, align_all, aligned_empty, is_aligned
from wpk.runtime.native_api import RUNTIME, Adapter, Call, Native, Pool, TimingSpec, load_native
from wpk.runtime.plan import Arg, BufferSpec, Plan, Port, Step
from wpk.runtime.runner import Runner

PROBES = """
#define _GNU_SOURCE
#include "wpk.h"
#include <sched.h>
#include <stdatomic.h>
/* args: how {n, grain}, visits (one counter an index), wrong (one counter) */
typedef struct { const int64_t *how; _Atomic int32_t *visits; _Atomic int32_t *wrong; int threads; } cover_call;
static void cover_body(void *ctx, int64_t begin, int64_t end, int thread) {
  cover_call *c = ctx;
  int64_t n = c->how[0], grain = c->how[1];
  if (begin < 0 || end > n || begin >= end || begin % grain || (end % grain && end != n)) c->wrong[0]++;
  if (thread < 0 || thread >= c->threads) c->wrong[0]++;
  for (int64_t i = begin; i < end; i++) c->visits[i]++;
}
int cover(void *state, void *const *args, void *workspace, const wpk_rt *rt) {
  cover_call c = {args[0], args[1], args[2], rt->threads};
  rt->parallel(rt, cover_body, &c, c.how[0], c.how[1]);
  return 0;
}

/* All chunks wait for each other: right only when they run at once. */
typedef struct { _Atomic int arrived; int n; } meet_call;
static void meet_body(void *ctx, int64_t begin, int64_t end, int thread) {
  meet_call *m = ctx;
  m->arrived += end - begin;
  while (m->arrived < m->n) ;
}
int meet(void *state, void *const *args, void *workspace, const wpk_rt *rt) {
  meet_call m = {0, *(const int64_t *)args[0]};
  rt->parallel(rt, meet_body, &m, m.n, 1);
  return 0;
}

/* A body that starts a loop of its own. */
static void outer_body(void *ctx, int64_t begin, int64_t end, int thread) {
  cover_call *c = ctx;
  for (int64_t i = begin; i < end; i++) {
    cover_call inner = {c->how, c->visits + i * c->how[0], c->wrong, c->threads};
    ((const wpk_rt *)c->how[2])->parallel((const wpk_rt *)c->how[2], cover_body, &inner, c->how[0], c->how[1]);
  }
}
int nest(void *state, void *const *args, void *workspace, const wpk_rt *rt) {
  ((int64_t *)args[0])[2] = (int64_t)rt;
  cover_call c = {args[0], args[1], args[2], rt->threads};
  rt->parallel(rt, outer_body, &c, 8, 1);
  return 0;
}

/* Counts the calls that got each argument. */
int tally(void *state, void *const *args, void *workspace, const wpk_rt *rt) { return ++*(int64_t *)args[0], 0; }
/* How many cores the calling thread may use. */
int cores(void *state, void *const *args, void *workspace, const wpk_rt *rt) {
  cpu_set_t allowed;
  sched_getaffinity(0, sizeof allowed, &allowed);
  return *(int64_t *)args[0] = CPU_COUNT(&allowed), 0;
}
int refuse(void *state, void *const *args, void *workspace, const wpk_rt *rt) { return 3; }
"""


@pytest.fixture(scope="module")
def native() -> Native:
    return load_native(handmade.binaries()[RUNTIME])


@pytest.fixture(scope="module")
def probes() -> binaries.Binary:
    return binaries.open_binary("probes", build(PROBES, host_target().isa, find_compiler(), handmade.cache()))


ONCE = TimingSpec(0, 1, 1, 0, 0.0, 0.0, 0.0, 0.0)


def call(native: Native, pool: Pool, probes: binaries.Binary, name: str, *arrays: np.ndarray) -> None:
    """Run a probe (the timing loop calls it twice: to warm up, and for its sample)."""
    native.time(Call(probes.address(name)), [[address_of(a) for a in arrays]], 0, pool, ONCE)


def cover(native: Native, pool: Pool, probes: binaries.Binary, n: int, grain: int) -> None:
    visits, wrong = np.zeros(max(n, 1), np.int32), np.zeros(1, np.int32)
    call(native, pool, probes, "cover", np.array([n, grain]), visits, wrong)
    assert wrong[0] == 0
    assert (visits[:n] == 2).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3000), st.integers(1, 400), st.integers(1, 6))
def test_loops_cover_their_range_once_in_chunks_of_grain(n: int, grain: int, threads: int) -> None:
    runtime = load_native(handmade.binaries()[RUNTIME])
    library = binaries.open_binary(
        "probes", build(PROBES, host_target().isa, find_compiler(), handmade.cache())
    )
    pool = Pool(runtime, threads)
    for _ in range(5):
        cover(runtime, pool, library, n, grain)
    pool.close()


def test_many_small_loops_one_after_the_other(native: Native, probes: binaries.Binary) -> None:
    pool = Pool(native, 3)
    for n in range(1, 400):
        cover(native, pool, probes, n, 1 + n % 7)
        if n % 50 == 0:
            pool.quiet()
    pool.close()


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_no_more_chunks_than_threads_run_at_once(
    native: Native, probes: binaries.Binary, threads: int
) -> None:
    pool = Pool(native, threads)
    for n in range(1, threads + 1):
        for _ in range(20):
            call(native, pool, probes, "meet", np.array([n]))
    pool.close()


def test_nested_loops_are_right(native: Native, probes: binaries.Binary) -> None:
    pool = Pool(native, 3)
    visits, wrong = np.zeros((8, 50), np.int32), np.zeros(1, np.int32)
    call(native, pool, probes, "nest", np.array([50, 3, 0]), visits, wrong)
    assert wrong[0] == 0 and (visits == 2).all()
    pool.close()


def test_one_pool_from_two_threads(native: Native, probes: binaries.Binary) -> None:
    pool = Pool(native, 2)
    failures: list[BaseException] = []

    def use() -> None:
        try:
            for _ in range(200):
                cover(native, pool, probes, 500, 10)
        except BaseException as error:
            failures.append(error)

    users = [threading.Thread(target=use) for _ in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    pool.close()
    assert not failures


def _run_in_child(pool: Pool, probes: binaries.Binary, native: Native) -> None:
    cover(native, pool, probes, 1000, 10)
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_still_computes(native: Native, probes: binaries.Binary) -> None:
    pool = Pool(native, 3)
    cover(native, pool, probes, 1000, 10)
    child = multiprocessing.get_context("fork").Process(target=_run_in_child, args=(pool, probes, native))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    pool.close()


def test_pinned_threads_compute(native: Native, probes: binaries.Binary) -> None:
    pool = Pool(native, 2, pin=True)
    cover(native, pool, probes, 1000, 10)
    pool.close()


# Timing


def timing(**changes: Any) -> TimingSpec:
    how = TimingSpec(2, 4, 20, 0, 10.0, -1.0, 0.0, 0.0)
    for name, value in changes.items():
        setattr(how, name, value)
    return how


def test_timing_rotates_through_the_sets(native: Native, probes: binaries.Binary) -> None:
    pool = Pool(native, 1)
    counts = np.zeros(3, np.int64)
    sets = [[address_of(counts[i:])] for i in range(3)]
    samples = native.time(Call(probes.address("tally")), sets, 0, pool, timing(max_samples=18, warmup=2))
    assert len(samples) == 18 and all(s >= 0 for s in samples)
    assert counts.tolist() == [7, 7, 7]  # 1 to estimate, 2 to warm up, 18 samples
    pool.close()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core only")
@pytest.mark.parametrize(("pin", "threads", "held"), [(True, 2, True), (False, 2, False), (True, 1, False)])
def test_a_pinned_pool_holds_its_caller_while_it_times(
    native: Native, probes: binaries.Binary, pin: bool, threads: int, held: bool
) -> None:
    """Two threads that the system wakes on one core would be timed as one."""
    pool, count, before = Pool(native, threads, pin), np.zeros(1, np.int64), os.sched_getaffinity(0)
    native.time(Call(probes.address("cores")), [[address_of(count)]], 0, pool, timing(max_samples=3))
    pool.close()
    assert count[0] == (1 if held else len(before))
    assert os.sched_getaffinity(0) == before


def test_short_calls_are_timed_many_at_a_time(native: Native, probes: binaries.Binary) -> None:
    pool = Pool(native, 1)
    count = np.zeros(1, np.int64)
    samples = native.time(
        Call(probes.address("tally")), [[address_of(count)]], 0, pool, timing(max_samples=5, min_sample=50e-6)
    )
    assert len(samples) == 5 and count[0] > 50
    assert max(samples) < 50e-6
    pool.close()


def test_timing_stops_early(native: Native, probes: binaries.Binary) -> None:
    pool = Pool(native, 1)
    count = np.zeros(1, np.int64)
    tally, sets = Call(probes.address("tally")), [[address_of(count)]]
    assert len(native.time(tally, sets, 0, pool, timing(max_samples=1000, target_spread=1e9))) == 4
    assert len(native.time(tally, sets, 0, pool, timing(max_samples=1000, hopeless=1e-12))) == 3
    assert len(native.time(tally, sets, 0, pool, timing(max_samples=1000, max_seconds=0.0))) == 1
    pool.close()


def test_timing_reports_the_error_of_the_call(native: Native, probes: binaries.Binary) -> None:
    pool = Pool(native, 1)
    with pytest.raises(InternalError, match="error 3"):
        native.time(Call(probes.address("refuse")), [[]], 0, pool, timing())
    pool.close()


def test_probes_of_the_machine(native: Native) -> None:
    pool = Pool(native, 2)
    assert 1e8 < native.read_bandwidth(pool, 1 << 24, 2) < 1e13
    assert 1e8 < native.fma_peak(pool, 0.01) < 1e14
    pool.close()


# Libraries


def test_equal_runtimes_are_loaded_once(native: Native) -> None:
    assert load_native(handmade.binaries()[RUNTIME].read_bytes()) is native


def test_runtime_of_another_interface_is_refused(tmp_path: Path) -> None:
    other = build("int wpk_runtime_version(void) { return 99; }", "scalar", find_compiler(), tmp_path)
    with pytest.raises(ArtifactError, match="no function 'wpk_pool_create'"):
        load_native(other)


def test_adapter_errors_come_through(native: Native) -> None:
    with pytest.raises(ArtifactError, match="one number of bytes"):
        Adapter(native, "copy", {"desc": [1, 2]}, 1)


def test_absent_library_is_named(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wpk.runtime.native_api.find_library", lambda name: None)
    with pytest.raises(ArtifactError, match=r"onednn is not installed: pip install 'wpk\[onednn\]'"):
        Adapter(native, "onednn", {"library": "onednn", "desc": []}, 1)


def test_large_copies_use_all_threads_and_are_right(native: Native) -> None:
    pool = Pool(native, 3)
    source = np.random.default_rng(0).integers(0, 255, 3_000_001, np.uint8)
    target = np.zeros_like(source)
    copy = Adapter(native, "copy", {"desc": [source.nbytes]}, 3)
    native.time(copy.call, [[address_of(source), address_of(target)]], 0, pool, ONCE)
    np.testing.assert_array_equal(source, target)
    copy.close()
    copy.close()
    pool.close()


# Memory


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 3 << 20])
def test_arena_is_aligned_and_zeroed(nbytes: int) -> None:
    arena = Arena(nbytes)
    assert arena.address % (4096 if nbytes < 2 << 20 else 2 << 20) == 0
    content = (ctypes.c_ubyte * nbytes).from_address(arena.address)
    assert not any(np.frombuffer(content, np.uint8)) if nbytes else True


def test_only_what_is_not_aligned_is_copied() -> None:
    base = aligned_empty((4, 5), np.dtype("float64"))
    base[...] = np.arange(20).reshape(4, 5)
    arrays = {
        "base": base,
        "row": base[1:],
        "transposed": base.T,
        "empty": np.zeros((0, 3)),
        "scalar": base[0, :1].reshape(()),
    }
    found = align_all(arrays)
    assert found["base"] is base and list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert is_aligned(found[name])
    base[...] = 0
    assert found["row"][0, 0] == 5 and aligned_empty((0, 3), np.dtype("int8")).shape == (0, 3)


# Steps in ONNX Runtime


def region_model() -> bytes:
    """z = cumsum(a) along axis 1; flag = a > 0."""
    graph = helper.make_graph(
        [
            helper.make_node("CumSum", ["a", "axis"], ["z"]),
            helper.make_node("Greater", ["a", "zero"], ["flag"]),
        ],
        "region",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, (handmade.ROWS, handmade.COLS))],
        [
            helper.make_tensor_value_info("z", TensorProto.FLOAT, (handmade.ROWS, handmade.COLS)),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, (handmade.ROWS, handmade.COLS)),
        ],
        [
            helper.make_tensor("axis", TensorProto.INT64, (), [1]),
            helper.make_tensor("zero", TensorProto.FLOAT, (), [0.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def region_plan() -> Plan:
    """``sum = cumsum(x + y)``, ``tail`` likewise by offset, ``flag`` = x + y > 0: native, region, native."""
    shape = [handmade.ROWS, handmade.COLS]
    spec = {
        "model": "region",
        "inputs": [["a", "float32", shape]],
        "outputs": [["z", "float32", shape], ["flag", "bool", shape]],
    }
    plan = handmade.plan()
    steps = (
        plan.steps[0],
        Step("cumsum", "onnxruntime", (Arg(3), Arg(4), Arg(7)), spec=spec),
        handmade.kernel("mul", Arg(4), Arg(2), Arg(5), thread_bytes=4096),
        Step(
            "copy1",
            "copy",
            (Arg(5, 4 * handmade.COLS * (handmade.ROWS - 2)), Arg(6)),
            spec={"nbytes": 8 * handmade.COLS},
        ),
    )
    flag = Port("flag", "bool", (handmade.ROWS, handmade.COLS))
    buffers = (*plan.buffers, BufferSpec("output", handmade.COUNT, "flag"))
    return replace(plan, steps=steps, outputs=(*plan.outputs, flag), buffers=buffers)


def test_region_breaks_the_plan_into_segments() -> None:
    fed = handmade.feeds()
    total = fed["x"] + fed["y"]
    with Runner.from_parts(
        region_plan(), handmade.binaries(), handmade.weights(), {"region": region_model()}
    ) as runner:
        for _ in range(3):
            summed, product, tail, flag = runner.run(None, fed)
            np.testing.assert_allclose(summed, np.cumsum(total, 1), rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(product, summed * handmade.weights()["w"])
            np.testing.assert_array_equal(tail, product[-2:])
            np.testing.assert_array_equal(flag, total > 0)
        names = [name for name, seconds in runner.profile(fed) if seconds > 0]
        assert names == ["add0", "cumsum", "mul0", "copy1"]


def test_region_whose_model_is_missing_or_broken() -> None:
    def open_with(models: dict[str, bytes]) -> None:
        Runner.from_parts(region_plan(), handmade.binaries(), handmade.weights(), models)

    with pytest.raises(ArtifactError, match="'cumsum': its model 'region' is missing"):
        open_with({})
    with pytest.raises(ArtifactError, match="'cumsum': ONNX Runtime refuses its model"):
        open_with({"region": b"nonsense"})
