// relu_pool_bounds on a CPU: planes over threads, one loop of the instruction set at hand.
#include "../relu_pool_bounds.h"

#include "walk.h"

namespace llpf::cpu {

void relu_pool_bounds(const ReluPoolBoundsArguments& a, const FormPointers& out, const Threads& threads) {
  const auto planes = chunk_kernels().relu_pool_bounds[a.dtype == Dtype::kFloat64];
  const int64_t size = a.window.size[0] * a.window.size[1];
  if (threads.count <= 1 || a.planes * size < 2 * kElementsPerThread) return planes(a, out, 0, a.planes);
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, size));
  threads.run(a.planes, grain, FunctionRef([&](int64_t begin, int64_t end) { planes(a, out, begin, end); }));
}

}  // namespace llpf::cpu
