"""Chat templates with tools, one for each way that models write calls; in our own words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.tiny import byte_tokenizer

_TOOLS = "{% if tools %}[tools]{{ tools | tojson }}\n{% endif %}"
_OPEN = "{% if add_generation_prompt %}[assistant]\n{% endif %}"


def _template(calls: str, *, tools: str = _TOOLS, opened: str = _OPEN, end: str = "</s>\n") -> str:
    """A template whose assistant writes its text and then `calls`."""
    return (
        f"{tools}{{% for m in messages %}}[{{{{ m.role }}}}]\n"
        "{% if m.role == 'assistant' and m.tool_calls %}{{ m.content + '\n' if m.content else '' }}"
        f"{calls}{{% else %}}{{{{ m.content }}}}{{% endif %}}{end}{{% endfor %}}{opened}"
    )


_ONE = '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
_EACH = "{% for c in m.tool_calls %}"
_NAME, _JSON = "{{ c.function.name }}", "{{ c.function.arguments | tojson }}"
_SINGLE = "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}"

HERMES = _template(f"{_EACH}<tool_call>\n{_ONE}\n</tool_call>{{{{ '\n' if not loop.last }}}}{{% endfor %}}")
LISTED = _template(
    "[TOOL_CALLS] [{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('ids have 9') }}{% endif %}"
    '{{ (c.function | tojson)[:-1] }}, "id": "{{ c.id }}"}{{ \', \' if not loop.last }}{% endfor %}]'
)
BARE = _template(
    f"{_SINGLE}{{% set c = m.tool_calls[0] %}}"
    '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}'
)
TAGGED = _template(f"{_EACH}<function={_NAME}>{_JSON}</function>{{% endfor %}}")
FENCED = _template(
    f"{_EACH}<|call|>function<|sep|>{_NAME}\n```json\n{{{{ c.function.arguments }}}}\n```<|end|>{{% endfor %}}"
)
THINKING = _template(
    f"{_EACH}<tool_call>\n{_ONE}\n</tool_call>{{% endfor %}}",
    opened="{% if add_generation_prompt %}[assistant]\n<think>\n{% endif %}",
)
THOUGHT = _template(f"<think>\n\n</think>\n\n{_EACH}<tool_call>\n{_ONE}\n</tool_call>{{% endfor %}}").replace(
    "{% else %}{{ m.content }}", "{% else %}{{ '<think>\n\n</think>\n\n' if m.role == 'assistant' }}{{ m.content }}"
)
WITH_CALLS = {
    "hermes": HERMES,
    "listed": LISTED,
    "bare": BARE,
    "tagged": TAGGED,
    "fenced": FENCED,
    "thinking": THINKING,
    "thought": THOUGHT,
}
"""Name -> a template whose calls can be read back. `fenced` takes arguments as JSON text; `listed` wants ids;
`thinking` opens a thought for an answer, `thought` writes an empty one in front of what was answered."""

WITHOUT = {
    "no tools": ("{% for m in messages %}{{ m.content }}{% endfor %}", "never reads tools"),
    "tools, but no calls": (_template("", tools=_TOOLS).replace("m.tool_calls", "m.nothing"), "as a JSON object"),
    "arguments one by one": (
        _template(
            f"{_EACH}<f={_NAME}>"
            "{% for k, v in c.function.arguments | items %}<{{ k }}>{{ v }}{% endfor %}</f>{% endfor %}"
        ),
        "as a JSON object",
    ),
    "arguments in quotes": (
        _template(
            f'{_EACH}<c>{{"name": "{_NAME}", "arguments": {{{{ c.function.arguments | string | tojson }}}}}}</c>'
            "{% endfor %}"
        ),
        "as a JSON object",
    ),
    "arguments first": (
        _template(f"{_EACH}<c>{_JSON} for {_NAME}</c>{{% endfor %}}"),
        "in front of the name",
    ),
    "a word for a mark": (
        _template(f"{_EACH}Call {_NAME} with {_JSON}{{% endfor %}}"),
        "which a text may hold as well",
    ),
    "no mark": (
        _template(f"{_EACH}{_NAME} {_JSON}{{% endfor %}}"),
        "nothing marks it",
    ),
    "the number of arguments": (
        _template(f"{_EACH}<c {{{{ c.function.arguments | length }}}}>{_NAME} {_JSON}{{% endfor %}}"),
        "depends on the call",
    ),
    "an id of its own kind": (
        _template(f"{_EACH}<c>{{{{ c.id }}}}{_JSON}{{% endfor %}}"),
        "name once",
    ),
}
"""What is wrong with a template -> (it, what is said of it)."""


def tokenizer_of(template: str) -> Any:
    """Every byte is a token; so are `[TOOL_CALLS]` and `<|call|>`, which add no text, and `<tool_call>`, which does."""
    found = byte_tokenizer(template=template)
    found.add_tokens(["<tool_call>", "<function="])
    found.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "<|call|>", "<|sep|>", "<|end|>"]})
    return found


def rendered_calls(hf: Any, calls: Sequence[tuple[str, str, Mapping[str, Any]]]) -> str:
    """What the template itself writes for calls (name, id, arguments), up to the end of the turn."""
    as_text = "c.function.arguments }}\n" in hf.chat_template
    made = [
        {
            "id": call_id,
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(given, ensure_ascii=False) if as_text else given},
        }
        for name, call_id, given in calls
    ]
    said = {"role": "assistant", "content": "", "tool_calls": made}
    whole: str = hf.apply_chat_template([said], tokenize=False, tools=[{"name": "any"}])
    answered = whole.partition("[assistant]\n")[2].partition("</s>")[0]
    return answered.removeprefix("<think>\n\n</think>\n\n")
