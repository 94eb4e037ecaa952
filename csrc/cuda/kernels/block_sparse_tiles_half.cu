// block_sparse_tiles for types of 16 bits.
#include "cuda/kernels/block_sparse_tiles_product.cuh"

namespace resgrow {

Status launch_tiles_bfloat16(const TilesArgs& a, const TilesLaunch& as, Stream stream) {
  return launch_tiles<Mma16<BFloat16>>(a, as, stream);
}
Status launch_tiles_float16(const TilesArgs& a, const TilesLaunch& as, Stream stream) {
  return launch_tiles<Mma16<Half>>(a, as, stream);
}

}  // namespace resgrow
