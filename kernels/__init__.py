"""CUDA kernels for decoding and alignment, the emulator that runs them on a CPU, and minimap2."""
