// Border between the CUDA glue of select and its kernels.
#pragma once

#include "cuda/border.h"

namespace resgrow {

// One tensor that has elements, contiguous. Wide loads are used where its arrays are aligned to 16
// bytes.
struct SelectTensor {
  const void* scores;     // or weights, where scores are computed from curvatures
  const void* curvature;  // or null
  bool* keep;             // its mask, aligned to 16 bytes, or null
  Int size;
  Int start;       // elements in the tensors before it
  unsigned first;  // its first item; see kSelectItem
  int index;       // its place among the caller's tensors, by which errors name it
};

// An item is what a warp does in one go: so many elements of one tensor, the last of each ragged.
constexpr int kSelectItem = 2048;
// A place: the tensor's above so many bits of the element's.
constexpr int kSelectPlaceBits = 42;
// Tensors whose descriptions fit the 4 KB of a kernel's parameters.
constexpr int kSelectTable = 80;
// Of at most so many scores a sample's ranks are taken: they lie in one block's registers.
constexpr int kSelectSample = 1 << 14;

struct SelectCall {
  bool masks;      // are wanted, not the threshold
  Type type;       // of scores, or of weights and curvatures
  bool obd;        // scores are 1/2 (max(curvature, 0) + damping) weight^2
  double damping;  // of those
  Int size, k;     // 1 <= k <= size: the rank that is sought
  int tensors;
  unsigned items;
  int processors;  // multiprocessors of the device
  // The ranks from and to of a sample bracket the one that is sought; beyond 1 and sample they
  // are the infinities. sample = 0: without.
  int sample, from, to;
  Int between;      // room for scores inside the bracket; with more all are looked at again
  void* workspace;  // aligned to 256. Its first int is the index of the first tensor with NaN,
                    // kSelectNoNan without one, after launch_select_rank
};

constexpr int kSelectNoNan = 0x7fffffff;

Int select_workspace(const SelectCall&);  // bytes

// In this order: the descriptions of all tensors, kSelectTable at a time; the rank; its result.
Status launch_select_describe(const SelectCall&, const SelectTensor* tensors, int from, int count,
                              Stream);
Status launch_select_rank(const SelectCall&, Stream);
// The k-th smallest score, of the call's type; NaN if any score is.
Status launch_select_threshold(const SelectCall&, void* out, Stream);
// True above the k-th smallest score, and at it after so many ties that `drop` scores are False.
// True everywhere if any score is NaN.
Status launch_select_masks(const SelectCall&, Int drop, Stream);

}  // namespace resgrow
