"""Knobs: what a config is made of. A knob owns its default, sampling, neighbours and encoding."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

Value = int | str | bool


@dataclass(frozen=True)
class Choice:
    """An unordered knob."""

    name: str
    values: tuple[Value, ...]
    default: Value

    def sample(self, rng: Random) -> Value:
        """A uniform value."""
        return rng.choice(self.values)

    def neighbours(self, value: Value) -> tuple[Value, ...]:
        """Every other value."""
        return tuple(v for v in self.values if v != value)

    def encode(self, value: Value) -> tuple[float, ...]:
        """One-hot."""
        return tuple(float(v == value) for v in self.values)


@dataclass(frozen=True)
class Ordered:
    """A knob whose values have an order (tile sizes, unroll factors): neighbours are the values next to it."""

    name: str
    values: tuple[int, ...]
    default: int

    def sample(self, rng: Random) -> int:
        """A uniform value."""
        return rng.choice(self.values)

    def neighbours(self, value: Value) -> tuple[int, ...]:
        """The values one step down and up."""
        i = self.values.index(int(value))
        return self.values[max(i - 1, 0) : i] + self.values[i + 1 : i + 2]

    def encode(self, value: Value) -> tuple[float, ...]:
        """The rank, scaled to 0..1."""
        return (self.values.index(int(value)) / max(len(self.values) - 1, 1),)


Knob = Choice | Ordered
