// Barriers, and what the lanes of a warp do together.
#include <algorithm>
#include <cstring>

#include "simt/conversions.h"
#include "simt/findings.h"
#include "simt/machine.h"
#include "simt/memory.h"

namespace simt {

namespace {

bool same_place(Where a, Where b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string both(const Wait& there, const char* what, Where where) {
  return std::string(what) + " at " + describe(where) + " is reached while others wait at " +
         there.what + ", " + describe(there.where);
}

// Waits for all threads of the block; votes are those with `vote`.
unsigned block_meeting(const char* what, bool vote, Where where) {
  Machine& m = machine;
  Barrier& b = m.barrier;
  Thread& me = *m.current;
  if (b.arrived == 0) b.wait = {what, where};
  // bar.sync must be one and the same instruction for the threads of a warp, and
  // __syncthreads "evaluates identically across the entire thread block".
  if (!same_place(b.wait.where, where)) fail("divergent barrier: " + both(b.wait, what, where), {});
  b.votes += vote;
  me.wait = {what, where};
  if (++b.arrived < m.count) {
    suspend();
    return b.result;
  }
  b.result = b.votes;
  b.arrived = b.votes = 0;
  b.synced_before = b.synced;
  b.synced = ++m.now;
  for (unsigned i = 0; i < m.count; ++i) make_ready(m.threads[i]);
  suspend();
  return b.result;
}

// Waits for the 32 lanes of this thread's warp with their operands. The last to come completes the
// meeting. `aligned`: all must come from one and the same instruction.
template <class Complete>
const Meeting& warp_meeting(const char* what, bool aligned, Where where, const Operands& mine,
                            Complete complete) {
  Machine& m = machine;
  Warp& w = m.warp();
  Thread& me = *m.current;
  Meeting& meeting = w.meetings[w.turn];
  if (w.arrived == 0) w.wait = {what, where};
  if (w.wait.what != what || (aligned && !same_place(w.wait.where, where))) {
    fail("the lanes of a warp part: " + both(w.wait, what, where), {});
  }
  meeting.in[me.number % kWarp] = mine;
  me.wait = {what, where};
  if (++w.arrived < kWarp) {
    suspend();
    return meeting;
  }
  complete(w, meeting);
  w.arrived = 0;
  w.turn ^= 1;
  const unsigned first = me.number - me.number % kWarp;
  for (unsigned i = 0; i < kWarp; ++i) make_ready(m.threads[first + i]);
  suspend();
  return meeting;
}

void check_full(const char* what, unsigned mask, Where where) {
  if (mask != 0xffffffff) {
    char text[16];
    std::snprintf(text, sizeof text, "%#x", mask);
    fail(std::string(what) + ": the mask must be full (got " + text + ")", where);
  }
}

constexpr auto nothing = [](Warp&, Meeting&) {};

float operand(Float type, const uint32_t* words, int i) {
  const auto half_word = static_cast<unsigned short>(words[i / 2] >> i % 2 * 16);
  switch (type) {
    case Float::bfloat16:
      return resgrow::to_float(resgrow::BFloat16{half_word});
    case Float::float16:
      return resgrow::to_float(resgrow::Half{half_word});
    default:  // the tensor core looks at the upper 19 bits
      return __uint_as_float(words[i] & 0xffffe000u);
  }
}

// d (16x8) += a (16xk) b (kx8), with the fragments of PTX's mma.m16n8k16, or k8 for tf32: in both a
// register holds 4 bytes of a row of a or of a column of b, and registers 2 and 3 of a and 1 of b
// the second half of k.
void multiply_add_tile(Float type, Meeting& meeting) {
  const int per_word = type == Float::tf32 ? 1 : 2;
  const int k = 8 * per_word;
  float a[16][16], b[16][8], d[16][8];
  for (int l = 0; l < 32; ++l) {
    const uint32_t* words = meeting.in[l].word;
    const int g = l / 4, t = l % 4;
    for (int r = 0; r < 4; ++r) {
      for (int i = 0; i < per_word; ++i) {
        a[g + r % 2 * 8][r / 2 * k / 2 + t * per_word + i] = operand(type, words + r, i);
        if (r < 2) b[r * k / 2 + t * per_word + i][g] = operand(type, words + 4 + r, i);
      }
      d[g + r / 2 * 8][2 * t + r % 2] = __uint_as_float(words[6 + r]);
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int i = 0; i < k; ++i) {
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][i] * b[i][column];
    }
  }
  for (int l = 0; l < 32; ++l) {
    for (int r = 0; r < 4; ++r) {
      meeting.out[l].word[r] = __float_as_uint(d[l / 4 + r / 2 * 8][2 * (l % 4) + r % 2]);
    }
  }
}

}  // namespace

void barrier(Where where) {
  block_meeting("__syncthreads", false, where);
}

int barrier_vote(Vote vote, bool value, Where where) {
  const unsigned votes = block_meeting("__syncthreads with a vote", value, where);
  if (vote == Vote::count) return static_cast<int>(votes);
  return vote == Vote::any ? votes > 0 : votes == machine.count;
}

// The only one that orders accesses to memory: CUDA promises that of __syncwarp, and neither of
// shuffles and votes nor of matrix instructions.
void warp_barrier(unsigned mask, Where where) {
  check_full("__syncwarp", mask, where);
  warp_meeting("__syncwarp", false, where, {}, [](Warp& w, Meeting&) { w.synced = ++machine.now; });
}

uint64_t shuffle(unsigned mask, uint64_t value, unsigned source, Where where) {
  check_full("shuffle", mask, where);
  Operands mine{};
  std::memcpy(mine.word, &value, sizeof value);
  const Meeting& meeting = warp_meeting("a shuffle", false, where, mine, nothing);
  std::memcpy(&value, meeting.in[source].word, sizeof value);
  return value;
}

unsigned ballot(unsigned mask, bool value, Where where) {
  check_full("vote", mask, where);
  const Meeting& meeting = warp_meeting("a vote", false, where, {{value}}, nothing);
  unsigned votes = 0;
  for (unsigned i = 0; i < kWarp; ++i) votes |= meeting.in[i].word[0] << i;
  return votes;
}

template <int matrices>
Words4 load_matrices(const void* row, bool transposed, Where where) {
  Operands mine{};
  if (lane() < 8 * matrices) {
    shared_access(row, 16, Access::read, __builtin_return_address(0));
    std::memcpy(mine.word, row, 16);
  }
  const Meeting& meeting = warp_meeting("load_matrices", true, where, mine, nothing);
  const auto value = [&](unsigned matrix, unsigned r, unsigned c) {
    return meeting.in[8 * matrix + r].word[c / 2] >> c % 2 * 16 & 0xffff;
  };
  const unsigned g = lane() / 4, t = lane() % 4;
  Words4 result{};
  for (unsigned i = 0; i < matrices; ++i) {
    result[i] = transposed ? value(i, 2 * t, g) | value(i, 2 * t + 1, g) << 16
                           : value(i, g, 2 * t) | value(i, g, 2 * t + 1) << 16;
  }
  return result;
}
template Words4 load_matrices<2>(const void*, bool, Where);
template Words4 load_matrices<4>(const void*, bool, Where);

Floats4 multiply_add(Floats4 d, Words4 a, Words2 b, Float type, Where where) {
  Operands mine{};
  std::memcpy(mine.word, &a, 16);
  std::memcpy(mine.word + 4, &b, 8);
  std::memcpy(mine.word + 6, &d, 16);
  static constexpr const char* names[] = {"multiply_add<BFloat16>", "multiply_add<Half>",
                                          "multiply_add_tf32"};
  const Meeting& meeting =
      warp_meeting(names[static_cast<int>(type)], true, where, mine,
                   [type](Warp&, Meeting& all) { multiply_add_tile(type, all); });
  std::memcpy(&d, meeting.out[lane()].word, 16);
  return d;
}

}  // namespace simt
