"""Names → providers, as ``--providers`` and the API give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from wpk.core.errors import UsageError
from wpk.core.target import Target
from wpk.kernels import families
from wpk.kernels.cuda import FAMILIES as CUDA_FAMILIES
from wpk.providers.cublaslt import CublasLt
from wpk.providers.cudnn import Cudnn
from wpk.providers.generated import GeneratedProvider
from wpk.providers.onednn import OneDnn
from wpk.providers.onnxruntime import OnnxRuntime
from wpk.providers.openblas import OpenBlas
from wpk.providers.protocol import Provider

#: Libraries by name, for each kind of target.
LIBRARIES: Mapping[str, Mapping[str, Callable[[], Provider]]] = {
    "cpu": {"onednn": OneDnn, "openblas": OpenBlas, "onnxruntime": OnnxRuntime},
    "cuda": {"cudnn": Cudnn, "cublaslt": CublasLt},
}

#: What ``providers(None)`` stands for on CPUs.
ALL = ("generated", *LIBRARIES["cpu"])


def providers(names: Sequence[str] | None = None, target: Target | None = None) -> tuple[Provider, ...]:
    """The providers called ``names`` (all for None) for targets like ``target`` (a CPU for None), in that order, each once.

    ``generated`` stands for every kernel family, ``generated:<family>`` for one. Raises UsageError for an unknown name.
    Opaque nodes of a model run in ONNX Runtime whatever the names are.
    """
    arch = "cuda" if target is not None and target.arch == "cuda" else "cpu"
    every = ("generated", *LIBRARIES[arch])
    chosen: dict[str, Provider] = {}
    for name in every if names is None else names:
        found = _named(name, arch)
        if not found:
            known = ", ".join((*every, *(p.name for p in _generated(arch))))
            raise UsageError(f"unknown provider {name!r}: expected some of {known}")
        chosen.update((p.name, p) for p in found)
    if not chosen:
        raise UsageError(f"no provider: expected some of {', '.join(every)}")
    return tuple(chosen.values())


def _named(name: str, arch: str) -> tuple[Provider, ...]:
    if name in LIBRARIES[arch]:
        return (LIBRARIES[arch][name](),)
    return tuple(p for p in _generated(arch) if name in ("generated", p.name))


def _generated(arch: str) -> tuple[GeneratedProvider, ...]:
    return tuple(GeneratedProvider(f, arch) for f in (CUDA_FAMILIES if arch == "cuda" else families()))
