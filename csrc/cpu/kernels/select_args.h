// Border between the glue of select and its kernels.
//
// Scores are ranked as unsigned integer keys of their own width: in the order of the values, one
// key for both zeros, untouched by flush-to-zero modes. NaNs have the keys beyond those of the
// infinities.
#pragma once

namespace resgrow {

using Int = long long;
using SelectKey = unsigned long long;

// One digit of a key: `bits` bits above `shift`, counted where the bits above them equal `prefix`.
struct SelectDigit {
  SelectKey prefix;
  int shift, bits;
};

// A histogram is kept in several copies, used in turn: runs of equal digits would otherwise wait
// for their own last store. Each copy ends with the bin of the scores that do not have the prefix.
constexpr int kSelectDigitBits = 11;
constexpr int kSelectBins = 1 << kSelectDigitBits;
constexpr int kSelectCopies = 4;
constexpr int kSelectStride = kSelectBins + 16;

// What lies on which side of two bounds, lower <= upper.
struct SelectCounts {
  Int below_lower, to_lower;  // key < lower, key <= lower
  Int between;                // lower < key < upper
  Int to_upper;               // key <= upper
};

// `scores` is an array of n values of the table's type.
struct SelectKernels {
  int key_bits;
  // Adds to counts[kSelectCopies][kSelectStride]; returns whether any score is NaN.
  bool (*histogram)(const void* scores, Int n, SelectDigit digit, unsigned* counts);
  // Adds to `counts` and appends the scores with lower < key < upper to `between`, which has room
  // for n; returns whether any score is NaN.
  bool (*partition)(const void* scores, Int n, SelectKey lower, SelectKey upper, void* between,
                    SelectCounts* counts);
  // keep = key > bound, or key >= bound with keep_equal; returns how many keys equal the bound.
  Int (*mask)(const void* scores, Int n, SelectKey bound, bool keep_equal, bool* keep);
  // keep = key >= bound, but the first `drop` scores that equal the bound go.
  void (*mask_ties)(const void* scores, Int n, SelectKey bound, Int drop, bool* keep);
  // The score that has this key.
  void (*score)(SelectKey key, void* out);
};

}  // namespace resgrow
