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
#: what is kept of the scores: all of a row, or a step's; or a row's, and all values with it
KEEPING = ("whole", "stream", "early")


@dataclass(frozen=True)
class Pads:
    """Elements between the rows of queries, keys, scores, weights and values in shared memory."""

    queries: int
    keys: int
    scores: int
    weights: int
    values: int


def keeping(c: Config) -> tuple[bool, bool]:
    """``stream`` and ``early`` of a tile."""
    return c["keys"] == "stream", c["keys"] == "early"


def shared_of(f: Frame, stages: int) -> int:
    """Queries and scores, and the larger of what the two products take beside them, or both where they take turns."""
    t, rows = f.tile, f.tile.m.extent
    q, k, v = (DTYPE_BYTES[x.dtype] for x in f.workload.inputs[:OWN])
    scores = t.step if t.stream else f.keys
    lasting = rows * ((f.size + 16 // q) * q + 4 * (scores + 16) + 8 * t.shares + 24)
    first, values = stages * t.n.extent * (f.size * k + 16), stages * t.step * (t.e.extent * v + 32)
    if t.early:
        lasting, values = lasting + f.keys * (t.e.extent * v + 32), 0
    weights = (1 if t.stream else stages) * rows * (t.step * DTYPE_BYTES[t.weights] + 16)
    return lasting + (first + values + weights if t.stream else max(first, values + weights)) + 1536


def fetching(f: Frame) -> float:
    """Cycles in which a multiprocessor gets the keys and values of a block from L2."""
    _, k, v = (DTYPE_BYTES[x.dtype] for x in f.workload.inputs[:OWN])
    return f.heads.keys * (f.heads.size * k + f.heads.values * v) / 40


def waiting(f: Frame, stages: int) -> float:
    """Rough cycles that a block's steps wait for memory and for each other."""
    first, second = f.keys / f.tile.n.extent, f.keys / f.tile.step
    memory = 900 if stages == 1 else 300
    if f.tile.stream:
        return second * (memory + 700)
    return 900 + first * memory + (100 * second if f.tile.early else 900 + second * memory)


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
        *scores_steps(f, block, pads.scores), *softmax_steps(f, block), *copy_steps(f, block, pads),
        ComputeAt("oa", "out", thread, "register"),
        ComputeAt("scale", "out", thread, "register"), *(Unroll("scale", x) for x in t.m.held),
    ]  # fmt: skip
    depth = int(c["stages"])
    if depth > 1:
        plan += [Pipeline("s", "nb", depth)] if f.keys > t.n.extent and not t.stream else []
        plan += [Pipeline("oa", "ko", depth)] if f.keys > t.step else []
    return plan


def within(f: Frame, block: str) -> tuple[str, str]:
    """Where the scores are: the block's, or those of a step."""
    return ("oa", "ko") if f.tile.stream else ("out", block)


def scores_steps(f: Frame, block: str, pad: int) -> list[Step]:
    """Step by step of the keys, all threads make the scores of all rows."""
    t, held = f.tile, (*f.tile.m.held, *f.tile.n.held)
    threads, thread = fuse_all("s", t.threads, "thread")
    vector = t.n.names[-1] in t.n.held and dict(t.n.axes)[t.n.names[-1]] > 1
    last: Step = Vectorize("s", held[-1]) if vector else Unroll("s", held[-1])
    return [
        ComputeAt("s", *within(f, block), "block"),
        StoreAs("s", pad=("nb", pad), join=(t.m.names, ("nb", *t.n.names))),
        Reorder("s", (*PLACE, "nb", *t.threads, *held)), *threads, Bind("s", thread, "thread"),
        *(Unroll("s", x) for x in held[:-1]), last,
        ComputeAt("sa", "s", thread, "register"),
    ]  # fmt: skip


def softmax_steps(f: Frame, block: str) -> list[Step]:
    """The largest scores and sums of powers, by threads of a row, then by one; with ``stream`` what goes on to the next step."""
    plan = [*share_steps(f, "largest", "largest", block), *share_steps(f, "total", "sum" if f.tile.stream else "total", block)]
    for stage in ("before", "decay", "total") if f.tile.stream else ():
        plan += [ComputeAt(stage, *within(f, block), "block"), Bind(stage, "r", "thread")]
    return plan


def share_steps(f: Frame, name: str, last: str, block: str) -> list[Step]:
    """The stages of :func:`wpk.kernels.cuda.attention_frame.shared`, and the one they are for."""
    share, part, whole = (f"{name}_{x}" for x in ("share", "part", "all"))
    step = ("kb",) if f.tile.stream else ()
    return [
        ComputeAt(part, *within(f, block), "block"), Reorder(part, (*PLACE, *step, "r", "t")),
        Fuse(part, "r", "t", "thread"), Bind(part, "thread", "thread"),
        ComputeAt(share, part, "thread", "register"), Split(share, "j", 8, "j_o", "j_u"),
        Reorder(share, (*PLACE, *step, "r", "t", "j_o", "j_u")), Unroll(share, "j_u"),
        ComputeAt(last, *within(f, block), "block"), Bind(last, "r", "thread"),
        ComputeAt(whole, last, "r", "register"), Unroll(whole, "t"),
    ]  # fmt: skip


def copy_steps(f: Frame, block: str, pads: Pads) -> list[Step]:
    """Operands in shared memory, and the weights of a step of keys."""
    t, a = f.tile, f.heads
    sizes = [DTYPE_BYTES[x.dtype] for x in f.workload.inputs[:OWN]]
    q, k = (width_of(a.size, f.size, bytes_each=n) for n in sizes[:2])
    v, weights = width_of(a.values, t.e.extent, bytes_each=sizes[2]), width_of(t.step, bytes_each=4)
    keys = ("oa", "ko") if t.stream else ("s", "nb")
    values = ("out", block) if t.early else ("oa", "ko")
    outer, rows = ("b", "g", *(() if t.early else ("kb",))), (*(("kb",) if t.early else ()), "ki")
    return [
        ComputeAt("qs", "out", block, "block"), *copied("qs", PLACE, ("r",), "d", q, t.count),
        ComputeAt("ks", *keys, "block"), *copied("ks", ("b", "g"), ("n",), "d", k, t.count),
        ComputeAt("p", "oa", "ko", "block"), *copied("p", (*PLACE, "kb"), ("r",), "ki", weights, t.count),
        ComputeAt("vs", *values, "block"), *copied("vs", outer, rows, "e", v, t.count),
        StoreAs("qs", pad=("d", pads.queries)), StoreAs("ks", pad=("d", pads.keys)),
        StoreAs("p", (*PLACE, "kb", "r", "ki"), pad=("ki", pads.weights)), StoreAs("vs", pad=("e", pads.values)),
    ]  # fmt: skip
