"""Writes the tables of pages that are made from fields of dataclasses and wire types: `python docs/field_tables.py`.

A table stands below a comment that names it, `<!-- fields: NAME -->`, and ends at the first empty line.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab import environment
from trimtab.cli import flags
from trimtab.cli.exits import MEANINGS
from trimtab.cli.options import NOT_SAMPLING_FLAGS
from trimtab.cli.train.parm import NOT_FLAGS
from trimtab.cli.train.run_options import NOT_SETTINGS
from trimtab.constraint import Constraint
from trimtab.engines.vllm.sampling import check_params
from trimtab.errors import OptionError
from trimtab.fields import shown, table
from trimtab.making.settings import ChoiceSettings, SampleSettings
from trimtab.models.llama.options import LlamaOptions
from trimtab.params import SamplingParams
from trimtab.serving.guidance_schema import Guidance
from trimtab.serving.limits import Limits
from trimtab.serving.message_schema import Message, TextPart
from trimtab.serving.responses_schema import (
    InputCall,
    InputMessage,
    InputResult,
    InputText,
    ResponseRequest,
    TextOptions,
)
from trimtab.serving.schema import ChatRequest, CompletionRequest, StreamOptions
from trimtab.serving.tool_schema import Tool, ToolFunction
from trimtab.serving.wire_schema import Wire
from trimtab.training.agent.settings import AgentSettings
from trimtab.training.distill.settings import DistillSettings
from trimtab.training.dpo.settings import DpoSettings
from trimtab.training.parm.settings import ParmSettings
from trimtab.training.reward.settings import RewardSettings
from trimtab.training.rl.settings import GuideRLSettings, RLSettings
from trimtab.training.run.settings import ArmSettings

DOCS = Path(__file__).parent
MARK = re.compile(r"^<!-- fields: (\w+) -->\n\n(?:\|.*\n)*\n?", flags=re.MULTILINE)

Row = tuple[str, str, str]


def written(page: str) -> str:
    """The page with its tables as they should be."""
    made = {name: text for tables_of in PAGES.values() for name, text in tables_of().items()}
    return MARK.sub(lambda mark: f"<!-- fields: {mark[1]} -->\n\n{made[mark[1]]}\n", page).rstrip("\n") + "\n"


def tables() -> dict[str, str]:
    """Name -> the table in Markdown."""
    heading = ("flag", "default", "meaning")
    by_method = settings()
    agent = by_method.pop("agent")
    return {
        "sampling": _markdown(heading, flags.rows(SamplingParams(), but=NOT_SAMPLING_FLAGS)),
        "llama": _markdown(("option", *heading[1:]), _keys(LlamaOptions())),
        "pairs": _markdown(heading, (*flags.rows(SampleSettings()), *flags.rows(ChoiceSettings()))),
        "training": _markdown((*heading, "only"), _by_method(by_method)),
        "agent": _markdown(heading, agent),
        "limits": _markdown(heading, flags.rows(Limits())),
    }


REQUESTS: Mapping[str, type[Wire]] = {
    "chats": ChatRequest,
    "completions": CompletionRequest,
    "responses": ResponseRequest,
}
PARTS: Mapping[str, type[Wire]] = {
    **REQUESTS,
    "messages": Message,
    "tools": Tool,
    "functions of `tools`": ToolFunction,
    "parts of messages": TextPart,
    "messages of `input`": InputMessage,
    "calls of `input`": InputCall,
    "results of `input`": InputResult,
    "parts of `input`": InputText,
    "`text`": TextOptions,
    "`stream_options`": StreamOptions,
}
SAMPLES: Mapping[str, tuple[str, Any]] = {
    "max_tokens": ("max_new_tokens", 3),
    "max_completion_tokens": ("max_new_tokens", 3),
    "max_output_tokens": ("max_new_tokens", 3),
    "temperature": ("temperature", 0.5),
    "top_k": ("top_k", 3),
    "top_p": ("top_p", 0.5),
    "min_p": ("min_p", 0.5),
    "repetition_penalty": ("repetition_penalty", 1.5),
    "presence_penalty": ("presence_penalty", 1.0),
    "frequency_penalty": ("frequency_penalty", 1.0),
    "logit_bias": ("logit_bias", {1: 1.0}),
    "min_tokens": ("min_tokens", 2),
    "ignore_eos": ("ignore_eos", True),
    "stop": ("stop", ("a",)),
    "stop_token_ids": ("stop_token_ids", (1,)),
    "seed": ("seed", 3),
    "plausibility": ("plausibility", 0.5),
    "guide_plausibility": ("guide_plausibility", {"kind": 0.5}),
    "gates": ("gates", {"kind": "random:0.5"}),
    "draft": ("draft", "lookup"),
    "draft_tokens": ("draft", "lookup"),
    "prompt_logprobs": ("forced", (1,)),
    **dict.fromkeys(
        (
            *("response_format", "guided_json", "guided_regex", "guided_grammar", "guided_choice", "text"),
            *("tools", "tool_choice", "parallel_tool_calls"),
        ),
        ("constraint", Constraint.json_object()),
    ),
}
"""A field of a request -> what it comes to in `SamplingParams`, with some value to ask an engine about."""


def api_tables() -> dict[str, str]:
    """Name -> a table of docs/serving/api.md."""
    heading = ("field", "in", "range", "engines", "meaning")
    return {
        "requests": _markdown(heading, _fields(REQUESTS)),
        "guidance": _markdown(
            ("key of `guidance`", *heading[2:]), ((a, c, d, e) for a, _, c, d, e in _fields({"": Guidance}))
        ),
        "ignored": _markdown(("field", "in", "why it changes no answer"), _tabled(lambda kind: kind.ignored)),
        "refused": _markdown(
            ("field", "in", "values that ask for nothing"),
            _tabled(lambda kind: {name: _values(neutral) for name, neutral in kind.refused.items()}),
        ),
    }


def _fields(kinds: Mapping[str, type[Wire]]) -> Iterator[tuple[str, ...]]:
    """The rows of what requests hold; what is another thing in one of them has a row of its own."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for where, kind in kinds.items():
        schema = kind.model_json_schema()
        for name, field in schema["properties"].items():
            rows.setdefault((name, _range(field, schema), field.get("description", "")), []).append(where)
    for (name, bounds, meaning), places in rows.items():
        assert meaning, f"{name} has no description"
        where = "all" if len(places) == len(kinds) else ", ".join(places)
        yield f"`{name}`", where, bounds, _engines(name), meaning


def _range(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    kinds = [_one_range(one, schema) for one in field.get("anyOf", [field]) if one.get("type") != "null"]
    return " or ".join(kinds)


def _one_range(one: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if "oneOf" in one:
        return " or ".join(dict.fromkeys(_one_range(each, schema) for each in one["oneOf"]))
    if "$ref" in one:
        return "object"
    if "enum" in one or "const" in one:
        return ", ".join(f"`{value}`" for value in one.get("enum", [one.get("const")]))
    kind = {"integer": "whole number", "array": "list", "boolean": "true or false", "string": "text"}.get(
        one.get("type", ""), one.get("type", "anything")
    )
    if one.get("type") == "object" and isinstance(one.get("additionalProperties"), Mapping):
        one = one["additionalProperties"]
        kind = "object of numbers" if one.get("type") == "number" else "object"
    if one.get("maximum", 0) > 1e9:
        one = {**one, "maximum": "2⁶³ − 1"}
    words = [
        f"{sign} {one[bound]}"
        for bound, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if bound in one
    ]
    return f"{kind} {', '.join(words)}".strip()


def _engines(name: str) -> str:
    """Which engines take a field: vLLM is asked."""
    if name == "echo":
        return "all; with `logprobs` builtin"
    if name not in SAMPLES:
        return "all"
    field, value = SAMPLES[name]
    try:
        check_params(SamplingParams(**{field: value}))
    except OptionError:
        return "builtin"
    return "all"


def _tabled(table_of: Any) -> Iterator[tuple[str, ...]]:
    rows: dict[tuple[str, str], list[str]] = {}
    for where, kind in PARTS.items():
        for name, said in table_of(kind).items():
            rows.setdefault((name, said), []).append(where)
    for (name, said), places in rows.items():
        where = "all requests" if places[: len(REQUESTS)] == list(REQUESTS) else ", ".join(places)
        yield f"`{name}`", where, said


def _values(neutral: Sequence[Any]) -> str:
    shown_ = dict.fromkeys(json.dumps(value) for value in neutral if not isinstance(value, float))
    return ", ".join(["null", *(f"`{value}`" for value in shown_)])


def exit_tables() -> dict[str, str]:
    """Name -> a table of docs/reference/exit-codes.md."""
    return {"exits": _markdown(("exit code", "meaning"), ((str(int(code)), said) for code, said in MEANINGS.items()))}


def environment_tables() -> dict[str, str]:
    """Name -> a table of docs/reference/environment.md."""
    heading = ("variable", "whose", "meaning")
    return {
        "read": _markdown(heading, ((f"`{one.name}`", one.whose, one.meaning) for one in environment.READ)),
        "given": _markdown(
            ("variable", "whose", "value", "why"),
            ((f"`{one.name}`", one.whose, f"`{one.value}`", one.meaning) for one in environment.GIVEN),
        ),
        "others": _markdown(heading, ((f"`{one.name}`", one.whose, one.meaning) for one in environment.OTHERS)),
    }


def settings() -> dict[str, list[Row]]:
    """Method -> its settings."""
    meaning = f"{table(ParmSettings)['beta'].sentence()}; repeat for several"
    beta = ("`--beta [NAME=]X`", shown(ParmSettings().beta), meaning)
    return {
        "arm": list(flags.rows(ArmSettings(), but=NOT_SETTINGS)),
        "parm": [beta, *flags.rows(ParmSettings(), but=(*NOT_SETTINGS, *NOT_FLAGS))],
        "reward": list(flags.rows(RewardSettings(), but=NOT_SETTINGS)),
        "dpo": list(flags.rows(DpoSettings(), but=NOT_SETTINGS)),
        "rl": list(flags.rows(RLSettings(), but=NOT_SETTINGS)),
        "guide-rl": list(flags.rows(GuideRLSettings(), but=NOT_SETTINGS)),
        "distill": list(flags.rows(DistillSettings(), but=NOT_SETTINGS)),
        "agent": list(flags.rows(AgentSettings())),
    }


def _keys(defaults: LlamaOptions) -> Iterator[Row]:
    """Settings that are written as KEY=VALUE."""
    for name, entry in table(type(defaults)).items():
        default = entry.unset or shown(getattr(defaults, name)) or "no"
        choices = f": {', '.join(f'`{choice}`' for choice in entry.choices)}" if entry.choices else ""
        yield f"`{name}`", default, entry.sentence() + choices


def _by_method(methods: Mapping[str, Iterable[Row]]) -> Iterator[tuple[str, ...]]:
    """A row for each flag; what is another in some methods than in the first one is given with their names."""
    of_flag: dict[str, dict[str, tuple[str, str]]] = {}
    for method, rows in methods.items():
        for flag, default, meaning in rows:
            of_flag.setdefault(flag, {})[method] = (default, meaning)
    # What nearly all methods have comes last, so that what a method is about is read first.
    for flag, said in sorted(of_flag.items(), key=lambda one: len(one[1]) >= len(methods) - 1):
        only = "" if len(said) == len(methods) else ", ".join(f"`{method}`" for method in said)
        defaults = _variants({method: default for method, (default, _) in said.items()})
        yield flag, defaults, _variants({method: meaning for method, (_, meaning) in said.items()}), only


def _variants(said: Mapping[str, str]) -> str:
    methods: dict[str, list[str]] = {}
    for method, text in said.items():
        methods.setdefault(text, []).append(f"`{method}`")
    first, *others = methods
    return "; ".join([first, *(f"{', '.join(methods[text])}: {text}" for text in others)])


def _markdown(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    drawn = [f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in map(_escaped, row))}|" for row in (heading, *rows)]
    return "\n".join([drawn[0], "|---" * len(heading) + "|", *drawn[1:]]) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


PAGES: Mapping[Path, Callable[[], dict[str, str]]] = {
    DOCS / "reference" / "flags.md": tables,
    DOCS / "serving" / "api.md": api_tables,
    DOCS / "reference" / "exit-codes.md": exit_tables,
    DOCS / "reference" / "environment.md": environment_tables,
}
"""Every page that has such tables -> what makes them."""


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
