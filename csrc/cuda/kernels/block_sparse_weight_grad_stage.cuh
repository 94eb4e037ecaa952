// How a patch gets into shared memory.
#pragma once

#include "cuda/kernels/block_sparse_weight_grad_work.cuh"

namespace resgrow {
namespace weight_grad {

// The 16-byte columns of a stage that a thread copies: every `step`-th pixel of one.
struct Column {
  const Byte* from;  // of the first pixel of the tensor
  unsigned bytes;    // of a pixel of the tensor
  int to, row, step;
  bool needed, exists;  // whether a piece reads it; whether the tensor has it, or it is zeros
};

// Of a region of `units` units that begins at channel `first`, of which there are `limit` more.
template <class T>
RESGROW_DEVICE Column column_of(const void* tensor, int channels, int units, int used, int first,
                                int limit) {
  constexpr int per_unit = sizeof(T), values = 16 / sizeof(T);  // 16-byte columns of 16 channels
  const int columns = units * per_unit, column = threadIdx.x % columns;
  const int step = kThreads / columns, row = threadIdx.x / columns;
  const bool exists = column * values < limit;
  const T* from = static_cast<const T*>(tensor) + first + (exists ? column * values : 0);
  return {reinterpret_cast<const Byte*>(from),
          channels * static_cast<unsigned>(sizeof(T)),
          column * 16,
          row,
          step,
          row < step && (used >> column / per_unit & 1),
          exists};
}

// A rectangle of an image of x or y, in pixels.
struct Window {
  int image, top, left, height, width;
};

// Copies one part of `turns`. Spots are looked up for several copies at a time, as each look-up
// takes as long as many copies; and addresses are found for all, since a branch costs more.
RESGROW_DEVICE void copy_pixels(const Column& c, const Window& w, const Spot* spots, int count,
                                Byte* to, int pitch, int turn, int turns) {
  constexpr int batch = 4;
  if (!c.needed) return;
  const unsigned height = c.exists ? w.height : 0, width = w.width;
  const int first_row = w.image * w.height;
  for (int first = c.row + turn * batch * c.step; first < count; first += turns * batch * c.step) {
    Spot spot[batch];
    RESGROW_UNROLL
    for (int i = 0; i < batch; ++i) spot[i] = spots[min(first + i * c.step, count - 1)];
    RESGROW_UNROLL
    for (int i = 0; i < batch; ++i) {
      const unsigned y = w.top + spot[i].y, x = w.left + spot[i].x;
      const bool inside = y < height && x < width;
      const unsigned pixel = inside ? (first_row + y) * width + x : 0;
      const Byte* from = c.from + static_cast<unsigned long long>(pixel) * c.bytes;
      const int number = first + i * c.step;
      if (number < count) copy_async<16>(to + number * pitch + c.to, from, inside);
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
struct Loader {
  const GradPlan& p;
  const Shared& s;
  Column in, out;

  RESGROW_DEVICE void load(const Patch& patch, int stage, int turn, int turns) const {
    Byte* to = s.stages + stage * p.stage_bytes;
    copy_pixels(in, patch.x, s.in_spots, p.in_pixels, to, p.in_pitch, turn, turns);
    copy_pixels(out, patch.y, s.out_spots, 16 * p.steps, to + p.in_pixels * p.in_pitch, p.out_pitch,
                turn, turns);
  }
};

}  // namespace weight_grad
}  // namespace resgrow
