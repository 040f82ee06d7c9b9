"""The PBQP solver against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wpk.planner.pbqp import Problem, solve


def brute_force(problem: Problem) -> float:
    keys = list(problem.vectors)
    choices = itertools.product(*(range(len(problem.vectors[k])) for k in keys))
    return min(problem.cost(dict(zip(keys, choice, strict=True))) for choice in choices)


def random_problem(seed: int, edges: list[tuple[int, int]], variables: int, forbid: float = 0.15) -> Problem:
    rng = np.random.default_rng(seed)
    problem = Problem()
    sizes = rng.integers(1, 4, variables)
    for i in range(variables):
        problem.variable(i, rng.integers(0, 20, sizes[i]))
    for a, b in edges:
        matrix = rng.integers(0, 20, (sizes[a], sizes[b])).astype(float)
        matrix[rng.random(matrix.shape) < forbid] = np.inf
        matrix[0, 0] = 5.0  # always some answer
        problem.edge(a, b, matrix)
    return problem


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7))
def test_exact_on_trees(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(seed, [(int(rng.integers(0, i)), i) for i in range(1, n)], n)
    assert problem.cost(solve(problem)) == brute_force(problem)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_exact_on_series_parallel(seed: int) -> None:
    # Two residual blocks after one another: 0→1→2, 0→2; 2→3→4, 2→4, and a doubled edge.
    edges = [(0, 1), (1, 2), (0, 2), (2, 3), (3, 4), (4, 2), (3, 2)]
    problem = random_problem(seed, edges, 5)
    assert problem.cost(solve(problem)) == brute_force(problem)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_close_on_dense_graphs(seed: int) -> None:
    edges = list(itertools.combinations(range(5), 2))
    problem = random_problem(seed, edges, 5, forbid=0.0)
    assert problem.cost(solve(problem)) <= brute_force(problem) * 1.35 + 3


def test_an_edge_may_be_given_from_either_end() -> None:
    problem = Problem()
    problem.variable("a", [0, 0])
    problem.variable("b", [0, 0, 0])
    problem.edge("a", "b", np.array([[9, 9, 9], [9, 9, 1]]))
    problem.edge("b", "a", np.array([[0, 0], [0, 0], [0, 5]]))
    assert solve(problem) == {"a": 1, "b": 2}
    assert problem.cost({"a": 1, "b": 2}) == 6


def test_ties_go_to_the_first_alternative() -> None:
    problem = Problem()
    problem.variable("a", [1, 1])
    assert solve(problem) == {"a": 0}


def test_forbidden_everywhere_costs_infinity() -> None:
    problem = Problem()
    problem.variable("a", [np.inf, np.inf])
    assert problem.cost(solve(problem)) == pytest.approx(np.inf)
