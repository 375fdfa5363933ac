#include "ops.h"

namespace llpf::cpu {

void coefficients(const Table& table, const Rule& rule, const RuleArguments& arguments, const double* moments,
                  int64_t paths, double* out) {
  for (int64_t k = 0; k < paths; ++k) {
    const PathArguments path{moments + k * table.segment_count * kMomentColumns, arguments.target_variance[k],
                             arguments.step[k], arguments.radius, !arguments.gate || arguments.gate[k][0] != 0};
    Coefficients(table, rule, path, out + k * table.segment_count * kCoefficientColumns).run({0, table.segment_count});
  }
}

}  // namespace llpf::cpu
