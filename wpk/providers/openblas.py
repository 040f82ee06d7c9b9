"""OpenBLAS as a provider: products and 1×1 convolutions of row-major tensors, with at most a bias and a relu after them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np

from wpk.core.errors import InvalidConfig
from wpk.core.libraries import INSTALL, find_library
from wpk.core.pointwise import Input
from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.providers.chain import chain
from wpk.providers.protocol import Code, Support
from wpk.search.space import Space

_VERSION = 1
_BIAS_COLUMN, _BIAS_ROW = 1, 2


class Unsupported(Exception):
    """OpenBLAS cannot compute the workload; the message says why."""


@dataclass(frozen=True)
class Product:
    """c[m, n] = a[m, k] · b[k, n] for each of ``batch``, then bias and relu; the fields of the adapter's ``desc``."""

    m: int
    n: int
    k: int
    trans_a: int = 0
    trans_b: int = 0
    batch: int = 1
    stride_a: int = 0
    stride_b: int = 0
    stride_c: int = 0
    a: int = 0
    b: int = 1
    c: int = 2
    bias: int = -1
    bias_kind: int = 0
    relu: int = 0

    def encode(self) -> list[int]:
        """As the adapter reads it."""
        return [_VERSION, *(int(v) for v in vars(self).values())]


@dataclass(frozen=True)
class OpenBlas:
    """The OpenBLAS provider. ``path`` is the shared library; None when it is not installed."""

    path: Path | None = field(default_factory=lambda: find_library("openblas"))
    name: str = "openblas"

    @cached_property
    def version(self) -> str:
        """The library's version, or ``absent``."""
        if self.path is None:
            return "absent"
        library = ctypes.CDLL(str(self.path))
        library.scipy_openblas_get_config64_.restype = ctypes.c_char_p
        words = (library.scipy_openblas_get_config64_() or b"").decode().split()
        return words[1] if len(words) > 1 else "unknown"

    def supports(self, workload: Workload, target: Target) -> Support:
        """See :class:`wpk.providers.protocol.Provider`."""
        if self.path is None:
            return Support(False, f"OpenBLAS is not installed: {INSTALL['openblas']}")
        try:
            product(workload)
        except Unsupported as error:
            return Support(False, str(error))
        return Support(True)

    def space(self, workload: Workload, target: Target) -> Space:
        """One point: there is nothing to choose."""
        return Space(())

    def build(self, workload: Workload, config: Config, target: Target) -> Code:
        """See :class:`wpk.providers.protocol.Provider`; ``spec`` is ``{"library": "openblas", "desc": integers}``."""
        try:
            desc = product(workload).encode()
        except Unsupported as error:
            raise InvalidConfig(str(error)) from error
        return Code("openblas", spec={"library": "openblas", "desc": desc, "own_threads": False})

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """See :class:`wpk.providers.protocol.Provider`; nothing is packed."""
        return [np.ascontiguousarray(c) for c in constants]


def product(w: Workload) -> Product:
    """The product that computes ``w``. Raises Unsupported."""
    if any(t.dtype != "float32" or t.layout != "ROW" for t in (*w.inputs, *w.outputs)):
        raise Unsupported("only row-major float32")
    if any(0 in t.shape for t in w.inputs):
        raise Unsupported("an empty tensor")
    if w.op == "gemm":
        return _gemm(w)
    if w.op == "matmul":
        return _matmul(w)
    if w.op == "conv":
        return _pointwise_conv(w)
    raise Unsupported(f"OpenBLAS has no {w.op}")


def _gemm(w: Workload) -> Product:
    m, n = w.outputs[0].shape
    position, kind, relu = _epilogue(w, (1, n), _BIAS_COLUMN)
    return Product(
        m, n, prod(w.inputs[0].shape) // m, int(bool(w.attr("trans_a"))), int(bool(w.attr("trans_b"))),
        c=len(w.inputs), bias=position, bias_kind=kind, relu=relu,
    )  # fmt: skip


def _matmul(w: Workload) -> Product:
    a, b, c = w.inputs[0].shape, w.inputs[1].shape, w.outputs[0].shape
    if min(len(a), len(b)) < 2:
        raise Unsupported("matmul of a vector")
    m, n, k, batch = c[-2], c[-1], a[-1], prod(c[:-2])
    position, kind, relu = _epilogue(w, (*[1] * (len(c) - 1), n), _BIAS_COLUMN)
    rest = {"c": len(w.inputs), "bias": position, "bias_kind": kind, "relu": relu}
    if prod(b[:-2]) == 1 and prod(a[:-2]) == batch:  # one matrix for all: one tall product
        return Product(batch * m, n, k, **rest)
    strides = [0 if prod(s[:-2]) == 1 else s[-2] * s[-1] for s in (a, b)]
    if any(s != 0 and prod(shape[:-2]) != batch for s, shape in zip(strides, (a, b), strict=True)):
        raise Unsupported("batch dimensions broadcast in part")
    return Product(m, n, k, 0, 0, batch, strides[0], strides[1], m * n, **rest)


def _pointwise_conv(w: Workload) -> Product:
    x, kernel, y = w.inputs[0].shape, w.inputs[1].shape, w.outputs[0].shape
    plain = prod(kernel[2:]) == 1 and set(w.ints("strides")) == {1} and set(w.ints("pads")) == {0}
    if not plain or w.attr("group") != 1:
        raise Unsupported("only 1×1 convolutions of stride 1, without padding or groups")
    oc, ic, pixels = kernel[0], kernel[1], prod(x[2:])
    position, kind, relu = _epilogue(w, (1, oc, *[1] * (len(y) - 2)), _BIAS_ROW)
    return Product(
        oc, pixels, ic, 0, 0, x[0], 0, ic * pixels, oc * pixels, 1, 0, len(w.inputs), position, kind, relu
    )


def _epilogue(w: Workload, bias: tuple[int, ...], kind: int) -> tuple[int, int, int]:
    """(position of the bias, its kind, relu) of an epilogue that is at most that. Raises Unsupported."""
    links = list(chain(w.epilogue) or ())
    if w.epilogue is not None and not links:
        raise Unsupported("the epilogue is not a chain of operators")
    position = -1
    if links and links[0].op == "add" and isinstance(links[0].other, Input):
        position = links.pop(0).other.index  # type: ignore[union-attr]
        shape = w.inputs[position].shape
        if (*[1] * (len(bias) - len(shape)), *shape) != bias:
            raise Unsupported("an addition other than a bias")
    relu = bool(links) and links[0].op == "relu"
    if len(links) > relu:
        raise Unsupported(f"epilogue operator {links[-1].op}")
    return position, kind if position >= 0 else 0, int(relu)
