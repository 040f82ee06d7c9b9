"""Rewrites as pattern / check / rewrite, applied until none fires; a check that declines says why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from wpk.graph.graph import Graph, Node
from wpk.passes.draft import Draft

Match = tuple[Node, ...]
Trace = list[str]


class Rule(Protocol):
    """A local rewrite. The first node of a match is the one the pattern was tried at."""

    @property
    def name(self) -> str:
        """What the trace calls it."""
        ...

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """Every place at ``node`` where the pattern fits, the best first."""
        ...

    def check(self, draft: Draft, match: Match) -> str | None:
        """None when the rewrite is right there; else the reason why not."""
        ...

    def rewrite(self, draft: Draft, match: Match) -> None:
        """Do it. The check has passed."""
        ...


def apply_rules(graph: Graph, rules: Sequence[Rule], trace: Trace | None = None) -> Graph:
    """``graph`` with every rule applied wherever it fits, until nothing changes."""
    draft, declined = Draft(graph), dict[str, None]()
    changed = True
    while changed:
        declined.clear()
        changed = sum(_sweep(draft, rule, trace, declined) for rule in rules) > 0
    if trace is not None:
        trace.extend(declined)
    return draft.freeze()


def _sweep(draft: Draft, rule: Rule, trace: Trace | None, declined: dict[str, None]) -> bool:
    changed = False
    for name in sorted(draft.nodes, key=lambda n: draft.rank[n]):
        while name in draft.nodes and _fire(draft, rule, draft.nodes[name], trace, declined):
            changed = True
    return changed


def _fire(draft: Draft, rule: Rule, node: Node, trace: Trace | None, declined: dict[str, None]) -> bool:
    for match in rule.match(draft, node):
        reason = rule.check(draft, match)
        where = f"{rule.name}: {' + '.join(n.name for n in reversed(match))}"
        if reason is not None:
            declined[f"{where}: declined: {reason}"] = None
            continue
        rule.rewrite(draft, match)
        if trace is not None:
            trace.append(f"{where}: done")
        return True
    return False
