// select on CPU: exact ranks by radix selection over many tensors at once, and masks from them.
//
// Digit by digit from the top, a histogram narrows the keys down to those that share the wanted
// score's leading bits. Once these are few they are copied out and the scores are not read again.
// Counts are integers over fixed chunks, so results do not depend on the number of threads.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

#include "check.h"
#include "cpu/isa.h"

namespace resgrow {
namespace {

constexpr int64_t kChunk = 1 << 16;

// A piece of one tensor: what one kernel call looks at.
struct Chunk {
  const char* scores;
  int64_t size;
  int64_t tensor;
  int64_t offset;  // of its first score in the tensor
};

struct Scores {
  const char* op;
  const SelectKernels* kernels;
  std::vector<at::Tensor> tensors;  // contiguous
  std::vector<Chunk> chunks;
  int64_t size = 0;

  int64_t itemsize() const { return kernels->key_bits / 8; }

  void add(const char* scores, int64_t numel, int64_t tensor) {
    size += numel;
    for (int64_t start = 0; start < numel; start += kChunk) {
      chunks.push_back(
          {scores + start * itemsize(), std::min(kChunk, numel - start), tensor, start});
    }
  }
};

Scores check_scores(const char* op, at::TensorList tensors, int64_t k, int64_t smallest_k) {
  const auto dtype = tensors[0].scalar_type();
  check_floating(op, "scores", tensors[0]);
  const KernelTable& table = resgrow::kernels();
  Scores scores{op, dtype == at::kFloat    ? &table.select_float
                    : dtype == at::kDouble ? &table.select_double
                                           : &table.select_bfloat16};
  for (size_t i = 0; i < tensors.size(); ++i) {
    TORCH_CHECK_TYPE(tensors[i].scalar_type() == dtype, op,
                     ": all scores must have one dtype (got ", dtype, " in scores[0] and ",
                     tensors[i].scalar_type(), " in scores[", i, "]); convert them to one first");
    scores.tensors.push_back(tensors[i].contiguous());
    scores.add(static_cast<const char*>(scores.tensors[i].const_data_ptr()), tensors[i].numel(), i);
  }
  TORCH_CHECK_VALUE(smallest_k <= k && k <= scores.size, op, ": k must lie between ", smallest_k,
                    " and the number of scores (got k=", k, " for ", scores.size, " scores)");
  return scores;
}

// How many of the scores with the digit's prefix have each value of the digit.
std::vector<int64_t> histogram(const Scores& scores, SelectDigit digit) {
  constexpr int64_t flush = int64_t(1) << 31;  // scores that a kernel's 32-bit counts can take
  std::vector<int64_t> counts(kSelectBins);
  std::mutex mutex;
  std::atomic<int64_t> first_nan{static_cast<int64_t>(scores.tensors.size())};
  at::parallel_for(0, scores.chunks.size(), 1, [&](int64_t begin, int64_t end) {
    std::vector<unsigned> copies(kSelectCopies * kSelectStride);
    int64_t pending = 0;
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = scores.chunks[i];
      if (scores.kernels->histogram(chunk.scores, chunk.size, digit, copies.data())) {
        int64_t first = first_nan.load();
        while (chunk.tensor < first && !first_nan.compare_exchange_weak(first, chunk.tensor)) {
        }
      }
      pending += chunk.size;
      if (pending < flush && i + 1 < end) continue;
      const std::lock_guard<std::mutex> lock(mutex);
      for (int64_t copy = 0; copy < kSelectCopies; ++copy) {
        for (int64_t bin = 0; bin < kSelectBins; ++bin)
          counts[bin] += copies[copy * kSelectStride + bin];
      }
      std::fill(copies.begin(), copies.end(), 0);
      pending = 0;
    }
  });
  TORCH_CHECK_VALUE(first_nan == static_cast<int64_t>(scores.tensors.size()), scores.op,
                    ": scores must not hold NaN (got NaN in scores[", first_nan.load(),
                    "]); look for the step that made it, or replace it with torch.nan_to_num");
  return counts;
}

// A copy of the `count` scores whose key >> shift is prefix, in no particular order.
Scores compact(const Scores& scores, SelectKey prefix, int shift, int64_t count) {
  const int64_t itemsize = scores.itemsize();
  at::Tensor kept = at::empty({count}, scores.tensors[0].options());
  char* data = static_cast<char*>(kept.mutable_data_ptr());
  std::atomic<int64_t> filled{0};
  at::parallel_for(0, scores.chunks.size(), 1, [&](int64_t begin, int64_t end) {
    std::vector<char> found(kChunk * itemsize);
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = scores.chunks[i];
      const int64_t n =
          scores.kernels->compact(chunk.scores, chunk.size, prefix, shift, found.data());
      const int64_t position = filled.fetch_add(n);
      std::copy_n(found.data(), n * itemsize, data + position * itemsize);
    }
  });
  Scores few{scores.op, scores.kernels};
  few.tensors.push_back(kept);
  few.add(data, count, 0);
  return few;
}

struct Rank {
  SelectKey key = 0;  // of the k-th smallest score
  int64_t below = 0;  // scores with a smaller key
  int64_t equal = 0;  // scores with this key
};

// 1 <= k <= scores.size.
Rank rank(const Scores& scores, int64_t k) {
  Rank found;
  Scores few;
  const Scores* source = &scores;
  for (int shift = scores.kernels->key_bits; shift > 0;) {
    const int bits = std::min(shift, kSelectDigitBits);
    shift -= bits;
    const std::vector<int64_t> counts = histogram(*source, {found.key, shift, bits});
    int64_t bin = 0;
    for (; found.below + counts[bin] < k; ++bin) found.below += counts[bin];
    found.key = found.key << bits | static_cast<SelectKey>(bin);
    found.equal = counts[bin];
    if (shift > 0 && found.equal <= source->size / 8) {
      few = compact(*source, found.key, shift, found.equal);
      source = &few;
    }
  }
  return found;
}

// keep = True above the bound, and at it after the first `drop` of the scores that equal it.
void write_masks(const Scores& scores, const Rank& bound, int64_t drop,
                 std::vector<at::Tensor>& keep) {
  const SelectKernels& kernels = *scores.kernels;
  const int64_t chunks = scores.chunks.size();
  std::vector<bool*> data;
  for (at::Tensor& mask : keep) data.push_back(mask.mutable_data_ptr<bool>());
  std::vector<int64_t> ties(chunks);
  const auto target = [&](const Chunk& chunk) { return data[chunk.tensor] + chunk.offset; };
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = scores.chunks[i];
      ties[i] = kernels.mask(chunk.scores, chunk.size, bound.key, false, target(chunk));
    }
  });
  if (drop == bound.equal) return;
  // Some ties stay: chunks that hold any are written again from where the drop ends.
  std::vector<int64_t> before(chunks);
  for (int64_t i = 1; i < chunks; ++i) before[i] = before[i - 1] + ties[i - 1];
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (before[i] + ties[i] <= drop || ties[i] == 0) continue;
      const Chunk& chunk = scores.chunks[i];
      if (before[i] >= drop) {
        kernels.mask(chunk.scores, chunk.size, bound.key, true, target(chunk));
      } else {
        kernels.mask_ties(chunk.scores, chunk.size, bound.key, drop - before[i], target(chunk));
      }
    }
  });
}

at::Tensor select_threshold(at::TensorList tensors, int64_t k) {
  const Scores scores = check_scores("select_threshold", tensors, k, 1);
  at::Tensor out = at::empty({}, tensors[0].options());
  scores.kernels->score(rank(scores, k).key, out.mutable_data_ptr());
  return out;
}

std::vector<at::Tensor> select_mask(at::TensorList tensors, int64_t k) {
  const Scores scores = check_scores("select_mask", tensors, k, 0);
  // With k = 0 the bound is the smallest score and all its ties stay; it is sought for the NaN
  // check.
  const Rank bound = scores.size > 0 ? rank(scores, std::max<int64_t>(k, 1)) : Rank{};
  std::vector<at::Tensor> keep;
  for (const at::Tensor& tensor : tensors) {
    keep.push_back(at::empty(tensor.sizes(), tensor.options().dtype(at::kBool)));
  }
  write_masks(scores, bound, k - bound.below, keep);
  return keep;
}

}  // namespace
}  // namespace resgrow

TORCH_LIBRARY_IMPL(resgrow, CPU, m) {
  m.impl("select_threshold", &resgrow::select_threshold);
  m.impl("select_mask", &resgrow::select_mask);
}
