// Packing for block_sparse: a band of channels_last rows into groups of 16 channels, zero where the
// image ends.
namespace resgrow {
namespace ISA {

template <class T>
inline void zero(T* target, Int count) {
  using V = typename Vector<T>::type;
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  for (Int i = 0; i < count; i += lanes) store(target + i, V{});
}

// Neighbouring pixels of one row and phase; those beyond the image are zero.
template <class T>
struct PackRow {
  const T* source;  // first pixel inside the image
  Int source_step, before, inside, after;

  void fill(T* target) const {
    zero(target, before * kGroup);
    zero(target + (before + inside) * kGroup, after * kGroup);
  }
  // GROUPS whole groups at once: whole cache lines of a pixel are read in order.
  template <int GROUPS>
  void groups(Int channel, T* target, Int group_step) const {
    using V = typename Vector<T>::type;
    constexpr int lanes = VECTOR_BYTES / sizeof(T);
    for (int k = 0; k < GROUPS; ++k) fill(target + k * group_step);
    const T* from = source + channel;
    T* to = target + before * kGroup;
    for (Int i = 0; i < inside; ++i, from += source_step, to += kGroup) {
#pragma GCC unroll 4
      for (int k = 0; k < GROUPS; ++k) {
#pragma GCC unroll 8
        for (int v = 0; v < kGroup; v += lanes) {
          store(to + k * group_step + v, load<V>(from + k * kGroup + v));
        }
      }
    }
  }
  // The last group, of fewer channels than kGroup, or none.
  void tail(Int channel, Int channels, T* target) const {
    zero(target, (before + inside + after) * kGroup);
    const T* from = source + channel;
    T* to = target + before * kGroup;
    for (Int i = 0; i < inside; ++i, from += source_step, to += kGroup) {
      for (Int c = 0; c < channels; ++c) to[c] = from[c];
    }
  }
};

template <class T>
void block_sparse_pack(const BlockSparsePack<T>& args) {
  const BlockSparsePack<T> a = args;  // a copy, which no store can be taken to change
  constexpr int together = 4;
  for (Int row = 0; row < a.rows; ++row) {
    const Int y = a.row0 + row * a.row_step;
    for (Int phase = 0; phase < a.phases; ++phase) {
      const Int start = a.col0 + phase;
      Int first = start < 0 ? (-start + a.col_step - 1) / a.col_step : 0;
      Int last =
          start < a.width && y >= 0 && y < a.height ? (a.width - 1 - start) / a.col_step + 1 : 0;
      if (last > a.cols) last = a.cols;
      if (first > last) first = last;
      const Int pixel =
          first < last ? y * a.source_row + (start + first * a.col_step) * a.source_pixel : 0;
      const PackRow<T> pixels = {a.source + pixel, a.col_step * a.source_pixel, first, last - first,
                                 a.cols - last};
      T* target = a.target + (row * a.phases + phase) * a.cols * kGroup;
      Int group = 0;
      for (; (group + together) * kGroup <= a.channels && group + together <= a.groups;
           group += together) {
        pixels.template groups<together>(group * kGroup, target + group * a.group_step,
                                         a.group_step);
      }
      for (; (group + 1) * kGroup <= a.channels && group < a.groups; ++group) {
        pixels.template groups<1>(group * kGroup, target + group * a.group_step, a.group_step);
      }
      for (; group < a.groups; ++group) {
        pixels.tail(group * kGroup, a.channels - group * kGroup, target + group * a.group_step);
      }
    }
  }
}

}  // namespace ISA
}  // namespace resgrow
