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

// `cols` pixels of up to kGroup channels, `source_step` apart in the source.
template <class T>
inline void pack_pixels(const T* source, Int source_step, T* target, Int cols, Int channels) {
  using V = typename Vector<T>::type;
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  if (channels >= kGroup) {
    for (Int i = 0; i < cols; ++i, source += source_step, target += kGroup) {
#pragma GCC unroll 8
      for (int v = 0; v < kGroup; v += lanes) store(target + v, load<V>(source + v));
    }
    return;
  }
  zero(target, cols * kGroup);
  for (Int i = 0; i < cols; ++i, source += source_step, target += kGroup) {
    for (Int c = 0; c < channels; ++c) target[c] = source[c];
  }
}

template <class T>
void block_sparse_pack(const BlockSparsePack<T>& args) {
  const BlockSparsePack<T> a = args;  // a copy, which no store can be taken to change
  const Int row_size = a.phases * a.cols * kGroup;
  for (Int row = 0; row < a.rows; ++row) {
    const Int y = a.row0 + row * a.row_step;
    const bool inside = y >= 0 && y < a.height;
    T* target = a.target + row * row_size;
    for (Int c = 0; c < a.groups * kGroup; c += kGroup, target += a.group_step) {
      if (!inside) {
        zero(target, row_size);
        continue;
      }
      for (Int phase = 0; phase < a.phases; ++phase) {
        const Int start = a.col0 + phase;
        T* pixels = target + phase * a.cols * kGroup;
        Int first = start < 0 ? (-start + a.col_step - 1) / a.col_step : 0;
        Int last = start < a.width ? (a.width - 1 - start) / a.col_step + 1 : 0;
        if (last > a.cols) last = a.cols;
        if (first > last) first = last;
        zero(pixels, first * kGroup);
        pack_pixels(a.source + y * a.source_row + (start + first * a.col_step) * a.source_pixel + c,
                    a.col_step * a.source_pixel, pixels + first * kGroup, last - first, a.channels - c);
        zero(pixels + last * kGroup, (a.cols - last) * kGroup);
      }
    }
  }
}

}  // namespace ISA
}  // namespace resgrow
