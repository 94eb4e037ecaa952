// Tiles of H (a block of vectors x one kernel tap x a run of channels) over chunks of samples. A float32 or float64
// channels-last operand is read in place; anything else is packed chunk by chunk into panels as wide as a tile, so
// memory stays bounded and a tile streams one panel. Every element of H adds its samples up in order and in one task:
// results do not depend on the number of threads.
#include "cpu/squared_grad_contract.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "cpu/isa.h"

namespace resgrow {
namespace {

constexpr Int kChunkBytes = 512 << 10;  // both operands of a chunk: about half of a second-level cache
constexpr Int kFoldedSamples = 256;     // at least, where samples are the summed dimension: amortises H's traffic
constexpr Int kTaskWork = 1 << 18;      // multiply-adds worth waking a thread for
constexpr Int kFewChannels = 8;         // below: tiles run over whole patches, not over one tap's channels

Int ceil_div(Int a, Int b) { return (a + b - 1) / b; }

template <class T>
const SquaredGradKernels<T>& family() {
  if constexpr (sizeof(T) == sizeof(float)) {
    return kernels().squared_grad_float;
  } else {
    return kernels().squared_grad_double;
  }
}

// A chunk of one operand as the kernels see it, with strides between samples, rows and columns.
template <class T>
struct Operand {
  const T* data;
  Int group, panel_width, panel;  // channel c of group g: g * group + c / panel_width * panel + c % panel_width
  Int sample, row, col;

  const T* at(Int g, Int c) const { return data + g * group + c / panel_width * panel + c % panel_width; }
};

template <class T>
class Source {
 public:
  // width: channels per panel when packed; a packed operand ends in zeros up to the full panel.
  Source(const at::Tensor& tensor, Int groups, Int width, bool packed, bool square)
      : tensor_(tensor), groups_(groups), channels_(tensor.size(1) / groups), width_(width),
        panels_(ceil_div(channels_, width)), pixels_(tensor.size(2) * tensor.size(3)), packed_(packed), square_(square) {}

  Int sample_bytes() const { return groups_ * channels_ * pixels_ * sizeof(T); }

  Operand<T> chunk(Int first, Int count) {
    if (!packed_) {
      const T* data = tensor_.const_data_ptr<T>() + first * tensor_.stride(0);
      const Int all = std::max<Int>(channels_, 1);
      return {data, channels_, all, 0, tensor_.stride(0), tensor_.stride(2), tensor_.stride(3)};
    }
    const Int sample = pixels_ * width_, panel = count * sample, group = panels_ * panel;
    if (!buffer_.defined()) buffer_ = at::empty({groups_ * group}, tensor_.options().dtype(c10::CppTypeToScalarType<T>()));
    T* target = buffer_.mutable_data_ptr<T>();
    const Int grain = std::max<Int>(1, kTaskWork / 8 / std::max<Int>(1, sample));
    at::parallel_for(0, groups_ * panels_ * count, grain, [&](int64_t begin, int64_t end) {
      for (Int i = begin; i < end; ++i) pack(target + i * sample, i / count, first + i % count);
    });
    return {target, group, width_, panel, sample, tensor_.size(3) * width_, width_};
  }

 private:
  void pack(T* target, Int group_and_panel, Int n) const {
    const Int start = group_and_panel % panels_ * width_;
    const Int channel = group_and_panel / panels_ * channels_ + start;
    const Int rows = tensor_.size(2), cols = tensor_.size(3);
    SquaredGradPack<T> args{};
    args.bfloat16 = tensor_.scalar_type() == at::kBFloat16;
    args.square = square_;
    args.channels = std::min(width_, channels_ - start);
    args.zeros = width_ - args.channels;
    args.source_pixel = tensor_.stride(3);
    args.source_channel = tensor_.stride(1);
    args.target_pixel = width_;
    const bool merge = rows == 1 || tensor_.stride(2) == cols * tensor_.stride(3);
    args.pixels = merge ? rows * cols : cols;
    const char* source = static_cast<const char*>(tensor_.const_data_ptr());
    for (Int row = 0; row < (merge ? 1 : rows); ++row) {
      const Int offset = n * tensor_.stride(0) + channel * tensor_.stride(1) + row * tensor_.stride(2);
      args.source = source + offset * tensor_.element_size();
      args.target = target + row * cols * width_;
      family<T>().pack(args);
    }
  }

  at::Tensor tensor_, buffer_;
  Int groups_, channels_, width_, panels_, pixels_;
  bool packed_, square_;
};

// x with the kernel's rows (and, where columns are dilated, columns) laid side by side, so that a whole patch is one
// run of values ordered (kx, ky, channel). Worth its memory only for few channels.
template <class T>
class Patches {
 public:
  Patches(const at::Tensor& x, const SquaredGradConv& conv)
      : x_(x), conv_(conv), channels_(conv.channels / conv.groups), split_(conv.dilation[1] != 1),
        columns_(split_ ? conv.out_width : (conv.out_width - 1) * conv.stride[1] + conv.kernel[1]),
        column_(conv.kernel[0] * channels_ * (split_ ? conv.kernel[1] : 1)) {}

  Int sample_bytes() const { return conv_.groups * sample() * sizeof(T); }

  Operand<T> chunk(Int first, Int count) {
    const Int group = count * sample();
    if (!buffer_.defined()) {
      buffer_ = at::empty({conv_.groups * group}, x_.options().dtype(c10::CppTypeToScalarType<T>()));
    }
    T* target = buffer_.mutable_data_ptr<T>();
    const Int grain = std::max<Int>(1, kTaskWork / 8 / sample());
    at::parallel_for(0, conv_.groups * count, grain, [&](int64_t begin, int64_t end) {
      for (Int i = begin; i < end; ++i) pack(target + i * sample(), i / count, first + i % count);
    });
    const Int col = split_ ? column_ : conv_.stride[1] * column_;
    return {target, group, channels_ * conv_.kernel[0] * conv_.kernel[1], 0, sample(), columns_ * column_, col};
  }

 private:
  Int sample() const { return conv_.out_height * columns_ * column_; }

  void pack(T* target, Int group, Int n) const {
    const Int offset = n * x_.stride(0) + group * channels_ * x_.stride(1);
    for (Int oy = 0; oy < conv_.out_height; ++oy, target += columns_ * column_) {
      for (Int ky = 0; ky < conv_.kernel[0]; ++ky) {
        const Int iy = oy * conv_.stride[0] - conv_.padding[0] + ky * conv_.dilation[0];
        for (Int kx = 0; kx < (split_ ? conv_.kernel[1] : 1); ++kx) {
          const Int x0 = kx * conv_.dilation[1] - conv_.padding[1];
          pack_row(target + (kx * conv_.kernel[0] + ky) * channels_, offset, iy, x0);
        }
      }
    }
  }

  // Columns x0, x0 + step, ... of image row iy, zeros outside the image.
  void pack_row(T* target, Int offset, Int iy, Int x0) const {
    const Int step = split_ ? conv_.stride[1] : 1;
    Int first = x0 < 0 ? std::min(columns_, ceil_div(-x0, step)) : 0;
    Int last = x0 < conv_.width ? std::min(columns_, ceil_div(conv_.width - x0, step)) : 0;
    if (iy < 0 || iy >= conv_.height || last <= first) first = last = columns_;
    const auto zero = [&](Int from, Int to) {
      for (Int i = from; i < to; ++i) std::fill_n(target + i * column_, channels_, T(0));
    };
    zero(0, first);
    zero(last, columns_);
    if (first == last) return;
    offset += iy * x_.stride(2) + (x0 + first * step) * x_.stride(3);
    SquaredGradPack<T> args{};
    args.source = static_cast<const char*>(x_.const_data_ptr()) + offset * x_.element_size();
    args.target = target + first * column_;
    args.bfloat16 = x_.scalar_type() == at::kBFloat16;
    args.pixels = last - first;
    args.channels = channels_;
    args.source_pixel = step * x_.stride(3);
    args.source_channel = x_.stride(1);
    args.target_pixel = column_;
    family<T>().pack(args);
  }

  at::Tensor x_, buffer_;
  SquaredGradConv conv_;
  Int channels_;
  bool split_;
  Int columns_, column_;
};

// Output positions [first, last) along one axis whose input position lies inside the image, and that of the first.
struct Range {
  Int first, last, input;
};

Range valid_range(Int tap, Int stride, Int padding, Int dilation, Int size, Int outputs) {
  const Int offset = tap * dilation - padding;
  const Int first = offset < 0 ? ceil_div(-offset, stride) : 0;
  const Int last = offset < size ? std::min(outputs, ceil_div(size - offset, stride)) : 0;
  return {first, std::max(first, last), first * stride + offset};
}

// H in tile order: groups, blocks of vectors, k, lane. k = tap * many + c for the broadcast operand's channel c.
struct Layout {
  Int groups, vec_channels, lanes, blocks, taps, many, width;
  bool wide;  // blocks of two vectors; an odd last one has one

  Int padded() const { return ceil_div(vec_channels, lanes) * lanes; }
  Int block_lanes(Int block) const {
    return wide ? std::min(2 * lanes, padded() - block * 2 * lanes) : lanes;
  }
  Int start(Int block) const { return block * (wide ? 2 : 1) * lanes; }
  Int runs() const { return ceil_div(many, width); }
  Int depth() const { return taps * many; }
  Int size() const { return groups * padded() * depth(); }
  Int offset(Int group, Int block, Int k) const {
    return (group * padded() + start(block)) * depth() + k * block_lanes(block);
  }
};

template <class T>
Layout make_layout(Int groups, Int vec_channels, Int taps, Int many) {
  const auto& family = resgrow::family<T>();
  Layout layout{};
  layout.groups = groups;
  layout.vec_channels = vec_channels;
  layout.lanes = family.lanes;
  layout.wide = vec_channels > family.lanes;
  layout.blocks = ceil_div(layout.padded(), family.lanes * (layout.wide ? 2 : 1));
  layout.taps = taps;
  layout.many = many;
  layout.width = ceil_div(many, ceil_div(many, family.max_k[layout.wide ? 2 : 1]));
  return layout;
}

// One tile over one chunk. x_is_vec says which operand the vectors run over; only x moves with the tap.
template <class T>
void run_tile(const SquaredGradConv& conv, const Layout& layout, const Operand<T>& x, const Operand<T>& grad,
              bool x_is_vec, bool fold, Int count, Int task, T* sums) {
  const Int run = task % layout.runs() * layout.width;
  task /= layout.runs();
  const Int tap = task % layout.taps;
  task /= layout.taps;
  const Int block = task % layout.blocks, group = task / layout.blocks;
  const Range y = valid_range(tap / conv.kernel[1], conv.stride[0], conv.padding[0], conv.dilation[0], conv.height,
                              conv.out_height);
  const Range z = valid_range(tap % conv.kernel[1], conv.stride[1], conv.padding[1], conv.dilation[1], conv.width,
                              conv.out_width);
  Operand<T> moved = x;
  moved.data += y.input * x.row + z.input * x.col;
  moved.row *= conv.stride[0];
  moved.col *= conv.stride[1];
  Operand<T> cut = grad;
  cut.data += y.first * grad.row + z.first * grad.col;
  const Operand<T>& vec = x_is_vec ? moved : cut;
  const Operand<T>& bcast = x_is_vec ? cut : moved;

  SquaredGradTile<T> tile{};
  tile.vec = vec.at(group, layout.start(block));
  tile.bcast = bcast.at(group, run);
  tile.out = sums + layout.offset(group, block, tap * layout.many + run);
  tile.samples = count;
  tile.rows = y.last - y.first;
  tile.cols = z.last - z.first;
  tile.vec_sample = vec.sample;
  tile.vec_row = vec.row;
  tile.vec_col = vec.col;
  tile.bcast_sample = bcast.sample;
  tile.bcast_row = bcast.row;
  tile.bcast_col = bcast.col;
  tile.square = !fold;
  if (tile.rows == 0 || tile.cols == 0) return;
  if (fold) {
    tile.samples = 1;
    tile.cols = count;
    tile.vec_col = vec.sample;
    tile.bcast_col = bcast.sample;
  } else if (vec.row == tile.cols * vec.col && bcast.row == tile.cols * bcast.col) {
    tile.cols *= tile.rows;
    tile.rows = 1;
  }
  const Int vectors = layout.block_lanes(block) / layout.lanes;
  family<T>().tile[vectors][std::min(layout.width, layout.many - run)](tile);
}

// Position in H of (vector channel v, broadcast index k) of one group.
template <class T, class Place>
void unpack(const Layout& layout, const T* sums, T* target, const Place& place) {
  at::parallel_for(0, layout.groups * layout.blocks, 1, [&](int64_t begin, int64_t end) {
    for (Int i = begin; i < end; ++i) {
      const Int group = i / layout.blocks, block = i % layout.blocks, lanes = layout.block_lanes(block);
      const Int real = std::min(lanes, layout.vec_channels - layout.start(block));
      for (Int k = 0; k < layout.depth(); ++k) {
        const T* source = sums + layout.offset(group, block, k);
        const auto [start, step] = place(group, layout.start(block), k);
        for (Int lane = 0; lane < real; ++lane) target[start + lane * step] = source[lane];
      }
    }
  });
}

struct Placement {
  Int start, step;
};

template <class T, class X>
at::Tensor contract(const SquaredGradConv& conv, const SquaredGradConv& walk, const Layout& layout, X& x,
                    Source<T>& grad, bool x_is_vec, bool fold, bool patches) {
  const auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<T>());
  const Int kh = conv.kernel[0], kw = conv.kernel[1];
  const Int in = conv.channels / conv.groups, out = conv.outputs / conv.groups;
  at::Tensor result = at::empty({conv.outputs, in, kh, kw}, options);
  at::Tensor sums = at::zeros({layout.size()}, options);
  T* sum = sums.mutable_data_ptr<T>();
  const Int bytes = std::max<Int>(1, x.sample_bytes() + grad.sample_bytes());
  const Int chunk = std::max<Int>(fold ? kFoldedSamples : 1, kChunkBytes / bytes);
  for (Int first = 0; first < conv.samples; first += chunk) {
    const Int count = std::min(chunk, conv.samples - first);
    const Operand<T> xs = x.chunk(first, count), grads = grad.chunk(first, count);
    const Int work = count * conv.out_height * conv.out_width * layout.width * 2 * layout.lanes;
    const Int grain = std::max<Int>(1, kTaskWork / std::max<Int>(1, work));
    const Int tasks = layout.groups * layout.blocks * layout.taps * layout.runs();
    at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      for (Int task = begin; task < end; ++task) {
        run_tile(walk, layout, xs, grads, x_is_vec, fold, count, task, sum);
      }
    });
  }
  const Int row = in * kh * kw;  // of H, one output channel
  unpack(layout, sum, result.mutable_data_ptr<T>(), [&](Int group, Int v, Int k) -> Placement {
    if (patches) {
      const Int c = k % in, ky = k / in % kh, kx = k / in / kh;
      return {(group * out + v) * row + (c * kh + ky) * kw + kx, row};
    }
    const Int tap = k / layout.many, c = k % layout.many;
    if (x_is_vec) return {(group * out + c) * row + v * kh * kw + tap, kh * kw};
    return {(group * out + v) * row + c * kh * kw + tap, row};
  });
  return result;
}

bool readable_in_place(const at::Tensor& t, at::ScalarType type) {
  return t.scalar_type() == type && (t.stride(1) == 1 || t.size(1) == 1);
}

// Share of the lanes that carry a channel.
double filled(Int channels, Int lanes) { return double(channels) / double(ceil_div(channels, lanes) * lanes); }

template <class T>
at::Tensor contract(const at::Tensor& x, const at::Tensor& grad, const SquaredGradConv& conv, bool fold) {
  const auto type = c10::CppTypeToScalarType<T>();
  const Int lanes = family<T>().lanes, taps = conv.kernel[0] * conv.kernel[1];
  const Int in = conv.channels / conv.groups, out = conv.outputs / conv.groups;
  if (taps > 1 && in < kFewChannels) {
    const Layout layout = make_layout<T>(conv.groups, out, 1, in * taps);
    SquaredGradConv walk = conv;  // the patches already hold stride, padding and dilation
    walk.height = conv.out_height;
    walk.width = conv.out_width;
    for (int i = 0; i < 2; ++i) walk.kernel[i] = walk.stride[i] = walk.dilation[i] = 1, walk.padding[i] = 0;
    Patches<T> patches(x, conv);
    const bool packed = !readable_in_place(grad, type) || out % lanes != 0;
    Source<T> grads(grad, conv.groups, (layout.wide ? 2 : 1) * lanes, packed, false);
    return contract<T>(conv, walk, layout, patches, grads, false, false, true);
  }
  const bool x_is_vec = taps == 1 ? filled(in, lanes) >= filled(out, lanes) : filled(in, lanes) > filled(out, lanes);
  const Layout layout = make_layout<T>(conv.groups, x_is_vec ? in : out, taps, x_is_vec ? out : in);
  const Int vec_width = (layout.wide ? 2 : 1) * lanes;
  const bool ragged = layout.vec_channels % lanes != 0;
  const bool pack_x = fold || !readable_in_place(x, type) || (x_is_vec && ragged);
  const bool pack_grad = fold || !readable_in_place(grad, type) || (!x_is_vec && ragged);
  Source<T> xs(x, conv.groups, x_is_vec ? vec_width : layout.width, pack_x, fold);
  Source<T> grads(grad, conv.groups, x_is_vec ? layout.width : vec_width, pack_grad, fold);
  return contract<T>(conv, conv, layout, xs, grads, x_is_vec, fold, false);
}

}  // namespace

at::Tensor squared_grad_contract(const at::Tensor& x, const at::Tensor& grad, const SquaredGradConv& conv,
                                 bool single_position) {
  const auto type = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Int positions = conv.out_height * conv.out_width;
  if (conv.samples == 0 || conv.channels == 0 || conv.outputs == 0 || positions == 0) {
    const Int in = conv.groups > 0 ? conv.channels / conv.groups : 0;
    return at::zeros({conv.outputs, in, conv.kernel[0], conv.kernel[1]}, x.options().dtype(type));
  }
  if (type == at::kDouble) return contract<double>(x, grad, conv, single_position);
  return contract<float>(x, grad, conv, single_position);
}

}  // namespace resgrow
