"""What code is made for: ISA, cores, caches, a GPU's multiprocessors. The fingerprint is part of every record and artifact."""

import hashlib
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    """The limits of a CUDA device, as ``cudaDeviceProp`` has them. Sizes in bytes, ``memory_bandwidth`` in bytes a second."""

    sms: int
    shared_per_sm: int
    shared_per_block: int  # with opt-in
    registers_per_sm: int  # of 32 bits
    threads_per_sm: int
    memory: int
    memory_bandwidth: float
    clock_hz: float


@dataclass(frozen=True)
class Target:
    """A machine as the compiler sees it. Sizes in bytes.

    A CPU: ``isas`` from best to plainest, always ending in ``scalar``. A GPU (``gpu`` is set): ``arch`` is ``cuda``, ``isas``
    the compute capability to compile for, such as ``("sm_90a",)``, ``cores`` its multiprocessors, ``l1d`` their shared memory
    and L1, ``l2`` its L2; ``l3`` is 0 and ``threads`` 1.
    """

    arch: str
    model: str
    isas: tuple[str, ...]
    cores: int
    l1d: int
    l2: int
    l3: int
    threads: int
    gpu: Gpu | None = None

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints run each other's binaries and believe each other's timings."""
        if self.gpu is not None:
            device = (self.model, self.isas, self.gpu.sms)
            return f"cuda-{self.isa}-{hashlib.sha256(repr(device).encode()).hexdigest()[:12]}"
        facts = (self.arch, self.model, self.isas, self.cores, self.l2, self.l3, self.threads)
        return f"cpu-{self.arch}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"

    @property
    def isa(self) -> str:
        """The widest ISA: ``avx512``, ``avx2``, ``neon`` or ``scalar``; of a GPU its compute capability."""
        return self.isas[0]

    @property
    def lanes(self) -> int:
        """float32 lanes of the widest vector; of a GPU those of a warp."""
        return 32 if self.gpu else {"avx512": 16, "avx2": 8, "neon": 4, "scalar": 1}[self.isa]

    def to_json(self) -> dict[str, object]:
        """Plain JSON data."""
        return asdict(self)


def host_target(threads: int | None = None) -> Target:
    """The machine this runs on; ``threads`` defaults to the cores this process may use."""
    info = _cpuinfo()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags = set(info.get("flags", info.get("Features", "")).split())
    model = info.get("model name", platform.processor()) or platform.machine()
    family = f"{info.get('vendor_id', '')} {info.get('cpu family', '')}/{info.get('model', '')}"
    return Target(
        platform.machine(), f"{model} {family}".strip(), _isas(flags), cores,
        _cache(1, 32 << 10), _cache(2, 1 << 20), _cache(3, 8 << 20), threads or cores,
    )  # fmt: skip


def _isas(flags: set[str]) -> tuple[str, ...]:
    found = []
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags:
        found.append("avx512")
    if {"avx2", "fma"} <= flags:
        found.append("avx2")
    if "asimd" in flags or platform.machine() in ("aarch64", "arm64"):
        found.append("neon")
    return (*found, "scalar")


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}


def _cache(level: int, default: int) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if int((index / "level").read_text()) == level and (index / "type").read_text().strip() != "Instruction":
                text = (index / "size").read_text().strip()
                return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)
        except (OSError, ValueError):
            continue
    return default
