// counter_randint_ on a CPU. The numbers are a function of key, step, row and column: there is no state to advance.
#include "../counter_randint.h"

namespace llpf::cpu {

void counter_randint(const CounterRandintArguments& a, const Threads&) {
  for (int64_t k = 0; a.state && k < a.paths; ++k) {
    const double steps = a.state[k][LossGate::kSteps];
    LLPF_CHECK(LossGate::counts(steps), "counter_randint_: state of path ", k,
               ": steps must be a whole number of at least 0, got ", steps, " in column ", LossGate::kSteps);
  }
  int64_t* out = a.out;
  for (int64_t k = 0; k < a.paths; ++k) {
    const int64_t round = CounterRandint::round(a.first[k], a.state ? a.state[k] : nullptr);
    for (int64_t row = 0; row < a.rule.rows; ++row) {
      const uint32_t stream = CounterRandint::stream(a.key[k], round, row);
      for (int64_t i = 0; i < a.rule.columns; ++i) *out++ = a.rule.element(stream, row, i);
    }
  }
}

}  // namespace llpf::cpu
