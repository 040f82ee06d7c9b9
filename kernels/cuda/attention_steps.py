"""What schedules of attention share: a block's nests from the queries to the result, and estimates; see
:mod:`wpk.kernels.cuda.attention_frame`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from wpk.core.result import Config
from wpk.core.target import Gpu
from wpk.core.tensor import DTYPE_BYTES
from wpk.dsl.schedule import Bind, ComputeAt, Fuse, Pipeline, Reorder, Split, Step, StoreAs, Unroll, Vectorize
from wpk.kernels.cuda.attention_frame import Frame
from wpk.kernels.cuda.nests import WARP, copied, fuse_all, width_of
from wpk.ops.attention import OWN

#: what a block is: batch, head, tile of queries
PLACE = ("b", "h", "mb")


@dataclass(frozen=True)
class Pads:
    """Elements between the rows of queries, keys, scores, weights and values in shared memory."""

    queries: int
    keys: int
    scores: int
    weights: int
    values: int


def shared_of(f: Frame, stages: int) -> int:
    """Queries and scores, and the larger of what the two products take beside them."""
    t, rows = f.tile, f.tile.m.extent
    q, k, v = (DTYPE_BYTES[x.dtype] for x in f.workload.inputs[:OWN])
    lasting = rows * ((f.size + 16 // q) * q + 4 * (f.keys + 16) + 8 * t.shares + 8)
    first = stages * t.n.extent * (f.size * k + 16)
    second = stages * (t.step * (t.e.extent * v + 16) + rows * (t.step * DTYPE_BYTES[t.weights] + 16))
    return lasting + max(first, second) + 1024


def rounds(f: Frame, gpu: Gpu, resident: int, threads: int, work: float, waits: float) -> float:
    """Cycles of all blocks: ``work`` is a whole multiprocessor's, which few warps do not fill; ``waits`` overlap."""
    mine = -(-prod(x.extent for x in f.place) // gpu.sms)
    together = min(mine, resident)
    busy = max(together * work * (1 + 4 * WARP / (together * threads)), work + waits)
    return -(-mine // together) * (4000 + busy)


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(f: Frame, c: Config, pads: Pads) -> list[Step]:
    """What all attentions share; ``oa`` and ``sa`` are left to the family.

    block: queries; for nb: [keys]; thread: products, scores; largest; scale; thread: for ko: [values, weights]; products.
    """
    t, held = f.tile, (*f.tile.m.held, *f.tile.e.held)
    fuse, block = fuse_all("out", PLACE, "block")
    threads, thread = fuse_all("out", t.of_values(), "thread")
    plan: list[Step] = [
        Reorder("out", (*PLACE, *t.of_values(), *held)), *fuse, *threads,
        Bind("out", block, "block.x", int(c["min_blocks"])), Bind("out", thread, "thread"),
        *(Unroll("out", x) for x in held[:-1]), Vectorize("out", held[-1]),
        *scores_steps(f, block, pads.scores), *softmax_steps(f, "largest", block), *softmax_steps(f, "scale", block),
        ComputeAt("oa", "out", thread, "register"),
        *copy_steps(f, block, pads),
    ]  # fmt: skip
    depth = int(c["stages"])
    if depth > 1:
        plan += [Pipeline("s", "nb", depth)] if f.keys > t.n.extent else []
        plan += [Pipeline("oa", "ko", depth)] if f.keys > t.step else []
    return plan


def scores_steps(f: Frame, block: str, pad: int) -> list[Step]:
    """Step by step of the keys, all threads make the scores of all rows."""
    t, held = f.tile, (*f.tile.m.held, *f.tile.n.held)
    threads, thread = fuse_all("s", t.threads, "thread")
    vector = t.n.names[-1] in t.n.held and dict(t.n.axes)[t.n.names[-1]] > 1
    last: Step = Vectorize("s", held[-1]) if vector else Unroll("s", held[-1])
    return [
        ComputeAt("s", "out", block, "block"),
        StoreAs("s", pad=("nb", pad), join=(t.m.names, ("nb", *t.n.names))),
        Reorder("s", (*PLACE, "nb", *t.threads, *held)), *threads, Bind("s", thread, "thread"),
        *(Unroll("s", x) for x in held[:-1]), last,
        ComputeAt("sa", "s", thread, "register"),
    ]  # fmt: skip


def softmax_steps(f: Frame, name: str, block: str) -> list[Step]:
    """The stages of :func:`shared`."""
    share, part, whole = (f"{name}_{x}" for x in ("share", "part", "whole"))
    return [
        ComputeAt(part, "out", block, "block"), Fuse(part, "r", "t", "thread"), Bind(part, "thread", "thread"),
        ComputeAt(share, part, "thread", "register"), Split(share, "j", 8, "j_o", "j_u"),
        Reorder(share, (*PLACE, "r", "t", "j_o", "j_u")), Unroll(share, "j_u"),
        ComputeAt(name, "out", block, "block"), Bind(name, "r", "thread"),
        ComputeAt(whole, name, "r", "register"), Unroll(whole, "t"),
    ]  # fmt: skip


def copy_steps(f: Frame, block: str, pads: Pads) -> list[Step]:
    """Operands in shared memory, and the weights of a step of keys."""
    t, a = f.tile, f.heads
    sizes = [DTYPE_BYTES[x.dtype] for x in f.workload.inputs[:OWN]]
    q, k = (width_of(a.size, f.size, bytes_each=n) for n in sizes[:2])
    v, weights = width_of(a.values, t.e.extent, bytes_each=sizes[2]), width_of(t.step, bytes_each=4)
    return [
        ComputeAt("qs", "out", block, "block"), *copied("qs", PLACE, ("r",), "d", q, t.count),
        ComputeAt("ks", "s", "nb", "block"), *copied("ks", ("b", "g"), ("n",), "d", k, t.count),
        ComputeAt("p", "oa", "ko", "block"), *copied("p", (*PLACE, "kb"), ("r",), "ki", weights, t.count),
        ComputeAt("vs", "oa", "ko", "block"), *copied("vs", ("b", "g", "kb"), ("ki",), "e", v, t.count),
        StoreAs("qs", pad=("d", pads.queries)), StoreAs("ks", pad=("d", pads.keys)),
        StoreAs("p", (*PLACE, "kb", "r", "ki"), pad=("ki", pads.weights)), StoreAs("vs", pad=("e", pads.values)),
    ]  # fmt: skip
