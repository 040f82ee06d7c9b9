"""The family protocol: one file per family says THE ALGORITHM, THE SPACE, THE SCHEDULE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.ir import Kernel
from wpk.search.space import Space


@dataclass(frozen=True)
class Built:
    """A scheduled, verified kernel and the ISA it is to be printed for. ``inplace`` as in providers.protocol.Code."""

    kernel: Kernel
    isa: str
    inplace: tuple[int, ...] = ()


class Family(Protocol):
    """A kernel family. ``version`` enters the generator version of records: raise it when generated code changes.

    It may have ``packing``: the names of the knobs that ``pack`` reads, so that configs which pack alike share the work.
    """

    @property
    def name(self) -> str:
        """What the provider ``generated:<name>`` and records call it."""
        ...

    @property
    def version(self) -> int:
        """See above."""
        ...

    def matches(self, workload: Workload, target: Target) -> str | None:
        """None when the family can build ``workload``; else the reason why not."""
        ...

    def space(self, workload: Workload, target: Target) -> Space:
        """All valid configs."""
        ...

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        ...

    def pack(self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target) -> list[np.ndarray]:
        """Constants as the kernel's parameters want them."""
        ...
