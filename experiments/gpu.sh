#!/usr/bin/env bash
# What a short loan of an accelerator is spent on, the most wanted first. Every command
# has its own limit and writes its JSON as it goes, so a cut-off run leaves what it had.
#
#   experiments/gpu.sh OUT DATA [SECONDS]     for a loan of so many seconds (780)
#   experiments/gpu.sh --try OUT DATA         the same commands, tiny, on a CPU
#
# OUT: a folder for the results. DATA: the folder of the data sets.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

tiny=""
[ "${1:-}" = "--try" ] && { tiny=yes; shift; }
out=${1:?usage: gpu.sh [--try] OUT DATA [SECONDS]}
data=${2:?usage: gpu.sh [--try] OUT DATA [SECONDS]}
end=$((SECONDS + ${3:-780}))
python=${PYTHON:-python}
mkdir -p "$out"

# limited SECONDS NAME COMMAND...: within its limit, and within what is left of the loan.
limited() {
  local limit=$1 name=$2 left=$((end - SECONDS)) status
  shift 2
  [ "$left" -lt 20 ] && { echo "$name skipped: no time left" | tee -a "$out/said.txt"; return; }
  [ -n "$tiny" ] && limit=$left
  [ "$limit" -gt "$left" ] && limit=$left
  # SIGTERM first: training saves its state, `--resume` goes on from it.
  timeout --kill-after=20 "$limit" "$@" > "$out/$name.txt" 2>&1
  status=$?
  echo "$name: status $status, $((end - SECONDS)) s left" | tee -a "$out/said.txt"
}

quick=(${tiny:+--quick})
limited 200 device_step "$python" -m experiments.bench.device_step \
  "${quick[@]}" --out "$out/bench_device_step.json"
limited 60 selection "$python" -m experiments.bench.selection \
  "${quick[@]}" --out "$out/bench_selection.json"

# Epochs that fit the loan: the whole length is the default of the configurations.
train() { # train SECONDS CONFIG ONLY EPOCHS
  local limit=$1 config=$2 only=$3 epochs=$4 sets=() run
  [ -n "$tiny" ] && { epochs=1; sets=(--set data=cifar10_small --set batch=1000); }
  sets+=(--set "dense.epochs=$epochs")
  for run in ${only//,/ }; do sets+=(--set "$run.epochs=$epochs"); done
  [ -n "$tiny" ] && [ "$only" = swd ] && sets+=(--set swd.batch=1000 --set "swd.sparsity=0.9")
  limited "$limit" "$config" "$python" -m experiments.train "$config" --only "$only" \
    "${sets[@]}" --data-dir "$data" --out "$out/$config"
}

if [ -n "$tiny" ]; then
  train 600 cifar_resnet20 swd 1
else
  train 240 cifar_resnet20 gsm,swd,csgd 30
  train 200 cifar_resnet56 gsm,csgd 20
fi

for dtype in bfloat16 float32; do
  limited 100 "latency_$dtype" "$python" -m experiments.bench.latency "${quick[@]}" \
    --dtype "$dtype" --batch 32 --out "$out/bench_latency_$dtype.json"
done
