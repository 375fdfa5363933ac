// coefficients on a CPU: one pass over the groups of each path.
#include "../coefficients.h"

#include "contents.h"

namespace llpf::cpu {

void coefficients(const CoefficientsArguments& arguments, double* out, const Threads&) {
  const Table& table = arguments.table;
  check_segments("coefficients", table);
  check_rule("coefficients", table, arguments.rule, arguments.paths);
  for (int64_t k = 0; k < arguments.paths; ++k) {
    const PathArguments path = arguments.rule.path(k, arguments.moments, table.segment_count);
    Coefficients(table, arguments.rule.rule, path, out + k * table.segment_count * kCoefficientColumns)
        .run({0, table.segment_count});
  }
}

}  // namespace llpf::cpu
