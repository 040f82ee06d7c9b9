"""Kernel families for NVIDIA GPUs, one a file: THE ALGORITHM, THE SPACE, THE SCHEDULE. ``FAMILIES`` lists them."""

from wpk.kernels.cuda import gemm, gemm_mma
from wpk.kernels.cuda.conv import CudaConv
from wpk.kernels.cuda.conv_mma import CudaConvMma
from wpk.kernels.cuda.eltwise import CudaEltwise
from wpk.kernels.cuda.gather import CudaGather
from wpk.kernels.cuda.norm import CudaNorm
from wpk.kernels.cuda.reduce import CudaReduce
from wpk.kernels.cuda.resize import CudaResize
from wpk.kernels.family import Family

FAMILIES: tuple[Family, ...] = (
    gemm_mma.CudaGemmMma(), gemm_mma.matmul(), gemm.CudaGemm(), gemm.matmul(), CudaConvMma(), CudaConv(), CudaEltwise(),
    CudaNorm(), CudaReduce(), CudaGather(), CudaResize(),
)  # fmt: skip
