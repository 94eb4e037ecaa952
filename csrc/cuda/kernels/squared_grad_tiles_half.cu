// The tiles of float16.
#include "cuda/kernels/squared_grad_floats.cuh"
#include "cuda/kernels/squared_grad_halves.cuh"

namespace resgrow {
namespace {

using Form = SquaredGradForm;

// Costs are those of the second-level cache, see squared_grad_tiles.cuh: smaller tiles fetch the
// same values more often.
constexpr SquaredGradTile kTiles[] = {
    squared_grad_tile<Halves<Half, 128, 128, 64, 32, 8, 1>>(100),
    squared_grad_tile<Halves<Half, 128, 64, 64, 32, 8, 2>>(150),
    squared_grad_tile<Halves<Half, 64, 128, 64, 32, 8, 2>>(150),
    squared_grad_tile<Halves<Half, 64, 64, 32, 32, 8, 4>>(200),
    squared_grad_tile<Halves<Half, 64, 128, 64, 32, 4, 2>>(160),
    squared_grad_tile<Floats<Half, Form::factors, 3, 64, 64, 32, 32, 4>>(100),
    squared_grad_tile<Floats<Half, Form::input, 3, 64, 64, 32, 32, 4>>(100),
};

}  // namespace

const SquaredGradTiles squared_grad_tiles_half{kTiles, sizeof(kTiles) / sizeof(*kTiles)};

}  // namespace resgrow
