"""A program that puts `VLLMEngine` through its paces: `python ask.py GIVEN ANSWER`, both JSON.

GIVEN has `served` (a packed directory), `requests` and `refused` ([prompt, fields of SamplingParams] each), `filters`
(fields of SamplingParams) and `options` (vLLM's); ANSWER has what each of the functions below gives, by its name.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from trimtab import SamplingParams, VLLMEngine
from trimtab.errors import TrimtabError

PROMPT = [5, 9, 13]


def params(fields: dict[str, Any]) -> SamplingParams:
    return SamplingParams(**{**fields, "stop": tuple(fields.get("stop", ()))})


def plain(answer: Any) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dataclasses.asdict(answer))))


def answers(engine: VLLMEngine, given: dict[str, Any]) -> Any:
    """All requests in one batch."""
    return [plain(answer) for answer in engine.answers([(prompt, params(how)) for prompt, how in given["requests"]])]


def joined(engine: VLLMEngine, given: dict[str, Any]) -> Any:
    """Requests that join one a step, the second of them cancelled after its second token."""
    steps: dict[int, list[Any]] = {}
    ids: list[int] = []
    counts = []
    for prompt, how in given["requests"][:4]:
        ids.append(engine.add(prompt, params(how)))
        for step in engine.step():
            steps.setdefault(step.request_id, []).append(step)
    engine.cancel(ids[1])
    while engine.num_running or engine.num_waiting:
        counts.append([engine.num_running, engine.num_waiting])
        for step in engine.step():
            steps.setdefault(step.request_id, []).append(step)
    return {
        "tokens": [[step.token_id for step in steps[request_id]] for request_id in ids],
        "texts": ["".join(step.text for step in steps[request_id]) for request_id in ids],
        "ends": [steps[request_id][-1].finish_reason for request_id in ids],
        "counts": counts,
        "after": engine.step(),
    }


def beside(engine: VLLMEngine, given: dict[str, Any]) -> Any:
    """A request of `add` runs on while `answers` steps, and one of `answers` that is left is forgotten."""
    prompt, how = given["requests"][0]
    added = engine.add(prompt, params(how))
    found = engine.answers([(prompt, params(how)) for prompt, how in given["requests"][1:3]])
    first = next(found).token_ids
    mine = [*engine.step(), *engine.step()]  # the other answer is still on its way
    found.close()
    while engine.num_running or engine.num_waiting:
        mine += engine.step()
    return {"first": first, "ids": sorted({step.request_id for step in mine}), "added": added,
            "tokens": [step.token_id for step in mine]}  # fmt: skip


def queued(engine: VLLMEngine, given: dict[str, Any]) -> Any:
    """More requests than rows: how many run and wait after the first step."""
    ids = [engine.add(PROMPT, params({"max_new_tokens": 2, "temperature": 0})) for _ in range(engine.max_rows + 3)]
    engine.step()
    counts = [engine.num_running, engine.num_waiting]
    for request_id in ids:
        engine.cancel(request_id)
    return [*counts, engine.num_running, engine.num_waiting, engine._engine.get_num_unfinished_requests()]


def drawn(engine: VLLMEngine, given: dict[str, Any]) -> Any:
    """A seed twice, alone and in company; another seed; none."""
    how: dict[str, Any] = {"max_new_tokens": 12, "weights": {"near": 0.5}, "ignore_eos": True}

    def one(**more: Any) -> Any:
        (answer,) = engine.generate([PROMPT], **{**how, **more})
        return answer

    crowd = engine.answers([(PROMPT, params({**how, "seed": seed})) for seed in range(6)])
    unseeded = one()
    return {
        "alone": one(seed=3).token_ids,
        "again": one(seed=3).token_ids,
        "crowd": [answer.token_ids for answer in crowd],
        "generate": [answer.token_ids for answer in engine.generate([PROMPT] * 3, seed=2, **how)],
        "unseeded": unseeded.token_ids,
        "named": one(seed=unseeded.seed).token_ids,
        "filtered": {name: one(seed=1, **how).token_ids for name, how in given["filters"].items()},
    }


def traced(engine: VLLMEngine, given: dict[str, Any]) -> Any:
    """Drawn tokens and their traces: where no guide runs in the whole batch, then where some do."""
    how = {"max_new_tokens": 6, "temperature": 0.7, "trace": True, "num_alternatives": 2, "ignore_eos": True, "seed": 5}
    return [
        [plain(answer) for answer in engine.generate([PROMPT, [7]], weights=weights, **how)]
        for weights in ({"other": 0.0}, [{"near": 1.0}, {"other": 0.0}])
    ]


def refused(engine: VLLMEngine, given: dict[str, Any]) -> Any:
    """What each request is refused with."""
    found = {}
    for name, (prompt, how) in given["refused"].items():
        try:
            engine.add(prompt, params({**how, "forced": tuple(how.get("forced", ()))}))
        except TrimtabError as error:
            found[name] = [type(error).__name__, str(error)]
    return found


def known(engine: VLLMEngine, given: dict[str, Any]) -> Any:
    """What a server or a command asks of it."""
    model = engine.model
    try:
        model.open()
    except TrimtabError as error:
        opened = [type(error).__name__, str(error)]
    return {
        "guides": {name: [guide.weight, guide.selection, guide.form] for name, guide in engine.guides.items()},
        "eos": sorted(model.eos_ids),
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "max_length": model.max_length,
        "chat": model.tokenizer.has_chat_template,
        "described": model.describe(),
        "opened": opened,
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    engine = VLLMEngine(given["served"], max_rows=8, enforce_eager=True, options=given.get("options"))
    version = "v2" if engine._engine.vllm_config.use_v2_model_runner else "v1"
    found = {"version": version}
    for ask in (known, answers, joined, beside, queued, drawn, traced, refused):
        found[ask.__name__] = ask(engine, given)
    engine.close()
    engine.close()
    Path(sys.argv[2]).write_text(json.dumps(found))
