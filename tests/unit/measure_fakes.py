"""A provider of tiny hand-written kernels, good and bad in every way a candidate can be, for tests of measuring and tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.errors import InvalidConfig
from wpk.core.pointwise import Input, apply
from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.providers.protocol import Code, Source, Support
from wpk.search.knobs import Choice, Ordered
from wpk.search.space import Space

_HEAD = """#include "wpk.h"
#include <stdlib.h>
#include <string.h>
#include <math.h>
typedef struct { const float *x, *w; float *y; int work; } ctx;
static void body(void *c, int64_t begin, int64_t end, int thread) {
  ctx *k = c;
  for (int64_t i = begin; i < end; i++) {
    volatile float waste = 1;
    for (int j = 0; j < k->work; j++) waste = waste * 0.5f + 1;
    float v = k->x[i] + k->w[i];
    k->y[i] = v > 0 ? v : 0;
  }
}
"""
_BODY = """int fake(void *state, void *const *args, void *ws, const wpk_rt *rt) {
  ctx c = {args[0], args[1], args[2], WORK};
  CODE
  rt->parallel(rt, body, &c, N, 16);
  AFTER
  return 0;
}
"""

#: name of a way to fail -> (code before the right answer is computed, code after it)
WAYS = {
    "good": ("", ""),
    "null": ("*(volatile int *)0 = 1;", ""),
    "hang": ("for (volatile int i = 0; ; i++);", ""),
    "eater": ("for (;;) memset(malloc(1 << 22), 1, 1 << 22);", ""),
    "wrong": ("", "c.y[N / 2] += 1;"),
    "past_end": ("", "c.y[N + 3] = 1;"),
    "far_past_end": ("", "c.y[N + 2000] = 1;"),
    "before_start": ("", "c.y[-5] = 1;"),
    "input_writer": ("", "((float *)c.x)[0] = 1;"),
    "past_workspace": ("", "((char *)ws)[64 * 3] = 1;"),
    "lazy": ("return 0;", ""),
    "code7": ("", "return 7;"),
    "exits": ("exit(3);", ""),
    "state": ("", "static int calls; if (calls++) c.y[0] = 1e6;"),
    "syntax": ("this is not C", ""),
}


@dataclass(frozen=True)
class Fakes:
    """relu(x + w) of one vector. ``way`` is one of WAYS, or ``invalid`` or ``bug``; ``work`` slows it down."""

    name: str = "generated-fake"
    version: str = "1"
    ways: tuple[str, ...] = ("good",)
    works: tuple[int, ...] = (0, 10, 20, 40, 80)
    extra: int = 1  # values of a third knob without effect
    packing: tuple[str, ...] = ()

    def supports(self, workload: Workload, target: Target) -> Support:
        """Vectors only."""
        return Support(workload.op == "eltwise", "only eltwise")

    def space(self, workload: Workload, target: Target) -> Space:
        """Ways × works × extra."""
        knobs = (
            Choice("way", self.ways, self.ways[0]),
            Ordered("work", self.works, self.works[-1]),
            Ordered("extra", tuple(range(self.extra)), 0),
        )
        return Space(knobs)

    def build(self, workload: Workload, config: Config, target: Target) -> Code:
        """The text of a kernel."""
        way = str(config["way"])
        if way == "invalid":
            raise InvalidConfig("no such tile")
        if way == "bug":
            raise ZeroDivisionError("in the family")
        before, after = WAYS[way]
        size = str(workload.inputs[0].shape[0])
        body = _BODY.replace("CODE", before).replace("AFTER", after).replace("WORK", str(config["work"]))
        text = f"{_HEAD}/* {config.get('extra')} */\n#define N {size}\n{body}"
        return Code("kernel", Source(text, "fake", target.isa, shared_bytes=64, thread_bytes=64))

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """As they are."""
        return [np.ascontiguousarray(c) for c in constants]


def add_relu(size: int = 1000) -> Workload:
    """relu(x + w) with a constant w."""
    kind = TensorType("float32", (size,))
    return Workload("eltwise", (kind, kind), (kind,), (), apply("relu", apply("add", Input(0), Input(1))), (1,))


def oracle(workload: Workload, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The reference of :func:`add_relu`."""
    return [np.maximum(inputs[0] + inputs[1], 0)]


def config(way: str = "good", work: int = 0, extra: int = 0) -> Config:
    """A config of :class:`Fakes`."""
    return {"way": way, "work": work, "extra": extra}
