// How a patch gets into shared memory.
#pragma once

#include "cuda/kernels/block_sparse_weight_grad_work.cuh"

namespace resgrow {
namespace weight_grad {

// The 16-byte columns of a stage that a thread copies: every `step`-th pixel of one.
template <class T>
struct Column {
  const T* from;  // of the first pixel of the tensor
  int to, row, step;
  bool needed, exists;  // whether a piece reads it; whether the tensor has it, or it is zeros

  RESGROW_DEVICE Column(const void* tensor, int units, int used, int first, int limit) {
    constexpr int per_unit = sizeof(T), values = 16 / sizeof(T);  // 16-byte columns of 16 channels
    const int columns = units * per_unit, column = threadIdx.x % columns;
    step = kThreads / columns;
    row = threadIdx.x / columns;
    needed = row < step && used >> column / per_unit & 1;
    exists = column * values < limit;
    from = static_cast<const T*>(tensor) + first + (exists ? column * values : 0);
    to = column * 16;
  }
};

// A rectangle of an image of x or y, in pixels.
struct Window {
  int image, top, left, height, width;
};

// Copies one part of `turns`. Places are looked up for several copies at a time: each look-up takes
// as long as many copies.
template <class T>
RESGROW_DEVICE void copy_pixels(const Column<T>& c, const Window& w, const int* places, int count,
                                int channels, Byte* to, int pitch, int turn, int turns) {
  constexpr int batch = 4;
  if (!c.needed) return;
  for (int first = c.row + turn * batch * c.step; first < count; first += turns * batch * c.step) {
    int place[batch];
    RESGROW_UNROLL
    for (int i = 0; i < batch; ++i)
      place[i] = first + i * c.step < count ? places[first + i * c.step] : kSkipped;
    RESGROW_UNROLL
    for (int i = 0; i < batch; ++i) {
      if (place[i] == kSkipped) continue;
      const int y = w.top + (place[i] >> 16), x = w.left + (place[i] & 0xffff);
      const bool inside = c.exists && place[i] >= 0 &&
                          static_cast<unsigned>(y) < static_cast<unsigned>(w.height) &&
                          static_cast<unsigned>(x) < static_cast<unsigned>(w.width);
      const int pixel = inside ? (w.image * w.height + y) * w.width + x : 0;
      copy_async<16>(to + (first + i * c.step) * pitch + c.to,
                     c.from + static_cast<Int>(pixel) * channels, inside);
    }
  }
}

// What a patch is made of.
struct Patch {
  Window x, y;
};

RESGROW_DEVICE Patch patch_at(const GradPlan& p, int number) {
  const GradAxis &down = p.axis[0], &right = p.axis[1];
  const int per_image = down.count * right.count, image = number / per_image;
  const int top = number % per_image / right.count * down.size;
  const int left = number % per_image % right.count * right.size;
  return {{image, top * down.stride - down.padding, left * right.stride - right.padding, down.in,
           right.in},
          {image, top, left, down.out, right.out}};
}

// Copies a patch into a stage, or one part of it.
template <class T>
struct Loader {
  const Args& a;
  const Shared& s;
  Column<T> in, out;

  RESGROW_DEVICE void load(const Patch& patch, int stage, int turn, int turns) const {
    const GradPlan& p = a.plan;
    Byte* to = s.stages + stage * p.stage_bytes;
    copy_pixels(in, patch.x, s.in_places, p.in_pixels, a.channels, to, p.in_pitch, turn, turns);
    copy_pixels(out, patch.y, s.out_places, 16 * p.steps, a.outputs, to + p.in_pixels * p.in_pitch,
                p.out_pitch, turn, turns);
  }
};

}  // namespace weight_grad
}  // namespace resgrow
