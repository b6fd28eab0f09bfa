#!/usr/bin/env bash
# One gold reward, every method, as docs/evaluation/results.md reports it: the demo's own pairs, labelled by VADER, train a reward model
# and a DPO policy beside the guide that ships; RL learns from VADER itself. Then `trimtab compare`. About three hours on
# two CPU cores. The agent is the one of recipes/agents.sh; without it, leave MARA out of the recipe.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=runs/sentiment
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

python -m trimtab.cli.demo.sentiment --seed 0 --out "$OUT"  # pairs.jsonl and held_out.jsonl; its guide is the one that ships
PAIRS=(--data "$OUT/pairs.jsonl" --eval-data "$OUT/held_out.jsonl" --batch-size 8 --gradient-accumulation 1 --max-length 192)
trimtab train reward --model demo "${PAIRS[@]}" --learning-rate 4e-4 --out "$OUT/rewards/sentiment"
trimtab train dpo --model demo "${PAIRS[@]}" --learning-rate 2e-4 --max-prompt-length 96 --out "$OUT/policies/dpo"

# The prompts that the demo sampled answers to.
python - "$OUT/samples.jsonl" "$OUT/prompts.jsonl" <<'PY'
import json, sys
with open(sys.argv[1], encoding="utf-8") as samples, open(sys.argv[2], "w", encoding="utf-8") as prompts:
    prompts.writelines(json.dumps({"prompt": json.loads(line)["prompt"]}) + "\n" for line in samples)
PY
trimtab train rl --model demo --prompts "$OUT/prompts.jsonl" --reward sentiment=sentiment:1 --max-prompts 240 \
  --max-new-tokens 20 --num-generations 4 --batch-size 16 --gradient-accumulation 1 --learning-rate 1e-3 --kl-weight 0.02 \
  --out "$OUT/policies/rl"

trimtab compare recipes/sentiment.yaml --out runs/compare-sentiment
trimtab compare recipes/sentiment_greedy.yaml --out runs/compare-sentiment-greedy
