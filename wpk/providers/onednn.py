"""oneDNN as a provider: one config per primitive and optimized implementation that the library offers for a workload.

Layouts of activations come with the workload. Weights are packed when compiling, by the library's own reorder, into the
layout the chosen implementation wants; the layout's tag is part of the code's ``spec``, so that it means the same at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from wpk.core.errors import InvalidConfig
from wpk.core.libraries import INSTALL, find_library
from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.providers.dnnl import Call, DnnlError, Library, Memory, Primitive, encode, open_library
from wpk.providers.onednn_ops import Unsupported, lower
from wpk.providers.protocol import Code, Support
from wpk.search.knobs import Choice
from wpk.search.space import Space

#: Older instruction sets, in falling age. Implementations for them are tried only where there are none for a later one.
_OLD = ((":sse41", ":avx"), (":avx2", ":avx2_vnni", ":avx2_vnni_2"))

#: Reference implementations are slow loops, but for these they are little worse than anything else.
_MOVING = (Primitive.CONCAT, Primitive.REORDER, Primitive.SOFTMAX)


@dataclass(frozen=True)
class OneDnn:
    """The oneDNN provider. ``path`` is the shared library; None when it is not installed."""

    path: Path | None = field(default_factory=lambda: find_library("onednn"))
    name: str = "onednn"

    @cached_property
    def version(self) -> str:
        """The library's version, or ``absent``."""
        try:
            return open_library(self.path).version if self.path else "absent"
        except DnnlError:
            return "absent"

    def supports(self, workload: Workload, target: Target) -> Support:
        """See :class:`wpk.providers.protocol.Provider`."""
        if self.path is None:
            return Support(False, f"oneDNN is not installed: {INSTALL['onednn']}")
        try:
            offers = _offers(self.path, workload, target.threads)
        except (Unsupported, DnnlError) as error:
            return Support(False, str(error))
        return Support(bool(offers), "" if offers else "oneDNN has only a reference implementation of it")

    def space(self, workload: Workload, target: Target) -> Space:
        """One knob, ``implementation``; the library's first choice is the default."""
        names = tuple(self._calls(workload, target))
        return Space((Choice("implementation", names, names[0]),) if names else ())

    def build(self, workload: Workload, config: Config, target: Target) -> Code:
        """See :class:`wpk.providers.protocol.Provider`; ``spec`` is ``{"library": "onednn", "desc": integers}``."""
        call = self._resolved(workload, config, target)
        inplace = (
            (call.memories[0].position,) if workload.op == "eltwise" and _same_type(workload, call) else ()
        )
        return Code("onednn", spec={"library": "onednn", "desc": encode(call)}, inplace=inplace)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """See :class:`wpk.providers.protocol.Provider`."""
        call, library = self._resolved(workload, config, target), self._library()
        packed = []
        for position, array in zip(workload.constants, constants, strict=True):
            memory = next((m for m in call.memories if m.position == position), None)
            packed.append(
                _pack(library, workload, call, memory, array) if memory else np.ascontiguousarray(array)
            )
        return packed

    def _library(self) -> Library:
        if self.path is None:
            raise InvalidConfig("oneDNN is not installed")
        return open_library(self.path)

    def _calls(self, workload: Workload, target: Target) -> dict[str, Call]:
        try:
            offers = _offers(self.path, workload, target.threads) if self.path else ()
        except (Unsupported, DnnlError) as error:
            raise InvalidConfig(str(error)) from error
        return {f"{call.primitive.name.lower()}/{call.implementation}": call for call in offers}

    def _resolved(self, workload: Workload, config: Config, target: Target) -> Call:
        call = self._calls(workload, target).get(str(config.get("implementation")))
        if call is None:
            raise InvalidConfig(
                f"oneDNN has no implementation {config.get('implementation')!r} of {workload.key}"
            )
        try:
            return self._library().resolve(call, target.threads)
        except DnnlError as error:
            raise InvalidConfig(str(error)) from error


@lru_cache(maxsize=4096)
def _offers(path: Path, workload: Workload, threads: int) -> tuple[Call, ...]:
    """Every (primitive, implementation) for a workload. Raises Unsupported, or DnnlError when no primitive takes it."""
    found: list[Call] = []
    refusal: DnnlError | None = None
    for call in lower(workload):
        try:
            names = open_library(path).implementations(call, threads)
        except DnnlError as error:
            refusal = error
            continue
        kept = [n for n in names if not n.startswith("ref")] or (names if call.primitive in _MOVING else [])
        found.extend(replace(call, implementation=name) for name in kept)
    if not found and refusal is not None:
        raise refusal
    for old in _OLD:
        found = [c for c in found if not c.implementation.endswith(old)] or found
    return tuple(found)


def _same_type(workload: Workload, call: Call) -> bool:
    return workload.inputs[call.memories[0].position] == workload.outputs[0]


def _pack(library: Library, workload: Workload, call: Call, memory: Memory, array: np.ndarray) -> np.ndarray:
    plain = "abcdef"[: len(memory.shape)]
    is_weights = workload.op == "gemm" and memory.position == 1
    # An inner product sees the weights as (N, K), a matmul as (K, N).
    if is_weights and bool(workload.attr("trans_b")) != (call.primitive == Primitive.INNER_PRODUCT):
        plain = "ba"
    if memory.tag == plain:
        return np.ascontiguousarray(array)
    return library.reorder(array, replace(memory, tag=plain), memory)
