"""Passes are frozen dataclasses whose fields are their options; a pipeline is a tuple of them, printed and parsed as text.

clean,cse,fuse{max=24},bn,dce,regions
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Protocol

from wpk.core.errors import UsageError
from wpk.core.workload import Workload
from wpk.graph.graph import Graph
from wpk.graph.verify import verify
from wpk.passes.affine import FoldAffine
from wpk.passes.attention import JoinAttention, anything
from wpk.passes.clean import ConstantOperands, Forward, MergeMoves, SinkView, TransposeToView
from wpk.passes.concat import HoistEltwise
from wpk.passes.dead import fold_constants, merge_duplicates, remove_dead
from wpk.passes.fuse import FuseEpilogue
from wpk.passes.idioms import PaddedConv, ScaledProduct, SpelledNorm
from wpk.passes.packed import JoinProducts, PackedRows
from wpk.passes.regions import group_regions
from wpk.passes.rewrite import Rule, Trace, apply_rules
from wpk.passes.siblings import FuseSiblings


class Pass(Protocol):
    """A graph transformation. ``name`` is its word in the pipeline's text."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def run(self, graph: Graph, trace: Trace | None) -> Graph:
        """The transformed graph."""
        ...


@dataclass(frozen=True)
class Fold:
    """Compute what depends on constants only."""

    name: ClassVar[str] = "fold"

    def run(self, graph: Graph, trace: Trace | None) -> Graph:
        """The transformed graph."""
        return fold_constants(graph, trace)


CLEANING: tuple[Rule, ...] = (Forward(), TransposeToView(), MergeMoves(), ConstantOperands(), SinkView())


@dataclass(frozen=True)
class Clean:
    """Views, identities, transposes and concats that do nothing, or do it twice."""

    name: ClassVar[str] = "clean"

    def run(self, graph: Graph, trace: Trace | None) -> Graph:
        """The transformed graph."""
        return apply_rules(graph, CLEANING, trace)


@dataclass(frozen=True)
class Idioms:
    """What exporters spell out, normalizations, padding and factors, becomes one node."""

    name: ClassVar[str] = "idioms"

    def run(self, graph: Graph, trace: Trace | None) -> Graph:
        """The transformed graph."""
        return apply_rules(graph, (SpelledNorm(), PaddedConv(), ScaledProduct()), trace)


@dataclass(frozen=True)
class Hoist:
    """Elementwise work behind a concat moves in front of it."""

    name: ClassVar[str] = "hoist"

    def run(self, graph: Graph, trace: Trace | None) -> Graph:
        """The transformed graph."""
        return apply_rules(graph, (HoistEltwise(),), trace)


@dataclass(frozen=True)
class Fuse:
    """Elementwise work joins the node before it; ``max`` bounds the operators of one expression."""

    max: int = 24
    name: ClassVar[str] = "fuse"

    def run(self, graph: Graph, trace: Trace | None) -> Graph:
        """The transformed graph."""
        return apply_rules(graph, (FuseEpilogue(self.max),), trace)


@dataclass(frozen=True)
class BatchNorm:
    """Scales and shifts by channel go into weights and bias."""

    name: ClassVar[str] = "bn"

    def run(self, graph: Graph, trace: Trace | None) -> Graph:
        """The transformed graph."""
        return apply_rules(graph, (FoldAffine(),), trace)


@dataclass(frozen=True)
class Siblings:
    """Convolutions of one input become one; ``multiple`` of channels that each part but the last must have."""

    multiple: int = 16
    name: ClassVar[str] = "siblings"

    def run(self, graph: Graph, trace: Trace | None) -> Graph:
        """The transformed graph."""
        return apply_rules(graph, (FuseSiblings(self.multiple),), trace)


@dataclass(frozen=True)
class Attention:
    """Products with a softmax between them become attentions where ``fits`` says so, which is not part of the text.

    With ``join``, products that make queries, keys and values of one activation become one: horizontal fusion, as siblings are.
    """

    fits: Callable[[Workload], bool] = field(default=anything, metadata={"text": False})
    join: bool = False
    name: ClassVar[str] = "attention"

    def run(self, graph: Graph, trace: Trace | None) -> Graph:
        """The transformed graph."""
        joined: tuple[Rule, ...] = (JoinProducts(self.fits),) if self.join else ()
        rules: tuple[Rule, ...] = (JoinAttention(self.fits), PackedRows(self.fits), *CLEANING, *joined)
        return apply_rules(graph, rules, trace)


@dataclass(frozen=True)
class Duplicates:
    """One node for each computation, one constant for each content."""

    name: ClassVar[str] = "cse"

    def run(self, graph: Graph, trace: Trace | None) -> Graph:
        """The transformed graph."""
        return merge_duplicates(graph, trace)


@dataclass(frozen=True)
class Dead:
    """Without what no output needs."""

    name: ClassVar[str] = "dce"

    def run(self, graph: Graph, trace: Trace | None) -> Graph:
        """The transformed graph."""
        return remove_dead(graph, trace)


@dataclass(frozen=True)
class Regions:
    """Opaque nodes in convex regions; with ``absorb``, light native nodes between them too."""

    absorb: bool = True
    name: ClassVar[str] = "regions"

    def run(self, graph: Graph, trace: Trace | None) -> Graph:
        """The transformed graph."""
        return group_regions(graph, self.absorb, trace)


Pipeline = tuple[Pass, ...]
PASSES: dict[str, type[Any]] = {
    p.name: p for p in (Fold, Clean, Idioms, Hoist, Fuse, BatchNorm, Attention, Siblings, Duplicates, Dead, Regions)
}


def default_pipeline(
    siblings: bool = False, attention: Callable[[Workload], bool] | None = None, join: bool = False
) -> Pipeline:
    """What compiling uses. ``siblings`` adds horizontal fusion, which does not always pay; ``attention`` says which ones fit,
    ``join`` asks for horizontal fusion in front of them alone."""
    horizontal: Pipeline = (Siblings(),) if siblings else ()
    heads: Pipeline = (Attention(attention, join or siblings),) if attention is not None else ()
    return (
        Dead(), Fold(), Clean(), Duplicates(), Idioms(), Hoist(), Fuse(), BatchNorm(), Clean(), Fuse(), *heads, *horizontal,
        Duplicates(), Dead(), Regions(),
    )  # fmt: skip


def run_pipeline(graph: Graph, pipeline: Sequence[Pass], trace: Trace | None = None) -> Graph:
    """``graph`` through every pass, verified before and after each. ``trace`` collects what fused and why the rest did not.

    Raises InternalError when a pass breaks a rule of graphs.
    """
    verify(graph)
    for step in pipeline:
        graph = step.run(graph, trace)
        verify(graph)
    return graph


def format_pipeline(pipeline: Sequence[Pass]) -> str:
    """The text of a pipeline, options that differ from their default in braces. :func:`parse_pipeline` inverts it."""
    return ",".join(map(_format, pipeline))


def _format(step: Pass) -> str:
    options = [
        f"{f.name}={_text(getattr(step, f.name))}" for f in _options(type(step)) if getattr(step, f.name) != f.default
    ]
    return step.name + (f"{{{','.join(options)}}}" if options else "")


def _options(kind: type[Pass]) -> list[Field[Any]]:
    return [f for f in fields(kind) if f.metadata.get("text", True)]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_pipeline(text: str) -> Pipeline:
    """The pipeline of a text such as ``clean,fuse{max=8},dce``. Raises UsageError naming the word that is wrong."""
    words = re.findall(r"[^,{]+(?:\{[^}]*\})?", text)
    if ",".join(words) != text:
        raise UsageError(f"malformed pipeline {text!r}, expected words such as fuse{{max=8}} between commas")
    return tuple(map(_parse, words))


def _parse(word: str) -> Pass:
    name, _, options = word.partition("{")
    if name not in PASSES:
        raise UsageError(f"unknown pass {name!r}, expected one of {', '.join(PASSES)}")
    kinds: dict[str, type] = {f.name: type(f.default) for f in _options(PASSES[name])}
    values: dict[str, Any] = {}
    for option in filter(None, options.rstrip("}").split(",")):
        key, _, value = option.partition("=")
        if key not in kinds:
            raise UsageError(
                f"pass {name!r} has no option {key!r}, expected one of {', '.join(kinds) or 'none'}"
            )
        try:
            values[key] = _value(kinds[key], value)
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"option {key} of pass {name!r}: expected {kinds[key].__name__}, found {value!r}"
            ) from error
    made: Pass = PASSES[name](**values)
    return made


def _value(kind: type, text: str) -> int | bool:
    return {"true": True, "false": False}[text] if kind is bool else int(text)
