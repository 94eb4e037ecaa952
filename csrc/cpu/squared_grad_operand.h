// x or grad as the kernels of squared_grad read it, a chunk of samples at a time: in place, or
// packed into panels.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "cpu/isa.h"

namespace resgrow {

inline Int ceil_div(Int a, Int b) {
  return (a + b - 1) / b;
}

template <class T>
const SquaredGradKernels<T>& squared_grad_family() {
  if constexpr (sizeof(T) == sizeof(float)) {
    return kernels().squared_grad_float;
  } else {
    return kernels().squared_grad_double;
  }
}

// A chunk: channel c of group g lies at g * group + c / panel_width * panel + c % panel_width.
template <class T>
struct Operand {
  const T* data;
  Int group, panel_width, panel;
  Int sample, row, col;

  Operand from(Int n) const {
    Operand rest = *this;
    rest.data += n * sample;
    return rest;
  }
  const T* at(Int g, Int c) const {
    return data + g * group + c / panel_width * panel + c % panel_width;
  }
};

struct Packing {
  Int groups = 1;
  Int width = 0;    // channels per panel, a tile's
  Int padding = 0;  // columns of zeros on either side
  Int repeat = 1;   // times every channel is repeated
  bool needed = true;
  bool square = false;
  bool whole = false;  // read in whole vectors: packed panels end in zeros
};

template <class T>
class Source {
 public:
  Source(const at::Tensor& tensor, const Packing& packing)
      : tensor_(tensor),
        packing_(packing),
        channels_(tensor.size(1) * packing.repeat / packing.groups),
        panels_(ceil_div(channels_, packing.width)),
        row_((tensor.size(3) + 2 * packing.padding) * packing.width) {}

  // What a chunk of the tensor takes when it is packed.
  Int sample_bytes() const {
    return packing_.groups * panels_ * tensor_.size(2) * row_ * sizeof(T);
  }

  bool in_place(Int first, Int count) const {
    return !packing_.needed && room_after(first + count - 1);
  }

  // Per sample: nothing where these samples are read in place.
  Int packed_bytes(Int first, Int count) const {
    return in_place(first, count) ? 0 : sample_bytes();
  }

  Operand<T> chunk(Int first, Int count) {
    if (in_place(first, count)) {
      const T* data = tensor_.const_data_ptr<T>() + first * tensor_.stride(0);
      return {
          data, channels_, kEverything, 0, tensor_.stride(0), tensor_.stride(2), tensor_.stride(3)};
    }
    const Int sample = tensor_.size(2) * row_, panels = packing_.groups * panels_,
              panel = count * sample;
    if (!buffer_.defined() || buffer_.numel() < panels * panel) {
      buffer_ =
          at::empty({panels * panel}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>()));
    }
    T* target = buffer_.mutable_data_ptr<T>();
    // Samples of a single pixel are packed together, as if they were pixels.
    const bool single = tensor_.size(2) == 1 && row_ == packing_.width;
    const Int parts = single ? 1 : count;
    const Int grain = std::max<Int>(1, 32768 * parts / std::max<Int>(1, panel));
    at::parallel_for(0, panels * parts, grain, [&](int64_t begin, int64_t end) {
      for (Int i = begin; i < end; ++i) {
        T* to = target + i / parts * panel + i % parts * sample;
        pack(to, i / parts, first + i % parts, single ? count : tensor_.size(3),
             tensor_.stride(single ? 0 : 3));
      }
    });
    // A run may go on into the next columns where one panel holds all channels.
    return {target, panels_ * panel, panels_ == 1 ? kEverything : packing_.width, panel, sample,
            row_,   packing_.width};
  }

 private:
  static constexpr Int kEverything = Int(1) << 62;  // panel width of an operand that is one panel

  // Vectors that reach beyond the last channel read what follows in memory, and nobody looks at
  // those lanes; beyond the storage they must not reach.
  bool room_after(Int sample) const {
    const Int lanes = squared_grad_family<T>().lanes,
              slack = ceil_div(channels_, lanes) * lanes - channels_;
    if (!packing_.whole || slack == 0) return true;
    const Int last = tensor_.storage_offset() + sample * tensor_.stride(0) +
                     (tensor_.size(2) - 1) * tensor_.stride(2) +
                     (tensor_.size(3) - 1) * tensor_.stride(3) + tensor_.size(1) - 1;
    return (last + slack) * Int(sizeof(T)) < Int(tensor_.storage().nbytes());
  }

  void pack(T* target, Int panel, Int n, Int cols, Int source_pixel) const {
    const Int start = panel % panels_ * packing_.width;
    const Int channel = panel / panels_ * channels_ + start;
    const Int rows = tensor_.size(2), pad = packing_.padding * packing_.width;
    SquaredGradPack<T> args{};
    args.bfloat16 = tensor_.scalar_type() == at::kBFloat16;
    args.square = packing_.square;
    args.channels = std::min(packing_.width, channels_ - start);
    args.zeros = packing_.whole ? packing_.width - args.channels : 0;
    args.source_pixel = source_pixel;
    args.source_channel = tensor_.stride(1);
    args.target_pixel = packing_.width;
    const bool merge = pad == 0 && (rows == 1 || tensor_.stride(2) == cols * source_pixel);
    args.pixels = merge ? rows * cols : cols;
    for (Int row = 0; row < (merge ? 1 : rows); ++row, target += row_) {
      std::fill_n(target, pad, T(0));
      std::fill_n(target + row_ - pad, pad, T(0));
      args.target = target + pad;
      const Int offset = n * tensor_.stride(0) + row * tensor_.stride(2);
      if (packing_.repeat == 1) {
        pack_channels(args, offset + channel * tensor_.stride(1));
      } else {
        pack_repeated(args, offset, channel);
      }
    }
  }

  void pack_channels(SquaredGradPack<T> args, Int offset) const {
    args.source =
        static_cast<const char*>(tensor_.const_data_ptr()) + offset * tensor_.element_size();
    squared_grad_family<T>().pack(args);
  }

  void pack_repeated(SquaredGradPack<T> args, Int offset, Int channel) const {
    const Int count = args.channels;
    for (Int i = 0; i < args.pixels * packing_.width && args.zeros > 0; ++i) args.target[i] = 0;
    args.channels = 1;
    args.zeros = 0;
    for (Int c = channel; c < channel + count; ++c, ++args.target) {
      pack_channels(args, offset + c / packing_.repeat * tensor_.stride(1));
    }
  }

  at::Tensor tensor_, buffer_;
  Packing packing_;
  Int channels_, panels_, row_;
};

}  // namespace resgrow
