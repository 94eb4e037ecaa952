// Packing for squared_grad: any strides and bfloat16 in, dense rows of T out.
namespace resgrow {
namespace ISA {

template <class S, class T>
inline void copy_row(const S* source, T* target, Int count, bool square) {
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  Int i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto v = load_widened<T, lanes>(source + i);
    store(target + i, square ? v * v : v);
  }
  constexpr int quarter = 4;
  for (; i + quarter <= count; i += quarter) {
    const auto v = load_widened<T, quarter>(source + i);
    store(target + i, square ? v * v : v);
  }
  for (; i < count; ++i) {
    const T v = widen(source[i]);
    target[i] = square ? v * v : v;
  }
}

#if defined(__clang__)
#  define RESGROW_SHUFFLE4(I, a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#  define RESGROW_SHUFFLE4(I, a, b, i, j, k, l) __builtin_shuffle(a, b, I{i, j, k, l})
#endif

template <int BYTES>
struct Index;
template <>
struct Index<4> {
  using type = int;
};
template <>
struct Index<8> {
  using type = long long;
};

// Four channels by four pixels; channels lie source_channel apart, pixels side by side.
template <class S, class T>
inline void transpose4(const S* source, Int source_channel, T* target, Int target_pixel,
                       bool square) {
  using V = typename Vector<T, 4>::type;
  using I = typename Vector<typename Index<sizeof(T)>::type, 4>::type;
  V a = load_widened<T, 4>(source);
  V b = load_widened<T, 4>(source + source_channel);
  V c = load_widened<T, 4>(source + 2 * source_channel);
  V d = load_widened<T, 4>(source + 3 * source_channel);
  if (square) a *= a, b *= b, c *= c, d *= d;
  const V ac_low = RESGROW_SHUFFLE4(I, a, c, 0, 4, 1, 5),
          ac_high = RESGROW_SHUFFLE4(I, a, c, 2, 6, 3, 7);
  const V bd_low = RESGROW_SHUFFLE4(I, b, d, 0, 4, 1, 5),
          bd_high = RESGROW_SHUFFLE4(I, b, d, 2, 6, 3, 7);
  store<V>(target, RESGROW_SHUFFLE4(I, ac_low, bd_low, 0, 4, 1, 5));
  store<V>(target + target_pixel, RESGROW_SHUFFLE4(I, ac_low, bd_low, 2, 6, 3, 7));
  store<V>(target + 2 * target_pixel, RESGROW_SHUFFLE4(I, ac_high, bd_high, 0, 4, 1, 5));
  store<V>(target + 3 * target_pixel, RESGROW_SHUFFLE4(I, ac_high, bd_high, 2, 6, 3, 7));
}

// Whole vectors from the last channel's on; the channels overwrite what is theirs.
template <class T>
inline void zero_tail(const SquaredGradPack<T>& a, T* target) {
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  for (Int i = a.channels / lanes * lanes; i < a.channels + a.zeros; i += lanes) {
    store(target + i, typename Vector<T>::type{});
  }
}

template <class S, class T>
void pack_from(const SquaredGradPack<T>& a) {
  const S* source = static_cast<const S*>(a.source);
  Int c = 0;
  if (a.source_channel == 1 && a.source_pixel == a.channels && a.target_pixel == a.channels) {
    copy_row(source, a.target, a.pixels * a.channels, a.square);
    return;
  }
  if (a.source_channel == 1 && a.channels >= 4) {
    for (Int p = 0; p < a.pixels; ++p) {
      if (a.zeros > 0) zero_tail(a, a.target + p * a.target_pixel);
      copy_row(source + p * a.source_pixel, a.target + p * a.target_pixel, a.channels, a.square);
    }
    return;
  }
  for (Int p = 0; p < a.pixels && a.zeros > 0; ++p) zero_tail(a, a.target + p * a.target_pixel);
  if (a.source_pixel == 1) {
    for (; c + 4 <= a.channels; c += 4) {
      const S* plane = source + c * a.source_channel;
      T* target = a.target + c;
      for (Int p = 0; p + 4 <= a.pixels; p += 4) {
        transpose4(plane + p, a.source_channel, target + p * a.target_pixel, a.target_pixel,
                   a.square);
      }
      for (Int p = a.pixels & ~Int(3); p < a.pixels; ++p) {
        for (Int j = 0; j < 4; ++j) {
          const T v = widen(plane[p + j * a.source_channel]);
          target[p * a.target_pixel + j] = a.square ? v * v : v;
        }
      }
    }
  }
  for (; c < a.channels; ++c) {
    const S* plane = source + c * a.source_channel;
    T* target = a.target + c;
    for (Int p = 0; p < a.pixels; ++p) {
      const T v = widen(plane[p * a.source_pixel]);
      target[p * a.target_pixel] = a.square ? v * v : v;
    }
  }
}

template <class T>
void squared_grad_pack(const SquaredGradPack<T>& a) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (a.bfloat16) return pack_from<BFloat16>(a);
  }
  pack_from<T>(a);
}

}  // namespace ISA
}  // namespace resgrow
