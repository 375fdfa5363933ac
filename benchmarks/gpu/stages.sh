# The stages of both calls, by what they are worth; run.sh reads this. Nothing runs beside a stage that takes times.
# shellcheck shell=bash
[[ $device == cuda ]] && backends=(cuda triton) || backends=(cpp eager)
cores=$(nproc)
needed+=("$carry"/{mnist.tar.gz,cifar10.npz,endpoints/{a,b}.pt})

environment() {
  stage environment 60 python3 -m benchmarks.gpu.environment --device "$device" --to "$out/stages.jsonl"
}

sanitizer() {
  module "program, $1" "$2" sanitizer --program "$carry/gpu_test" --tool "$1"
}

first() {
  environment
  sanitizer none 40
  module "times, ${backends[0]}" 60 times --backend "${backends[0]}"
  local checks=all
  if [[ $device == cuda ]]; then
    for tick in stages chip; do
      module "times, cuda, $tick" 30 times --backend cuda --ops tick_ --tick $tick
    done
    module "checks, captured" 60 checks --backend cuda --only captured
    checks=ops
  fi
  module "times, an iteration" 60 times --backend "${backends[0]}" --ops correction
  local workers=$((cores > 4 ? cores - 4 : cores - 1))
  module "checks, $checks" 110 checks --backend "${backends[0]},${backends[1]}" --only $checks --workers $workers --budget 105 &
  sanitizer memcheck 110 &
  sanitizer racecheck 110 &
  wait
  module "times, ${backends[1]}" 50 times --backend "${backends[1]}"
  module searches 80 searches --carry "$carry"
  [[ $device == cuda ]] && module counters 60 counters
}

second() {
  environment
  local left=$((total - SECONDS))
  module networks $left networks --carry "$carry" --out "$out" --budget $((left - 20))
}
