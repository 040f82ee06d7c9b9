"""conv: two-dimensional cross-correlation, any groups, strides, dilations and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

from wpk.core.pointwise import Acc, Input, apply
from wpk.core.tensor import TensorType, channel_block
from wpk.core.workload import Workload
from wpk.ops.base import Builder, Foreign, Layouts, Operator, Shape, Speller, all_in, row_only

#: inputs of so few channels are read row-major by a blocked convolution: the image itself
FEW_CHANNELS = 8


def shapes(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """(N, OC, OH, OW)."""
    (n, c, *spatial), (oc, cg, *kernel) = inputs[0].shape, inputs[1].shape
    if c != cg * attrs["group"] or oc % attrs["group"]:
        raise ValueError(f"{c} channels in {attrs['group']} groups do not fit weights {inputs[1]}")
    return ((n, oc, *windows(spatial, kernel, attrs)),)


def windows(spatial: Sequence[int], kernel: Sequence[int], attrs: Mapping[str, Any]) -> Shape:
    """How many windows of ``kernel`` fit along each spatial axis."""
    rank = len(spatial)
    out = []
    for i, (extent, k) in enumerate(zip(spatial, kernel, strict=True)):
        reach = (k - 1) * attrs["dilations"][i] + 1
        out.append((extent + attrs["pads"][i] + attrs["pads"][i + rank] - reach) // attrs["strides"][i] + 1)
    return tuple(out)


def flops(w: Workload) -> float:
    """Multiplications and additions of the direct algorithm."""
    return 2.0 * prod(w.outputs[0].shape) * prod(w.inputs[1].shape[1:])


def layouts(w: Workload, names: tuple[str, ...]) -> tuple[Layouts, ...]:
    """Row-major; another in and out; row-major in and another out for few input channels."""
    found = list(row_only(w, names))
    channels, (oc, cg), group = w.inputs[0].shape[1], w.inputs[1].shape[:2], int(cast(int, w.attr("group")))
    for name in names:
        b = channel_block(name)
        depthwise = cg == 1 and oc == group
        if group > 1 and not depthwise and (oc // group) % b:
            continue
        both = all_in(w, name)
        if 2 * channels >= b and 2 * oc >= b:
            found.append(both)
        if channels <= FEW_CHANNELS and group == 1:
            found.append(Layouts(("ROW", *both.inputs[1:]), both.outputs))
    return tuple(found)


def explicit_pads(f: Foreign, kernel: Sequence[int], out: Sequence[int]) -> tuple[int, ...]:
    """Begins then ends. auto_pad and ceil_mode are resolved: the ends reach as far as the output needs."""
    spatial = f.type(0).shape[2:]
    rank = len(spatial)
    strides, dilations = ints(f, "strides", rank), ints(f, "dilations", rank)
    reach = [
        (o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(out, strides, kernel, dilations, strict=True)
    ]
    mode = f.attrs.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        total = [max(r - x, 0) for r, x in zip(reach, spatial, strict=True)]
        begins = [t // 2 if mode == "SAME_UPPER" else (t + 1) // 2 for t in total]
        return (*begins, *(t - b for t, b in zip(total, begins, strict=True)))
    pads = [0] * 2 * rank if mode == "VALID" else list(f.attrs.get("pads", [0] * 2 * rank))
    ends = [max(e, r - x - b) for e, r, x, b in zip(pads[rank:], reach, spatial, pads[:rank], strict=True)]
    return (*pads[:rank], *ends)


def ints(f: Foreign, name: str, rank: int) -> tuple[int, ...]:
    """An attribute with one integer for each spatial axis, 1 by default."""
    return tuple(f.attrs.get(name, [1] * rank))


def lift(f: Foreign, b: Builder) -> str | None:
    """Conv with four-dimensional operands, or three-dimensional ones seen as one row; the bias must be constant."""
    x, w, bias = f.type(0), f.type(1), f.constant(2)
    if len(x.shape) not in (3, 4):
        return f"convolution over {len(x.shape) - 2} spatial axes"
    if f.has(2) and bias is None:
        return "bias is not constant"
    pads, out = explicit_pads(f, w.shape[2:], f.out.shape[2:]), f.out.shape
    strides, dilations = ints(f, "strides", len(out) - 2), ints(f, "dilations", len(out) - 2)
    inputs = [*f.inputs[:2]]
    if len(x.shape) == 3:
        pads, strides, dilations = (0, pads[0], 0, pads[1]), (1, *strides), (1, *dilations)
        out = (*out[:2], 1, out[2])
        inputs = [b.view(v, (*f.types[v].shape[:2], 1, f.types[v].shape[2]), v) for v in inputs]
    epilogue = None
    if bias is not None:
        inputs.append(b.constant(bias.reshape(1, -1, 1, 1), f.inputs[2]))
        epilogue = apply("add", Acc(), Input(2))
    name = b.emit(
        "conv", inputs, out, f.outputs[0], epilogue, final=len(x.shape) == 4,
        dilations=dilations, group=int(f.attrs.get("group", 1)), pads=pads, strides=strides,
    )  # fmt: skip
    if len(x.shape) == 3:
        b.view(name, f.out.shape, f.outputs[0], final=True)
    return None


def spell(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """Conv."""
    attrs = dict(w.attrs)
    s.op("Conv", ins, outs[0], kernel_shape=w.inputs[1].shape[2:], **attrs)


CONV = Operator(
    "conv",
    "anchor",
    2,
    ("dilations", "group", "pads", "strides"),
    shapes,
    flops,
    layouts,
    spell,
    {"Conv": lift},
)
