// Kernels of select: histograms of key digits, compaction and mask writing.
// Included once per instruction set (unit.inc): torch-free and std-free. Expects ISA.
#include "cpu/kernels/select_args.h"

namespace resgrow {
namespace ISA {

// Integers of the score's width, and the magnitude bits of infinity.
template <class Unsigned, class Signed, SelectKey INFINITY_BITS>
struct SelectBits {
  using U = Unsigned;
  using S = Signed;
  static constexpr int width = 8 * sizeof(U);
  static constexpr U sign = U(U(1) << (width - 1));
  static constexpr U infinity = U(INFINITY_BITS);

  static U key(U bits) { return S(bits) < 0 ? U(U(0) - bits) : U(bits + sign); }
  // The key with its range moved to that of signed integers, which vectors compare faster.
  static S order(U key) { return S(U(key ^ sign)); }
  static U bits(U key) { return key < sign ? U(U(0) - key) : U(key - sign); }
  static bool nan(U bits) { return U(bits & U(~sign)) > infinity; }
};

using SelectFloat = SelectBits<unsigned int, int, 0x7f800000>;
using SelectDouble = SelectBits<unsigned long long, long long, 0x7ff0000000000000>;
using SelectBFloat16 = SelectBits<unsigned short, short, 0x7f80>;

// Index of the first byte in memory order that is set.
inline int select_first_flag(unsigned long long flags) {
  return __builtin_ctzll(flags) / 8;  // little-endian, as every processor here
}

template <class Bits>
bool select_histogram(const void* scores, Int n, SelectDigit digit, unsigned* counts) {
  using U = typename Bits::U;
  constexpr Int block = 1024;  // digits of one block stay in the first-level cache
  unsigned short digits[block];
  const U* bits = static_cast<const U*>(scores);
  const U prefix = U(digit.prefix);
  const U mask = U((1u << digit.bits) - 1);
  U nan = 0;
  for (Int start = 0; start < n; start += block, bits += block) {
    const Int count = n - start < block ? n - start : block;
    for (Int i = 0; i < count; ++i) {
      const U high = U(Bits::key(bits[i]) >> digit.shift);
      const bool match = U(high >> digit.bits) == prefix;
      digits[i] = match ? (unsigned short)(high & mask) : (unsigned short)(kSelectBins);
      nan |= U(Bits::nan(bits[i]));
    }
    Int i = 0;
    for (; i + kSelectCopies <= count; i += kSelectCopies) {
#pragma GCC unroll 4
      for (int copy = 0; copy < kSelectCopies; ++copy) {
        ++counts[copy * kSelectStride + digits[i + copy]];
      }
    }
    for (; i < count; ++i) ++counts[digits[i]];
  }
  return nan != 0;
}

template <class Bits>
bool select_partition(const void* scores, Int n, SelectKey lower, SelectKey upper, void* between,
                      SelectCounts* counts) {
  using U = typename Bits::U;
  using S = typename Bits::S;
  constexpr Int block = 1024;  // counts of a block fit every U
  constexpr int word = sizeof(unsigned long long);
  unsigned char inside[block];
  const U* bits = static_cast<const U*>(scores);
  U* out = static_cast<U*>(between);
  const S low = Bits::order(U(lower)), high = Bits::order(U(upper));
  U nan = 0;
  for (Int start = 0; start < n; start += block, bits += block) {
    const Int count = n - start < block ? n - start : block;
    U below_lower = 0, to_lower = 0, to_upper = 0;
    for (Int i = 0; i < count; ++i) {
      const S key = Bits::order(Bits::key(bits[i]));
      below_lower += U(key < low);
      to_lower += U(key <= low);
      to_upper += U(key <= high);
      inside[i] = (key > low) & (key < high);
      nan |= U(Bits::nan(bits[i]));
    }
    counts->below_lower += Int(below_lower);
    counts->to_lower += Int(to_lower);
    counts->to_upper += Int(to_upper);
    // Few are inside: words of eight flags are passed over at once.
    for (Int i = 0; i < count; i += word) {
      for (Int j = i + word > count ? count : i + word; j < i + word; ++j) inside[j] = 0;
      unsigned long long flags;
      __builtin_memcpy(&flags, inside + i, word);
      for (; flags; flags &= flags - 1) *out++ = bits[i + select_first_flag(flags)];
    }
  }
  counts->between += out - static_cast<U*>(between);
  return nan != 0;
}

template <class Bits>
Int select_mask(const void* scores, Int n, SelectKey bound, bool keep_equal, bool* keep) {
  using U = typename Bits::U;
  constexpr Int block = 4096;  // short enough that a U counts a block's ties
  const U* bits = static_cast<const U*>(scores);
  const U equal = U(bound);
  const U below = U(equal - U(keep_equal));  // no score has key 0, so that this does not wrap
  Int ties = 0;
  for (Int start = 0; start < n; start += block, bits += block, keep += block) {
    const Int count = n - start < block ? n - start : block;
    U found = 0;
    for (Int i = 0; i < count; ++i) {
      const U key = Bits::key(bits[i]);
      keep[i] = key > below;
      found += U(key == equal);
    }
    ties += Int(found);
  }
  return ties;
}

template <class Bits>
void select_mask_ties(const void* scores, Int n, SelectKey bound, Int drop, bool* keep) {
  using U = typename Bits::U;
  const U* bits = static_cast<const U*>(scores);
  for (Int i = 0; i < n; ++i) {
    const U key = Bits::key(bits[i]);
    const bool tie = key == U(bound);
    keep[i] = key > U(bound) || (tie && drop <= 0);
    drop -= tie;
  }
}

template <class Bits>
void select_score(SelectKey key, void* out) {
  *static_cast<typename Bits::U*>(out) = Bits::bits(typename Bits::U(key));
}

template <class Bits>
constexpr SelectKernels select_kernels() {
  return {Bits::width,       select_histogram<Bits>, select_partition<Bits>,
          select_mask<Bits>, select_mask_ties<Bits>, select_score<Bits>};
}

}  // namespace ISA
}  // namespace resgrow
