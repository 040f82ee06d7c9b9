"""The model's inputs and outputs as a caller sees them: checks of feeds, fresh outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wpk.core.errors import FeedError, UsageError
from wpk.runtime.plan import Port

#: NumPy dtype name → the element name in ONNX Runtime's type texts.
_ELEMENT = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class NodeArg:
    """An input or output as ``onnxruntime.InferenceSession`` describes it: ``type`` is e.g. ``tensor(float)``."""

    name: str
    shape: list[int]
    type: str


def node_arg(port: Port) -> NodeArg:
    """The caller's description of a port."""
    return NodeArg(port.name, list(port.shape), f"tensor({_ELEMENT.get(port.dtype, port.dtype)})")


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype of a name. ``bfloat16`` needs the ml_dtypes package; without it, its bits as ``uint16``."""
    try:
        return np.dtype(name)
    except TypeError:
        pass
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype(np.uint16)
    custom: np.dtype = np.dtype(getattr(ml_dtypes, name))
    return custom


def check_names(feeds: Mapping[str, Any], ports: Sequence[Port]) -> None:
    """Raises FeedError unless there is exactly one feed for each port."""
    if not isinstance(feeds, Mapping):
        raise FeedError(f"feeds: expected a mapping of names to arrays, found {type(feeds).__name__}")
    known = {p.name for p in ports}
    for name in feeds:
        if name not in known:
            raise FeedError(
                f"unknown feed {name!r}: expected {', '.join(map(repr, sorted(known))) or 'no feeds'}"
            )
    for port in ports:
        if port.name not in feeds:
            raise FeedError(f"feed {port.name!r} is missing: expected {describe(port.dtype, port.shape)}")


def check_feed(port: Port, dtype: np.dtype, value: Any) -> np.ndarray:
    """The feed of ``port`` as a C-ordered array: ``value`` itself where it is one, else a copy. Raises FeedError."""
    expected = describe(port.dtype, port.shape)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise FeedError(f"feed {port.name!r}: expected {expected}, found no array: {error}") from error
    if array.dtype != dtype or array.shape != port.shape:
        raise FeedError(
            f"feed {port.name!r}: expected {expected}, found {describe(str(array.dtype), array.shape)}"
        )
    return array if array.flags.c_contiguous and array.flags.aligned else np.array(array, order="C")


def check_outputs(names: Sequence[str] | None, ports: Sequence[Port]) -> list[str]:
    """The outputs wanted, all of them for None or an empty list. Raises UsageError for an unknown name."""
    known = [p.name for p in ports]
    for name in names or ():
        if name not in known:
            raise UsageError(f"unknown output {name!r}: expected one of {', '.join(map(repr, known))}")
    return list(names) if names else known


def describe(dtype: str, shape: tuple[int, ...]) -> str:
    """``float32[1,3,224,224]``."""
    return f"{dtype}[{','.join(map(str, shape))}]"
