"""Places of tensors: schedules executed in the planned memory compute what they compute with memory of their own."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wpk.planner.storage import Action, Layout, Tensor, arrange

UNIT = 64


def tensor(name: str) -> Tensor:
    return (name, "ROW")


def call(name: str, reads: Sequence[str], writes: Sequence[str], inplace: tuple[int, ...] = ()) -> Action:
    return Action(name, "call", tuple(map(tensor, reads)), tuple(map(tensor, writes)), inplace)


def join(name: str, reads: Sequence[str], sizes: Sequence[int], repeats: int = 1) -> Action:
    return Action(name, "join", tuple(map(tensor, reads)), (tensor(name),), (), repeats, tuple(sizes))


def cut(read: str, writes: Sequence[str], sizes: Sequence[int], repeats: int = 1) -> Action:
    return Action(
        f"cut {read}", "cut", (tensor(read),), tuple(map(tensor, writes)), (), repeats, tuple(sizes)
    )


def content(action: Action, read: list[np.ndarray], index: int, nbytes: int) -> np.ndarray:
    """What a call writes: bytes that depend on all that it read."""
    seed = zlib.crc32(b"".join(a.tobytes() for a in read), zlib.crc32(f"{action.name}{index}".encode()))
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def moved(action: Action, read: list[np.ndarray]) -> list[np.ndarray]:
    """What alias, join and cut mean."""
    if action.kind == "alias":
        return read
    if action.kind == "join":
        return [np.concatenate([a.reshape(action.repeats, -1) for a in read], 1).ravel()]
    edges = np.cumsum(action.sizes)[:-1]
    return [p.ravel() for p in np.split(read[0].reshape(action.repeats, -1), edges, 1)]


def alone(
    actions: Sequence[Action], sizes: dict[Tensor, int], inputs: dict[Tensor, np.ndarray]
) -> dict[Tensor, np.ndarray]:
    values = dict(inputs)
    for action in actions:
        read = [values[t] for t in action.reads]
        made = (
            [content(action, read, i, sizes[t]) for i, t in enumerate(action.writes)]
            if action.kind == "call"
            else moved(action, read)
        )
        values.update(zip(action.writes, made, strict=True))
    return values


def planned(
    actions: Sequence[Action],
    sizes: dict[Tensor, int],
    inputs: dict[Tensor, np.ndarray],
    outputs: Sequence[Tensor],
    layout: Layout,
) -> dict[str, np.ndarray]:
    """Execute in the planned memory: arena full of garbage, inputs read-only."""
    arena = np.full(layout.arena_bytes, 0xAB, np.uint8)
    buffers = {t[0]: np.full(sizes[t], 0xCD, np.uint8) for t in outputs}

    def memory(t: Tensor) -> np.ndarray:
        at = layout.places[t]
        if at.root in layout.outputs:
            root = buffers[layout.outputs[at.root]]
        elif at.root in inputs:
            root = inputs[at.root]
        else:
            start = layout.offsets[at.root]
            root = arena[start : start + sizes[at.root]]
        return root[at.offset : at.offset + sizes[t]]

    for action in actions:
        if action.kind == "call":
            read = [memory(t).copy() for t in action.reads]
            for i, t in enumerate(action.writes):
                memory(t)[:] = content(action, read, i, sizes[t])
        for c in layout.copies.get(action.name, ()):
            piece = memory(c.source)[c.source_offset : c.source_offset + c.nbytes]
            memory(c.target)[c.target_offset : c.target_offset + c.nbytes] = piece
    for t in layout.output_copies:
        buffers[t[0]][:] = memory(t)
    return buffers


def agrees(
    actions: Sequence[Action], sizes: dict[Tensor, int], fixed: Sequence[str], outputs: Sequence[str]
) -> Layout:
    rng = np.random.default_rng(0)
    inputs = {tensor(n): rng.integers(0, 256, sizes[tensor(n)], np.uint8) for n in fixed}
    for array in inputs.values():
        array.flags.writeable = False
    wanted = [tensor(n) for n in outputs]
    layout = arrange(actions, sizes, list(inputs), wanted)
    found = planned(actions, sizes, inputs, wanted, layout)
    expected = alone(actions, sizes, inputs)
    for t in wanted:
        assert np.array_equal(found[t[0]], expected[t]), f"output {t[0]}"
    return layout


def sized(**units: int) -> dict[Tensor, int]:
    return {tensor(n): u * UNIT for n, u in units.items()}


def test_parts_of_a_concat_are_written_in_place() -> None:
    actions = [
        call("a", ["x"], ["a"]),
        call("b", ["x"], ["b"]),
        join("c", ["a", "b"], [2 * UNIT, UNIT]),
        call("y", ["c"], ["y"]),
    ]
    layout = agrees(actions, sized(x=1, a=2, b=1, c=3, y=1), ["x"], ["y"])
    assert not layout.copies and layout.arena_bytes == 3 * UNIT


def test_nested_concats_grow_without_copies() -> None:
    """A dense block: each concat begins with the one before."""
    actions, sizes = [call("c0", ["x"], ["c0"])], sized(x=1, c0=2)
    for i in range(1, 6):
        actions += [
            call(f"n{i}", [f"c{i - 1}"], [f"n{i}"]),
            join(f"c{i}", [f"c{i - 1}", f"n{i}"], [(i + 1) * UNIT, UNIT]),
        ]
        sizes |= sized(**{f"n{i}": 1, f"c{i}": i + 2})
    actions.append(call("y", ["c5"], ["y"]))
    layout = agrees(actions, sizes | sized(y=1), ["x"], ["y"])
    assert not layout.copies and layout.arena_bytes == 7 * UNIT


def test_flat_dense_blocks_grow_without_copies() -> None:
    """A dense block as other exporters write it: each concat lists all parts again."""
    actions, sizes = [call("n0", ["x"], ["n0"])], sized(x=1, n0=2)
    for i in range(1, 6):
        parts = [f"n{j}" for j in range(i)]
        read = parts if i == 1 else [f"c{i - 1}"]
        actions += [call(f"n{i}", read, [f"n{i}"]), join(f"c{i}", [*parts, f"n{i}"], [2 * UNIT, *[UNIT] * i])]
        sizes |= sized(**{f"n{i}": 1, f"c{i}": i + 2})
    actions.append(call("y", ["c5"], ["y"]))
    layout = agrees(actions, sizes | sized(y=1), ["x"], ["y"])
    assert not layout.copies and layout.arena_bytes == 7 * UNIT


def test_a_part_of_two_concats_and_an_input_are_copied() -> None:
    joins = [join("c", ["a", "x"], [UNIT, UNIT]), join("d", ["x", "a"], [UNIT, UNIT])]
    actions = [call("a", ["x"], ["a"]), *joins, call("y", ["c", "d"], ["y"])]
    layout = agrees(actions, sized(x=1, a=1, c=2, d=2, y=1), ["x"], ["y"])
    assert (
        sorted(layout.copies) == ["c", "d"] and len(layout.copies["c"]) == 1 and len(layout.copies["d"]) == 2
    )


def test_a_batch_is_concatenated_by_copies() -> None:
    actions = [
        call("a", ["x"], ["a"]),
        call("b", ["x"], ["b"]),
        join("c", ["a", "b"], [UNIT, 2 * UNIT], repeats=3),
        call("y", ["c"], ["y"]),
    ]
    layout = agrees(actions, sized(x=1, a=3, b=6, c=9, y=1), ["x"], ["y"])
    assert len(layout.copies["c"]) == 6


def test_parts_at_odd_offsets_are_copied() -> None:
    sizes = {tensor("x"): 8, tensor("a"): 20, tensor("b"): 64, tensor("c"): 84, tensor("y"): 8}
    actions = [
        call("a", ["x"], ["a"]),
        call("b", ["x"], ["b"]),
        join("c", ["a", "b"], [20, 64]),
        call("y", ["c"], ["y"]),
    ]
    assert len(agrees(actions, sizes, ["x"], ["y"]).copies["c"]) == 1


def test_splits_are_views() -> None:
    actions = [call("a", ["x"], ["a"]), cut("a", ["p", "q"], [UNIT, 2 * UNIT]), call("y", ["q", "p"], ["y"])]
    layout = agrees(actions, sized(x=1, a=3, p=1, q=2, y=1), ["x"], ["y"])
    assert not layout.copies and layout.places[tensor("q")].offset == UNIT


def test_the_result_takes_over_a_dying_operand() -> None:
    actions = [
        call("a", ["x"], ["a"]),
        call("b", ["a"], ["b"], (0,)),
        call("c", ["b"], ["c"], (0,)),
        call("y", ["c", "x"], ["y"]),
    ]
    layout = agrees(actions, sized(x=1, a=2, b=2, c=2, y=1), ["x"], ["y"])
    assert layout.arena_bytes == 2 * UNIT


def test_an_operand_read_later_is_not_taken_over() -> None:
    actions = [call("a", ["x"], ["a"]), call("b", ["a"], ["b"], (0,)), call("y", ["a", "b"], ["y"], (0, 1))]
    layout = agrees(actions, sized(x=1, a=1, b=1, y=1), ["x"], ["y"])
    assert layout.places[tensor("a")].root != layout.places[tensor("b")].root


def test_an_operand_seen_twice_in_different_ways_is_not_taken_over() -> None:
    alias = Action("v", "alias", (tensor("a"),), (tensor("v"),))
    actions = [call("a", ["x"], ["a"]), alias, call("b", ["a", "v"], ["b"], (0,)), call("y", ["b"], ["y"])]
    layout = agrees(actions, sized(x=1, a=1, v=1, b=1, y=1), ["x"], ["y"])
    assert layout.places[tensor("a")].root != layout.places[tensor("b")].root


def test_inputs_are_never_taken_over() -> None:
    agrees([call("y", ["x"], ["y"], (0,))], sized(x=1, y=1), ["x"], ["y"])


def test_outputs_that_are_inputs_views_or_the_same_memory_are_copied_out() -> None:
    alias = Action("v", "alias", (tensor("a"),), (tensor("v"),))
    actions = [call("a", ["x"], ["a"]), alias, call("b", ["v"], ["b"], (0,))]
    layout = agrees(actions, sized(x=1, a=1, v=1, b=1), ["x"], ["x", "a", "v", "b"])
    assert layout.output_copies == (tensor("x"), tensor("v"))


def test_an_intermediate_output_survives_until_the_end() -> None:
    actions = [
        call("a", ["x"], ["a"]),
        cut("a", ["p", "q"], [UNIT, UNIT]),
        *(call(f"b{i}", ["x"], [f"b{i}"]) for i in range(4)),
    ]
    sizes = sized(x=1, a=2, p=1, q=1, b0=2, b1=2, b2=2, b3=2)
    agrees(actions, sizes, ["x"], ["q", "b3"])


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Action], dict[Tensor, int], list[str], list[str]]:
    sizes = {tensor("x0"): 2 * UNIT, tensor("x1"): UNIT}
    names, actions = ["x0", "x1"], []
    for i in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["call", "call", "inplace", "alias", "join", "cut"]))
        picked = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
        name, first = f"t{i}", sizes[tensor(picked[0])]
        if kind == "alias":
            actions.append(Action(name, "alias", (tensor(picked[0]),), (tensor(name),)))
            sizes[tensor(name)] = first
        elif kind == "join":
            actions.append(join(name, picked, [sizes[tensor(p)] for p in picked]))
            sizes[tensor(name)] = sum(sizes[tensor(p)] for p in picked)
        elif kind == "cut" and first > UNIT:
            actions.append(
                Action(
                    name,
                    "cut",
                    (tensor(picked[0]),),
                    (tensor(name), tensor(f"{name}b")),
                    (),
                    1,
                    (UNIT, first - UNIT),
                )
            )
            sizes |= {tensor(name): UNIT, tensor(f"{name}b"): first - UNIT}
            names.append(f"{name}b")
        else:
            actions.append(call(name, picked, [name], tuple(range(len(picked))) if kind == "inplace" else ()))
            sizes[tensor(name)] = first if kind == "inplace" else UNIT * draw(st.integers(1, 3))
        names.append(name)
    outputs = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    return actions, sizes, ["x0", "x1"], outputs


@settings(max_examples=300, deadline=None)
@given(programs())
def test_any_program_computes_the_same_in_planned_memory(
    program: tuple[list[Action], dict[Tensor, int], list[str], list[str]],
) -> None:
    agrees(*program)
