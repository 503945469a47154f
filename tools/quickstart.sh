#!/usr/bin/env bash
# The main job on a laptop: a tiny model learns two-digit sums by GRPO. About five minutes of one CPU core, no download of weights.
#   bash tools/quickstart.sh [SEED]          each call makes a folder of its own under runs/quickstart
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
seed="${1:-0}"
number=1
while [ -e "runs/quickstart/$number" ]; do number=$((number + 1)); done
run="runs/quickstart/$number"
fulgurite() { .venv/bin/fulgurite "$@" --seed_everything "$seed"; }
grpo=(--config configs/quickstart/grpo.yaml --run_dir "$run/grpo" --model.init_args.policy "$run/sft/policy")

say "1/4 warm start: supervised learning until one training sum in eight is right"
fulgurite fit --config configs/quickstart/sft.yaml --run_dir "$run/sft" --model.init_args.policy.seed "$seed"
say "2/4 accuracy before GRPO"
fulgurite validate "${grpo[@]}"
say "3/4 GRPO"
fulgurite fit "${grpo[@]}"
say "4/4 accuracy after GRPO, from the checkpoint"
fulgurite validate "${grpo[@]}" --ckpt_path last
.venv/bin/python tools/show_summary.py "$run/grpo"
