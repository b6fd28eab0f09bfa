"""A program that drives vLLM as a test says and writes down what came: `python drive.py GIVEN ANSWER`, both JSON.

GIVEN has `served` (a directory), `options` (vLLM's), and `waves`: lists of requests, each wave begun when the one
before has ended. A request has `ids`, `weights` (or `extra_args`), what of `params` it wants, and may have `arrive` (it
joins before that step) and `abort` (it is aborted before that step). ANSWER has for each request its `ids`, `logprobs`,
`prompt_logprobs` and `finish`, or the `error` that refused it; and vLLM's counters.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(given: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM

    llm = LLM(given["served"], dtype="float32", disable_log_stats=False, **{"enforce_eager": True, **given["options"]})
    engine = llm.llm_engine
    version = "v2" if engine.vllm_config.use_v2_model_runner else "v1"
    answers = [wave(engine, number, requests) for number, requests in enumerate(given["waves"])]
    metrics = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return {"version": version, "waves": answers, "metrics": metrics, "max_len": engine.model_config.max_model_len}


def wave(engine: Any, number: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run requests that may join and leave while others go on."""
    waiting = dict(enumerate(requests))
    found: list[dict[str, Any]] = [{} for _ in requests]
    step = 0
    while waiting or engine.has_unfinished_requests():
        for index, request in list(waiting.items()):
            if request.get("arrive", 0) <= step:
                del waiting[index]
                add(engine, f"{number}-{index}", request, found[index])
        for index, request in enumerate(requests):
            if request.get("abort") == step:
                engine.abort_request([f"{number}-{index}"])
                found[index]["finish"] = "abort"
        for output in engine.step():
            index = int(output.request_id.partition("-")[2].partition("-")[0])
            if output.finished:
                found[index].update(read(output))
        step += 1
    return found


def add(engine: Any, name: str, request: dict[str, Any], found: dict[str, Any]) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import RequestOutputKind

    extra = request.get("extra_args")
    if extra is None and "weights" in request:
        extra = {"guidance": json.dumps(request["weights"])}
    how = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, "detokenize": False, **request.get("params", {})}
    params = SamplingParams(**how, extra_args=extra, output_kind=RequestOutputKind.FINAL_ONLY)
    try:
        engine.add_request(name, {"prompt_token_ids": request["ids"]}, params)
    except VLLMValidationError as error:
        found["error"] = str(error)


def read(output: Any) -> dict[str, Any]:
    answer = output.outputs[0]
    ids = list(answer.token_ids)
    rows = answer.logprobs or []
    prompt = output.prompt_logprobs or []
    return {
        "ids": ids,
        "finish": answer.finish_reason,
        "logprobs": [row[token].logprob for row, token in zip(rows, ids, strict=False)],
        "prompt_logprobs": [
            row[token].logprob for row, token in zip(prompt[1:], output.prompt_token_ids[1:], strict=False)
        ],
    }


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    question, answer = map(Path, sys.argv[1:])
    answer.write_text(json.dumps(main(json.loads(question.read_text()))))
