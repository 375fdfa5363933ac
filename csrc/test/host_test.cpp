// The GPU's blocking, run on a CPU: against plain sums in long double, and against what a tick promises. No GPU, no torch.
#include "../core/counter_randint.h"

#include "host.h"
#include "report.h"

namespace llpf::test {
namespace {

/// Moments of one segment by their definition.
template <class P, class D>
std::vector<double> plain_moments(const P* p, const D* d, int64_t length) {
  long double mean_p = 0, mean_delta = 0, m2_p = 0, c = 0, m2_delta = 0;
  for (int64_t i = 0; i < length; ++i) {
    mean_p += static_cast<long double>(widen(p[i])) / length;
    mean_delta += (static_cast<long double>(widen(d[i])) - widen(p[i])) / length;
  }
  for (int64_t i = 0; i < length; ++i) {
    const long double x = widen(p[i]) - mean_p, y = static_cast<long double>(widen(d[i])) - widen(p[i]) - mean_delta;
    m2_p += x * x;
    c += x * y;
    m2_delta += y * y;
  }
  return {static_cast<double>(mean_p), static_cast<double>(mean_delta), static_cast<double>(m2_p),
          static_cast<double>(c), static_cast<double>(m2_delta)};
}

template <class P, class D>
void check_moments(Report& report, const Case& c, const std::string& label) {
  const Table table = c.table();
  const auto p = random_values<P>(c, c.paths, 1);
  const auto d = random_values<D>(c, c.d_shared ? 1 : c.paths, 2);
  for (int64_t k = 0; k < c.paths; ++k) {
    std::vector<double> got(c.segments.size() * kMomentColumns);
    moments(table, p.data() + k * c.numel, d.data() + k * c.d_stride(), got.data());
    for (size_t s = 0; s < c.segments.size(); ++s) {
      const Segment& segment = c.segments[s];
      auto want = plain_moments(p.data() + k * c.numel + segment.offset, d.data() + k * c.d_stride() + segment.offset,
                                segment.length);
      if (segment.has(kMasked)) want.assign(kMomentColumns, 0.0);
      const double* row = &got[s * kMomentColumns];
      // A chunk's moments lose at most log2(4096) of 53 bits to the shift.
      const double means = 1e-13 * (1.0 + std::abs(want[0]) + std::abs(want[1]));
      const double mixed = 1e-12 * std::sqrt(want[2] * want[4]);
      const double scale[] = {means, means, 1e-12 * want[2], mixed, 1e-12 * want[4]};
      for (int i = 0; i < kMomentColumns; ++i)
        report.near(row[i], want[i], scale[i] + 1e-300,
                    label + ", moments of segment " + std::to_string(s) + ", column " + std::to_string(i));
    }
  }
}

/// After a tick every projected group has its target variance, and nothing else was touched.
void check_tick(Report& report, const Case& c, Destination destination, const std::string& label) {
  const Table table = c.table();
  const auto before = random_values<double>(c, c.paths, 3);
  const auto d = random_values<double>(c, c.d_shared ? 1 : c.paths, 4);
  const auto target = random_by_group(c, c.paths, 5), radius = random_by_group(c, 1, 6);
  const double step[] = {0.01, 0.1};
  const bool to_point = destination == Destination::kPoint;
  Rule rule;
  rule.destination = destination;
  rule.project_first = true;
  auto p = before;
  std::vector<double> rows(c.segments.size() * kMomentColumns), maps(c.segments.size() * kCoefficientColumns);
  for (int64_t k = 0; k < c.paths; ++k) {
    double* const mine = p.data() + k * c.numel;
    const double* const to = to_point ? d.data() + k * c.d_stride() : nullptr;
    moments(table, mine, to, rows.data());
    const int64_t count = table.segment_count;
    const PathArguments path{rows.data(), target.data() + k * count, step, radius.data(), true};
    Coefficients(table, rule, path, maps.data()).run({0, count});
    write(table, maps.data(), mine, to, static_cast<double*>(nullptr));
    for (int64_t s = 0; s < count;) {
      const Range group = table.variance_group(s);
      Moments all;
      bool projected = true;
      for (int64_t i = group.begin; i < group.end; ++i) {
        const Segment& segment = table.segments[i];
        if (segment.has(kMasked)) continue;
        projected = projected && !segment.has(kFree);
        all = merge(all, chunk_moments(mine + segment.offset, static_cast<const double*>(nullptr), segment.length));
      }
      if (projected && all.n > 1) {
        const double variance = all.m2_p / (all.n - 1), want = target[static_cast<size_t>(k * count + s)];
        report.near(variance, want, 1e-9 * want, label + ", variance of the group of segment " + std::to_string(s));
      }
      s = group.end;
    }
    std::vector<bool> written(static_cast<size_t>(c.numel));
    for (const Segment& segment : c.segments)
      for (int64_t i = 0; i < segment.length; ++i)
        written[static_cast<size_t>(segment.offset + i)] = !segment.has(kMasked);
    std::vector<double> got, want;
    for (int64_t i = 0; i < c.numel; ++i)
      if (!written[static_cast<size_t>(i)]) {
        got.push_back(mine[i]);
        want.push_back(before[static_cast<size_t>(k * c.numel + i)]);
      }
    report.same_bits(got, want, label + ", padding and masked segments");
  }
}

/// Whether a repetition has anything left to do, by the columns of a gate whose window is two losses wide.
void check_goes_on(Report& report) {
  const double infinite = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  struct Row {
    const char* name;
    std::vector<double> state;
    bool want;
  };
  for (const Row& row : {Row{"fresh, the window never written", {1, 0, 0, 0, nan, nan}, true},
                         Row{"closed", {0, 0, 3, 0.1, 0.1, 0.1}, false},
                         Row{"closed by this update", {1, 1, 3, 0.1, 0.1, 0.1}, false},
                         Row{"open", {1, 0, 3, 0.1, 0.1, 0.1}, true},
                         Row{"newest of an odd round infinite", {1, 0, 3, infinite, infinite, 0.1}, false},
                         Row{"newest of an even round minus infinite", {1, 0, 2, -infinite, 0.1, -infinite}, false},
                         Row{"newest not a number", {1, 0, 1, nan, nan, 0}, false},
                         Row{"only the other one infinite", {1, 0, 2, infinite, infinite, 0.1}, true}})
    report.expect(LossGate::goes_on(row.state.data(), 2) == row.want, std::string("goes on: ") + row.name);
}

/// A number of rounds that is none closes the row, shows in its mean, and moves nothing beside it.
void check_damaged_gate(Report& report) {
  const double infinite = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  for (const double steps : {nan, infinite, -infinite, -1.0, 0.5, 0x1p54, -1e300, 1e300}) {
    std::vector<double> memory(64, 7.0);
    double* state = memory.data() + 29;
    state[LossGate::kActive] = 1;
    state[LossGate::kFinal] = 0;
    state[LossGate::kSteps] = steps;
    std::vector<double> want = memory;
    want[29 + LossGate::kActive] = 0;
    want[29 + LossGate::kMean] = LossGate::kNaN;
    const std::string label = "gate after " + std::to_string(steps) + " steps";
    report.expect(!LossGate::goes_on(state, 2), label + " goes on");
    LossGate{0.1, 2, 9}(state, 0.5);
    report.same_bits(memory, want, label);
    report.expect(CounterRandint::round(5, memory.data() + 29) == 5, label + ", round");
  }
  const double counted[] = {1, 0, 9, 0.1};
  report.expect(CounterRandint::round(5, counted) == 14 && CounterRandint::round(5, nullptr) == 5, "the round counts the steps of a state");
}

}  // namespace
}  // namespace llpf::test

int main() {
  using namespace llpf::test;
  Report report;
  check_goes_on(report);
  check_damaged_gate(report);
  for (const Case& c : all_cases()) {
    for_each_pair([&]<class P, class D>(P, D, const char* types) { check_moments<P, D>(report, c, c.name + ", " + types); });
    for (int64_t kind = 0; kind <= 5; ++kind)
      check_tick(report, c, static_cast<llpf::Destination>(kind), c.name + ", destination " + std::to_string(kind));
  }
  return report.finish();
}
