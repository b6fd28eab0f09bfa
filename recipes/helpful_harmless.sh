#!/usr/bin/env bash
# Two objectives, as docs/evaluation/results.md reports them: a guide for each, one guide for both (PARM), DPO policies to be souped, all
# on the same number of pairs, and RL on three weighted sums; two more guides show what more pairs buy. DATA holds helpful/,
# harmless/ and prompts/ (see docs/guides/data.md). About three hours on two CPU cores. A step that has run is not run again.
set -euo pipefail
DATA=$(cd "${1:?the directory of pairs and prompts}" && pwd)
cd "$(dirname "$0")/.."
OUT=runs/helpful-harmless
mkdir -p "$OUT/rewards"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

cp "$DATA/prompts/hh_test.jsonl" "$OUT/prompts_test.jsonl"
[ -e "$OUT/rewards/harmless" ] || python recipes/reward_model.py --model demo --data "$DATA/harmless/train.jsonl" \
  --eval-data "$DATA/harmless/validation.jsonl" --out "$OUT/rewards/harmless" --max-length 192
[ -e "$OUT/rewards/helpful" ] || python recipes/reward_model.py --model demo --data "$DATA/helpful/train.jsonl" \
  --eval-data "$DATA/helpful/validation.jsonl" --out "$OUT/rewards/helpful" --max-pairs 1500 --max-length 256

train() {  # train KIND OUT ..., unless OUT is there
  [ -e "$2" ] || trimtab train "$1" --model demo --out "${@:2}"
}
PAIRS=(--eval-share 0 --max-pairs 160 --batch-size 4 --gradient-accumulation 1 --max-length 128 --max-prompt-length 64)
for objective in helpful harmless; do
  train dpo "$OUT/policies/dpo-$objective" "${PAIRS[@]}" --data "$DATA/$objective/train.jsonl" --learning-rate 6e-4
  train arm "$OUT/guides/$objective" "${PAIRS[@]}" --data "$DATA/$objective/train.jsonl" --learning-rate 6e-4
done
train arm "$OUT/guides/helpful-800" --data "$DATA/helpful/train.jsonl" --eval-data "$DATA/helpful/validation.jsonl" \
  --max-pairs 800 --max-length 192 --max-prompt-length 80 --lora-last-layers 15 --learning-rate 1e-3 --gradient-accumulation 4
train arm "$OUT/guides/harmless-720" --data "$DATA/harmless/train.jsonl" --eval-data "$DATA/harmless/validation.jsonl" \
  --max-pairs 720 --max-length 256 --max-prompt-length 160 --lora-last-layers 15 --learning-rate 7e-4 --gradient-accumulation 4
train parm "$OUT/guides/parm" "${PAIRS[@]}" --data "helpful=$DATA/helpful/train.jsonl" \
  --data "harmless=$DATA/harmless/train.jsonl" --learning-rate 1e-3
for helpful in 80 50 20; do
  train rl "$OUT/policies/rl-$helpful" --prompts "$DATA/prompts/hh_train.jsonl" --chat --max-prompts 64 --max-prompt-length 64 \
    --reward "helpful=$OUT/rewards/helpful:0.$helpful" --reward "harmless=$OUT/rewards/harmless:0.$((100 - helpful))" \
    --max-new-tokens 20 --num-generations 4 --batch-size 16 --gradient-accumulation 1 --learning-rate 1e-3 --kl-weight 0.02
done

JUDGE_DATA=$DATA trimtab compare recipes/helpful_harmless.yaml --out runs/compare-helpful-harmless
