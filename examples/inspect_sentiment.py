"""One evaluation under two strengths of a guide, in Inspect: how cheerful are the answers, and at what KL?

    pip install "trimtab[inspect,scorers]"
    inspect eval examples/inspect_sentiment.py --model trimtab/demo -M guide=builtin:sentiment -M weight=0
    inspect eval examples/inspect_sentiment.py --model trimtab/demo -M guide=builtin:sentiment -M weight=1

The score is VADER's, which needs no judge. Each answer draws from a seed of its own, which its metadata says.
"""

from __future__ import annotations

from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate

from trimtab import load_scorer

PROMPTS = Path(__file__).with_name("data") / "prompts.jsonl"


@scorer(metrics={"sentiment": [mean(), stderr(cluster="prompt")], "kl": [mean(), stderr(cluster="prompt")]})
def sentiment() -> Scorer:
    """VADER's score of the answer, from -1 to 1, and the KL to the base in nats an answer."""
    rate = load_scorer("sentiment")

    async def score(state: TaskState, target: Target) -> Score:
        (guidance,) = state.output.metadata["guidance"]
        (reward,) = rate([state.input_text], [state.output.completion])
        return Score(value={"sentiment": reward, "kl": guidance["kl"]})

    return score


@task
def cheerful() -> Task:
    """Four answers of 32 tokens to each of sixteen prompts, at temperature 1; intervals are over prompts."""
    prompts = json_dataset(str(PROMPTS), FieldSpec(input="prompt"))
    for sample in prompts:
        sample.metadata = {"prompt": sample.input_text if hasattr(sample, "input_text") else str(sample.input)}
    config = GenerateConfig(max_tokens=32, temperature=1.0)
    return Task(dataset=prompts, solver=generate(), scorer=sentiment(), config=config, epochs=4)
