#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one call, on a machine that has one, torch and a CUDA toolkit: builds on the
# spot with the torch that is there (nothing is downloaded or installed), runs the tests marked `cuda`,
# compute-sanitizer on small cases, and the benchmarks.
#
#   benchmarks/gpu_check.sh [--out DIR] [--seconds N] [--dry-run] [STAGE...]
#
#   STAGE      of build, library, tests, memcheck, racecheck, synccheck, initcheck, bench; they run in this order, the
#              four tools side by side (default: all). Later calls need no `build` while the first one's is there.
#   --out      folder for the results (default: $OUT, else gpu-check), at most 8 files: results.md, results.json, logs
#   --seconds  all stages end by then (default: 570); each has a limit of its own besides
#   --dry-run  says what would run
#
#   PYTHON              the Python that has torch (default: python3)
#   RESGROW_BENCH_ARGS  passed on to benchmarks/gpu_bench.py
#
# A stage that fails does not keep later ones from running, but makes the exit code 1. The GPU's settings stay as they
# are.
set -uo pipefail
cd "$(dirname "$0")/.."

ALL=(build library tests memcheck racecheck synccheck initcheck bench)
TOOLS=(memcheck racecheck synccheck initcheck)
declare -A LIMITS=([build]=300 [library]=60 [tests]=180 [memcheck]=120 [racecheck]=120 [synccheck]=120 [initcheck]=120
  [bench]=240) # seconds
PYTHON=${PYTHON:-python3}
out=${OUT:-gpu-check}
seconds=570
dry=
stages=()

usage() {
  sed -n 's/^# \{0,1\}//p' "$0" | sed 1d >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --out) out=${2:?}; shift 2 ;;
    --seconds) seconds=${2:?}; shift 2 ;;
    --dry-run) dry=1; shift ;;
    *) [[ " ${ALL[*]} " == *" $1 "* ]] || usage; stages+=("$1"); shift ;;
  esac
done
[ ${#stages[@]} -gt 0 ] || stages=("${ALL[@]}")
wanted() { [[ " ${stages[*]} " == *" $1 "* ]]; }

device=$("$PYTHON" -c '
import torch
p = torch.cuda.get_device_properties(0)
print(f"{p.major}.{p.minor} {p.name}, {p.multi_processor_count} multiprocessors, torch {torch.__version__}")')
if [ -z "$device" ]; then
  echo "gpu_check: $PYTHON must have a torch that sees an NVIDIA GPU; set PYTHON" >&2
  exit 1
fi
# The device's own architecture alone: a third of the kernels' compile time.
export TORCH_CUDA_ARCH_LIST=${device%% *} RESGROW_CUDA=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 MPLBACKEND=Agg
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

limit_of() { # limit_of STAGE: its own, or what is left of all
  local left=$((seconds - SECONDS))
  echo $((LIMITS[$1] < left ? LIMITS[$1] : left))
}

# run STAGE COMMAND...: its output goes to STAGE.log, its exit code and seconds to STAGE.result.
run() {
  local stage=$1 limit start=$SECONDS code=124
  limit=$(limit_of "$stage")
  shift
  if [ -n "$dry" ]; then
    echo "$stage, at most $limit s: $*"
    return
  fi
  if [ "$limit" -gt 0 ]; then
    timeout --kill-after=5 "$limit" "$@" >"$work/$stage.log" 2>&1
    code=$?
  else
    echo "no time was left for it" >"$work/$stage.log"
  fi
  echo "$code $((SECONDS - start))" >"$work/$stage.result"
  printf '=== %s: exit code %s after %s s\n%s\n' "$stage" "$code" $((SECONDS - start)) "$(tail -n 12 "$work/$stage.log")"
}

if wanted build; then
  run build "$PYTHON" setup.py build_ext --inplace egg_info
fi
if wanted library; then
  run library "$PYTHON" -m pytest -q -p no:cacheprovider tests/cuda/test_library.py
fi
if wanted tests; then
  run tests "$PYTHON" -m pytest -q -p no:cacheprovider -m cuda --durations=15 tests
fi
for tool in "${TOOLS[@]}"; do
  if wanted "$tool"; then
    # Without torch's cache every tensor is an allocation of its own, so that the tool sees where it ends.
    run "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      --print-limit 20 "$PYTHON" benchmarks/gpu_small_cases.py &
  fi
done
wait
if wanted bench; then
  # It ends by itself with what it has; the rest of the limit is for its last case.
  # shellcheck disable=SC2086  # several arguments in one variable
  run bench "$PYTHON" benchmarks/gpu_bench.py --out "$work/bench" --seconds $(($(limit_of bench) * 4 / 5)) \
    ${RESGROW_BENCH_ARGS:-}
fi
[ -z "$dry" ] || exit 0

collect() { # collect FILE STAGE...: the logs of these stages, one after the other
  local file=$1 stage
  shift
  for stage in "$@"; do
    if [ -e "$work/$stage.log" ]; then printf '=== %s\n' "$stage" | cat - "$work/$stage.log" >>"$out/$file"; fi
  done
}
rm -f "$out"/{build,tests,sanitizer,bench}.log
collect build.log build
collect tests.log library tests
collect sanitizer.log "${TOOLS[@]}"
collect bench.log bench
if [ -e build/ptxas.txt ]; then cp build/ptxas.txt "$out/"; fi
"$PYTHON" benchmarks/_gpu_summary.py "$device" "$work" "$out" "${ALL[@]}"
