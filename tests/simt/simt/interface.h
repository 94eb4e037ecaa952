// What interpreted kernels ask of the interpreter. Kernels are compiled with every memory access
// reported to it (hooks.cpp); arguments and results here travel in registers, so that asking is not
// itself an access.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simt/types.h"

// Of functions that do the interpreter's work inside a kernel's unit: their accesses are not the
// kernel's.
#define SIMT_UNSEEN __attribute__((no_sanitize("thread")))

namespace simt {

// A place in a kernel's source: the caller's, as the default of a parameter.
struct Where {
  const char* file;
  int line;
};
constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return {file, line};
}

using Words4 = unsigned __attribute__((vector_size(16)));
using Words2 = unsigned __attribute__((vector_size(8)));
using Floats4 = float __attribute__((vector_size(16)));

// The thread that runs. Constant as far as one kernel's frame can tell, which lives in one thread.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) dim3 block_size();
__attribute__((const)) dim3 grid_size();
__attribute__((const)) unsigned lane();
__attribute__((const)) void* shared_memory();

// Runs call(body) once per thread. Statuses are CUDA's; `kernel` is for messages.
int run(dim3 grid, dim3 block, size_t shared, void (*call)(const void* body), const void* body,
        const void* kernel);

// Collectives of the block.
void barrier(Where);
enum class Vote { any, all, count };
int barrier_vote(Vote, bool, Where);

// Collectives of the warp. `mask` must be full.
void warp_barrier(unsigned mask, Where);
uint64_t shuffle(unsigned mask, uint64_t value, unsigned source, Where);
unsigned ballot(unsigned mask, bool, Where);
enum class Float { bfloat16, float16, tf32 };
Floats4 multiply_add(Floats4 d, Words4 a, Words2 b, Float, Where);
template <int matrices>  // 2 or 4
Words4 load_matrices(const void* row, bool transposed, Where);

// Accesses that are more than one of the language's.
enum class Access { read, write, atomic };
void access(const void* p, unsigned size, Access, const void* pc);
void fence();
void copy_async(void* shared, const void* global, unsigned bytes, bool valid);
void copy_async_commit();
void copy_async_wait(unsigned pending);

}  // namespace simt
