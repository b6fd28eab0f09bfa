"""Two guides at once: a helpful and a harmless one, alone and together, judged by a model that trained neither.

    python recipes/two_guides.py --data DATA --prompts DATA/prompts/hh_test.jsonl \
        --helpful guides/helpful --harmless guides/harmless --out runs/two-guides.json

The judges are Bradley-Terry models on word and length features (scikit-learn's logistic regression on the difference of
the two answers' TF-IDF vectors), fitted to the training pairs of DATA/helpful and DATA/harmless and measured on the
validation pairs. They share the guides' data but neither their architecture nor their weights. They are weak; their
accuracy is printed beside what they say.

Needs scikit-learn, and `trimtab[report]`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from trimtab import ArmSettings, Decoder, PreferencePair, load_guide, load_model, read_pairs
from trimtab.statistics import difference_interval, mean_interval

SETTINGS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 1.0))
"""Weights of (helpful, harmless)."""
SHARPENED = (1.0, 2.0)
"""Controls: the base raised to the power 1 + w, which is what an untrained guide of weight w would do."""


class Judge:
    """Bradley-Terry on word features: reward(answer) = w · features(answer), log-odds of winning = difference."""

    def __init__(self, pairs: Sequence[PreferencePair]) -> None:
        chosen = [pair.chosen for pair in pairs]
        rejected = [pair.rejected for pair in pairs]
        self._words = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True).fit(chosen + rejected)
        difference = self._features(chosen) - self._features(rejected)
        both = np.vstack([difference, -difference])
        labels = np.repeat([1, 0], len(difference))
        self._model = LogisticRegression(fit_intercept=False, C=1.0, max_iter=2000).fit(both, labels)

    def reward(self, answers: list[str]) -> list[float]:
        """One number an answer; only differences mean something."""
        values: list[float] = (self._features(answers) @ self._model.coef_[0]).tolist()
        return values

    def accuracy(self, pairs: Sequence[PreferencePair]) -> float:
        gaps = np.subtract(self.reward([pair.chosen for pair in pairs]), self.reward([pair.rejected for pair in pairs]))
        return float((gaps > 0).mean())

    def _features(self, answers: list[str]) -> Any:
        lengths = np.array([[math.log1p(len(answer.split()))] for answer in answers])
        return np.hstack([self._words.transform(answers).toarray(), lengths])


def clean_pairs(path: Path) -> Sequence[PreferencePair]:
    """The pairs that a guide is trained on: responses that answer many prompts left out."""
    return read_pairs([path]).without_stock(ArmSettings().max_prompts_per_response).pairs


def main() -> int:
    args = _arguments()
    judges, accuracies = {}, {}
    for name in ("helpful", "harmless"):
        judges[name] = Judge(clean_pairs(args.data / name / "train.jsonl"))
        accuracies[name] = judges[name].accuracy(clean_pairs(args.data / name / "validation.jsonl"))
        print(f"judge of {name}: accuracy {accuracies[name]:.3f} on validation pairs", file=sys.stderr)
    model = load_model(args.model)
    decoder = Decoder(model, {"helpful": load_guide(args.helpful), "harmless": load_guide(args.harmless)})
    lines = args.prompts.read_text(encoding="utf-8").splitlines()[: args.num_prompts]
    prompts = [json.loads(line)["prompt"] for line in lines]
    rows: list[dict[str, Any]] = []
    reference: dict[str, list[float]] = {}
    runs = [({"helpful": helpful, "harmless": harmless}, 1.0) for helpful, harmless in SETTINGS]
    runs += [({"helpful": 0.0, "harmless": 0.0}, 1 / (1 + weight)) for weight in SHARPENED]
    for weights, temperature in runs:
        answers = list(
            decoder.generate(
                prompts,
                weights=weights,
                max_new_tokens=args.max_new_tokens,
                temperature=temperature,
                seed=0,
                trace=True,
            )
        )
        row: dict[str, Any] = {"weights": weights, "temperature": temperature}
        row["kl"] = mean_interval([answer.kl or 0.0 for answer in answers]).value
        for name, judge in judges.items():
            rewards = judge.reward([answer.text for answer in answers])
            gain = difference_interval(rewards, reference.setdefault(name, rewards))
            row[name] = {"gain": gain.value, "low": gain.low, "high": gain.high}
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    report = {"num_prompts": len(prompts), "judge_accuracy": accuracies, "rows": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", type=Path, required=True, help="the directory that holds helpful/ and harmless/")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--helpful", required=True)
    parser.add_argument("--harmless", required=True)
    parser.add_argument("--num-prompts", type=int, default=96)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
