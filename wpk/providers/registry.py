"""Names → providers, as ``--providers`` and the API give them."""

from __future__ import annotations

from collections.abc import Sequence

from wpk.core.errors import UsageError
from wpk.kernels import families
from wpk.providers.generated import GeneratedProvider
from wpk.providers.onednn import OneDnn
from wpk.providers.onnxruntime import OnnxRuntime
from wpk.providers.openblas import OpenBlas
from wpk.providers.protocol import Provider

#: What ``providers(None)`` stands for.
ALL = ("generated", "onednn", "openblas", "onnxruntime")


def providers(names: Sequence[str] | None = None) -> tuple[Provider, ...]:
    """The providers called ``names`` (all for None), in that order, each once.

    ``generated`` stands for every kernel family, ``generated:<family>`` for one. Raises UsageError for an unknown name.
    Opaque nodes of a model run in ONNX Runtime whatever the names are.
    """
    chosen: dict[str, Provider] = {}
    for name in ALL if names is None else names:
        found = _named(name)
        if not found:
            known = ", ".join((*ALL, *(p.name for p in _generated())))
            raise UsageError(f"unknown provider {name!r}: expected some of {known}")
        chosen.update((p.name, p) for p in found)
    if not chosen:
        raise UsageError(f"no provider: expected some of {', '.join(ALL)}")
    return tuple(chosen.values())


def _named(name: str) -> tuple[Provider, ...]:
    single: dict[str, type[OneDnn] | type[OpenBlas] | type[OnnxRuntime]] = {
        "onednn": OneDnn,
        "openblas": OpenBlas,
        "onnxruntime": OnnxRuntime,
    }
    if name in single:
        return (single[name](),)
    return tuple(p for p in _generated() if name in ("generated", p.name))


def _generated() -> tuple[GeneratedProvider, ...]:
    return tuple(GeneratedProvider(f) for f in families())
