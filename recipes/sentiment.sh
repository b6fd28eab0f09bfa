#!/bin/sh
# How the guide in src/trimtab/shipped/sentiment was made: 6 answers of the demo model at temperature 1 to each of our 400
# training prompts (seeds from 1000), pairs labelled by VADER, a LoRA trained on those of 340 prompts. The pairs of the
# other 60 measure its accuracy. This keeps what ships; a guide of your own is `trimtab make`.
#
#   recipes/sentiment.sh            into runs/sentiment, then into the package
#   recipes/sentiment.sh --resume   goes on with a run that was cut
set -eu
cd "$(dirname "$0")/.."
python -m trimtab.cli.demo.sentiment --seed 0 --out runs/sentiment "$@"
rm -rf src/trimtab/shipped/sentiment
cp -R runs/sentiment/guide src/trimtab/shipped/sentiment
chmod 644 src/trimtab/shipped/sentiment/*
cat recipes/sentiment.md >> src/trimtab/shipped/sentiment/README.md
