// Every CUDA kernel against the same functions run lane by lane on the host (host.h), bit for bit. No torch: buffers are
// plain cudaMalloc of the exact size, so that compute-sanitizer sees an access beyond them. Scratch is NaN on entry.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <type_traits>

#include "../core/counter_randint.h"
#include "../core/cuda/while_graph.h"
#include "../core/relu_pool_bounds.h"
#include "../core/tick.h"
#include "host.h"
#include "report.h"

namespace llpf::test {
namespace {

void must(int error, const std::string& what) {
  if (error == cudaSuccess) return;
  std::printf("CUDA error in %s: %s\n", what.c_str(), cudaGetErrorString(static_cast<cudaError_t>(error)));
  std::exit(2);
}

template <class T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values) : size_(values.size()) {
    must(cudaMalloc(reinterpret_cast<void**>(&data_), size_ * sizeof(T)), "cudaMalloc");
    must(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), "upload");
  }
  OnDevice(const OnDevice&) = delete;
  ~OnDevice() { cudaFree(data_); }

  T* data() const { return data_; }
  std::vector<T> host() const {
    std::vector<T> out(size_);
    must(cudaDeviceSynchronize(), "a kernel");
    must(cudaMemcpy(out.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), "download");
    return out;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

std::vector<double> nans(int64_t count) {
  return std::vector<double>(static_cast<size_t>(count), std::numeric_limits<double>::quiet_NaN());
}

template <class T>
constexpr Dtype kDtype = std::is_same_v<T, float>      ? Dtype::kFloat32
                         : std::is_same_v<T, double>   ? Dtype::kFloat64
                         : std::is_same_v<T, Bfloat16> ? Dtype::kBfloat16
                                                       : Dtype::kFloat16;

/// All paths active; all but the last, by rows like those of loss_gate_'s state, in which the first path's step is the final
/// one.
std::vector<HostActive> choices(int64_t paths) {
  HostActive partly{std::vector<double>(static_cast<size_t>(paths * 4), 0.0), 4};
  for (int64_t k = 0; k < paths; ++k) partly.rows[static_cast<size_t>(k * 4)] = paths == 1 || k + 1 < paths;
  partly.rows[1] = 1;
  return {HostActive{}, partly};
}

template <class P, class D>
class Checks {
 public:
  Checks(Report& report, const Case& c, const char* types)
      : report_(report), c_(c), label_(c.name + ", " + types), host_(c.table()), segments_(c.segments), chunks_(c.chunks),
        table_{segments_.data(), host_.segment_count, chunks_.data(), host_.chunk_count},
        p_(random_values<P>(c, c.paths, 1)), d_(random_values<D>(c, c.d_shared ? 1 : c.paths, 2)), d_device_(d_),
        target_(random_by_group(c, c.paths, 5)), target_device_(target_), radius_(random_by_group(c, 1, 6)),
        radius_device_(radius_), step_device_(std::vector<double>(kStep, kStep + 2)) {}

  void run() {
    moments();
    for (int64_t kind = 0; kind <= 5; ++kind)
      for (const HostActive& active : choices(c_.paths)) tick(static_cast<Destination>(kind), active);
    if constexpr (std::is_same_v<P, D>)  // the update has no d
      for (const HostActive& active : choices(c_.paths))
        for (const double momentum : {0.0, 0.9}) sgd(active, momentum);
  }

  /// What joins chunks, once.
  void run_joins() {
    moments();
    tick(Destination::kPoint, HostActive{});
  }

 private:
  static constexpr double kStep[] = {0.01, 0.1};

  int64_t rows() const { return c_.paths * host_.segment_count; }

  OnDevice<double> scratch() const {
    return OnDevice<double>(nans(c_.paths * (5 * host_.chunk_count + 10 * host_.segment_count)));
  }

  Values values(P* p, bool with_d) const {
    return {p, kDtype<P>, c_.paths, c_.numel, with_d ? d_device_.data() : nullptr, kDtype<D>, c_.d_shared};
  }
  const D* d_row(int64_t k, bool with_d) const { return with_d ? d_.data() + k * c_.d_stride() : nullptr; }

  std::vector<double> host_moments(const std::vector<P>& p, bool with_d) const {
    std::vector<double> out(static_cast<size_t>(rows() * kMomentColumns));
    for (int64_t k = 0; k < c_.paths; ++k)
      test::moments(host_, p.data() + k * c_.numel, d_row(k, with_d),
                    out.data() + k * host_.segment_count * kMomentColumns);
    return out;
  }

  void moments() {
    for (const bool with_d : {true, false}) {
      const OnDevice<P> p(p_);
      const OnDevice<double> scratch = this->scratch(), out(nans(rows() * kMomentColumns));
      must(cuda::moments({values(p.data(), with_d), table_, scratch.data()}, out.data(), nullptr), "moments");
      report_.same_bits(out.host(), host_moments(p_, with_d), label_ + ", moments " + (with_d ? "with d" : "without d"));
    }
  }

  /// Coefficients, affine and the tick in every plan.
  void tick(Destination destination, const HostActive& active) {
    const std::string label = label_ + ", destination " + std::to_string(static_cast<int>(destination)) +
                              (active.rows.empty() ? "" : ", some paths");
    const bool with_d = destination == Destination::kPoint;
    const bool sphere = destination == Destination::kVarianceSphere || destination == Destination::kNormSphere;
    Rule rule;
    rule.destination = destination;
    rule.epsilon = 1e-4;
    rule.combine_sum = with_d;
    rule.project_first = true;
    const int64_t count = host_.segment_count;

    const auto measured = host_moments(p_, with_d);
    std::vector<double> maps(static_cast<size_t>(rows() * kCoefficientColumns));
    std::vector<P> ticked = p_, affined = p_, recorded = random_values<P>(c_, c_.paths, 7);
    const std::vector<P> before_record = recorded;
    for (int64_t k = 0; k < c_.paths; ++k) {
      const PathArguments path{measured.data() + k * count * kMomentColumns, target_.data() + k * count, kStep,
                               sphere ? radius_.data() : nullptr, active(k)};
      double* const mine = maps.data() + k * count * kCoefficientColumns;
      Coefficients(host_, rule, path, mine).run({0, count});
      const int64_t row = k * c_.numel;
      write(host_, mine, affined.data() + row, d_row(k, with_d), static_cast<P*>(nullptr));
      if (active(k)) write(host_, mine, ticked.data() + row, d_row(k, with_d), recorded.data() + row);
    }

    const OnDevice<double> active_device(active.rows.empty() ? std::vector<double>{0.0} : active.rows);
    const RuleArguments arguments{
        .rule = rule,
        .target_variance = {target_device_.data(), count},
        .step = {step_device_.data(), 0},
        .radius = sphere ? radius_device_.data() : nullptr,
        .active = active.rows.empty() ? Active{} : Active{{active_device.data(), active.columns}},
    };
    const OnDevice<double> moments_device(measured), maps_device(nans(rows() * kCoefficientColumns));
    must(cuda::coefficients({moments_device.data(), c_.paths, table_, arguments}, maps_device.data(), nullptr),
         "coefficients");
    report_.same_bits(maps_device.host(), maps, label + ", coefficients");

    const OnDevice<P> p(p_);
    must(cuda::affine({values(p.data(), with_d), table_, maps_device.data()}, nullptr), "affine");
    report_.same_bits(p.host(), affined, label + ", affine");

    struct Plan {
      const char* name;
      cuda::TickPlan plan;
      bool moments_in, records;
    };
    for (const Plan& plan : {Plan{"stages", cuda::TickPlan::kStages, false, true},
                             Plan{"stages without waypoint", cuda::TickPlan::kStages, false, false},
                             Plan{"on chip", cuda::TickPlan::kOnChip, false, true},
                             Plan{"on chip without waypoint", cuda::TickPlan::kOnChip, false, false},
                             Plan{"from moments", cuda::TickPlan::kChoose, true, true}}) {
      const OnDevice<P> moved(p_), waypoint(before_record);
      const OnDevice<double> scratch = this->scratch();
      must(cuda::tick({values(moved.data(), with_d), table_, arguments, plan.moments_in ? moments_device.data() : nullptr,
                       plan.records ? waypoint.data() : nullptr, scratch.data()},
                      nullptr, plan.plan),
           plan.name);
      report_.same_bits(moved.host(), ticked, label + ", tick " + plan.name);
      report_.same_bits(waypoint.host(), plan.records ? recorded : before_record, label + ", waypoint " + plan.name);
    }
  }

  void sgd(const HostActive& active, double momentum) {
    const std::string label =
        label_ + ", sgd" + (momentum == 0 ? "" : " with momentum") + (active.rows.empty() ? "" : ", some paths");
    const double decay = 1e-3;
    const bool nesterov = momentum != 0;
    const auto g = random_values<P>(c_, c_.paths, 8);
    const auto rates = random_by_group(c_, c_.paths, 9);
    std::vector<P> p = p_, buffer = random_values<P>(c_, c_.paths, 10);
    const std::vector<P> before = buffer;
    const auto rule = SgdRule<Compute<P>>::of({momentum, decay, nesterov});
    for (int64_t k = 0; k < c_.paths; ++k) {
      if (!active(k)) continue;
      const int64_t row = k * c_.numel;
      test::sgd(host_, rule, rates.data() + k * host_.segment_count, p.data() + row, g.data() + row,
                momentum == 0 ? nullptr : buffer.data() + row);
    }

    const OnDevice<P> p_device(p_), g_device(g), buffer_device(before);
    const OnDevice<double> rates_device(rates), active_device(active.rows.empty() ? std::vector<double>{0.0} : active.rows);
    const SgdArguments arguments{
        .values = values(p_device.data(), false),
        .table = table_,
        .g = g_device.data(),
        .momentum_buffer = momentum == 0 ? nullptr : buffer_device.data(),
        .rates = {rates_device.data(), host_.segment_count},
        .rate_stride = 1,
        .rule = {momentum, decay, nesterov},
        .active = active.rows.empty() ? Active{} : Active{{active_device.data(), active.columns}},
    };
    must(cuda::sgd(arguments, nullptr), "sgd");
    report_.same_bits(p_device.host(), p, label + ", p");
    report_.same_bits(buffer_device.host(), buffer, label + ", momentum buffer");
  }

  Report& report_;
  const Case& c_;
  const std::string label_;
  const Table host_;
  const OnDevice<Segment> segments_;
  const OnDevice<Chunk> chunks_;
  const Table table_;
  const std::vector<P> p_;
  const std::vector<D> d_;
  const OnDevice<D> d_device_;
  const std::vector<double> target_;
  const OnDevice<double> target_device_;
  const std::vector<double> radius_;
  const OnDevice<double> radius_device_, step_device_;
};

/// Ten losses for each of three paths, which close at different steps.
void check_loss_gate(Report& report) {
  constexpr int64_t kPaths = 3, kLosses = 2;
  const LossGate rule{0.5, kLosses, 6};
  const int64_t width = LossGate::kWindow + kLosses;
  std::vector<double> state(static_cast<size_t>(kPaths * width), 0.0);
  for (int64_t k = 0; k < kPaths; ++k) state[static_cast<size_t>(k * width)] = 1;
  const OnDevice<double> device(state);
  for (int step = 0; step < 10; ++step) {
    const std::vector<float> loss = {1.0f / static_cast<float>(step + 1), 2.0f, step < 3 ? INFINITY : 0.25f};
    const OnDevice<float> loss_device(loss);
    must(cuda::loss_gate({device.data(), loss_device.data(), Dtype::kFloat32, kPaths, rule}, nullptr), "loss_gate");
    for (int64_t k = 0; k < kPaths; ++k) rule(&state[static_cast<size_t>(k * width)], loss[static_cast<size_t>(k)]);
    report.same_bits(device.host(), state, "loss gate after step " + std::to_string(step));
  }
}

/// Two paths, with and without a state, over more columns than a block has.
void check_counter_randint(Report& report) {
  constexpr int64_t kPaths = 2, kWidth = LossGate::kWindow + 1;
  const CounterRandint rule{3, 300, {60000, int64_t{1} << 31, 5}};
  const std::vector<int64_t> key{0xFEDCBA98, 3}, first{(int64_t{1} << 32) + 5, 7};
  const std::vector<double> state{1, 0, 9, 0, 0, 0, 0, 2, 0, 0};
  const OnDevice<int64_t> key_device(key), first_device(first);
  const OnDevice<double> state_device(state);
  for (const bool with_state : {false, true}) {
    const std::vector<int64_t> poison(static_cast<size_t>(kPaths * rule.rows * rule.columns), -1);
    const OnDevice<int64_t> out(poison);
    must(cuda::counter_randint({rule, out.data(), key_device.data(), first_device.data(),
                                with_state ? Rows{state_device.data(), kWidth} : Rows{}, kPaths},
                               nullptr),
         "counter_randint");
    std::vector<int64_t> want;
    for (int64_t k = 0; k < kPaths; ++k) {
      const auto at = static_cast<size_t>(k);
      const int64_t round = CounterRandint::round(first[at], with_state ? &state[at * kWidth] : nullptr);
      for (int64_t row = 0; row < rule.rows; ++row)
        for (int64_t i = 0; i < rule.columns; ++i)
          want.push_back(rule.element(CounterRandint::stream(key[at], round, row), row, i));
    }
    report.same_bits(out.host(), want, with_state ? "integers with a state" : "integers without a state");
  }
}

/// Windows with padding, dilation and overlaps, and none, over more outputs than a block has; a radius for each plane, and
/// one for all samples.
template <class T>
void check_relu_pool_bounds(Report& report, const std::string& type) {
  constexpr int64_t kSamples = 2, kChannels = 3, kPlanes = kSamples * kChannels;
  for (const Window& w : {Window{{20, 70}, {10, 35}, {2, 2}, {2, 2}, {0, 0}, {1, 1}},
                          Window{{9, 39}, {4, 20}, {3, 3}, {2, 2}, {1, 2}, {1, 2}},
                          Window{{1, 300}, {1, 300}, {1, 1}, {1, 1}, {0, 0}, {1, 1}}}) {
    const int64_t size = w.size[0] * w.size[1], results = kPlanes * w.out[0] * w.out[1];
    Random random(size);
    std::vector<T> left, right, radius;
    for (int64_t i = 0; i < kPlanes * size; ++i) {
      left.push_back(static_cast<T>(random.next()));
      right.push_back(left.back() + static_cast<T>(0.3 * random.next()));
      radius.push_back(static_cast<T>(0.1 + 0.1 * random.next()));
    }
    const OnDevice<T> left_device(left), right_device(right), radius_device(radius);
    for (const int64_t radius_planes : {kPlanes, kChannels})
      for (const double slope : {0.0, 0.1, 1.0}) {
        const ReluPoolBoundsArguments arguments{left_device.data(), right_device.data(), radius_device.data(), kDtype<T>,
                                                kPlanes,            radius_planes,       w,                    slope};
        const std::vector<T> poison(static_cast<size_t>(results), std::numeric_limits<T>::quiet_NaN());
        const OnDevice<T> to_left(poison), to_right(poison), to_radius(poison);
        must(cuda::relu_pool_bounds(arguments, {to_left.data(), to_right.data(), to_radius.data()}, nullptr),
             "relu_pool_bounds");
        std::vector<T> want_left, want_right, want_radius;
        for (int64_t plane = 0; plane < kPlanes; ++plane) {
          const Form<const T*> in{left.data() + plane * size, right.data() + plane * size,
                                  radius.data() + plane % radius_planes * size};
          for (int64_t y = 0; y < w.out[0]; ++y)
            for (int64_t x = 0; x < w.out[1]; ++x) {
              const Form<T> form = pooled(in, w, ReluBounds<T>::of(slope), y, x);
              want_left.push_back(form.left);
              want_right.push_back(form.right);
              want_radius.push_back(form.radius);
            }
        }
        const std::string label = "relu_pool_bounds of " + std::to_string(w.size[1]) + ' ' + type + ", slope " +
                                  std::to_string(slope) + ", radii of " + std::to_string(radius_planes) + " planes";
        report.same_bits(to_left.host(), want_left, label + ", left");
        report.same_bits(to_right.host(), want_right, label + ", right");
        report.same_bits(to_radius.host(), want_radius, label + ", radius");
      }
  }
}

/// What was queued on a stream while it was captured.
template <class F>
cudaGraph_t captured(cudaStream_t stream, F&& queue) {
  cudaGraph_t graph = nullptr;
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin of a capture");
  queue();
  must(cudaStreamEndCapture(stream, &graph), "end of a capture");
  return graph;
}

/// One launch that repeats `loss_gate` until no gate goes on: how often, and with which bits in the state.
void check_while(Report& report) {
  constexpr int64_t kPaths = 2, kLosses = 3, kWidth = LossGate::kWindow + kLosses;
  const LossGate rule{0.5, kLosses, 7};
  struct Run {
    const char* name;
    std::vector<float> loss;
    int64_t allowed, first, second;  // iterations: allowed in a launch, of the first launch, of one after it
  };
  if (const char* const why = cuda::while_unsupported()) return report.expect(false, std::string("while: ") + why);
  cudaStream_t stream = nullptr;
  must(cudaStreamCreate(&stream), "cudaStreamCreate");
  for (const Run& run : {Run{"both meet the threshold", {0.25f, 0.125f}, 100, 3, 0},
                         Run{"one goes on to the last step", {0.25f, 2.0f}, 100, 7, 0},
                         Run{"neither is finite", {INFINITY, INFINITY}, 100, 1, 0},
                         Run{"one is not finite", {INFINITY, 0.25f}, 100, 3, 0},
                         Run{"the count ends it", {2.0f, 2.0f}, 4, 4, 3}}) {
    std::vector<double> state(static_cast<size_t>(kPaths * kWidth), 0.0);
    for (int64_t k = 0; k < kPaths; ++k) state[static_cast<size_t>(k * kWidth)] = 1;
    const OnDevice<double> device(state);
    const OnDevice<float> loss(run.loss);
    const OnDevice<int64_t> left(std::vector<int64_t>{-1});
    const cudaGraph_t body = captured(stream, [&] {
      must(cuda::loss_gate({device.data(), loss.data(), Dtype::kFloat32, kPaths, rule}, stream), "loss_gate in a capture");
    });
    cuda::WhileGraph graph;
    must(cuda::make_while(body, {device.data(), kPaths, kLosses, run.allowed, left.data()}, graph), "make_while");
    must(cudaGraphDestroy(body), "cudaGraphDestroy");
    for (const int64_t iterations : {run.first, run.second}) {
      for (int64_t i = 0; i < iterations; ++i)
        for (int64_t k = 0; k < kPaths; ++k) rule(&state[static_cast<size_t>(k * kWidth)], run.loss[static_cast<size_t>(k)]);
      must(cuda::launch(graph, stream), "launch of a while graph");
      must(cudaStreamSynchronize(stream), "a while graph");
      const std::string label = std::string("while, ") + run.name;
      report.same_bits(device.host(), state, label);
      report.same_bits(left.host(), std::vector<int64_t>{run.allowed - iterations}, label + ", iterations left");
    }
    cuda::destroy(graph);
  }
  const cudaHostNodeParams call{[](void*) {}, nullptr};
  cudaGraph_t forbidden = nullptr;
  cudaGraphNode_t node = nullptr;
  cuda::WhileGraph none;
  must(cudaGraphCreate(&forbidden, 0), "cudaGraphCreate");
  must(cudaGraphAddHostNode(&node, forbidden, nullptr, 0, &call), "cudaGraphAddHostNode");
  report.expect(cuda::make_while(forbidden, {nullptr, 0, 1, 1, nullptr}, none) == cudaErrorNotSupported,
                "while: a host node is refused");
  report.expect(none.graph == nullptr && none.executable == nullptr, "while: nothing is left of a refusal");
  must(cudaGraphDestroy(forbidden), "cudaGraphDestroy");
  must(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

}  // namespace
}  // namespace llpf::test

/// With an argument: only the cases whose name contains it, and no graphs ("": all cases); "while": graphs alone; "rows":
/// rows of many chunks alone.
int main(int argc, char** argv) {
  using namespace llpf::test;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no NVIDIA GPU\n");
    return 3;
  }
  Report report;
  check_loss_gate(report);
  check_counter_randint(report);
  check_relu_pool_bounds<float>(report, "float32");
  check_relu_pool_bounds<double>(report, "float64");
  if (argc < 2 || std::string(argv[1]) == "while") check_while(report);
  if (argc < 2 || std::string(argv[1]) == "rows") {
    const Case c = long_rows();
    Checks<float, float>(report, c, "float32").run_joins();
  }
  for (const Case& c : all_cases())
    if (argc < 2 || c.name.find(argv[1]) != std::string::npos)
      for_each_pair([&]<class P, class D>(P, D, const char* types) { Checks<P, D>(report, c, types).run(); });
  return report.finish();
}
