#!/bin/sh
# How the guide in src/trimtab/builtin/sentiment was made: answers of the demo model to our own prompts, pairs labelled
# by VADER, a LoRA trained on them. `trimtab demo --train` is the whole of it; this keeps what ships.
#
#   recipes/sentiment.sh            into runs/sentiment, then into the package
#   recipes/sentiment.sh --resume   goes on with a run that was cut
set -eu
cd "$(dirname "$0")/.."
trimtab demo --train --seed 0 --out runs/sentiment "$@"
rm -rf src/trimtab/builtin/sentiment
cp -R runs/sentiment/guide src/trimtab/builtin/sentiment
