"""The roof: what this machine can do at best, measured once per target and kept in the cache folder."""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from wpk.core.target import Target
from wpk.measure.builder import build
from wpk.measure.toolchain import Compiler

#: 16 independent chains hide the latency of a multiply-add on every CPU of the last decade.
_CHAINS = 16
_ROUNDS = 400_000
_READ_BYTES = 256 << 20
_REPEATS = 5


@dataclass(frozen=True)
class Peaks:
    """float32 multiply-add peak in FLOP/s and read bandwidth in bytes/s, with all threads of the target."""

    flops: float
    bandwidth: float

    def floor(self, flops: float, nbytes: float) -> float:
        """The least seconds that ``flops`` of work on ``nbytes`` of compulsory traffic can take.

        ``flops`` are those of the direct algorithm, so a Winograd convolution can beat this floor.
        """
        return max(flops / self.flops, nbytes / self.bandwidth)


def peaks(target: Target, compiler: Compiler, cache: Path) -> Peaks:
    """The peaks of ``target``, from the cache when measured before (about a second otherwise). Raises as `builder.build`."""
    file = cache / f"peaks-{target.fingerprint}.json"
    try:
        return Peaks(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        found = measure_peaks(target, compiler, cache)
    file.write_text(json.dumps(asdict(found)))
    return found


def measure_peaks(target: Target, compiler: Compiler, cache: Path) -> Peaks:
    """Measure both peaks with ``target.threads`` threads; the best of a few runs, for a roof is what can be reached."""
    library = ctypes.CDLL(str(build(_source(target.lanes), target.isa, compiler, cache)))
    library.multiply_add.restype = library.read_all.restype = ctypes.c_float
    share = _READ_BYTES // target.threads // 64 * 64
    blocks = [np.ones(share // 4, np.float32) for _ in range(target.threads)]

    def compute(_: int) -> None:
        library.multiply_add(ctypes.c_int64(_ROUNDS))

    def read(thread: int) -> None:
        library.read_all(blocks[thread].ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(share // 4))

    flops = 2.0 * _CHAINS * target.lanes * _ROUNDS * target.threads
    return Peaks(flops / _best(compute, target.threads), share * target.threads / _best(read, target.threads))


def _best(work: Callable[[int], None], threads: int) -> float:
    def once(pool: ThreadPoolExecutor) -> float:
        start = time.perf_counter()
        list(pool.map(work, range(threads)))
        return time.perf_counter() - start

    with ThreadPoolExecutor(threads) as pool:
        return min(once(pool) for _ in range(_REPEATS))


def _source(lanes: int) -> str:
    chains = range(_CHAINS)
    declare = ", ".join(f"a{i} = start + {i}" for i in chains)
    step = " ".join(f"a{i} = a{i} * x + y;" for i in chains)
    total = " + ".join(f"a{i}" for i in chains)
    return f"""#include <stdint.h>
typedef float V __attribute__((vector_size({4 * max(lanes, 1)}), aligned(4)));
static float sum(V v) {{ float s = 0; for (int i = 0; i < {lanes}; i++) s += v[i]; return s; }}
float multiply_add(int64_t n) {{
  V x = {{0}}, y = {{0}}, start = {{0}};
  for (int i = 0; i < {lanes}; i++) {{ x[i] = 0.999f; y[i] = 0.001f; }}
  V {declare};
  for (int64_t i = 0; i < n; i++) {{ {step} }}
  return sum({total});
}}
float read_all(const float *p, int64_t n) {{
  V a = {{0}}, b = {{0}}, c = {{0}}, d = {{0}};
  int64_t i = 0;
  for (; i + {4 * lanes} <= n; i += {4 * lanes}) {{
    a += *(const V *)(p + i); b += *(const V *)(p + i + {lanes});
    c += *(const V *)(p + i + {2 * lanes}); d += *(const V *)(p + i + {3 * lanes});
  }}
  return sum(a + b + c + d);
}}
"""
