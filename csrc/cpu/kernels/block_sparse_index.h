// What block_sparse does with an index before any product: small layers at small batches would wait
// for it.
namespace resgrow {
namespace ISA {

inline bool all_below(const int* values, Int count, Int limit) {
  unsigned most = 0;  // negative values are large ones
  for (Int k = 0; k < count; ++k) {
    const unsigned value = static_cast<unsigned>(values[k]);
    if (value > most) most = value;
  }
  return count == 0 || most < limit;
}

// index: (4, blocks), sorted by its first row.
inline bool block_sparse_fits(const int* index, Int blocks, const Int* limits) {
  int unsorted = 0;
  for (Int k = 1; k < blocks; ++k) unsorted |= index[k] < index[k - 1];
  for (int i = 0; i < 4; ++i) unsorted |= !all_below(index + i * blocks, blocks, limits[i]);
  return !unsorted;
}

inline void block_sparse_offsets(const BlockSparseOffsets& args) {
  const BlockSparseOffsets a = args;  // a copy, which no store can be taken to change
  for (Int row = 0; row < a.rows; ++row) {
    const unsigned base = a.bases[row];
    const auto offset = [&](unsigned channel, int tap) {
      channel += base;
      return static_cast<int>(channel / kGroup * a.group_step + channel % kGroup) + a.taps[tap];
    };
    const int first = a.starts[row], last = a.starts[row + 1];
    if (a.block_in == 1) {
      for (Int k = first; k < last; ++k) a.offsets[k] = offset(a.col[k], a.tap[k]);
      continue;
    }
    int* next = a.offsets + first * a.block_in;
    for (Int k = first; k < last; ++k) {
      for (int i = 0; i < a.block_in; ++i) *next++ = offset(a.col[k] * a.block_in + i, a.tap[k]);
    }
  }
}

}  // namespace ISA
}  // namespace resgrow
