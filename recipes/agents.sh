#!/usr/bin/env bash
# Two accept-reject agents on the demo model, as docs/evaluation/results.md reports them: one for sentiment, one for safety.
# About two and a half hours on two CPU cores. DATA holds helpful/, harmless/ and prompts/ (see docs/guides/data.md for shapes).
set -euo pipefail
DATA=${1:?the directory of pairs and prompts}
OUT=${2:-runs/agents}
mkdir -p "$OUT"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Rewards: a linear head on the frozen base for each objective.
python recipes/reward_model.py --model demo --data "$DATA/harmless/train.jsonl" \
  --eval-data "$DATA/harmless/validation.jsonl" --out "$OUT/rewards/harmless" --max-length 192
python recipes/reward_model.py --model demo --data "$DATA/helpful/train.jsonl" \
  --eval-data "$DATA/helpful/validation.jsonl" --out "$OUT/rewards/helpful" --max-pairs 1500 --max-length 256

# The recipe's settings, but for what a short run on a CPU cannot have: fewer and smaller batches, fewer candidates,
# shorter answers, a faster target and entropy weight. The baseline is the base's own answer (docs/evaluation/results.md says why).
SHORT="--chat --baseline base --alpha-init 0.1 --alpha-learning-rate 3e-3 --tau 0.02 --top-k 20 --max-new-tokens 32
  --batch-size 256 --warmup-batches 8 --updates-per-episode 4 --save-episodes 128"
# shellcheck disable=SC2086
trimtab train agent --model demo --prompts "$DATA/prompts/hh_train.jsonl" --reward sentiment=sentiment:1 \
  $SHORT --episodes 1024 --out "$OUT/sentiment"
# shellcheck disable=SC2086
trimtab train agent --model demo --prompts "$DATA/prompts/safe_rlhf_train.jsonl" \
  --reward "helpful=$OUT/rewards/helpful:1" --reward "harmless=$OUT/rewards/harmless:1" \
  $SHORT --episodes 768 --out "$OUT/safety"

python recipes/agent_frontier.py --prompts "$DATA/prompts/hh_test.jsonl" --num-prompts 96 \
  --max-new-tokens 32 --agent "agent=$OUT/sentiment:0.5,0.3,0.7" --arm positive=builtin:sentiment:0.5,1,2 \
  --reward sentiment=sentiment:1 --out "$OUT/sentiment.json"
python recipes/agent_frontier.py --prompts "$DATA/prompts/safe_rlhf_test.jsonl" --num-prompts 80 \
  --max-new-tokens 32 --no-controls --agent "agent=$OUT/safety:0.5,0.7" \
  --reward "helpful=$OUT/rewards/helpful:1" --reward "harmless=$OUT/rewards/harmless:1" --judge-data "$DATA" \
  --out "$OUT/safety.json"  # with guides trained as docs/evaluation/results.md says: --arm helpful=DIR:1 --arm harmless=DIR:1
