"""Which values of the next knob still lead to a valid config: masks for whoever builds configs knob by knob.

Knobs that no constraint ties together are independent, so each group of tied knobs has a tree of its own: a node is an
assignment of the group's first knobs, its children are the values for which some completion satisfies the group's
constraints. Nodes are expanded when first visited. A completion is looked for by backtracking, with a limit on the steps;
past it the value counts as valid, and :meth:`Choices.decode` repairs what then turns out to be none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wpk.search.knobs import Knob, Value
from wpk.search.space import Config, Constraint, Space

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]

#: completions found lately that are tried before a search
_WITNESSES = 4
#: configs looked at to learn which knobs a constraint reads
_PROBES = 48
#: children that lead nowhere, and those not visited yet
_INVALID, _UNVISITED = -1, -2


class _Noting(dict[str, Value]):
    """A config that notes which knobs are read."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Value:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Noted too."""
        self.read.add(name)
        return super().get(name, default)


class _Outside(Exception):
    """A constraint asked for a knob it was never seen to read."""


class _Within(dict[str, Value]):
    """A view of a config that holds the knobs of one group."""

    def __init__(self, config: Config, names: frozenset[str]) -> None:
        super().__init__()
        self._config, self._names = config, names

    def __getitem__(self, name: str) -> Value:
        if name not in self._names:
            raise _Outside
        return self._config[name]

    def get(self, name: str, default: Any = None) -> Any:
        """As ``self[name]``: a constraint that would take the default waits instead."""
        return self[name]


@dataclass
class _Tree:
    """The assignments of one group of knobs. ``children[level]`` is (nodes, values): a node's number at the next level."""

    knobs: tuple[Knob, ...]
    completion: Callable[[Config], Config | None]
    valid: Callable[[Config], bool]
    children: list[Ints] = field(default_factory=list)
    prefixes: list[list[tuple[Value, ...]]] = field(default_factory=list)
    witnesses: list[Config] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.children = [np.zeros((0, len(k.values)), np.int32) for k in self.knobs]
        self.prefixes = [[] for _ in self.knobs]
        self._add(0, ())

    def follow(self, level: int, nodes: Ints, values: Ints) -> Ints:
        """The nodes reached by choosing a value (by index) at each node."""
        if level + 1 == len(self.knobs):
            return nodes
        table = self.children[level]
        reached = table[nodes, values]
        if (reached < 0).any():
            for node, value in sorted(set(zip(nodes.tolist(), values.tolist(), strict=True))):
                if table[node, value] < 0:
                    prefix = (*self.prefixes[level][node], self.knobs[level].values[value])
                    table[node, value] = self._add(level + 1, prefix)
            reached = table[nodes, values]
        return reached

    def _add(self, level: int, prefix: tuple[Value, ...]) -> int:
        """Expand a node: its number at this level."""
        node, table = len(self.prefixes[level]), self.children[level]
        if node == len(table):
            more = np.full((max(len(table), 16), table.shape[1]), _INVALID, np.int32)
            self.children[level] = table = np.concatenate([table, more])
        self.prefixes[level].append(prefix)
        table[node] = [_UNVISITED if ok else _INVALID for ok in self._open(level, prefix)]
        return node

    def _open(self, level: int, prefix: tuple[Value, ...]) -> Iterator[bool]:
        chosen = dict(zip((k.name for k in self.knobs), prefix, strict=False))
        for value in self.knobs[level].values:
            yield self._completable({**chosen, self.knobs[level].name: value})

    def _completable(self, chosen: Config) -> bool:
        """Whether a completion exists: likely one found lately will do, else a search says."""
        if any(self.valid({**witness, **chosen}) for witness in self.witnesses):
            return True
        found = self.completion(chosen)
        if found is not None and len(found) == len(self.knobs):
            self.witnesses = [found, *self.witnesses[: _WITNESSES - 1]]
        return found is not None


class Choices:
    """The valid configs of a space as walks over its knobs, in the space's order. Values are meant by index.

    Arrays are over B walks at once: a walk's values are (K,) indices, padded to (K, V) where masks are meant.
    Raises ValueError for an empty space.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.knobs = space.knobs
        self.width = max((len(k.values) for k in space.knobs), default=1)
        self._index = [{v: i for i, v in enumerate(k.values)} for k in space.knobs]
        self._trees: list[_Tree] = []
        self._place: list[tuple[int, int]] = [(0, 0)] * len(space.knobs)
        for tree in _trees(space):
            if not (tree.children[0][:1] != _INVALID).any():
                raise ValueError("the space has no valid config")
            for level, knob in enumerate(tree.knobs):
                self._place[self.knobs.index(knob)] = (len(self._trees), level)
            self._trees.append(tree)

    def start(self, walks: int) -> list[Ints]:
        """The state of walks that have chosen nothing: each group's node, (B,)."""
        return [np.zeros(walks, np.int32) for _ in self._trees]

    def mask(self, state: Sequence[Ints], knob: int) -> Bools:
        """(B, values of the knob): which may be chosen."""
        tree, level = self._place[knob]
        valid: Bools = self._trees[tree].children[level][state[tree]] != _INVALID
        return valid

    def follow(self, state: list[Ints], knob: int, values: Ints) -> None:
        """Choose values, (B,), of a knob: changes ``state``."""
        tree, level = self._place[knob]
        state[tree] = self._trees[tree].follow(level, state[tree], values)

    def masks(self, walks: Ints) -> Bools:
        """(B, K, V): which values were open when each knob of given walks (B, K) was chosen; the chosen one always."""
        found = np.zeros((len(walks), len(self.knobs), self.width), np.bool_)
        state = self.start(len(walks))
        for k, knob in enumerate(self.knobs):
            found[:, k, : len(knob.values)] = self.mask(state, k)
            self.follow(state, k, walks[:, k])
        np.put_along_axis(found, walks[:, :, None], True, axis=2)
        return found

    def encode(self, configs: Sequence[Config]) -> Ints:
        """Configs as walks, (B, K)."""
        rows = [[self._index[k][c[knob.name]] for k, knob in enumerate(self.knobs)] for c in configs]
        return np.array(rows, np.int32).reshape(len(rows), len(self.knobs))

    def decode(self, walk: Sequence[int], rng: Random) -> Config:
        """The config of a walk, (K,); repaired where its constraints were too hard to look ahead."""
        config: Config = {k.name: k.values[i] for k, i in zip(self.knobs, walk, strict=True)}
        return self.space.repair(config, rng)


def _trees(space: Space) -> Iterator[_Tree]:
    if space.listed is not None:
        yield _Tree(space.knobs, _listed(space), space.valid)
        return
    scopes = _scopes(space)
    for group in _groups(space, [names for _, names in scopes]):
        knobs = tuple(k for k in space.knobs if k.name in group)
        held = tuple(_within(c, group) for c, names in scopes if names & group)
        group_space = Space(knobs, held)
        yield _Tree(knobs, group_space.completion, group_space.valid)


def _listed(space: Space) -> Callable[[Config], Config | None]:
    rows = [tuple(c[k.name] for k in space.knobs) for c in space.enumerate()]
    prefixes = {row[: i + 1] for row in rows for i in range(len(row))}
    return lambda chosen: chosen if tuple(chosen.values()) in prefixes else None


def _within(constraint: Constraint, names: frozenset[str]) -> Constraint:
    """The constraint on the knobs ``names`` alone; it holds when it asks for others: a repair decides then."""

    def holds(config: Config) -> bool:
        try:
            return bool(constraint(_Within(config, names)))
        except _Outside:
            return True

    return holds


def _scopes(space: Space) -> list[tuple[Constraint, frozenset[str]]]:
    """Each constraint with the knobs it was seen to read."""
    rng = Random(0)
    probes: list[Config] = [{k.name: k.default for k in space.knobs}]
    probes += [{k.name: k.sample(rng) for k in space.knobs} for _ in range(_PROBES)]
    return [(c, frozenset[str]().union(*(_read(c, p) for p in probes))) for c in space.constraints]


def _read(constraint: Constraint, config: Config) -> set[str]:
    noting = _Noting(config)
    constraint(noting)
    return noting.read


def _groups(space: Space, scopes: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """Knobs tied together by constraints, each knob in one group."""
    groups = [frozenset({k.name}) for k in space.knobs]
    for names in scopes:
        tied = [g for g in groups if g & names]
        groups = [g for g in groups if not g & names] + ([frozenset[str]().union(*tied)] if tied else [])
    return groups
