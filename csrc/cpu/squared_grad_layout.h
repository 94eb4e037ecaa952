// Where the sums of squared_grad lie while they are added up, and how they become H.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/squared_grad_operand.h"

namespace resgrow {

// The sums in tile order: groups, blocks of one or two vectors, k, lane; k = tap * many + c for
// channel c of the broadcast operand. Where rows > 0 they are H itself instead: k rows of that many
// values.
struct Layout {
  Int groups, vec_channels, lanes, taps, many, width, rows = 0;
  bool wide;  // blocks of two vectors; an odd last one has one

  Layout(Int groups, Int vec_channels, int lanes, Int taps, Int many, const int (&max_k)[3])
      : groups(groups),
        vec_channels(vec_channels),
        lanes(lanes),
        taps(taps),
        many(many),
        width(ceil_div(many, ceil_div(many, max_k[vec_channels > lanes ? 2 : 1]))),
        wide(vec_channels > lanes) {}

  Int block_width() const { return wide ? 2 * lanes : lanes; }
  Int padded() const { return ceil_div(vec_channels, lanes) * lanes; }
  Int blocks() const { return ceil_div(padded(), block_width()); }
  Int start(Int block) const { return block * block_width(); }
  Int lanes_of(Int block) const { return std::min(block_width(), padded() - start(block)); }
  Int channels_of(Int block) const { return std::min(block_width(), vec_channels - start(block)); }
  Int runs() const { return ceil_div(many, width); }
  Int depth() const { return taps * many; }
  Int tasks() const { return groups * blocks() * taps * runs(); }
  Int offset(Int group, Int block, Int k) const {
    if (rows > 0) return (group * depth() + k) * rows + start(block);
    return (group * padded() + start(block)) * depth() + k * lanes_of(block);
  }
};

struct Task {
  Int group, block, tap, run;  // run: first channel of the broadcast operand

  Task(const Layout& layout, Int index) {
    run = index % layout.runs() * layout.width;
    index /= layout.runs();
    tap = index % layout.taps;
    index /= layout.taps;
    block = index % layout.blocks();
    group = index / layout.blocks();
  }
};

// From tile order to (O, I, taps). vec_step, many_step: what one channel of either operand means
// there.
template <class T>
void unpack(const Layout& layout, Int taps, Int many, const T* sums, T* target, Int group_step,
            Int vec_step, Int many_step) {
  constexpr Int together =
      16;  // channels whose lines stay in the first-level cache while the lanes go by
  constexpr Int worthwhile = 1 << 16;  // values to move before a thread is woken
  const Int grain = std::max<Int>(1, worthwhile / (layout.block_width() * layout.depth()));
  at::parallel_for(0, layout.groups * layout.blocks(), grain, [&](int64_t begin, int64_t end) {
    for (Int i = begin; i < end; ++i) {
      const Int group = i / layout.blocks(), block = i % layout.blocks(),
                lanes = layout.lanes_of(block);
      const T* source = sums + layout.offset(group, block, 0);
      T* base = target + group * group_step + layout.start(block) * vec_step;
      for (Int c0 = 0; c0 < many; c0 += together) {
        for (Int lane = 0; lane < layout.channels_of(block); ++lane) {
          for (Int c = c0; c < std::min(many, c0 + together); ++c) {
            T* to = base + lane * vec_step + c * many_step;
            for (Int tap = 0; tap < taps; ++tap) to[tap] = source[(tap * many + c) * lanes + lane];
          }
        }
      }
    }
  });
}

}  // namespace resgrow
