"""Arena placement: no two live blocks overlap, and memory is shared."""

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from wpk.core.errors import InternalError
from wpk.planner.arena import ALIGNMENT, Block, align, check, place


@st.composite
def blocks(draw: st.DrawFn) -> list[Block]:
    spans = draw(
        st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 6)), max_size=20)
    )
    return [Block(f"b{i}", n, first, first + length) for i, (n, first, length) in enumerate(spans)]


@hypothesis_settings(max_examples=60, deadline=None)
@given(blocks())
def test_live_blocks_never_overlap(some: list[Block]) -> None:
    offsets, size = place(some)
    for i, a in enumerate(some):
        assert offsets[a.name] % ALIGNMENT == 0
        assert offsets[a.name] + a.nbytes <= size
        for b in some[:i]:
            apart = (
                offsets[a.name] >= offsets[b.name] + b.nbytes or offsets[b.name] >= offsets[a.name] + a.nbytes
            )
            assert apart or not a.meets(b)


@hypothesis_settings(max_examples=60, deadline=None)
@given(blocks())
def test_size_is_between_the_bounds(some: list[Block]) -> None:
    _, size = place(some)
    live = [sum(align(b.nbytes) for b in some if b.first <= t <= b.last) for t in range(30)]
    assert max(live) <= size <= sum(align(b.nbytes) for b in some)


def test_a_chain_needs_only_two_buffers() -> None:
    chain = [Block(f"b{i}", 4096, i, i + 1) for i in range(10)]
    assert place(chain)[1] == 2 * 4096


def test_check_finds_an_overlap() -> None:
    pair = [Block("a", 100, 0, 2), Block("b", 100, 2, 3)]
    with pytest.raises(InternalError, match="b and a overlap"):
        check(pair, {"a": 0, "b": 64})
    check(pair, {"a": 0, "b": 128})


def test_check_finds_a_misaligned_block() -> None:
    with pytest.raises(InternalError, match="starts at byte 4"):
        check([Block("a", 100, 0, 2)], {"a": 4})
