"""Spaces: validity is kept by every operation, also where valid configs are rare."""

from itertools import islice, product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wpk.core.result import config_key
from wpk.search.knobs import Choice, Ordered
from wpk.search.space import Config, Space

TILES = (1, 2, 4, 8, 16, 32, 64)


def calls(space: Space) -> list[int]:
    """Adds a counter of constraint evaluations to ``space``'s constraints; returns it."""
    count = [0]

    def counted(constraint):  # type: ignore[no-untyped-def]
        def check(config: Config) -> bool:
            count[0] += 1
            return bool(constraint(config))

        return check

    object.__setattr__(space, "constraints", tuple(counted(c) for c in space.constraints))
    return count


def rare() -> Space:
    """About one valid config in 10^5 of 10^6 (8 knobs)."""
    knobs = (Choice("isa", ("a", "b"), "a"), *(Ordered(f"t{i}", TILES, 1) for i in range(7)))
    return Space(
        knobs,
        (
            lambda c: c["t0"] == c["t6"],
            lambda c: int(c["t1"]) * int(c["t2"]) == 64,
            lambda c: int(c["t3"]) > int(c["t4"]) > int(c["t5"]),
            lambda c: c["isa"] == "a" or int(c["t0"]) + int(c["t6"]) == 128,
            lambda c: sum(int(c[f"t{i}"]) for i in range(7)) % 7 == 3,
        ),
    )


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Small spaces with random linear constraints, never empty: the defaults are valid."""
    knobs = []
    for i in range(draw(st.integers(1, 4))):
        values = tuple(sorted(draw(st.sets(st.integers(0, 9), min_size=1, max_size=5))))
        knobs.append(Ordered(f"k{i}", values, draw(st.sampled_from(values))))
    default = {k.name: k.default for k in knobs}
    constraints = []
    for _ in range(draw(st.integers(0, 3))):
        factors = {k.name: draw(st.integers(-2, 2)) for k in knobs}
        bound = sum(f * default[n] for n, f in factors.items())
        constraints.append(
            lambda c, factors=factors, bound=bound: (
                sum(f * int(c[n]) for n, f in factors.items() if f) <= bound
            )
        )
    return Space(tuple(knobs), tuple(constraints))


@settings(deadline=None, max_examples=60)
@given(spaces(), st.integers(0, 99))
def test_every_operation_gives_valid_configs(space: Space, seed: int) -> None:
    rng = Random(seed)
    a, b = space.sample(rng), space.sample(rng)
    anything: Config = {k.name: k.sample(rng) for k in space.knobs}
    made = [a, b, space.default(), space.mutate(a, rng), space.cross(a, b, rng), space.repair(anything, rng)]
    assert all(map(space.valid, made))
    assert all(space.valid(c) and sum(c[k] != a[k] for k in a) == 1 for c in space.neighbours(a))
    assert {len(space.encode(c)) for c in made} == {sum(len(k.encode(k.default)) for k in space.knobs)}


@settings(deadline=None, max_examples=60)
@given(spaces())
def test_enumeration_is_the_filtered_product(space: Space) -> None:
    names = [k.name for k in space.knobs]
    raw = [dict(zip(names, values, strict=True)) for values in product(*(k.values for k in space.knobs))]
    expected = [c for c in raw if all(f(c) for f in space.constraints)]
    assert list(space.enumerate()) == expected
    assert [list(c) for c in islice(space.enumerate(), 1)] == [names]
    assert space.size() == len(expected) and space.raw_size == len(raw)


def test_rare_configs_are_found_with_little_work() -> None:
    space, rng = rare(), Random(1)
    count = calls(space)
    found = [space.sample(rng) for _ in range(20)]
    assert all(map(space.valid, found))
    assert len(set(map(config_key, found))) > 10
    assert count[0] < 400_000, "far from the 1.6 million assignments, twenty times over"


def test_enumeration_cuts_dead_branches() -> None:
    space = rare()
    count = calls(space)
    total = space.size()
    assert 0 < total < space.raw_size / 1000
    assert count[0] < space.raw_size / 20


def test_mutation_and_crossover_stay_near() -> None:
    space, rng = rare(), Random(2)
    start = space.sample(rng)
    distances = [
        sum(start[k] != m[k] for k in start) for m in (space.mutate(start, rng, 0.1) for _ in range(30))
    ]
    assert sum(distances) / len(distances) < 5, "of eight knobs, of which no three are free"


def test_a_constraint_with_get_waits_for_its_knob() -> None:
    space = Space((Ordered("a", (1, 2), 1), Ordered("b", (1, 2), 1)), (lambda c: c.get("b", 0) == 2,))
    assert list(space.enumerate()) == [{"a": 1, "b": 2}, {"a": 2, "b": 2}]


def test_repair_completes_and_cleans_configs_of_other_spaces() -> None:
    space = Space((Ordered("a", (1, 2, 4), 1), Choice("b", ("x", "y"), "x")), (lambda c: c["a"] != 1,))
    assert space.repair({"a": 4, "old": 7}, Random(0))["a"] == 4
    assert space.valid(space.repair({}, Random(0)))


def test_an_empty_space_is_a_value_error() -> None:
    space = Space(
        (Ordered("a", (1, 2), 1), Ordered("b", (1, 2), 1)), (lambda c: int(c["a"]) > int(c["b"]) + 1,)
    )
    for use in (
        space.default,
        lambda: space.sample(Random(0)),
        lambda: space.repair({"a": 1, "b": 1}, Random(0)),
    ):
        with pytest.raises(ValueError, match="no valid config"):
            use()


def test_a_space_without_knobs_has_one_config() -> None:
    space = Space(())
    assert space.default() == {} and list(space.enumerate()) == [{}] and space.sample(Random(0)) == {}
    assert space.mutate({}, Random(0)) == {}


def test_what_a_search_would_not_find_in_time_is_one_of_the_guesses() -> None:
    """All knobs together decide, so that nothing can be ruled out before the last has its value."""
    knobs = tuple(Ordered(f"t{i}", TILES, 1) for i in range(24))
    guess: Config = {k.name: TILES[i % 7] for i, k in enumerate(knobs)}
    space = Space(knobs, (lambda c: [c[f"t{i}"] for i in range(24)] == list(guess.values()),), (guess,))
    assert space.sample(Random(0)) == space.mutate(guess, Random(1)) == guess
