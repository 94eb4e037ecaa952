// Every processor: 16-byte vectors (SSE2 on x86-64, NEON on arm64).
#define ISA base
#define VECTOR_BYTES 16
#include "cpu/kernels/unit.inc"
