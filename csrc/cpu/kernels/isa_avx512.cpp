#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#define ISA avx512
#define VECTOR_BYTES 64
#include "cpu/kernels/unit.inc"
