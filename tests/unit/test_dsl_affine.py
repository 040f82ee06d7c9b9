"""Index simplification keeps the value of every expression it touches."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from wpk.dsl import affine
from wpk.dsl.ir import Binary, Const, Expr, Load, Select, Unary, Var, wrap

RANGES = {"i": (0, 3), "j": (-2, 5), "k": (0, 15)}


def evaluate(e: Expr, env: dict[str, int]) -> int:
    """Integer meaning of an index or a condition."""
    if isinstance(e, Const):
        return int(e.value)
    if isinstance(e, Var):
        return env[e.name]
    if isinstance(e, Unary):
        return int(not evaluate(e.a, env))
    assert isinstance(e, Binary)
    a, b = evaluate(e.a, env), evaluate(e.b, env)
    table = {
        "+": a + b,
        "-": a - b,
        "*": a * b,
        "min": min(a, b),
        "max": max(a, b),
        "<": a < b,
        "<=": a <= b,
        "==": a == b,
    }
    table |= {"and": a and b, "or": a or b, "//": a // b if b else 0, "%": a % b if b else 0}
    return int(table[e.op])


variables = st.sampled_from([Var(n) for n in RANGES])
constants = st.integers(-20, 20).map(Const)


def grow(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    """Sums, products with a constant, divisions by a positive constant, extremes."""
    divided = st.builds(Binary, st.sampled_from(("//", "%")), inner, st.integers(1, 17).map(Const))
    scaled = st.builds(Binary, st.just("*"), inner, constants)
    return st.one_of(
        st.builds(Binary, st.sampled_from(("+", "-", "min", "max")), inner, inner), scaled, divided
    )


indices = st.recursive(variables | constants, grow, max_leaves=8)
comparisons = st.builds(Binary, st.sampled_from(("<", "<=", "==")), indices, indices)
conditions = st.recursive(
    comparisons,
    lambda c: st.builds(Binary, st.sampled_from(("and", "or")), c, c) | st.builds(Unary, st.just("not"), c),
    max_leaves=4,
)
points = st.fixed_dictionaries({n: st.integers(lo, hi) for n, (lo, hi) in RANGES.items()})


@settings(max_examples=400, deadline=None)
@given(indices, points)
def test_a_simplified_index_has_the_same_value(e: Expr, env: dict[str, int]) -> None:
    assert evaluate(affine.index(e, RANGES), env) == evaluate(e, env)


@settings(max_examples=400, deadline=None)
@given(indices, points)
def test_an_interval_holds_every_value(e: Expr, env: dict[str, int]) -> None:
    span = affine.interval(affine.linear(e, RANGES), RANGES)
    assert span is None or span[0] <= evaluate(e, env) <= span[1]


@settings(max_examples=400, deadline=None)
@given(conditions, points)
def test_a_simplified_condition_has_the_same_value(e: Expr, env: dict[str, int]) -> None:
    assert bool(evaluate(affine.condition(e, RANGES), env)) == bool(evaluate(e, env))


def test_blocked_indices_come_apart() -> None:
    i, k = Var("i"), Var("k")
    assert affine.index((i * 16 + k) // 16, RANGES) == i
    assert affine.index((i * 16 + k) % 16, RANGES) == k
    assert affine.index((i * 32 + k + 16) // 16, RANGES) == i * 2 + 1


def test_a_decided_select_loses_its_dead_arm() -> None:
    i = Var("i")
    load = Load("x", (i + 0,))
    assert affine.value(Select(i < 4, load, wrap(0.0)), RANGES) == Load("x", (i,))
    assert affine.value(Select(wrap(3) < i, load, wrap(0.0)), RANGES) == wrap(0.0)
