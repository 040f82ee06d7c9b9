"""Rows say share, roof and rivals; the table and the page show them."""

from dataclasses import replace

import pytest
from rich.console import Console

from wpk.report.explain import detail, duration, rows, summary, table
from wpk.report.html import page
from wpk.report.peaks import Peaks
from wpk.runtime.plan import Choice, Plan, Step

PEAKS = Peaks(flops=100e9, bandwidth=10e9)


@pytest.fixture
def plan() -> Plan:
    conv = Choice(
        "conv1", "conv", "conv(float32[1x3x8x8])->(float32[1x4x6x6]@NCHW16c){}", "generated:direct", {"tile": 14}, 1e-3,
        (("openblas", "too large"), ("onednn", 2e-3), ("lrn", "op is conv"), ("onnxruntime", 1.5e-3)),
        ("Conv_0", "Relu_1"), 5e7, 1e4,
    )  # fmt: skip
    fc = Choice("fc", "gemm", "gemm(...)", "onednn", {}, 3e-3, (), (), 0.0, 2e7)
    steps = tuple(
        Step(n, k, (), symbol=s)
        for n, k, s in (("conv1", "kernel", "k1"), ("to_row", "copy", ""), ("fc", "onednn", ""))
    )
    return Plan("net", (), (), (), steps, 0, {"threads": 2, "model": "cpu"}, "cpu-x", (conv, fc))


TIMES = {"conv1": 1e-3, "to_row": 1e-3, "fc": 2e-3}


def text(renderable: object, width: int = 160) -> str:
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def test_rows_follow_the_plan(plan: Plan) -> None:
    found = rows(plan, TIMES, PEAKS)
    assert [(r.node, r.op) for r in found] == [("conv1", "conv"), ("to_row", "copy"), ("fc", "gemm")]
    assert [r.share for r in found] == pytest.approx([0.25, 0.25, 0.5])
    assert found[0].roof == pytest.approx(0.5) and found[1].roof is None
    assert found[2].roof == pytest.approx(1.0)


def test_rivals_are_fast_first_rejections_last(plan: Plan) -> None:
    assert [name for name, _ in rows(plan)[0].rivals] == ["onnxruntime", "onednn", "openblas", "lrn"]


def test_without_times_nothing_is_made_up(plan: Plan) -> None:
    assert all(r.seconds is None and r.share is None for r in rows(plan))
    assert rows(plan, None, PEAKS)[0].roof == pytest.approx(0.5)


def test_table_shows_choice_time_and_rivals(plan: Plan) -> None:
    shown = text(table(rows(plan, TIMES, PEAKS), "net"))
    for expected in (
        "generated:direct",
        "1.00 ms",
        "25.0%",
        "50%",
        "onnxruntime 1.50 ms (1.50×) +2",
    ):
        assert expected in shown
    assert "too large" not in shown
    assert "openblas: too large" in text(table(rows(plan, TIMES, PEAKS), every_rival=True))


def test_limit_keeps_the_slowest_in_order(plan: Plan) -> None:
    shown = text(table(rows(plan, TIMES), limit=1))
    assert "fc" in shown and "conv1" not in shown and "2 more steps, 50% of the time" in shown


def test_markup_in_names_is_harmless(plan: Plan) -> None:
    odd = replace(plan, steps=(replace(plan.steps[1], name="/layer[0]/[bold]Conv"),))
    assert "/layer[0]/[bold]Conv" in text(table(rows(odd)))


def test_detail_names_the_origin(plan: Plan) -> None:
    shown = text(detail(rows(plan, TIMES, PEAKS)[0]))
    assert "Conv_0, Relu_1" in shown and "tile=14" in shown and "openblas: too large" in shown


def test_summary_groups_by_provider(plan: Plan) -> None:
    assert summary(rows(plan, TIMES)) == [("onednn", 1, 0.5), ("generated", 1, 0.25), ("copy", 1, 0.25)]


def test_page_is_self_contained_and_escaped(plan: Plan) -> None:
    html = page(plan, rows(plan, TIMES, PEAKS), PEAKS, [("k1", "void k1(int a) { a < 1; }")])
    assert "a &lt; 1" in html and "http" not in html and "openblas: too large" in html


@pytest.mark.parametrize(
    "seconds, shown",
    [(4.12e-4, "412 µs"), (1.784e-2, "17.8 ms"), (1.5e-6, "1.50 µs"), (2.0, "2.00 s"), (None, "–")],
)
def test_duration(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown
