"""Which layouts a node can work in: node → the variants the planner chooses among.

A variant names a layout for every value of the node that is not a constant. Constants stay ``ROW``: ``pack`` arranges them.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import cast

from wpk.core.target import Target
from wpk.core.tensor import TensorType, channel_block
from wpk.core.workload import Workload
from wpk.graph.graph import Graph, Node
from wpk.ops import layouts
from wpk.ops.base import Layouts

Variant = Mapping[str, str]


def offered(target: Target) -> tuple[str, ...]:
    """Layouts besides ROW that kernels of ``target`` use: blocks of its vector's lanes, channels last on GPUs."""
    if target.arch == "cuda":
        return ("NHWC",)
    return ("NCHW16c",) if target.isa == "avx512" else ("NCHW8c",)


def workload_layouts(workload: Workload, target: Target) -> tuple[Layouts, ...]:
    """The layouts worth trying for a workload, row-major first: those of :mod:`wpk.ops`.

    On CPUs channels last is not among them: nothing that is best there was seen, and each layout costs measurements.
    """
    return layouts(workload, offered(target))


def variants(graph: Graph, node: Node, target: Target) -> tuple[Variant, ...]:
    """The variants of ``node``, all-ROW first."""
    found = []
    for each in workload_layouts(graph.workload(node), target):
        named = zip((*node.inputs, *node.outputs), (*each.inputs, *each.outputs), strict=True)
        found.append({v: layout for v, layout in named if v and v not in graph.constants})
    return tuple(found)


def same_bytes(t: TensorType, layout: str) -> bool:
    """True when ``t`` looks the same in memory in ``layout``: a conversion that moves nothing."""
    if t.layout == layout:
        return True
    if len(t.shape) < 3:
        return False
    _, c, *spatial = t.shape
    blocks = {channel_block(x) for x in (t.layout, layout)} - {1}
    if any(c % b for b in blocks):
        return False
    single_block = all(c == b for b in blocks)
    if prod(spatial) == 1:
        return True
    return ("ROW" not in (t.layout, layout) and single_block) or (c == 1 and not blocks)


def slices(node: Node, types: list[TensorType], whole: TensorType) -> tuple[int, list[int]] | None:
    """Where ``types`` (parts along ``node``'s axis) lie in ``whole``: (repeats, bytes of each part in one repeat).

    The whole is ``repeats`` times the parts after one another. None when a part does not end at a block of channels.
    """
    axis = int(cast(int, node.attr("axis"))) % len(whole.shape)
    block = channel_block(whole.layout)
    if block > 1 and axis == 1 and any(t.shape[1] % block for t in types[:-1]):
        return None
    order = _axis_order(whole)
    outer = prod(whole.physical[: order.index(axis)])
    return outer, [t.nbytes // outer if outer else 0 for t in types]


def _axis_order(t: TensorType) -> list[int]:
    """Logical axes in the order of the physical shape (an inner block of channels left out)."""
    rank = len(t.shape)
    return [0, *range(2, rank), 1] if t.layout == "NHWC" else list(range(rank))

