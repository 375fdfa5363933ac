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

# What never ends in the test program would not end in a search either.
while_ends() {
  [[ $device == cpu ]] || grep -q '"cases": "while".*"result": "passed"' "$out/sanitizer.jsonl"
}

first() {
  environment
  sanitizer none 50
  module "times, ${backends[0]}" 60 times --backend "${backends[0]}"
  local checks=all
  if [[ $device == cuda ]]; then
    for tick in stages chip; do
      module "times, cuda, $tick" 30 times --backend cuda --ops tick_ --tick $tick
    done
    module "checks, captured" 60 checks --backend cuda --only captured --unit-seconds 20 --budget 52
    checks=ops
  fi
  while_ends && module "times, an iteration" 60 times --backend "${backends[0]}" --ops correction
  local workers=$((cores > 4 ? cores - 4 : cores - 1))
  module "checks, $checks" 110 checks --backend "${backends[0]},${backends[1]}" --only $checks --workers $workers \
    --unit-seconds 40 --budget $((95 * wider)) &
  sanitizer memcheck 110 &
  sanitizer racecheck 110 &
  wait
  # shellcheck disable=SC2046 # two words or none
  module searches 80 searches --carry "$carry" $(while_ends || echo --captures auto)
  module "times, ${backends[1]}" 50 times --backend "${backends[1]}"
  [[ $device == cuda ]] && module counters 60 counters
}

second() {
  environment
  local left=$((total - SECONDS))
  module networks $left networks --carry "$carry" --out "$out" --budget $((left - 20))
}
