"""Generated CUDA text without a GPU: compiled for real by NVRTC, executed by an emulator on the CPU."""
