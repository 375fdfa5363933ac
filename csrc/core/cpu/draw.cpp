#include "../draw.h"

#include "ops.h"

namespace llpf::cpu {

void draw(const Draw& rule, int64_t* out, const int64_t* key, const int64_t* first, const double* gate,
          int64_t gate_columns, int64_t paths) {
  for (int64_t k = 0; k < paths; ++k) {
    const int64_t round = Draw::round(first[k], gate == nullptr ? nullptr : gate + k * gate_columns);
    for (int64_t row = 0; row < rule.rows; ++row) {
      const uint32_t stream = Draw::stream(key[k], round, row);
      for (int64_t i = 0; i < rule.columns; ++i) *out++ = rule.element(stream, row, i);
    }
  }
}

}  // namespace llpf::cpu
