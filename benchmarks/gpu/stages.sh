# The stages of both calls, by what they are worth; run.sh reads this. Nothing runs beside a stage that takes times.
[[ $device == cuda ]] && backends=(cuda triton) || backends=(cpp eager)
cores=$(nproc)
[[ $call == first ]] && needed+=("$carry"/{mnist.tar.gz,endpoints/{a,b}.pt}) || needed+=("$carry/cifar10.npz")

environment() {
  stage environment 60 python3 -m benchmarks.gpu.environment --device "$device" --to "$out/stages.jsonl"
}

sanitizer() {
  module "program, $1" "$2" sanitizer --program "$carry/gpu_test" --tool "$1"
}

checks() {
  OMP_NUM_THREADS=1 module "checks, $1" "$2" checks --backend "$1" "${@:3}"
}

first() {
  environment
  sanitizer none 40
  module "times, ${backends[0]}" 60 times --backend "${backends[0]}"
  if [[ $device == cuda ]]; then
    for tick in stages chip; do
      module "times, cuda, $tick" 30 times --backend cuda --ops tick_ --tick $tick
    done
  fi
  checks "${backends[0]}" 60 --only captured
  module "times, an iteration" 60 times --backend "${backends[0]}" --ops correction
  # Half of the cores each, less the two of the sanitizers.
  local workers=$((cores > 4 ? (cores - 2) / 2 : 1))
  for backend in "${backends[@]}"; do
    checks "$backend" 110 --workers $workers &
  done
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
  module networks $left networks --carry "$carry" --out "$out" --budget $((left - 15))
}
