#!/bin/bash
# One call on a machine with a GPU: OUT=FOLDER bash benchmarks/gpu/run.sh first|second [--device cpu]
#
# The stages stand in stages.sh. Each runs under a limit of its own and appends its rows to $OUT/*.jsonl; one that is
# killed keeps those it had. $OUT/stages.jsonl says how each ended, $OUT/log.txt what it printed. Status: 0 if all went
# well, 1 if a stage failed, was killed or found no time, 2 if something is missing. docs/gpu.md says how it is used.
set -uo pipefail
cd "$(dirname "$0")/../.."
call=${1:-} device=cuda
[[ ${2:-} == --device ]] && device=${3:-}
if [[ ! $call =~ ^(first|second)$ || ! $device =~ ^(cuda|cpu)$ ]]; then
  echo "run.sh first|second [--device cuda|cpu]" >&2
  exit 2
fi

# Seconds of the whole call; a stage that would have fewer than `least` left is not begun. Without a GPU limits are wider,
# and stages have one thread: on two busy cores torch took ten times as long with two.
case $device-$call in
  cuda-first) total=380 wider=1 ;;
  cuda-second) total=280 wider=1 ;;
  *) total=480 wider=3 && export OMP_NUM_THREADS=1 ;;
esac
least=5 carry=build/carry out=${OUT:-build/gpu/$call}
needed=(llpf_fast/_C.so llpf_fast/_C_cuda.so "$carry"/{gpu_test,commit})
source benchmarks/gpu/stages.sh

for file in "${needed[@]}"; do
  [[ -e $file ]] || missing+=" $file"
done
if [[ -n ${missing:-} ]]; then
  echo "run.sh: not here:$missing; benchmarks/gpu/pack.sh makes what is carried" >&2
  exit 2
fi

# Nothing is installed. The carried wheels are unpacked where this python3 lacks pydantic (they are of the lent machine's
# version of Python, and would hide a package that works), and a link puts the Triton kernels where the package has them.
site=$(mktemp -d) link=
trap 'rm -rf "$site" $link' EXIT
if ! python3 -c 'import pydantic' 2>/dev/null; then
  for wheel in "$carry"/wheels/*.whl; do
    [[ -e $wheel ]] && python3 -m zipfile -e "$wheel" "$site"
  done
fi
[[ -e llpf_fast/kernels ]] || { link=llpf_fast/kernels && ln -s ../kernels $link; }
export PYTHONUNBUFFERED=1 PYTHONPATH=$site:$PWD
mkdir -p "$out"
rm -f "$out"/{*.jsonl,log.txt,resnet18-*}

# record NAME SECONDS STATUS HOW: the row of a stage, status null if it was not begun.
record() {
  printf '{"stage": "run", "name": "%s", "seconds": %s, "status": %s, "result": "%s"}\n' "$@" >>"$out/stages.jsonl"
  echo "== $1: $4, $2 s"
}

# stage NAME SECONDS COMMAND...: killed after so many seconds, or when those of the call are over.
stage() {
  local name=$1 limit=$(($2 * wider)) left=$((total - SECONDS)) began=${EPOCHREALTIME/[.,]/} status took how=ended
  shift 2
  ((limit < left)) || limit=$left
  if ((limit < least)); then
    record "$name" 0 null "no time left"
    return
  fi
  timeout -s KILL "$limit" "$@" >>"$out/log.txt" 2>&1
  status=$?
  took=$(((${EPOCHREALTIME/[.,]/} - began) / 100000))
  ((status == 0)) || how=failed
  ((status == 137 && took >= 10 * limit)) && how="killed after its $limit s"
  record "$name" $((took / 10)).$((took % 10)) $status "$how"
}

# module NAME SECONDS MODULE ARGUMENTS...: a stage that is a module of benchmarks/gpu; its rows go to MODULE.jsonl.
module() {
  local name=$1 limit=$2 module=$3
  shift 3
  stage "$name" "$limit" python3 -m "benchmarks.gpu.$module" --device "$device" --to "$out/$module.jsonl" "$@"
}

"$call"
# Of more than 16 MiB nothing would come back.
(($(stat -c %s "$out/log.txt" 2>/dev/null || echo 0) < 12 << 20)) || { tail -c 12M "$out/log.txt" >"$out/end" && mv "$out/end" "$out/log.txt"; }
echo "== $call: $SECONDS s"
! grep -qE '"status": ([1-9]|null)|"result": "(failed|wrong)"' "$out"/*.jsonl
