"""A small model compiled by hand: C kernels, a plan and weights, for tests of the runtime."""

import atexit
import json
import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from wpk.core.target import host_target
from wpk.measure.builder import build, build_runtime
from wpk.measure.toolchain import find_compiler
from wpk.runtime.native_api import RUNTIME
from wpk.runtime.parts import Parts
from wpk.runtime.plan import Arg, BufferSpec, Plan, Port, Step

ROWS, COLS = 6, 1000
COUNT = ROWS * COLS
NBYTES = 4 * COUNT

KERNELS = f"""
#include "wpk.h"
enum {{ ROWS = {ROWS}, COLS = {COLS}, THREAD_BYTES = 4096 }};
typedef struct {{ const float *a, *b; float *c; char *workspace; }} call;

static void add_body(void *ctx, int64_t begin, int64_t end, int thread) {{
  call *k = ctx;
  for (int64_t i = begin; i < end; i++) k->c[i] = k->a[i] + k->b[i];
}}
/* c = a + b */
int add(void *state, void *const *args, void *workspace, const wpk_rt *rt) {{
  call k = {{args[0], args[1], args[2], workspace}};
  rt->parallel(rt, add_body, &k, ROWS * COLS, 100);
  return 0;
}}

/* One row, through the scratch memory of the thread. */
static void mul_body(void *ctx, int64_t begin, int64_t end, int thread) {{
  call *k = ctx;
  float *scratch = (float *)(k->workspace + (int64_t)thread * THREAD_BYTES);
  for (int64_t r = begin; r < end; r++) {{
    for (int i = 0; i < COLS; i++) scratch[i] = k->b[i];
    for (int i = 0; i < COLS; i++) k->c[r * COLS + i] = k->a[r * COLS + i] * scratch[i];
  }}
}}
/* c = a * b, b one row */
int mul(void *state, void *const *args, void *workspace, const wpk_rt *rt) {{
  call k = {{args[0], args[1], args[2], workspace}};
  rt->parallel(rt, mul_body, &k, ROWS, 1);
  return 0;
}}

int fail(void *state, void *const *args, void *workspace, const wpk_rt *rt) {{ return 17; }}
"""


@lru_cache(maxsize=1)
def cache() -> Path:
    """One folder of built binaries for the test run."""
    folder = mkdtemp(prefix="wpk-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@lru_cache(maxsize=1)
def binaries() -> dict[str, Path]:
    """The runtime and the kernels."""
    compiler, isa = find_compiler(), host_target().isa
    return {RUNTIME: build_runtime(isa, compiler, cache()), "kernels": build(KERNELS, isa, compiler, cache())}


def kernel(name: str, *args: Arg, thread_bytes: int = 0) -> Step:
    """A step that calls the kernel ``name``."""
    return Step(f"{name}0", "kernel", args, symbol=name, binary="kernels", thread_bytes=thread_bytes)


def plan(steps: tuple[Step, ...] | None = None, threads: int = 2) -> Plan:
    """``sum = x + y``; ``product = sum * w``; ``tail`` = the last two rows of ``product``.

    Buffers: 0 x, 1 y, 2 w, 3 the arena's tensor, 4 sum, 5 product, 6 tail.
    """
    target = host_target(threads)
    own = (
        kernel("add", Arg(0), Arg(1), Arg(3)),
        kernel("mul", Arg(3), Arg(2), Arg(5), thread_bytes=4096),
        Step("copy0", "copy", (Arg(3), Arg(4)), spec={"nbytes": NBYTES}),
        Step("copy1", "copy", (Arg(5, 4 * COLS * (ROWS - 2)), Arg(6)), spec={"nbytes": 8 * COLS}),
    )
    shape = (ROWS, COLS)
    return Plan(
        "handmade",
        (Port("x", "float32", shape), Port("y", "float32", shape)),
        (Port("sum", "float32", shape), Port("product", "float32", shape), Port("tail", "float32", (2, COLS))),
        (
            BufferSpec("input", NBYTES, "x"),
            BufferSpec("input", NBYTES, "y"),
            BufferSpec("weight", 4 * COLS, "w"),
            BufferSpec("arena", NBYTES, offset=64),
            BufferSpec("output", NBYTES, "sum"),
            BufferSpec("output", NBYTES, "product"),
            BufferSpec("output", 8 * COLS, "tail"),
        ),
        own if steps is None else steps,
        64 + NBYTES,
        json.loads(json.dumps(target.to_json())),
        target.fingerprint,
    )  # fmt: skip


def weights() -> dict[str, np.ndarray]:
    """The weights of :func:`plan`."""
    return {"w": np.linspace(-1, 1, COLS, dtype=np.float32)}


def parts(threads: int = 2) -> Parts:
    """The whole model."""
    return Parts(plan(threads=threads), binaries(), weights())


def feeds(seed: int = 0) -> dict[str, np.ndarray]:
    """Random feeds."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((ROWS, COLS)).astype(np.float32) for name in ("x", "y")}


def expected(fed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What the model gives, exactly."""
    total = fed["x"] + fed["y"]
    product = total * weights()["w"]
    return [total, product, product[-2:]]
