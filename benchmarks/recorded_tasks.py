"""The tasks whose spaces are recorded, and the part of each space that is.

A family's whole space has thousands to millions of points. What is recorded is a closed part of it: a box of assignments
around the best config known, grown value by value until ``limit`` configs are valid, together with the family's first
configs, those known best, and the neighbours of the best of them in the whole space. Constraints hold throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod

from wpk.core.pointwise import parse
from wpk.core.result import Config, config_key
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.search.knobs import Choice, Knob, Ordered, Value
from wpk.search.space import Space

BLOCKED = "NCHW16c"

#: Most configs of a task.
LIMIT = 1700
#: Good configs whose neighbours are recorded as well.
_CENTRES = 2

#: How many values of each knob a box may have, by family: most where the time depends on it in more than one direction.
#: Knobs not named keep the value of the box's centre.
WIDTHS: Mapping[str, Mapping[str, int]] = {
    "conv_direct": {
        "tile_w": 6, "tile_k": 4, "reduce": 3, "chunk": 4, "rows": 4, "cols": 3, "order": 2, "parallel": 3, "unroll_c": 3,
        "inner": 2,
    },
    "conv_row": {
        "tile_k": 6, "tile_v": 4, "rows": 4, "cols": 3, "chunk": 3, "order": 3, "parallel": 3, "reduce": 2, "pad": 2,
    },
    "winograd": {
        "m": 2, "tile_t": 5, "tile_k": 4, "block": 5, "chunk": 3, "order": 2, "parallel": 4, "unroll_c": 3, "input": 2, "pad": 2,
    },
    "conv_depthwise": {
        "isa": 2, "tile_w": 6, "tile_h": 5, "rows": 5, "unroll": 3, "parallel": 2, "grain": 2, "pad": 4, "reduce": 2, "tail": 2,
    },
    "gemm": {
        "tile_m": 6, "tile_n": 5, "block_m": 4, "chunk_n": 4, "block_k": 3, "order": 2, "parallel": 3, "unroll_k": 3, "pack_a": 3,
        "prefetch": 2,
    },
    "fc": {
        "isa": 2, "tile_n": 8, "strands": 4, "unroll_k": 4, "prefetch": 4, "locality": 2, "panels": 4, "grain": 2, "inner": 2,
    },
    "pool": {
        "isa": 2, "form": 2, "tile_w": 8, "tile_c": 3, "unroll": 4, "rows": 6, "tail": 2, "parallel": 2, "grain": 3, "pad": 2,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A task to record, the generated family whose space it is, and how many configs at most."""

    name: str
    family: str
    workload: Workload
    limit: int = LIMIT


def conv(channels: int, size: int, filters: int, kernel: int, stride: int = 1, group: int = 1, layout: str = BLOCKED) -> Workload:
    """A padded square convolution with bias and ReLU, batch 1; three channels come in rows."""
    pad, out = kernel // 2, -(-size // stride)
    inputs = (
        TensorType("float32", (1, channels, size, size), "ROW" if channels < 16 else layout),
        TensorType("float32", (filters, channels // group, kernel, kernel), "ROW"),
        TensorType("float32", (1, filters, 1, 1), "ROW"),
    )
    output = TensorType("float32", (1, filters, out, out), layout)
    attrs = (("dilations", (1, 1)), ("group", group), ("pads", (pad,) * 4), ("strides", (stride, stride)))
    return Workload("conv", inputs, (output,), attrs, parse("relu(add(acc,in2))"), (1, 2))


def gemm(rows: int, inner: int, columns: int) -> Workload:
    """A · Bᵀ + bias with constant B."""
    inputs = ((rows, inner), (columns, inner), (1, columns))
    types = tuple(TensorType("float32", s, "ROW") for s in inputs)
    output = TensorType("float32", (rows, columns), "ROW")
    return Workload("gemm", types, (output,), (("trans_a", 0), ("trans_b", 1)), parse("add(acc,in2)"), (1, 2))


def pool(channels: int, size: int) -> Workload:
    """3×3 maxima at stride 2, as after a stem."""
    out = size // 2
    attrs = (
        ("count_include_pad", 0), ("dilations", (1, 1)), ("kernel", (3, 3)), ("kind", "max"), ("pads", (1, 1, 1, 1)),
        ("strides", (2, 2)),
    )  # fmt: skip
    kinds = [TensorType("float32", (1, channels, s, s), BLOCKED) for s in (size, out)]
    return Workload("pool", (kinds[0],), (kinds[1],), attrs)


def lrn(channels: int, size: int) -> Workload:
    """Normalization across five channels."""
    kind = TensorType("float32", (1, channels, size, size), "ROW")
    attrs = (("alpha", 9.999999747378752e-05), ("beta", 0.75), ("bias", 1.0), ("size", 5))
    return Workload("lrn", (kind,), (kind,), attrs)


def softmax(rows: int, columns: int) -> Workload:
    """Along rows, as in attention."""
    kind = TensorType("float32", (rows, columns), "ROW")
    return Workload("softmax", (kind,), (kind,), (("axis", 1),))


def convert(channels: int, size: int) -> Workload:
    """Blocked channels to rows."""
    kinds = [TensorType("float32", (1, channels, size, size), layout) for layout in (BLOCKED, "ROW")]
    return Workload("convert", (kinds[0],), (kinds[1],))


def transpose(groups: int, channels: int, size: int) -> Workload:
    """A channel shuffle."""
    shapes = (1, groups, channels, size, size), (1, channels, groups, size, size)
    kinds = [TensorType("float32", s, "ROW") for s in shapes]
    return Workload("transpose", (kinds[0],), (kinds[1],), (("perm", (0, 2, 1, 3, 4)),))


def eltwise(channels: int, size: int) -> Workload:
    """A residual sum."""
    kind = TensorType("float32", (1, channels, size, size), BLOCKED)
    return Workload("eltwise", (kind, kind), (kind,), (), parse("relu(add(in0,in1))"))


SUBJECTS = (
    Subject("conv3x3-64x56", "conv_direct", conv(64, 56, 64, 3)),
    Subject("conv3x3-128x28", "conv_direct", conv(128, 28, 128, 3)),
    Subject("conv3x3-256x14", "conv_direct", conv(256, 14, 256, 3)),
    Subject("conv3x3-512x7", "conv_direct", conv(512, 7, 512, 3)),
    Subject("conv1x1-256x56-64", "conv_direct", conv(256, 56, 64, 1)),
    Subject("conv1x1-1024x14-256", "conv_direct", conv(1024, 14, 256, 1)),
    Subject("winograd-256x14", "winograd", conv(256, 14, 256, 3)),
    Subject("stem7x7-3x224", "conv_direct", conv(3, 224, 64, 7, 2)),
    Subject("conv3x3s2-row-128x56", "conv_row", conv(128, 56, 128, 3, 2, layout="ROW")),
    Subject("depthwise-272x14", "conv_depthwise", conv(272, 14, 272, 3, 1, 272)),
    Subject("gemm-128x768x768", "gemm", gemm(128, 768, 768)),
    Subject("gemv-2048x1000", "fc", gemm(1, 2048, 1000)),
    Subject("pool3x3-64x112", "pool", pool(64, 112)),
    Subject("lrn-96x54", "lrn", lrn(96, 54)),
    Subject("convert-512x28", "convert", convert(512, 28), 3000),
    Subject("softmax-1536x128", "softmax", softmax(1536, 128)),
    Subject("transpose-4x28x56", "transpose", transpose(4, 28, 56)),
    Subject("eltwise-256x56", "eltwise", eltwise(256, 56)),
)

#: Relatives of those that are hardest to rank: nothing is judged on them, the cost model learns from them.
LESSONS = (
    Subject("convert-128x56", "convert", convert(128, 56), 3000),
    Subject("depthwise-136x28", "conv_depthwise", conv(136, 28, 136, 3, 1, 136), 700),
    Subject("winograd-128x28", "winograd", conv(128, 28, 128, 3), 700),
    Subject("gemm-64x1024x512", "gemm", gemm(64, 1024, 512), 700),
    Subject("pool3x3-192x28", "pool", pool(192, 28), 700),
    Subject("conv3x3s2-row-256x28", "conv_row", conv(256, 28, 256, 3, 2, layout="ROW"), 700),
)


def part(space: Space, family: str, known: Sequence[Config], limit: int) -> Space:
    """The part of ``space`` to record, as a space of listed configs; ``known`` are good configs, best first."""
    known = [c for c in known if space.valid(c)]
    anchors = [c for c in _unique([space.default(), *space.first, *known]) if space.valid(c)]
    centres = _unique([space.default(), *known, *anchors])[:_CENTRES]
    near = [*anchors, *(n for c in centres for n in space.neighbours(c))]
    widths = WIDTHS.get(family)
    room = limit - len(_unique(near))
    everything = list(islice(space.enumerate(), limit + 1)) if widths is None else []
    if widths is None and len(everything) > limit:
        raise ValueError(f"{family}: the space has more than {limit} configs and no widths")
    box = everything if widths is None else _box(space, (known or anchors)[0], widths, anchors, room)
    listed = tuple(_unique([*near, *box]))
    return Space(tuple(_narrowed(k, listed) for k in space.knobs), (), tuple(anchors), listed)


def _box(space: Space, centre: Config, widths: Mapping[str, int], anchors: Sequence[Config], room: int) -> list[Config]:
    """Valid configs of the largest box around ``centre`` that the growth meets and that has at most ``room`` of them."""
    kept: dict[str, list[Value]] = {k.name: [centre[k.name]] for k in space.knobs}
    found: list[Config] = []
    for turn, knob in _rounds(space.knobs, widths):
        value = next(iter(_wishes(knob, kept[knob.name], anchors, turn)), None)
        if value is None:
            continue
        trial = {**kept, knob.name: [*kept[knob.name], value]}
        configs = list(islice(_boxed(space, trial).enumerate(), room + 1))
        if len(configs) <= room:
            kept, found = trial, configs
    return found


def _rounds(knobs: Sequence[Knob], widths: Mapping[str, int]) -> Iterator[tuple[int, Knob]]:
    """The knobs in turns, each as often as its width allows; in the order of ``widths``."""
    by_name = {k.name: k for k in knobs}
    for turn in range(1, max(widths.values())):
        yield from ((turn, by_name[n]) for n, width in widths.items() if n in by_name and turn < width)


def _wishes(knob: Knob, kept: Sequence[Value], anchors: Sequence[Config], turn: int) -> list[Value]:
    """Values to add, best first: in odd turns those that good configs use, in even ones those far from the kept ones."""
    rank = {v: i for i, v in enumerate(knob.values)}
    uses = {v: sum(c[knob.name] == v for c in anchors) for v in knob.values}
    rest = [v for v in knob.values if v not in kept]
    far = {v: min(abs(rank[v] - rank[k]) for k in kept) for v in rest}
    return sorted(rest, key=lambda v: (-uses[v] * (turn % 2), -far[v], rank[v]))


def _boxed(space: Space, kept: Mapping[str, Sequence[Value]]) -> Space:
    knobs = tuple(_only(k, lambda v, k=k: v in kept[k.name]) for k in space.knobs)  # type: ignore[misc]
    assert prod(len(k.values) for k in knobs) > 0
    return Space(knobs, space.constraints)


def _narrowed(knob: Knob, listed: Sequence[Config]) -> Knob:
    used = {c[knob.name] for c in listed}
    return _only(knob, lambda v: v in used)


def _only(knob: Knob, keep: Callable[[Value], bool]) -> Knob:
    values = tuple(v for v in knob.values if keep(v))
    default = knob.default if knob.default in values else values[0]
    if isinstance(knob, Ordered):
        return Ordered(knob.name, tuple(map(int, values)), int(default))
    return Choice(knob.name, values, default)


def _unique(configs: Sequence[Config]) -> list[Config]:
    return list({config_key(c): dict(c) for c in configs}.values())
