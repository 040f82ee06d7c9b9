"""The runner computes what the plan says, in any number of threads, and refuses what does not fit."""

import gc
import threading
from dataclasses import replace
from time import sleep
from typing import Any

import handmade
import numpy as np
import pytest

from wpk.core.errors import ArtifactError, FeedError, InternalError, UsageError
from wpk.runtime.parts import Parts
from wpk.runtime.plan import Arg, BufferSpec, Plan, Port, Step
from wpk.runtime.ports import node_arg, numpy_dtype
from wpk.runtime.runner import Runner


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(handmade.parts())


def check(runner: Runner, seed: int) -> None:
    fed = handmade.feeds(seed)
    for found, wanted in zip(runner.run(None, fed), handmade.expected(fed), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_results_do_not_depend_on_threads(threads: int) -> None:
    with Runner(handmade.parts(), threads) as runner:
        for seed in range(20):
            check(runner, seed)


def test_from_parts_takes_bytes() -> None:
    contents = {name: path.read_bytes() for name, path in handmade.binaries().items()}
    for _ in range(3):  # a memory file's number is used again: the loader must not hand out the old library
        with Runner.from_parts(handmade.plan(), contents, handmade.weights()) as runner:
            check(runner, 1)


def test_bytes_load_where_memory_files_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise OSError("forbidden")

    monkeypatch.setattr("os.memfd_create", refuse)
    contents = {name: path.read_bytes() for name, path in handmade.binaries().items()}
    with Runner.from_parts(handmade.plan(), contents, handmade.weights()) as runner:
        check(runner, 2)


def test_outputs_by_name_and_order(runner: Runner) -> None:
    fed = handmade.feeds()
    total, _, tail = handmade.expected(fed)
    found = runner.run(["tail", "sum", "tail"], fed)
    for a, b in zip(found, (tail, total, tail), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(runner.run([], fed)) == 3
    with pytest.raises(UsageError, match=r"'nope'.*'sum', 'product', 'tail'"):
        runner.run(["nope"], fed)
    with pytest.raises(FeedError, match=r"expected a mapping.*found list"):
        runner.run(None, [1])  # type: ignore[arg-type]


def test_outputs_are_fresh(runner: Runner) -> None:
    first = runner.run(["sum"], handmade.feeds(1))[0]
    before = first.copy()
    second = runner.run(["sum"], handmade.feeds(2))[0]
    np.testing.assert_array_equal(first, before)
    assert not np.shares_memory(first, second)
    assert first.flags.writeable


def test_describes_ports(runner: Runner) -> None:
    assert [(p.name, p.shape, p.type) for p in runner.get_inputs()] == [
        ("x", [6, 1000], "tensor(float)"), ("y", [6, 1000], "tensor(float)"),
    ]  # fmt: skip
    assert [p.name for p in runner.get_outputs()] == ["sum", "product", "tail"]


def test_strided_feeds_are_copied_and_contiguous_ones_are_not(runner: Runner) -> None:
    fed = handmade.feeds()
    wide = np.zeros((6, 2000), np.float32)
    wide[:, ::2] = fed["x"]
    found = runner.run(["sum"], {"x": wide[:, ::2], "y": np.asfortranarray(fed["y"])})[0]
    np.testing.assert_array_equal(found, handmade.expected(fed)[0])
    offset = np.frombuffer(b"\0\0\0\0" + fed["x"].tobytes(), np.float32)[1:].reshape(6, 1000)
    np.testing.assert_array_equal(runner.run(["sum"], {"x": offset, "y": fed["y"]})[0], found)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"x": np.zeros((6, 1000), np.float32)}, r"feed 'y' is missing: expected float32\[6,1000\]"),
    ({**handmade.feeds(), "z": np.zeros(3)}, r"unknown feed 'z': expected 'x', 'y'"),
    (
        {**handmade.feeds(), "y": np.zeros((6, 1000))},
        r"feed 'y': expected float32\[6,1000\], found float64\[6,1000\]",
    ),
    (
        {**handmade.feeds(), "x": np.zeros((1000, 6), np.float32)},
        r"feed 'x': expected .*, found float32\[1000,6\]",
    ),
    ({**handmade.feeds(), "x": np.zeros((6, 1000), ">f4")}, r"feed 'x': expected float32"),
    ({**handmade.feeds(), "x": "text"}, r"feed 'x': expected float32\[6,1000\], found <U4\[\]"),
    ({**handmade.feeds(), "x": [[1.0], [2.0, 3.0]]}, r"feed 'x': expected float32\[6,1000\], found no array"),
    ({}, "feed 'x' is missing"),
]


@pytest.mark.parametrize("fed, message", WRONG)
def test_wrong_feeds_are_refused(runner: Runner, fed: dict[str, Any], message: str) -> None:
    with pytest.raises(FeedError, match=message):
        runner.run(None, fed)
    check(runner, 3)


def test_two_runners_in_two_threads() -> None:
    failures: list[BaseException] = []

    def use(runner: Runner, seed: int) -> None:
        try:
            for i in range(100):
                check(runner, seed + i)
        except BaseException as error:
            failures.append(error)

    with Runner(handmade.parts()) as first, Runner(handmade.parts()) as second:
        jobs = [(first, 0), (second, 100), (first, 200)]  # the first is shared by two threads
        threads = [threading.Thread(target=use, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_profile_times_each_step(runner: Runner) -> None:
    times = runner.profile(handmade.feeds())
    assert [name for name, _ in times] == ["add0", "mul0", "copy0", "copy1"]
    assert all(seconds > 0 for _, seconds in times)


def test_a_probe_of_the_machine_leaves_the_runner_as_it_was(runner: Runner) -> None:
    check(runner, 1)
    assert runner.speed() > 1e6
    check(runner, 2)


def test_closed_runner_says_so() -> None:
    runner = Runner(handmade.parts())
    runner.close()
    runner.close()
    with pytest.raises(UsageError, match="closed"):
        runner.run(None, handmade.feeds())
    with pytest.raises(UsageError, match="closed"):
        runner.speed()


def test_threads_end_with_the_runner() -> None:
    def count() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))

    def settled() -> int:
        """The count once it stands still: threads of earlier tests may still be ending."""
        seen = [-1]
        while len(seen) < 4 or len(set(seen[-3:])) > 1:
            sleep(0.05)
            seen.append(count())
        return seen[-1]

    before = settled()
    runner = Runner(handmade.parts(), threads=4)
    assert count() == before + 3
    del runner
    gc.collect()
    assert settled() <= before


def test_failing_step_is_named() -> None:
    steps = (handmade.kernel("fail", Arg(0)),)
    with (
        Runner.from_parts(handmade.plan(steps), handmade.binaries(), handmade.weights()) as runner,
        pytest.raises(InternalError, match="'fail0' failed with code 17"),
    ):
        runner.run(None, handmade.feeds())


def broken_plans() -> dict[str, tuple[Plan, str]]:
    plan = handmade.plan()
    add = plan.steps[0]
    buffers = plan.buffers

    def steps(step: Step) -> Plan:
        return replace(plan, steps=(step,))

    return {
        "buffer": (steps(replace(add, args=(Arg(99),))), "names buffer 99 of 7"),
        "offset": (steps(replace(add, args=(Arg(0, handmade.NBYTES + 4),))), "outside buffer 0"),
        "symbol": (steps(replace(add, symbol="absent")), "no function 'absent'"),
        "binary": (steps(replace(add, binary="absent")), "binary 'absent' is missing"),
        "kind": (steps(replace(add, kind="abacus")), "no function 'wpk_abacus_create'"),
        "copy": (steps(Step("c", "copy", (Arg(0), Arg(4)), spec={"nbytes": -1})), "step 'c'"),
        "arena": (replace(plan, arena_bytes=64), "outside the arena"),
        "weight": (replace(plan, buffers=(*buffers, BufferSpec("weight", 4, "v"))), "weight 'v' is missing"),
        "weight-size": (
            replace(plan, buffers=(*buffers, BufferSpec("weight", 4, "w"))),
            "expected 4 bytes, found 4000",
        ),
        "buffer-kind": (replace(plan, buffers=(*buffers, BufferSpec("lake", 4, "w"))), "unknown kind 'lake'"),
        "output": (replace(plan, buffers=buffers[:-1], steps=()), "no buffer holds output 'tail'"),
        "dtype": (replace(plan, inputs=(replace(plan.inputs[0], dtype="text"),)), "unknown dtype 'text'"),
        "port-size": (replace(plan, buffers=(replace(buffers[0], nbytes=4), *buffers[1:])), "input 'x' has"),
    }


@pytest.mark.parametrize("name", broken_plans())
def test_parts_that_do_not_fit_are_refused(name: str) -> None:
    plan, message = broken_plans()[name]
    with pytest.raises(ArtifactError, match=message):
        Runner.from_parts(plan, handmade.binaries(), handmade.weights())


def test_bad_binary_is_refused() -> None:
    contents = {**handmade.binaries(), "kernels": b"no library"}
    with pytest.raises(ArtifactError, match="cannot load binary 'kernels'"):
        Runner(Parts(handmade.plan(), contents, handmade.weights()))


def test_bfloat16_ports_have_a_dtype() -> None:
    assert numpy_dtype("bfloat16").itemsize == 2 and numpy_dtype("bfloat16").name == "bfloat16"
    assert node_arg(Port("h", "float16", (2,))).type == "tensor(float16)"


@pytest.mark.parametrize("threads", [0, -2])
def test_bad_thread_counts_are_refused(threads: int) -> None:
    with pytest.raises(UsageError, match=f"at least 1, found {threads}"):
        Runner(handmade.parts(), threads)
