"""The roof: what this machine can do at best, measured once per target and kept in the cache folder."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from wpk.core.target import Target
from wpk.runtime.native_api import Pool, load_native
from wpk.runtime.parts import Content

#: float32 lanes of a multiprocessor (compute capability 8.0 has half of them)
_GPU_LANES = 128


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


def gpu_peaks(target: Target) -> Peaks:
    """The peaks of a GPU by its description: two float32 operations a lane and clock; memory bandwidth."""
    assert target.gpu is not None
    return Peaks(2.0 * _GPU_LANES * target.gpu.sms * target.gpu.clock_hz, target.gpu.memory_bandwidth)


def peaks(runtime: Content, target: Target, cache: Path) -> Peaks:
    """The peaks of ``target``: from ``cache`` when measured before, else by ``runtime`` (``libwpkrt.so``), in about a second.

    A cache that cannot be written only costs the second again. Raises ArtifactError when the runtime does not load.
    """
    file = cache / f"peaks-{target.fingerprint}.json"
    try:
        return Peaks(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        found = measure_peaks(runtime, target.threads)
    with contextlib.suppress(OSError):
        file.write_text(json.dumps(asdict(found)))
    return found


def measure_peaks(runtime: Content, threads: int) -> Peaks:
    """Measure both peaks with ``threads`` threads: the best of a few runs, for a roof is what can be reached."""
    native = load_native(runtime)
    pool = Pool(native, threads)
    try:
        return Peaks(native.fma_peak(pool), native.read_bandwidth(pool))
    finally:
        pool.close()
