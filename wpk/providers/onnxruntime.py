"""ONNX Runtime as a provider: a session of one operator. Each use breaks the plan into segments, which costs time too."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from wpk.core.errors import InvalidConfig
from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.providers.protocol import Code, Support
from wpk.search.space import Space

#: Conversions are between layouts, which ONNX does not know; views and opaque nodes are the planner's own business; attentions
#: are joined where there are kernels for them.
_NOT = ("convert", "view", "onnx", "region", "attention")


@dataclass(frozen=True)
class OnnxRuntime:
    """The ONNX Runtime provider."""

    name: str = "onnxruntime"

    @cached_property
    def version(self) -> str:
        """The package's version, or ``absent``."""
        try:
            return version("onnxruntime")
        except PackageNotFoundError:
            return "absent"

    def supports(self, workload: Workload, target: Target) -> Support:
        """See :class:`wpk.providers.protocol.Provider`."""
        if workload.op in _NOT:
            return Support(False, f"a session for a {workload.op} is of no use")
        if any(t.layout != "ROW" for t in (*workload.inputs, *workload.outputs)):
            return Support(False, "only row-major layout")
        if self.version == "absent":
            return Support(False, "onnxruntime is not installed: pip install onnxruntime")
        return Support(True)

    def space(self, workload: Workload, target: Target) -> Space:
        """One point: there is nothing to choose."""
        return Space(())

    def build(self, workload: Workload, config: Config, target: Target) -> Code:
        """See :class:`wpk.providers.protocol.Provider`.

        ``spec``: ``model`` (base64 of a model of the one operator, constants as inputs too), ``inputs`` and ``outputs`` as
        lists of [name, dtype, shape]. In a plan the planner makes a model that holds the constants.
        """
        if not (support := self.supports(workload, target)):
            raise InvalidConfig(support.reason)
        from wpk.providers.reference import reference_model  # loads ONNX Runtime

        spec: dict[str, object] = {"model": base64.b64encode(reference_model(workload)).decode()}
        for side, types in (("in", workload.inputs), ("out", workload.outputs)):
            spec[f"{side}puts"] = [[f"{side}{i}", t.dtype, list(t.shape)] for i, t in enumerate(types)]
        return Code("onnxruntime", spec=spec)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """See :class:`wpk.providers.protocol.Provider`; nothing is packed."""
        return [np.ascontiguousarray(c) for c in constants]
