"""cuBLASLt as a provider: products and 1×1 convolutions, one config per algorithm that the library offers on this GPU.

The choice is named by the algorithm's attributes, so that a recorded config means the same in a replay; the library's order of
them, best guess first, is the order in which they are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

import numpy as np

from wpk.core.errors import DeviceError, InvalidConfig
from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.providers import cublaslt_ops
from wpk.providers.cublaslt_ops import lower
from wpk.providers.cublaslt_tail import Unsupported
from wpk.providers.protocol import Code, Support
from wpk.runtime.cuda.cublaslt_call import cublaslt_version
from wpk.runtime.cuda.driver import open_device
from wpk.search.knobs import Choice
from wpk.search.space import Space

#: Bytes of workspace that an algorithm may need: what NVIDIA advises for Hopper.
WORKSPACE = 32 << 20


class Library(Protocol):
    """What the provider asks of the library itself."""

    def version(self) -> str:
        """Raises DeviceError when it is not installed."""
        ...

    def offers(self, spec: dict[str, Any], target: Target) -> list[str]:
        """The names of its algorithms for a call on ``target``, best guess first. Raises DeviceError."""
        ...


class Installed:
    """cuBLASLt on this machine's GPU."""

    def __init__(self) -> None:
        self._lock = Lock()

    def version(self) -> str:
        """See :class:`Library`."""
        return cublaslt_version()

    def offers(self, spec: dict[str, Any], target: Target) -> list[str]:
        """See :class:`Library`."""
        with self._lock:
            device = open_device()
            if device.target.isa != target.isa:
                raise DeviceError(f"cuBLASLt's algorithms are known only on the GPU: here is {device.name}, not {target.isa}")
            (names,) = device.offers("cublaslt", spec)
            return names


@dataclass(frozen=True)
class CublasLt:
    """The cuBLASLt provider. ``limit``: bytes of workspace that an algorithm may need."""

    library: Library = field(default_factory=Installed)
    limit: int = WORKSPACE
    name: str = "cublaslt"
    packing: tuple[str, ...] = ()
    _known: dict[tuple[str, str], tuple[str, ...] | str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def version(self) -> str:
        """The library's version, or ``absent``."""
        try:
            return self.library.version()
        except DeviceError:
            return "absent"

    def supports(self, workload: Workload, target: Target) -> Support:
        """See :class:`wpk.providers.protocol.Provider`."""
        if target.arch != "cuda":
            return Support(False, "cuBLASLt runs on NVIDIA GPUs")
        found = self._algorithms(workload, target)
        return Support(False, found) if isinstance(found, str) else Support(True)

    def space(self, workload: Workload, target: Target) -> Space:
        """One knob, ``algorithm``: the names of what the library offers, in the order of its guesses."""
        names = self._algorithms(workload, target)
        return Space((Choice("algorithm", names, names[0]),) if isinstance(names, tuple) else ())

    def build(self, workload: Workload, config: Config, target: Target) -> Code:
        """See :class:`wpk.providers.protocol.Provider`; ``spec`` as in :mod:`wpk.runtime.cuda.cublaslt_call`.

        Raises InvalidConfig for an algorithm that the library does not offer; without a library, that is seen where it runs.
        """
        name, known = str(config.get("algorithm", "")), self._algorithms(workload, target)
        if not name or (isinstance(known, tuple) and name not in known):
            offered = f"{len(known)} others" if isinstance(known, tuple) else known
            raise InvalidConfig(f"cuBLASLt does not offer the algorithm {name!r} for {workload.key}, but {offered}")
        return Code("cublaslt", spec={**self._spec(workload), "algorithm": name})

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """See :class:`wpk.providers.protocol.Provider`: what is added is packed in the output's dtype, and as large as needed."""
        try:
            return cublaslt_ops.pack(workload, list(constants))
        except Unsupported as error:
            raise InvalidConfig(str(error)) from error

    def _spec(self, workload: Workload) -> dict[str, Any]:
        try:
            matmul = lower(workload)
        except Unsupported as error:
            raise InvalidConfig(str(error)) from error
        return {"library": "cublaslt", "version": self.version, "limit": self.limit, "matmul": matmul.to_json()}

    def _algorithms(self, workload: Workload, target: Target) -> tuple[str, ...] | str:
        """The values of the knob, or why there are none."""
        key = (workload.key, target.isa)
        if key not in self._known:
            self._known[key] = self._find(workload, target)
        return self._known[key]

    def _find(self, workload: Workload, target: Target) -> tuple[str, ...] | str:
        try:
            self.library.version()
            found = tuple(self.library.offers(self._spec(workload), target))
        except (InvalidConfig, DeviceError) as error:
            return str(error)
        return found or "cuBLASLt has no algorithm for it in this precision and workspace"
