// Vectors of the instruction set in use, unaligned loads and stores, and bfloat16 widened to
// float32. Included once per instruction set (unit.inc). Expects ISA and VECTOR_BYTES.

// Vectors wider than the target's are passed between inlined functions only: no ABI to warn about.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace resgrow {
namespace ISA {

template <class T, int LANES = VECTOR_BYTES / sizeof(T)>
struct Vector {
  typedef T type __attribute__((vector_size(LANES * sizeof(T))));
};

// Loads and stores need no alignment; memcpy of a vector's size is one instruction.
template <class V, class T>
__attribute__((always_inline)) inline V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class T>
__attribute__((always_inline)) inline void store(T* p, const V& v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// A bfloat16 is the upper half of a float32.
struct BFloat16 {
  unsigned short bits;
};

inline float widen(BFloat16 b) {
  const unsigned int bits = static_cast<unsigned int>(b.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof(f));
  return f;
}
inline float widen(float f) {
  return f;
}
inline double widen(double d) {
  return d;
}

template <class T, int LANES>
__attribute__((always_inline)) inline typename Vector<T, LANES>::type load_widened(const T* p) {
  return load<typename Vector<T, LANES>::type>(p);
}

template <class T, int LANES>
__attribute__((always_inline)) inline typename Vector<float, LANES>::type load_widened(
    const BFloat16* p) {
  using Bits = typename Vector<unsigned int, LANES>::type;
  const auto half = load<typename Vector<unsigned short, LANES>::type>(p);
  const Bits bits = __builtin_convertvector(half, Bits) << 16;
  return load<typename Vector<float, LANES>::type>(&bits);
}

}  // namespace ISA
}  // namespace resgrow
