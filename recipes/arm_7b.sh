#!/usr/bin/env bash
# A 7B guide on 8 GPUs, with GenARM's released settings: 32 pairs a step. FORM is lora (those of HH-RLHF) or full (those of
# Tulu2-7B on UltraFeedback), ENGINE fsdp or deepspeed. The memory it takes is in docs/serving/scaling.md. Cut short, it goes on with
# --resume at the end of the same line.
#
#   recipes/arm_7b.sh MODEL PAIRS.jsonl OUT [FORM] [ENGINE] [more flags of `trimtab train arm`]
#   DRY_RUN=1 recipes/arm_7b.sh TINY PAIRS.jsonl OUT [FORM] [ENGINE] ...     # on two CPU processes, in float32
set -euo pipefail
MODEL=${1:?a hub id or directory} PAIRS=${2:?preference pairs, .jsonl} OUT=${3:?where the guide goes}
FORM=${4:-lora} ENGINE=${5:-fsdp}
RECIPES=$(cd "$(dirname "$0")" && pwd)

case $FORM in
  lora) WEIGHTS=(--lora-rank 8 --lora-alpha 16 --beta 0.05 --learning-rate 5e-4 --epochs 1) ;;
  full) WEIGHTS=(--full --save-dtype bfloat16 --beta 0.1 --learning-rate 5e-7 --epochs 3) ;;
  *) echo "FORM is $FORM; accepted: lora, full." >&2; exit 2 ;;
esac
LAUNCH=(accelerate launch --config_file "$RECIPES/arm_7b_$ENGINE.yaml")
if [ -n "${DRY_RUN:-}" ]; then
  LAUNCH+=(--num_processes 2 --mixed_precision no "$RECIPES/dry_run.py")
else
  LAUNCH+=(-m trimtab.cli.main)
fi

"${LAUNCH[@]}" train arm --model "$MODEL" --data "$PAIRS" --out "$OUT" --batch-size 2 --gradient-accumulation 2 \
  --max-length 1024 --max-prompt-length 512 --gradient-checkpointing --save-steps 200 "${WEIGHTS[@]}" "${@:6}"
