#!/bin/sh
# How the guide in src/trimtab/shipped/plain-words was made: `trimtab make` from 300 of our prompts and a reward that is an
# exact function of the text, the share of long words.
#
#   recipes/plain_words.sh            into runs/plain-words, then into the package
#   recipes/plain_words.sh --resume   goes on with a run that was cut
set -eu
cd "$(dirname "$0")/.."
trimtab make runs/plain-words --model demo --prompts builtin:training --test-prompts builtin:demo --num-train 300 \
    --reward plain-words --strengths 0.25,0.5,1,2 \
    --train-flags="--lora-rank 4 --save-dtype bfloat16 --max-length 192 --max-prompt-length 96" "$@"
rm -rf src/trimtab/shipped/plain-words
cp -R runs/plain-words src/trimtab/shipped/plain-words
chmod 644 src/trimtab/shipped/plain-words/*
cat recipes/plain_words.md >> src/trimtab/shipped/plain-words/README.md
