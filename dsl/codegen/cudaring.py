"""Rings: a warp of its own fetches boxes into the slots of shared memory, all others use them.

    full[s]    the fetches of slot s are there       one arrival, and the bytes
    empty[s]   nobody reads slot s any more          an arrival of each warp that uses it

One thread fetches; its warp is added behind the threads of the block. Its code stands first in the function and returns from
there, so that it runs nothing of the others' code; they have no block barrier after that. It needs few registers; where others
need those, it is a whole warpgroup, since only such can give registers away.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from dataclasses import replace as changed
from math import prod

from wpk.core.errors import InternalError
from wpk.core.launch import TensorMap
from wpk.dsl.affine import linear
from wpk.dsl.codegen.cstyle import C_TYPES
from wpk.dsl.codegen.cudastmt import CudaStatements
from wpk.dsl.codegen.cudaunit import CudaUnit
from wpk.dsl.codegen.storage import allocs
from wpk.dsl.ir import Alloc, Barrier, Binary, Buffer, Const, Expr, Fetch, For, If, Settle, Stmt, Var

#: threads that are added for fetching, those that are where registers are given away, and bytes of a slot's barriers
WARP, PRODUCERS, SLOT_BYTES = 32, 128, 16
#: registers of a multiprocessor, most of a thread, those that a fetching thread keeps; a thread has a multiple of eight
REGISTERS, MOST, KEPT, UNIT = 65536, 240, 24, 8
#: registers of a thread beside what its buffers hold
BESIDE = 56


@dataclass
class TensorMaps:
    """The tensor maps of a kernel, in the order of its parameters; ``places``: parameter and offset of buffers."""

    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    found: list[TensorMap] = field(default_factory=list)

    def name(self, fetch: Fetch, swizzle: int, tf32: bool) -> str:
        """The parameter that describes a fetch; ``tf32``: what reads it takes no more of float32, so it may be rounded."""
        size, sizes = C_TYPES[fetch.dtype][2], fetch.sizes
        box, steps = [1] * len(sizes), [1] * len(sizes)
        for side in fetch.box:
            box[side.source], steps[side.source] = side.count, side.stride
        strides = tuple(prod(sizes[d:]) * size for d in range(len(sizes) - 1, 0, -1))
        parameter, offset = self.places[fetch.source]
        apart = tuple(steps[::-1]) if max(steps) > 1 else ()
        dtype = "tf32" if tf32 and fetch.dtype == "float32" else fetch.dtype
        tensor = TensorMap(parameter, dtype, sizes[::-1], strides, tuple(box[::-1]), swizzle, offset, apart)
        if tensor not in self.found:
            self.found.append(tensor)
        return f"map{self.found.index(tensor)}"


class RingStatements(CudaStatements):
    """Prints a function that may have a ring; its barriers lie at ``barriers`` in shared memory."""

    def __init__(self, unit: CudaUnit, threads: int, offsets: dict[int, int], maps: TensorMaps, barriers: int) -> None:
        super().__init__(unit, threads, offsets)
        self.maps, self.barriers = maps, barriers
        self.held = 0  # words of the register buffers of a thread, where warpgroups may give registers to others
        self.rings: list[For] = []  # loops that are printed, kept because places are known by their identity
        self.slot = ""
        self.stmts[Fetch] = self._fetch
        self.used |= {"full", "empty", *(f"map{i}" for i in range(16))}

    def _for(self, loop: For) -> None:
        if loop.kind == "ring":
            return self._ring(loop)
        super()._for(loop)

    def _barrier(self, stmt: Barrier) -> None:
        if self.rings:
            raise InternalError("a barrier of the block behind a ring, whose fetching threads are gone")
        super()._barrier(stmt)

    def _ring(self, loop: For) -> None:
        if len(self.blocks) > 1 or self.rings or self.threads % WARP:
            raise InternalError(f"ring {loop.var} is not alone in its function, or its threads are no whole warps")
        fetches = tuple(s for s in loop.body if fetched_bytes(s))
        make, use = (changed(loop, body=b) for b in (fetches, tuple(s for s in loop.body if s not in fetches)))
        self.rings = [make, use]
        self._index_name("thread")
        self.declare(0, f"mbarrier *full = (mbarrier *)(wpk_shared + {self.barriers}), *empty = full + {loop.grain};")
        before, self.blocks[0].lines = self.blocks[0].lines, []
        self._begin(loop.grain)
        self._produce(make)
        if self._raised():
            self.line(f"registers_raise<{self._raised()}>();")
        self.blocks[0].lines += before
        self._consume(use)

    def _begin(self, depth: int) -> None:
        with self.block(f"if (thread < {depth})"):
            self.line("mbar_init(full + thread, 1);")
            self.line(f"mbar_init(empty + thread, {self.threads // WARP});")
        self.line("__syncthreads();")

    def _produce(self, make: For) -> None:
        """Parities are those of the phase before: of an empty slot's first one the wait is over at once."""
        with self.block(f"if (thread >= {self.threads})"):
            if self._raised():
                self.line(f"registers_lower<{KEPT}>();")
            with self.block(f"if (thread == {self.threads})"), self._turns(make):
                self.slot, parity = self._slot(make, 0), self._text(Var(make.var) // make.grain + 1, 2)
                self.line(f"mbar_wait(empty + {self.slot}, {parity});")
                self.line(f"mbar_arrive_expect(full + {self.slot}, {sum(map(fetched_bytes, make.body))});")
                self.body(make.body)
            self.line("return;")

    @property
    def fetching(self) -> int:
        """Threads added for fetching."""
        return (PRODUCERS if self._raised() else WARP) if self.rings else 0

    def _raised(self) -> int:
        """Registers of a thread that does not fetch, when those that do have given theirs away; 0 where it has enough."""
        together = self.threads + PRODUCERS
        each = REGISTERS // (self.min_blocks * together) // UNIT * UNIT
        raised = (each * together - KEPT * PRODUCERS) // self.threads // UNIT * UNIT
        wanted = self.held and self.held + BESIDE > each and self.threads % PRODUCERS == 0 and KEPT <= each < MOST
        return min(raised, MOST) if wanted and raised > each else 0

    def _consume(self, use: For) -> None:
        self._index_name("lane")
        with self._turns(use):
            self.line(f"mbar_wait(full + {self._slot(use, 0)}, {self._text(Var(use.var) // use.grain, 2)});")
            self.body(use.body)
            lag = sum(s.left for s in use.body if isinstance(s, Settle))
            turn = f"lane == 0 && {self.vars[use.var]} >= {lag}" if lag else "lane == 0"
            self.line("__syncwarp();")
            self.line(f"if ({turn}) mbar_arrive(empty + {self._slot(use, lag)});")

    def _turns(self, loop: For) -> AbstractContextManager[None]:
        """The C loop of ``loop``."""
        self.line("#pragma unroll 1")
        start, stop = linear(loop.start, self.ranges), linear(loop.stop, self.ranges)
        last = stop.const - 1 if stop.is_const else 1 << 30
        return self.counting(loop, str(self.form_val(start)), str(self.form_val(stop)), (0, last))

    def _slot(self, loop: For, before: int) -> str:
        """The slot of the iteration, or of the one so many ``before``."""
        return self._text(Var(loop.var) + (loop.grain - before if before else 0), loop.grain)

    def _text(self, e: Expr, modulus: int) -> str:
        return str(self.form_val(linear(Binary("%", e, Const(modulus)), self.ranges)))

    def _fetch(self, stmt: Fetch) -> None:
        b = self.buffer(stmt.buffer)
        const, terms, _ = self._fold_now(stmt.indices, b)
        pointer, subscript = self._place(b, const, terms)
        at = ", ".join(str(self.form_val(linear(e, self.ranges))) for e in stmt.origin[::-1])
        to = pointer if subscript == "0" else f"{pointer} + {subscript}"
        name = self.maps.name(stmt, b.buffer.swizzle, self.shows)
        self.line(f"tma_load_{len(stmt.origin)}d({to}, &{name}, full + {self.slot}, {at});")


def ring_depth(body: tuple[Stmt, ...]) -> int:
    """The slots of the ring in ``body``; 0 where there is none."""
    depths = [
        s.grain if isinstance(s, For) and s.kind == "ring" else ring_depth(s.body)
        for s in body if isinstance(s, For | If | Alloc)
    ]  # fmt: skip
    return max(depths, default=0)


def held_words(body: tuple[Stmt, ...]) -> int:
    """Words of all register buffers in ``body``."""
    kept = (a.buffer for a in allocs(body) if a.buffer.scope == "register" and a.buffer.values is None)
    return sum(-(-prod(b.shape) * C_TYPES[b.dtype][2] // 4) for b in kept)


def fetched_bytes(stmt: Stmt) -> int:
    """Bytes that a fetch, or a loop of fetches, brings; 0 for another statement."""
    if isinstance(stmt, Fetch):
        return prod(side.count for side in stmt.box) * C_TYPES[stmt.dtype][2]
    if not isinstance(stmt, For):
        return 0
    return (linear(stmt.stop, {}).const - linear(stmt.start, {}).const) * sum(map(fetched_bytes, stmt.body))


def placed(params: tuple[Buffer, ...], device: dict[str, tuple[Buffer, int]]) -> dict[str, tuple[int, int]]:
    """Parameter and offset of buffers in device memory; the workspace comes after all parameters."""
    own = {p.name: (i, 0) for i, p in enumerate(params)}
    return {**own, **{n: (len(params), at) for n, (b, at) in device.items() if b.values is None}}


__all__ = ["PRODUCERS", "SLOT_BYTES", "RingStatements", "TensorMaps", "held_words", "placed", "ring_depth"]
