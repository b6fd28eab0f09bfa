"""lm-eval's own client over HTTP, on a task of a local file, beside the same model and guides in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity", reason="lm-eval's HTTP clients need its extra: pip install 'lm_eval[api]'")
pytest.importorskip("aiohttp", reason="lm-eval's HTTP clients need its extra: pip install 'lm_eval[api]'")

import lm_eval
from lm_eval.tasks import TaskManager

from tests.serving.conftest import Running
from trimtab.evaluation.lm_eval import GuidedLM
from trimtab.models.hf import HFModel

ROWS = [
    {"text": "The sea was ", "choices": ["calm.", "a café", "🙂"], "label": 0},
    {"text": "Once upon a time", "choices": [" there was", ", nobody came", "?"], "label": 1},
    {"text": "1 + 1 =", "choices": [" 2", " 11", " a window"], "label": 2},
]
TASK = """
task: local_rows
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{text}}}}"
target_delimiter: ""
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    directory = tmp_path_factory.mktemp("task")
    rows = directory / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (directory / "local_rows.yaml").write_text(TASK.format(rows=rows))
    return TaskManager(include_path=str(directory), include_defaults=False)


def told(model: Any, tasks: TaskManager, **options: Any) -> list[tuple[float, bool]]:
    """(log-likelihood, whether it is greedy) of every choice of the task."""
    found = lm_eval.simple_evaluate(
        model=model, tasks=["local_rows"], task_manager=tasks, bootstrap_iters=0, log_samples=True, **options
    )
    return [
        (float(logprob), is_greedy in (True, "True"))
        for sample in found["samples"]["local_rows"]
        for ((logprob, is_greedy),) in sample["resps"]
    ]


@pytest.mark.parametrize(("name", "weights"), [("tiny", {"up": 0.0, "down": 0.0}), ("odd", {"up": 1.0, "down": -0.5})])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_log_likelihoods_over_http_are_those_in_this_process(
    server: Running,
    guides: dict[str, Any],
    tasks: TaskManager,
    tmp_path: Path,
    name: str,
    weights: Any,
    batch_size: int,
) -> None:
    model = server.service.engine.model
    assert isinstance(model, HFModel)
    assert model.tokenizer is not None
    model.tokenizer.hf.save_pretrained(tmp_path)
    arguments = {
        "model": name,
        "base_url": f"{server.url}/v1/completions",
        "tokenizer": str(tmp_path),
        "tokenizer_backend": "huggingface",
        "max_length": 512,
    }
    over_http = told("local-completions", tasks, model_args=arguments, batch_size=batch_size)
    weight = ";".join(str(weights[guide]) for guide in guides)
    here = told(GuidedLM(model, guides, weight=weight, max_length=512), tasks)
    assert len(here) == 9
    assert [greedy for _, greedy in over_http] == [greedy for _, greedy in here]
    assert [logprob for logprob, _ in over_http] == pytest.approx([logprob for logprob, _ in here], abs=1e-4)
    if name == "odd":
        base = told(GuidedLM(model, max_length=512), tasks)
        assert [logprob for logprob, _ in base] != pytest.approx([logprob for logprob, _ in here], abs=1e-2)
