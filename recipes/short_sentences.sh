#!/bin/sh
# How the guide in src/trimtab/shipped/short-sentences was made: `trimtab make` from 300 of our prompts and a reward that is
# an exact function of the text, the average number of words in a sentence.
#
#   recipes/short_sentences.sh            into runs/short-sentences, then into the package
#   recipes/short_sentences.sh --resume   goes on with a run that was cut
set -eu
cd "$(dirname "$0")/.."
trimtab make runs/short-sentences --model demo --prompts builtin:training --test-prompts builtin:demo --num-train 300 \
    --max-new-tokens 64 --reward short-sentences --strengths 0.25,0.5,1,2,4 \
    --train-flags="--lora-rank 4 --save-dtype bfloat16 --max-length 192 --max-prompt-length 96" "$@"
rm -rf src/trimtab/shipped/short-sentences
cp -R runs/short-sentences src/trimtab/shipped/short-sentences
chmod 644 src/trimtab/shipped/short-sentences/*
cat recipes/short_sentences.md >> src/trimtab/shipped/short-sentences/README.md
