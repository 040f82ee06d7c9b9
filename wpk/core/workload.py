"""A workload: one operator instance, complete enough to build, check and time an implementation of it."""

from dataclasses import dataclass
from functools import cached_property

from wpk.core.pointwise import Point, parse
from wpk.core.tensor import TensorType

Attr = int | float | str | bool | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]


@dataclass(frozen=True)
class Workload:
    """One operator instance: op, operand types (dtype, shape, layout), attributes and epilogue.

    ``inputs`` are the anchor's operands in the op's own order, then the operands that only the epilogue reads.
    ``constants`` are the indices of inputs whose values are known at compile time (weights): an implementation may
    ask for them pre-packed. ``epilogue`` maps the anchor's result to the output, or is None for identity.
    """

    op: str
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    attrs: tuple[tuple[str, Attr], ...] = ()
    epilogue: Point | None = None
    constants: tuple[int, ...] = ()

    def attr(self, name: str) -> Attr:
        """The attribute ``name``. Raises KeyError when the op has none of that name."""
        return dict(self.attrs)[name]

    def ints(self, name: str) -> tuple[int, ...]:
        """The attribute ``name`` as a tuple of ints. Raises KeyError when absent, TypeError when it is something else."""
        value = self.attr(name)
        if not isinstance(value, tuple):
            raise TypeError(f"{self.op}.{name} is {value!r}, expected ints")
        return tuple(int(v) for v in value)

    @cached_property
    def key(self) -> str:
        """The stable text form: equal text means the same code runs it. Part of every tuning record."""
        ins = ",".join(f"{t}{'!' if i in self.constants else ''}" for i, t in enumerate(self.inputs))
        outs = ",".join(map(str, self.outputs))
        attrs = ",".join(f"{k}={_attr_text(v)}" for k, v in self.attrs)
        tail = f"|{self.epilogue}" if self.epilogue is not None else ""
        return f"{self.op}({ins})->({outs}){{{attrs}}}{tail}"

    def __str__(self) -> str:
        return self.key

    def to_json(self) -> dict[str, object]:
        """Plain JSON data; :meth:`from_json` inverts it."""
        return {
            "op": self.op,
            "inputs": [[t.dtype, list(t.shape), t.layout] for t in self.inputs],
            "outputs": [[t.dtype, list(t.shape), t.layout] for t in self.outputs],
            "attrs": [[k, list(v) if isinstance(v, tuple) else v] for k, v in self.attrs],
            "epilogue": None if self.epilogue is None else str(self.epilogue),
            "constants": list(self.constants),
        }

    @staticmethod
    def from_json(data: dict[str, object]) -> "Workload":
        """Rebuild from :meth:`to_json`'s data."""
        return Workload(
            str(data["op"]),
            tuple(TensorType(d, tuple(s), lay) for d, s, lay in data["inputs"]),  # type: ignore[attr-defined]
            tuple(TensorType(d, tuple(s), lay) for d, s, lay in data["outputs"]),  # type: ignore[attr-defined]
            tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in data["attrs"]),  # type: ignore[attr-defined]
            None if data["epilogue"] is None else parse(str(data["epilogue"])),
            tuple(data["constants"]),  # type: ignore[arg-type]
        )


def _attr_text(value: Attr) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
