"""cuDNN as a provider: one config per plan that the library offers for a convolution on this GPU, within its precision.

Two forms: ``whole`` is one graph of convolution and epilogue, ``apart`` a convolution alone and a second graph for the epilogue,
which is what remains where cuDNN has no fused engine (strict float32, above all). Weights are packed into the image's layout.
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
from wpk.core.tensor import to_layout
from wpk.core.workload import Workload
from wpk.providers.cudnn_ops import Unsupported, lower, weights_layout
from wpk.providers.protocol import Code, Support
from wpk.runtime.cuda.cudnn_call import cudnn_version
from wpk.runtime.cuda.driver import open_device
from wpk.search.knobs import Choice
from wpk.search.space import Space

#: Bytes of workspace that a plan may need.
WORKSPACE = 256 << 20

_WHOLE, _APART = "whole", "apart"
#: So many of the best guesses for the whole come before the first one for the parts.
_AHEAD = 4


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
    packing: tuple[str, ...] = ()
    _known: dict[tuple[str, str], tuple[str, ...] | str] = field(default_factory=dict, compare=False, repr=False)

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
        """One knob, ``plan``: ``whole/`` or ``apart/`` and the names of the plans, in the order of the library's guesses."""
        names = self._plans(workload, target)
        return Space((Choice("plan", names, names[0]),) if isinstance(names, tuple) else ())

    def build(self, workload: Workload, config: Config, target: Target) -> Code:
        """See :class:`wpk.providers.protocol.Provider`; ``spec`` as in :mod:`wpk.providers.cudnn_ops`. Needs no library.

        Whether the plan exists is seen where it runs.
        """
        form, _, names = str(config.get("plan", "")).partition("/")
        try:
            spec = self._spec(workload, form)
        except Unsupported as error:
            raise InvalidConfig(str(error)) from error
        plans = names.split("+")
        if form not in (_WHOLE, _APART) or len(plans) != len(spec["stages"]) or not all(plans):
            raise InvalidConfig(f"plan {config.get('plan')!r}: expected {_WHOLE}/NAME or {_APART}/NAME+NAME")
        for stage, plan in zip(spec["stages"], plans, strict=True):
            stage["plan"] = plan
        return Code("cudnn", spec=spec)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """See :class:`wpk.providers.protocol.Provider`: weights in the image's layout, other operands in their own."""
        layouts = [weights_layout(workload) if i == 1 else workload.inputs[i].layout for i in workload.constants]
        return [to_layout(a, layout) for a, layout in zip(constants, layouts, strict=True)]

    def _spec(self, workload: Workload, form: str) -> dict[str, Any]:
        call = lower(workload, apart=form == _APART)
        return {"library": "cudnn", "version": self.version, "limit": self.limit, **call}

    def _plans(self, workload: Workload, target: Target) -> tuple[str, ...] | str:
        """The values of the knob, or why there are none."""
        key = (workload.key, target.isa)
        if key not in self._known:
            self._known[key] = self._find(workload, target)
        return self._known[key]

    def _find(self, workload: Workload, target: Target) -> tuple[str, ...] | str:
        try:
            self.library.version()
            lower(workload)
        except (Unsupported, DeviceError) as error:
            return str(error)
        whole, why = self._offered(workload, _WHOLE, target)
        apart, _ = self._offered(workload, _APART, target)
        found = (*whole[:_AHEAD], *apart[:1], *whole[_AHEAD:], *apart[1:])
        return found or why or "cuDNN has no plan for it in this precision and workspace"

    def _offered(self, workload: Workload, form: str, target: Target) -> tuple[list[str], str]:
        """The plans of one form; of a second stage, which is cheap, only the first guess."""
        try:
            first, *rest = self.library.plans(self._spec(workload, form), target)
        except (Unsupported, DeviceError) as error:
            return [], str(error)
        if not all(rest):
            return [], "cuDNN has no plan for the epilogue"
        return [f"{form}/{'+'.join([name, *(names[0] for names in rest)])}" for name in first], ""
