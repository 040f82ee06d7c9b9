"""Partitioned Boolean quadratic programming: one alternative for each variable, so that vector plus matrix costs are least.

The reductions R0, RI and RII keep the optimum, so chains, trees and series-parallel graphs are solved exactly; what is left
is reduced by the RN heuristic, and the answer then improved by changing one variable at a time. (Scholz and Eckstein, 2002.)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

Key = Hashable


@dataclass
class Problem:
    """Cost vectors of variables, and cost matrices of edges (rows: the first variable's alternatives). Infinity forbids."""

    vectors: dict[Key, np.ndarray] = field(default_factory=dict)
    matrices: dict[tuple[Key, Key], np.ndarray] = field(default_factory=dict)

    def variable(self, key: Key, costs: Iterable[float]) -> None:
        """Add a variable; its alternatives are numbered in the order of ``costs``."""
        self.vectors[key] = np.array(list(costs), float)

    def edge(self, a: Key, b: Key, costs: np.ndarray) -> None:
        """Add to the costs of the pair (a, b)."""
        if (b, a) in self.matrices:
            self.matrices[b, a] = self.matrices[b, a] + np.asarray(costs, float).T
        else:
            self.matrices[a, b] = self.matrices.get((a, b), 0.0) + np.asarray(costs, float)

    def cost(self, answer: Mapping[Key, int]) -> float:
        """The total cost of one alternative for each variable."""
        own = sum(float(v[answer[k]]) for k, v in self.vectors.items())
        return own + sum(float(m[answer[a], answer[b]]) for (a, b), m in self.matrices.items())


def solve(problem: Problem) -> dict[Key, int]:
    """The best alternative of every variable: exact where the reductions suffice, else a good one.

    Deterministic: ties go to the lower number, variables are reduced in the order they were added.
    """
    answer = _Reduction(problem).solve()
    return _improve(problem, answer)


class _Reduction:
    """The working copy: vectors, and each edge once under both of its ends."""

    def __init__(self, problem: Problem) -> None:
        self.order = {k: i for i, k in enumerate(problem.vectors)}
        self.vectors = {k: v.copy() for k, v in problem.vectors.items()}
        self.neighbours: dict[Key, dict[Key, np.ndarray]] = {k: {} for k in problem.vectors}
        for (a, b), matrix in problem.matrices.items():
            self._add_edge(a, b, matrix)
        self.stack: list[tuple[Key, np.ndarray, dict[Key, np.ndarray]]] = []

    def solve(self) -> dict[Key, int]:
        while self.neighbours:
            self._reduce(self._next())
        answer: dict[Key, int] = {}
        for key, vector, edges in reversed(self.stack):
            total = vector + sum((m[:, answer[b]] for b, m in edges.items()), np.zeros(len(vector)))
            answer[key] = int(np.argmin(total))
        return {k: answer[k] for k in self.order}

    def _next(self) -> Key:
        """A variable of the lowest degree up to 2, else of the highest (where the heuristic settles most)."""
        degrees = {k: len(edges) for k, edges in self.neighbours.items()}
        least = min(degrees.values())
        wanted = least if least <= 2 else max(degrees.values())
        return min((k for k, d in degrees.items() if d == wanted), key=self.order.__getitem__)

    def _reduce(self, key: Key) -> None:
        edges, vector = self.neighbours[key], self.vectors[key]
        if len(edges) == 1:
            ((other, matrix),) = edges.items()
            self.vectors[other] = self.vectors[other] + (vector[:, None] + matrix).min(axis=0)
        elif len(edges) == 2:
            (b, to_b), (c, to_c) = edges.items()
            delta = (vector[:, None, None] + to_b[:, :, None] + to_c[:, None, :]).min(axis=0)
            self._add_edge(b, c, delta)
        elif edges:
            vector = self._settle(vector, edges)
        self._remove(key, vector, edges)

    def _settle(self, vector: np.ndarray, edges: dict[Key, np.ndarray]) -> np.ndarray:
        """RN: take the alternative that is best when every neighbour answers on its own; its costs fall to them."""
        best = [(m + self.vectors[b][None, :]).min(axis=1) for b, m in edges.items()]
        chosen = int(np.argmin(vector + np.sum(best, axis=0)))
        for other, matrix in edges.items():
            self.vectors[other] = self.vectors[other] + matrix[chosen]
        settled = np.full(len(vector), np.inf)
        settled[chosen] = 0.0
        return settled

    def _add_edge(self, a: Key, b: Key, matrix: np.ndarray) -> None:
        self.neighbours[a][b] = self.neighbours[a].get(b, 0.0) + matrix
        self.neighbours[b][a] = self.neighbours[a][b].T

    def _remove(self, key: Key, vector: np.ndarray, edges: dict[Key, np.ndarray]) -> None:
        self.stack.append((key, vector, dict(edges)))
        for other in edges:
            del self.neighbours[other][key]
        del self.neighbours[key]


def _improve(problem: Problem, answer: dict[Key, int]) -> dict[Key, int]:
    """Change one variable at a time while that lowers the cost."""
    edges: dict[Key, list[tuple[Key, np.ndarray]]] = {k: [] for k in problem.vectors}
    for (a, b), matrix in problem.matrices.items():
        edges[a].append((b, matrix))
        edges[b].append((a, matrix.T))
    changed = True
    while changed:
        changed = False
        for key, vector in problem.vectors.items():
            total = vector + sum((m[:, answer[b]] for b, m in edges[key]), np.zeros(len(vector)))
            best = int(np.argmin(total))
            if total[best] < total[answer[key]]:
                answer[key], changed = best, True
    return answer
