// The tiles of float32.
#include "cuda/kernels/squared_grad_floats.cuh"

namespace resgrow {
namespace {

using Form = SquaredGradForm;

constexpr SquaredGradTile kTiles[] = {
    squared_grad_tile<Floats<float, Form::per_sample, 1, 128, 128, 64, 32, 1>>(100, true),
    squared_grad_tile<Floats<float, Form::per_sample, 1, 64, 64, 32, 32, 4>>(200, true),
    squared_grad_tile<Floats<float, Form::per_sample, 3, 128, 128, 64, 32, 1>>(250),
    squared_grad_tile<Floats<float, Form::per_sample, 3, 64, 64, 32, 32, 4>>(300),
    squared_grad_tile<Floats<float, Form::factors, 3, 64, 64, 32, 32, 4>>(300),
    squared_grad_tile<Floats<float, Form::input, 3, 64, 64, 32, 32, 4>>(300),
};

}  // namespace

const SquaredGradTiles squared_grad_tiles_float{kTiles, sizeof(kTiles) / sizeof(*kTiles)};

}  // namespace resgrow
