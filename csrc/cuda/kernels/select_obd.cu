// select of Optimal Brain Damage's scores, which are computed in registers in every pass.
#include "cuda/kernels/select_launch.cuh"

namespace resgrow {

SelectLaunches select_launches_obd(Type type) {
  return select_launches_of<Obd>(type);
}

}  // namespace resgrow
