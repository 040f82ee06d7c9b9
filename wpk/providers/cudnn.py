"""cuDNN as a provider: one config per plan that the library offers for a convolution on this GPU, within its precision.

Calls have several forms (:mod:`wpk.providers.cudnn_ops`): fused where cuDNN has engines for it, else in two graphs. Weights are
packed into the image's layout.
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
from wpk.core.tensor import TensorType, to_layout
from wpk.core.workload import Workload
from wpk.providers.cudnn_ops import APART, FORMS, NARROW, WHOLE, WINOGRAD, Unsupported, lower, operands
from wpk.providers.protocol import Code, Support
from wpk.runtime.cuda.cudnn_call import cudnn_version
from wpk.runtime.cuda.driver import open_device
from wpk.runtime.ports import numpy_dtype
from wpk.search.knobs import Choice
from wpk.search.space import Space

#: Bytes of workspace that a plan may need.
WORKSPACE = 256 << 20

#: With so many fused plans none in two graphs is worth a try: the second graph's kernel is compiled when it is loaded.
_ENOUGH = 4


class Library(Protocol):
    """What the provider asks of the library itself."""

    def version(self) -> str:
        """Raises DeviceError when it is not installed."""
        ...

    def plans(self, spec: dict[str, Any], target: Target) -> list[list[str]]:
        """The names of each stage's plans on ``target``, best guess first. Raises DeviceError where there are none."""
        ...


class Installed:
    """cuDNN on this machine's GPU."""

    def __init__(self) -> None:
        self._lock = Lock()

    def version(self) -> str:
        """See :class:`Library`."""
        return cudnn_version()

    def plans(self, spec: dict[str, Any], target: Target) -> list[list[str]]:
        """See :class:`Library`."""
        with self._lock:
            device = open_device()
            if device.target.isa != target.isa:
                raise DeviceError(f"cuDNN's plans are known only on the GPU itself: here is {device.name}, not {target.isa}")
            return device.offers("cudnn", spec)


@dataclass(frozen=True)
class Cudnn:
    """The cuDNN provider. ``limit``: bytes of workspace that a plan may need."""

    library: Library = field(default_factory=Installed)
    limit: int = WORKSPACE
    name: str = "cudnn"
    packing: tuple[str, ...] = ("form",)
    _known: dict[tuple[str, str], tuple[Config, ...] | str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def version(self) -> str:
        """The versions of the library and its frontend, or ``absent``."""
        try:
            return self.library.version()
        except DeviceError:
            return "absent"

    def supports(self, workload: Workload, target: Target) -> Support:
        """See :class:`wpk.providers.protocol.Provider`."""
        if target.arch != "cuda":
            return Support(False, "cuDNN runs on NVIDIA GPUs")
        found = self._plans(workload, target)
        return Support(False, found) if isinstance(found, str) else Support(True)

    def space(self, workload: Workload, target: Target) -> Space:
        """Two knobs, ``form`` and ``plan`` (the plans' names, one for each stage), in the order of the library's guesses."""
        found = self._plans(workload, target)
        if isinstance(found, str):
            return Space((), listed=())
        knobs = [Choice(k, tuple(dict.fromkeys(c[k] for c in found)), found[0][k]) for k in ("form", "plan")]
        return Space(tuple(knobs), first=found[:1], listed=found)

    def build(self, workload: Workload, config: Config, target: Target) -> Code:
        """See :class:`wpk.providers.protocol.Provider`; ``spec`` as in :mod:`wpk.providers.cudnn_ops`. Needs no library.

        Whether the plan exists is seen where it runs.
        """
        form, plans = str(config.get("form")), str(config.get("plan", "")).split("+")
        spec = self._spec(workload, form)
        if len(plans) != len(spec["stages"]) or not all(plans):
            raise InvalidConfig(f"plan {config.get('plan')!r}: expected {'+'.join(['NAME'] * len(spec['stages']))}")
        for stage, plan in zip(spec["stages"], plans, strict=True):
            stage["plan"] = plan
        return Code("cudnn", spec=spec, accuracy="winograd" if form == WINOGRAD else "")

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """See :class:`wpk.providers.protocol.Provider`: as :func:`wpk.providers.cudnn_ops.operands` says."""
        types = [operands(workload, str(config.get("form")))[i] for i in workload.constants]
        return [
            to_layout(a.reshape(t.shape) if a.dtype == numpy_dtype(t.dtype) else _narrowed(a, t), t.layout)
            for a, t in zip(constants, types, strict=True)
        ]

    def _spec(self, workload: Workload, form: str) -> dict[str, Any]:
        """Raises InvalidConfig."""
        if form not in FORMS:
            raise InvalidConfig(f"form {form!r}: expected {', '.join(FORMS)}")
        try:
            return {"library": "cudnn", "version": self.version, "limit": self.limit, **lower(workload, form)}
        except Unsupported as error:
            raise InvalidConfig(str(error)) from error

    def _plans(self, workload: Workload, target: Target) -> tuple[Config, ...] | str:
        """The configs, or why there are none."""
        key = (workload.key, target.isa)
        if key not in self._known:
            self._known[key] = self._find(workload, target)
        return self._known[key]

    def _find(self, workload: Workload, target: Target) -> tuple[Config, ...] | str:
        try:
            self.library.version()
            lower(workload)
        except (Unsupported, DeviceError) as error:
            return str(error)
        narrow, _ = self._offered(workload, NARROW, target)
        whole, why = self._offered(workload, WHOLE, target)
        fast, _ = self._offered(workload, WINOGRAD, target)
        fused = [*narrow, *whole[:_ENOUGH], *fast, *whole[_ENOUGH:]]
        apart = [] if len(fused) >= _ENOUGH else self._offered(workload, APART, target)[0]
        return (*fused, *apart) or why or "cuDNN has no plan for it in this precision and workspace"

    def _offered(self, workload: Workload, form: str, target: Target) -> tuple[list[Config], str]:
        """The configs of one form; of a second stage, which is cheap, only the first guess. Or why there are none."""
        try:
            first, *rest = self.library.plans(self._spec(workload, form), target)
        except (InvalidConfig, DeviceError) as error:
            return [], str(error)
        if not all(rest):
            return [], "cuDNN has no plan for the epilogue"
        return [{"form": form, "plan": "+".join([name, *(names[0] for names in rest)])} for name in first], ""


def _narrowed(array: np.ndarray, t: TensorType) -> np.ndarray:
    with np.errstate(over="ignore"):  # what does not fit is infinite: the check finds it
        return np.asarray(array.reshape(t.shape).astype(numpy_dtype(t.dtype)))
