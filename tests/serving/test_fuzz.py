"""The published OpenAPI document against the server: schemathesis sends what it allows and what it does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.serving.conftest import Running, Start
from trimtab.serving.limits import Limits

schemathesis = pytest.importorskip("schemathesis")


@pytest.fixture(scope="module")
def fuzzed(start: Start) -> Any:
    with start(Limits(max_rows=4, max_new_tokens=8, default_new_tokens=4, max_prompt_tokens=400)) as server:
        yield server


ANSWERS = ("/v1/chat/completions", "/v1/completions")
OTHERS = ("/v1/models", "/v1/models/{name}", "/v1/guides", "/health", "/ready")
CASES = [(route, mode) for route in ANSWERS for mode in ("positive", "negative")]
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
"""What must hold of every reply; limits refuse some of what the document allows."""


@pytest.mark.parametrize(("route", "mode"), [*CASES, *((route, "positive") for route in OTHERS)])
def test_no_request_is_a_server_error(fuzzed: Running, route: str, mode: str) -> None:
    schemathesis.checks.load_all_checks()
    checks = schemathesis.checks.CHECKS.get_by_names(CHECKS)
    document = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    operations = [result.ok() for result in document.get_all_operations()]
    [operation] = [one for one in operations if one.path == route]
    strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=strategy)
    def no_server_error(case: Any) -> None:
        if mode == "positive":
            _made_to_run(case)
        case.call_and_validate(checks=checks)

    no_server_error()


def _made_to_run(case: Any) -> None:
    """A model's and guides' names that exist, and numbers within the limits: else hardly a case gets past the door."""
    if not isinstance(case.body, dict):
        return
    case.body["model"] = "tiny"
    case.body.pop("n", None)
    for name in ("max_tokens", "max_completion_tokens"):
        if isinstance(case.body.get(name), int | float):
            case.body[name] = 1 + int(case.body[name]) % 8
    guidance = case.body.get("guidance")
    if isinstance(guidance, dict) and isinstance(guidance.get("weights"), dict):
        weights = zip(("up", "down"), guidance["weights"].values(), strict=False)
        guidance["weights"] = {name: min(max(weight, -100), 100) for name, weight in weights}


def test_the_server_still_answers(fuzzed: Running) -> None:
    assert fuzzed.batch.ping(10)
    assert fuzzed.batch.num_open == 0
    assert fuzzed.batch.engine.num_rows == 0
