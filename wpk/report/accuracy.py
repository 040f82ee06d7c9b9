"""How far a program's outputs are from the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from wpk.graph.graph import Graph
from wpk.report.engines import relative_l2

#: Probabilities below this have lost digits (float32 goes denormal at 1e-38) and say nothing of their logit.
_SMALLEST = 1e-30


def output_errors(graph: Graph, found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> list[float]:
    """The relative L2 error of each output of ``graph``; of a softmax's input where an output is a softmax.

    A softmax hides errors: it is blind to what all its inputs share and flattens what is far from the largest. Its inputs are
    the logarithms of its outputs but for a constant, so both are compared centred.
    """
    makers = graph.producer()
    errors = []
    for name, a, b in zip(graph.outputs, found, expected, strict=True):
        maker = makers.get(name)
        if maker is not None and maker.op == "softmax" and maker.epilogue is None:
            errors.append(logit_error(a, b, int(cast(int, maker.attr("axis")))))
        else:
            errors.append(relative_l2(a, b))
    return errors


def logit_error(found: np.ndarray, expected: np.ndarray, axis: int) -> float:
    """Relative L2 error of the centred inputs of a softmax over ``axis``, from its outputs."""
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return relative_l2(found, expected)
    a, b = (np.log(np.maximum(np.asarray(p, np.float64), _SMALLEST)) for p in (found, expected))
    known = np.broadcast_to(expected > _SMALLEST, b.shape)
    centred = [np.where(known, z - _mean(z, known, axis), 0.0) for z in (a, b)]
    return relative_l2(*centred)


def _mean(z: np.ndarray, known: np.ndarray, axis: int) -> np.ndarray:
    count = np.maximum(known.sum(axis=axis, keepdims=True), 1)
    return np.asarray(np.where(known, z, 0.0).sum(axis=axis, keepdims=True) / count)
