#!/usr/bin/env bash
# What is worth knowing of this project on a GPU machine, in at most 30 minutes: steps in the order of their worth, each with a time
# limit of its own; one that fails or runs over is noted, and the next begins. Nothing is downloaded but the packages, if missing.
#   bash tools/gpu_session.sh                        all steps
#   bash tools/gpu_session.sh doctor tests           some of them
#   DEVICE=cpu SMALL=1 bash tools/gpu_session.sh     on a laptop, to try the script itself
# Logs and summary.txt go to the folder OUT, by default runs/gpu_session. FULGURITE_PYTHON names a Python that has the packages
# already; otherwise .venv is used, and made first where there is none.
if [ -n "${FULGURITE_PYTHON:-}" ]; then
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    python="$FULGURITE_PYTHON"
    say() { printf '== %s\n' "$*"; }
else
    source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
    python=.venv/bin/python
fi
set -uo pipefail +e
export PYTHONPATH="src:tests${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

TOTAL_S=1800
device="${DEVICE:-cuda}" out="${OUT:-runs/gpu_session}" failed=0
wanted=" $* "
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
if [ -n "${SMALL:-}" ]; then
    rounds=3 bench=(--steps 3 --warmup 1 --repeats 1) scorer=(--shape small --rows 2 --length 32) size=(--shape small --prompts 4 --completions 3 --tokens 16)
else
    rounds=20 bench=(--preset 1.5b) scorer=() size=(--shape 1.5b --prompts 16 --completions 8 --tokens 512)
fi
size+=(--device "$device" --model "$work/model")
printf '%-16s %-14s %8s  %s\n' step status seconds 'key figure' > "$out/summary.txt"

# step NAME LIMIT_S COMMAND...: the last line of the log, or of what `figure` finds, is the key figure
step() {
    local name=$1 limit=$2 begin=$SECONDS log="$out/$1.log" code status
    shift 2
    [[ "$wanted" = "  " || "$wanted" = *" $name "* ]] || return 0
    [ "$limit" -le $((TOTAL_S - SECONDS)) ] || limit=$((TOTAL_S - SECONDS))
    if [ "$limit" -lt 10 ]; then
        printf '%-16s %-14s\n' "$name" "no time left" >> "$out/summary.txt"
        failed=1
        return
    fi
    say "$name (at most $limit s)"
    timeout -k 10 "$limit" "$@" > "$log" 2>&1
    code=$?
    case $code in 0) status=ok ;; 124 | 137) status="over $limit s" ;; *) status="exit code $code" ;; esac
    [ "$code" -eq 0 ] || failed=1
    [ ! -d "$work/$name/rounds" ] || figure "$work/$name/rounds" >> "$log"
    printf '%-16s %-14s %8s  %s\n' "$name" "$status" $((SECONDS - begin)) "$(grep -v '^ *$' "$log" | tail -n 1 | cut -c 1-200)" \
        | tee -a "$out/summary.txt"
}

# figure ROUNDS: how many rounds a run took and what its last update saw
figure() {
    local updates=("$1"/*.updates.jsonl)
    echo "${#updates[@]} rounds; last update: $(tail -n 1 "${updates[-1]}" | grep -oE 'mismatch/logprob_gap_(mean|max)_nats": ?[^,}]+' | tr '\n' ' ')"
}

# fit NAME LIMIT_S OPTIONS...: a tiny model whose reward is the share of even digits, which random text earns
fit() {
    local name=$1 limit=$2
    shift 2
    step "$name" "$limit" "$python" -m fulgurite fit --config configs/quickstart/grpo.yaml --run_dir "$work/$name" --tiny true \
        --trainer.accelerator "$device" --trainer.max_epochs "$rounds" --trainer.enable_progress_bar false \
        --data.init_args.task tiny.EvenDigits --data.init_args.benchmarks '{}' "$@"
}

step doctor 240 "$python" -m fulgurite doctor
step tests 480 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/gpu
fit fit_embedded 150
step scorer 120 "$python" tools/bench_scorer.py "${scorer[@]}" --device "$device"
step bench 300 "$python" tools/bench.py "${bench[@]}" --device "$device" --json "$out/bench.json"
fit fit_vllm 180 --config configs/engine/vllm.yaml
step round_vllm 420 "$python" tools/bench_gpu_round.py round --engine vllm "${size[@]}"
step round_embedded 240 "$python" tools/bench_gpu_round.py round --engine embedded "${size[@]}"
step engine 240 "$python" tools/bench_gpu_round.py engine "${size[@]}"

say "summary, also in $out/summary.txt"
cat "$out/summary.txt"
exit "$failed"
