// block_sparse_tiles for float: three passes of tf32, or one where that is allowed.
#include "cuda/kernels/block_sparse_tiles_product.cuh"

namespace resgrow {

Status launch_tiles_float32(const TilesArgs& a, const TilesLaunch& as, Stream stream) {
  return launch_tiles<MmaFloat<3>>(a, as, stream);
}
Status launch_tiles_tf32(const TilesArgs& a, const TilesLaunch& as, Stream stream) {
  return launch_tiles<MmaFloat<1>>(a, as, stream);
}

}  // namespace resgrow
