"""Kernel families for NVIDIA GPUs, one a file: THE ALGORITHM, THE SPACE, THE SCHEDULE. ``FAMILIES`` lists them."""

from wpk.kernels.cuda.eltwise import CudaEltwise
from wpk.kernels.cuda.gemm import CudaGemm, matmul
from wpk.kernels.family import Family

FAMILIES: tuple[Family, ...] = (CudaGemm(), matmul(), CudaEltwise())
