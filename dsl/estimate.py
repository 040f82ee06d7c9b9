"""An analytic estimate of a kernel's time from its totals: a roofline with the machine's other resources added.

What streams from the second cache hides behind arithmetic for the most part; what comes from farther away is added. The constants
are round numbers near those that fit the recorded kernels of one machine best.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log

from wpk.core.target import Gpu, Target

#: Bytes a cycle that reach a core's first cache from its second, the second from the third, that from memory.
_NEAR, _FAR, _MEMORY = 32.0, 90.0, 4.5
#: The share that does not hide: of the shorter of arithmetic and streaming.
_SEEN = 0.3
#: Cycles of a prefetch of what is near, of loading again what registers could not hold, of an element fetched on its own, of a
#: guard, of a scalar statement and of arithmetic beyond multiply-adds, each beside what ports and chains already count.
_WASTED, _SPILL, _APART, _GUARD, _SCALAR, _OTHER = 1.2, 0.1, 0.15, 0.27, 0.04, 0.3
#: Cycles to start the threads on a parallel loop, and to hand out one chunk.
_REGION, _CHUNK = 1600.0, 16.0
#: float32 multiply-adds a cycle of a multiprocessor, bytes a cycle it gets from L2, cycles to launch a kernel.
_GPU_FMA, _GPU_L2, _GPU_LAUNCH = 128.0, 64.0, 4000.0


def estimate(facts: Mapping[str, float], target: Target) -> float:
    """The natural logarithm of cycles, roughly, of a kernel with these totals (counts as they are; see dsl/features.py)."""
    cycles = _on_gpu(facts, target.gpu) if target.gpu is not None else _on_cpu(facts, target.threads)
    return log(max(cycles, 1.0))


def _on_cpu(f: Mapping[str, float], threads: int) -> float:
    extra = (
        _WASTED * f["wasted"] + _SPILL * f["spilled"] + _APART * f["n_apart"] + _GUARD * f["n_guards"]
        + _SCALAR * f["n_scalar"] + _OTHER * f["n_other"]
    )  # fmt: skip
    busy, near = f["balanced"] + f["imbalance"] * extra, f["traffic_l1"] / _NEAR
    far = f["traffic_l2"] / _FAR + f["traffic_l3"] / _MEMORY
    shared = max(busy, near) + _SEEN * min(busy, near) + far + _CHUNK * f["chunks_all"]
    return shared / threads + _REGION * f["regions"]


def _on_gpu(f: Mapping[str, float], gpu: Gpu) -> float:
    """Blocks fill multiprocessors in waves; memory is as coalesced as the worst access."""
    busy = gpu.sms / max(f["grid_tail"], 1.0)
    hidden = min(1.0, 0.25 + 1.5 * f["grid_resident"])
    compute = (f["n_fma"] + f["n_other"] + f["n_guards"]) / (_GPU_FMA * busy * hidden)
    issue = (f["n_loads"] + f["n_stores"]) * f["grid_conflicts"] / (_GPU_FMA / 4 * busy * hidden)
    near = f["traffic_l1"] * f["grid_sectors"] / (_GPU_L2 * busy)
    far = f["touched"] * gpu.clock_hz / gpu.memory_bandwidth
    return max(compute + issue, near, far) + 0.3 * (compute + issue + near + far) + _GPU_LAUNCH * max(f["grid_kernels"], 1.0)
