// Tiles of H (a block of vectors x one kernel tap x a run of channels) over chunks of samples. A
// float32 or float64 channels-last operand is read in place, and positions whose input lies in the
// padding are never visited; anything else is packed chunk by chunk into panels as wide as a tile,
// so memory stays bounded. Every element of H adds its samples up in order and in one task; where
// tiles are few the samples are dealt to parts with sums of their own, as many as the shape asks
// for. Results do not depend on the number of threads.
#include "cpu/squared_grad_contract.h"

#include <ATen/ops/zeros.h>

#include "cpu/squared_grad_layout.h"
#include "cpu/squared_grad_operand.h"

namespace resgrow {
namespace {

constexpr Int kChunkBytes =
    512 << 10;  // both operands of a chunk: about half of a second-level cache
constexpr Int kChunkPositions = 256;   // at least: amortises reading and writing H
constexpr Int kPackedBytes = 1 << 20;  // of several chunks packed at once
constexpr Int kTaskWork = 1 << 18;     // multiply-adds worth waking a thread for
constexpr Int kEnoughTasks = 32;       // below: samples are dealt to parts
constexpr Int kMaxParts = 8;
constexpr Int kPartsBytes = 8 << 20;  // of a chunk that has a sample for every part
constexpr Int kFewChannels =
    8;  // below: a tile runs over a kernel row's channels, not over one tap's
constexpr Int kMaxTile = 64 * 32;  // elements of T, more than any tile has

// Output positions [first, last) along one axis whose input position lies inside the image, and
// that of the first.
struct Range {
  Int first, last, input;
};

Range valid_range(const SquaredGradConv& conv, int axis, Int tap) {
  const Int size = axis == 0 ? conv.height : conv.width,
            outputs = axis == 0 ? conv.out_height : conv.out_width;
  const Int stride = conv.stride[axis], offset = tap * conv.dilation[axis] - conv.padding[axis];
  const Int first = offset < 0 ? std::min(outputs, ceil_div(-offset, stride)) : 0;
  const Int last = offset < size ? std::min(outputs, ceil_div(size - offset, stride)) : 0;
  return {first, std::max(first, last), first * stride + offset};
}

// One tile over one chunk of `count` samples. Only x moves with the tap.
template <class T>
void run_tile(const SquaredGradConv& conv, const Layout& layout, Operand<T> x, Operand<T> grad,
              bool x_is_vec, const SquaredGradForm& form, Int count, const Task& task, T* out,
              Int out_k, bool add) {
  const Range y = valid_range(conv, 0, task.tap / conv.kernel[1]),
              z = valid_range(conv, 1, task.tap % conv.kernel[1]);
  x.data += y.input * x.row + z.input * x.col;
  x.row *= conv.stride[0];
  x.col *= conv.stride[1];
  grad.data += y.first * grad.row + z.first * grad.col;
  const Operand<T>& vec = x_is_vec ? x : grad;
  const Operand<T>& bcast = x_is_vec ? grad : x;

  SquaredGradTile<T> tile{};
  tile.vec = vec.at(task.group, layout.start(task.block));
  tile.bcast = bcast.at(task.group, task.run);
  tile.out = out;
  tile.out_k = out_k;
  const bool fold = form.fold;
  tile.samples = fold ? 1 : count;
  tile.rows = y.last - y.first;
  tile.cols = fold ? count : z.last - z.first;
  tile.vec_sample = vec.sample;
  tile.vec_row = vec.row;
  tile.vec_col = fold ? vec.sample : vec.col;
  tile.bcast_sample = bcast.sample;
  tile.bcast_row = bcast.row;
  tile.bcast_col = fold ? bcast.sample : bcast.col;
  tile.square = form.product;
  tile.add = add;
  if (!fold && vec.row == tile.cols * vec.col && bcast.row == tile.cols * bcast.col) {
    tile.cols *= tile.rows;
    tile.rows = 1;
  }
  const Int vectors = layout.lanes_of(task.block) / layout.lanes;
  squared_grad_family<T>().tile[vectors][std::min(layout.width, layout.many - task.run)](tile);
}

// Taps [run, run + width) of one kernel row of a depthwise convolution over one chunk.
template <class T>
void run_depthwise(const SquaredGradConv& conv, const Layout& layout, const Operand<T>& x,
                   const Operand<T>& grad, bool square, Int count, const Task& task, T* out,
                   Int out_k, bool add) {
  const Range y = valid_range(conv, 0, task.tap);
  const Int start = layout.start(task.block);
  SquaredGradDepthwise<T> args{};
  args.x = x.at(0, start) + y.input * x.row;
  args.grad = grad.at(0, start) + y.first * grad.row;
  args.out = out;
  args.out_k = out_k;
  args.samples = count;
  args.rows = y.last - y.first;
  args.cols = conv.out_width;
  args.x_sample = x.sample;
  args.x_row = x.row * conv.stride[0];
  args.x_col = x.col;
  args.grad_sample = grad.sample;
  args.grad_row = grad.row;
  args.grad_col = grad.col;
  args.width = conv.width;
  args.stride = conv.stride[1];
  args.dilation = conv.dilation[1];
  args.x0 = task.run * conv.dilation[1] - conv.padding[1];
  args.square = square;
  args.add = add;
  const Int vectors = layout.lanes_of(task.block) / layout.lanes;
  squared_grad_family<T>().depthwise[vectors][std::min(layout.width, layout.many - task.run)](args);
}

// One task over one chunk. Where whole vectors would reach into the next row of H: through a tile
// of its own.
template <class T, class Run>
void run_task(const Layout& layout, const Task& task, T* sums, bool add, const Run& run) {
  T* out = sums + layout.offset(task.group, task.block, task.tap * layout.many + task.run);
  const Int lanes = layout.lanes_of(task.block), channels = layout.channels_of(task.block);
  if (layout.rows == 0 || channels == lanes) {
    run(out, layout.rows > 0 ? layout.rows : lanes, add);
    return;
  }
  const Int rows = std::min(layout.width, layout.many - task.run);
  T tile[kMaxTile] = {};
  for (Int k = 0; k < rows && add; ++k)
    std::copy_n(out + k * layout.rows, channels, tile + k * lanes);
  run(tile, lanes, add);
  for (Int k = 0; k < rows; ++k) std::copy_n(tile + k * lanes, channels, out + k * layout.rows);
}

// A power of two, by shape alone. tile_work: multiply-adds of one tile over all samples.
Int parts_of(Int samples, Int tasks, Int tile_work, Int sample_bytes) {
  const Int most =
      std::min({samples, kMaxParts, kPartsBytes / sample_bytes, tasks * tile_work / kTaskWork});
  Int parts = 1;
  while (parts * tasks < kEnoughTasks && 2 * parts <= most) parts *= 2;
  return parts;
}

// Runs every task over every chunk: run(x, grad, count, task, out, out_k, add). Consecutive chunks
// share one parallel region as far as buffers allow, because threads would only wait for each other
// between them. sums: `size` values.
template <class T, class Run>
void accumulate(const SquaredGradConv& conv, const Layout& layout, Source<T>& x, Source<T>& grad,
                bool fold, T* sums, Int size, const Run& run) {
  const Int bytes = std::max<Int>(1, x.sample_bytes() + grad.sample_bytes());
  const Int positions = conv.out_height * conv.out_width, tasks = layout.tasks();
  const Int sample_work = positions * layout.width * layout.block_width();
  const Int parts = parts_of(conv.samples, tasks, conv.samples * sample_work, bytes);
  const Int least = fold ? kChunkPositions : ceil_div(kChunkPositions, positions);
  const Int chunk =
      std::min(conv.samples, ceil_div(std::max(least, kChunkBytes / bytes), parts) * parts);
  const at::Tensor others =  // the sums of all parts but the first
      at::empty({(parts - 1) * size}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>()));
  T* other_sums = others.mutable_data_ptr<T>();
  const auto next = [&](Int first) { return std::min(conv.samples, first + chunk); };
  // What a sample takes in the buffers; changes at most once, towards the end.
  const auto packed = [&](Int first) {
    return x.packed_bytes(first, next(first) - first) +
           grad.packed_bytes(first, next(first) - first);
  };
  for (Int first = 0, last; first < conv.samples; first = last) {
    last = next(first);
    while (last < conv.samples && packed(last) == packed(first) &&
           (next(last) - first) * packed(first) <= kPackedBytes)
      last = next(last);
    const Operand<T> xs = x.chunk(first, last - first), grads = grad.chunk(first, last - first);
    const Int work = std::max<Int>(1, (last - first) / parts * sample_work);
    const auto body = [&](int64_t begin, int64_t end) {
      for (Int n = first; n < last; n = next(n)) {
        const Int count = std::min(last, next(n)) - n;
        for (Int index = begin; index < end; ++index) {
          const Int part = index / tasks, from = count * part / parts,
                    to = count * (part + 1) / parts;
          const Operand<T> a = xs.from(n - first + from), b = grads.from(n - first + from);
          const Task task(layout, index % tasks);
          T* target = part == 0 ? sums : other_sums + (part - 1) * size;
          run_task(layout, task, target, n > 0, [&](T* out, Int out_k, bool add) {
            run(a, b, to - from, task, out, out_k, add);
          });
        }
      }
    };
    at::parallel_for(0, parts * tasks, std::max<Int>(1, kTaskWork / work), body);
  }
  for (Int part = 1; part < parts; ++part, other_sums += size)
    for (Int i = 0; i < size; ++i) sums[i] += other_sums[i];
}

bool readable_in_place(const at::Tensor& t, at::ScalarType type) {
  return t.scalar_type() == type && (t.stride(1) == 1 || t.size(1) == 1);
}

template <class T>
at::Tensor depthwise(const at::Tensor& x, const at::Tensor& grad, const SquaredGradConv& conv,
                     const SquaredGradForm& form) {
  const auto& family = squared_grad_family<T>();
  const auto type = c10::CppTypeToScalarType<T>();
  const Int taps = conv.kernel[0] * conv.kernel[1];
  const Layout layout(1, conv.outputs, family.lanes, conv.kernel[0], conv.kernel[1],
                      family.max_depthwise);
  Packing packing;
  packing.width = layout.block_width();
  packing.whole = true;
  packing.needed = !readable_in_place(grad, type);
  Source<T> grads(grad, packing);
  packing.repeat = conv.outputs / conv.channels;
  packing.square = form.x;
  packing.needed = form.x || !readable_in_place(x, type) || packing.repeat > 1;
  Source<T> xs(x, packing);
  const at::Tensor sums = at::empty({layout.padded() * taps}, at::TensorOptions().dtype(type));
  accumulate<T>(
      conv, layout, xs, grads, false, sums.mutable_data_ptr<T>(), sums.numel(),
      [&](const auto& a, const auto& b, Int count, const Task& task, T* out, Int out_k, bool add) {
        run_depthwise<T>(conv, layout, a, b, form.product, count, task, out, out_k, add);
      });
  const at::Tensor result =
      at::empty({conv.outputs, 1, conv.kernel[0], conv.kernel[1]}, sums.options());
  unpack<T>(layout, taps, 1, sums.const_data_ptr<T>(), result.mutable_data_ptr<T>(), 0, taps, 0);
  return result;
}

// Share of the lanes that carry a channel.
double filled(Int channels, Int lanes) {
  return double(channels) / double(ceil_div(channels, lanes) * lanes);
}

template <class T>
at::Tensor contract(const at::Tensor& x, const at::Tensor& grad, const SquaredGradConv& conv,
                    const SquaredGradForm& form) {
  const auto& family = squared_grad_family<T>();
  const auto type = c10::CppTypeToScalarType<T>();
  const Int lanes = family.lanes, taps = conv.kernel[0] * conv.kernel[1];
  const Int in = conv.channels / conv.groups, out = conv.outputs / conv.groups;

  // With few channels a tile runs over the columns of a kernel row too: the image's columns and the
  // padding's must then lie side by side, and only rows can be skipped.
  const bool joined = in < kFewChannels && conv.kernel[1] > 1 && conv.dilation[1] == 1;
  SquaredGradConv walk = conv;
  if (joined) {
    walk.kernel[1] = 1;
    walk.padding[1] = 0;
    walk.width += 2 * conv.padding[1];
  }
  const bool x_is_vec = !joined && (taps == 1 ? filled(in, lanes) >= filled(out, lanes)
                                              : filled(in, lanes) > filled(out, lanes));
  Layout layout(conv.groups, x_is_vec ? in : out, lanes, joined ? conv.kernel[0] : taps,
                x_is_vec ? out
                : joined ? in * conv.kernel[1]
                         : in,
                family.max_k);
  if (taps == 1 && x_is_vec) layout.rows = in;

  Packing pack_vec, pack_many;
  pack_vec.groups = pack_many.groups = conv.groups;
  pack_vec.square = x_is_vec ? form.x : form.grad;
  pack_many.square = x_is_vec ? form.grad : form.x;
  pack_vec.width = layout.block_width();
  pack_vec.whole = true;
  pack_many.width = joined ? in : layout.width;
  pack_many.padding = joined ? conv.padding[1] : 0;
  const at::Tensor& vec = x_is_vec ? x : grad;
  const at::Tensor& many = x_is_vec ? grad : x;
  pack_vec.needed = pack_vec.square || !readable_in_place(vec, type);
  pack_many.needed = pack_many.square || !readable_in_place(many, type) ||
                     (joined && (conv.padding[1] > 0 || x.stride(3) != in || conv.groups > 1));
  Source<T> xs(x, x_is_vec ? pack_vec : pack_many), grads(grad, x_is_vec ? pack_many : pack_vec);

  const at::Tensor result = at::empty({conv.outputs, in, conv.kernel[0], conv.kernel[1]},
                                      at::TensorOptions().dtype(type));
  const Int size = conv.groups * layout.padded() * layout.depth();
  const at::Tensor sums = layout.rows > 0 ? result : at::empty({size}, result.options());
  accumulate<T>(walk, layout, xs, grads, form.fold, sums.mutable_data_ptr<T>(), sums.numel(),
                [&](const auto& a, const auto& b, Int count, const Task& task, T* target, Int out_k,
                    bool add) {
                  run_tile<T>(walk, layout, a, b, x_is_vec, form, count, task, target, out_k, add);
                });
  if (layout.rows > 0) return result;
  const Int row = in * taps;  // of H, one output channel
  unpack<T>(layout, taps, x_is_vec ? out : in, sums.const_data_ptr<T>(),
            result.mutable_data_ptr<T>(), out * row, x_is_vec ? taps : row, x_is_vec ? row : taps);
  return result;
}

template <class T>
at::Tensor choose(const at::Tensor& x, const at::Tensor& grad, const SquaredGradConv& conv,
                  const SquaredGradForm& form) {
  if (conv.groups > 1 && conv.groups == conv.channels) return depthwise<T>(x, grad, conv, form);
  return contract<T>(x, grad, conv, form);
}

}  // namespace

at::Tensor squared_grad_contract(const at::Tensor& x, const at::Tensor& grad,
                                 const SquaredGradConv& conv, const SquaredGradForm& form) {
  const auto type = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Int positions = conv.out_height * conv.out_width;
  if (conv.samples == 0 || conv.channels == 0 || conv.outputs == 0 || positions == 0) {
    return at::zeros({conv.outputs, conv.channels / conv.groups, conv.kernel[0], conv.kernel[1]},
                     x.options().dtype(type));
  }
  if (type == at::kDouble) return choose<double>(x, grad, conv, form);
  return choose<float>(x, grad, conv, form);
}

}  // namespace resgrow
