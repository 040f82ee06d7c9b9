"""Kernel families for NVIDIA GPUs, one a file: THE ALGORITHM, THE SPACE, THE SCHEDULE. ``FAMILIES`` lists them."""

from wpk.kernels.cuda import gemm, gemm_mma, gemm_wgmma, joins, moves
from wpk.kernels.cuda.attention import CudaAttention
from wpk.kernels.cuda.attention_mma import CudaAttentionMma
from wpk.kernels.cuda.conv import CudaConv
from wpk.kernels.cuda.conv_mma import CudaConvMma
from wpk.kernels.cuda.conv_wgmma import CudaConvWgmma
from wpk.kernels.cuda.depthwise import CudaDepthwise
from wpk.kernels.cuda.eltwise import CudaEltwise
from wpk.kernels.cuda.gather import CudaGather
from wpk.kernels.cuda.gemv import CudaGemv
from wpk.kernels.cuda.lrn import CudaLrn
from wpk.kernels.cuda.norm import CudaNorm
from wpk.kernels.cuda.pool import CudaPool
from wpk.kernels.cuda.reduce import CudaReduce
from wpk.kernels.cuda.resize import CudaResize
from wpk.kernels.cuda.softmax import CudaSoftmax
from wpk.kernels.cuda.winograd import CudaWinograd, CudaWinogradMma
from wpk.kernels.family import Family

#: where nothing is measured, the first that fits is taken: the special before the general
FAMILIES: tuple[Family, ...] = (
    CudaGemv(), gemm_wgmma.CudaGemmWgmma(), gemm_wgmma.matmul(),
    gemm_mma.CudaGemmMma(), gemm_mma.matmul(), gemm.CudaGemm(), gemm.matmul(), CudaDepthwise(), CudaConvWgmma(),
    CudaConvMma(), CudaConv(),
    CudaEltwise(), CudaPool(), CudaSoftmax(), CudaAttentionMma(), CudaAttention(),
    CudaLrn(), CudaNorm(), CudaReduce(), CudaGather(), CudaResize(),
    moves.CudaMove(), moves.convert(), joins.CudaJoin(), joins.split(), CudaWinograd(), CudaWinogradMma(),
)  # fmt: skip
