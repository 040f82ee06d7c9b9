"""Generated kernels as providers: one for each kernel family, so that families compete with each other and with libraries."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wpk.core.result import Config, config_key
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.codegen.c import emit
from wpk.dsl.codegen.cstyle import identifier
from wpk.dsl.codegen.cuda import emit as emit_cuda
from wpk.dsl.features import kernel_features
from wpk.dsl.verify import verify
from wpk.kernels.family import Built, Family
from wpk.providers.protocol import Code, Source, Support
from wpk.search.space import Space

#: Versions of the printers: raise one when the text it prints for a kernel changes what that text costs or computes.
CODEGEN_VERSION, CUDA_CODEGEN_VERSION = 1, 1


@dataclass(frozen=True)
class GeneratedProvider:
    """The kernels of one family, named ``generated:<family>``."""

    family: Family
    arch: str = "cpu"

    @property
    def name(self) -> str:
        """``generated:`` and the family's name."""
        return f"generated:{self.family.name}"

    @property
    def version(self) -> str:
        """The family's version and the printer's: when either changes, old timings are stale."""
        return f"{self.family.version}.{CUDA_CODEGEN_VERSION if self.arch == 'cuda' else CODEGEN_VERSION}"

    @property
    def packing(self) -> tuple[str, ...] | None:
        """The knobs that ``pack`` reads; None when the family does not say."""
        return getattr(self.family, "packing", None)

    def supports(self, workload: Workload, target: Target) -> Support:
        """See :class:`wpk.providers.protocol.Provider`."""
        reason = self.family.matches(workload, target)
        return Support(reason is None, reason or "")

    def space(self, workload: Workload, target: Target) -> Space:
        """The family's space."""
        return self.family.space(workload, target)

    def build(self, workload: Workload, config: Config, target: Target) -> Code:
        """Schedule, verify and print the kernel of one config. Raises InvalidConfig, and InternalError for an unsound kernel."""
        built = self.family.build(workload, config, target)
        verify(built.kernel)
        if self.arch == "cuda":
            return self._cuda(workload, config, built)
        text = emit(built.kernel, built.isa, self._symbol(workload, config, built.isa))
        source = Source(text.text, text.symbol, text.isa, text.shared_bytes, text.thread_bytes)
        return Code(
            "kernel", source, inplace=built.inplace, accuracy=str(getattr(self.family, "accuracy", ""))
        )

    def features(self, workload: Workload, config: Config, target: Target) -> NDArray[np.float64]:
        """(wpk.dsl.features.FEATURES,) numbers of the kernel of one config, for cost models. Raises InvalidConfig."""
        built = self.family.build(workload, config, target)
        return kernel_features(built.kernel, built.isa, target)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """See :class:`wpk.providers.protocol.Provider`."""
        return self.family.pack(workload, config, constants, target)

    def _cuda(self, workload: Workload, config: Config, built: Built) -> Code:
        """The kernel as CUDA text; its symbol is the kernel's own name, which says tile and dtype, and a digest."""
        symbol = f"{identifier(built.kernel.name)}_{_digest(workload, config)}"
        source = emit_cuda(built.kernel, built.isa, symbol)
        accuracy = str(getattr(self.family, "accuracy", ""))
        return Code("cuda", inplace=built.inplace, accuracy=accuracy, cuda=source)

    def _symbol(self, workload: Workload, config: Config, isa: str) -> str:
        """Dtype, op, family, ISA, and a digest that tells kernels of one family apart."""
        short = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}
        dtype = workload.outputs[0].dtype
        return f"wpk_{short.get(dtype, dtype)}_{self.family.name}_{isa}_{_digest(workload, config)}"


def _digest(workload: Workload, config: Config) -> str:
    """Tells kernels of one family apart."""
    return hashlib.sha256(f"{workload.key}|{config_key(config)}".encode()).hexdigest()[:8]
