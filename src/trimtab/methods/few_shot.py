"""Few-shot prompting: examples as earlier turns of the chat, weighed like a sentence.

Brown et al., NeurIPS 2020 (arXiv 2005.14165) put examples into the prompt. Here the base that has read them is a guide
of the base that has not: π(y | x) · (π(y | examples, x) / π(y | x))^w, so that weight 1 is few-shot prompting itself,
and its KL to the base without examples is exact (context steering, arXiv 2405.01768, at other weights).

Where it differs: examples are turns of the user and of the assistant, behind the system message and before the
request's own turns, so a prompt of raw text takes none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from trimtab.core import Chat, Message, Prompt
from trimtab.engines.maker import EngineMaker, Guides
from trimtab.errors import DataError, OptionError, PromptError
from trimtab.guides.arm import ARM
from trimtab.methods.method import Guided, Policy, number
from trimtab.mixing.forms import SHIFT
from trimtab.prompts import is_chat

ANSWERS = ("completion", "response", "answer", "chosen")
"""What an example's answer may be called."""
_GUIDE = "examples"


def build(engines: EngineMaker, options: Mapping[str, Any]) -> Policy:
    """The first `num` examples of a file, on engines of one base. Raises DataError for lines that are no examples."""
    engine = engines.make(guides(engines, options))
    return Guided(engine, lambda strength: {_GUIDE: number(strength, what="give a weight")})


def guides(engines: EngineMaker, options: Mapping[str, Any]) -> Guides:
    """The base that has read the examples, as a guide of the base."""
    tokenizer = engines.model.tokenizer
    if tokenizer is None or not tokenizer.has_chat_template:
        raise OptionError("few-shot writes examples as turns of a chat, and the model has no chat template.")
    turns = read_examples(Path(options["examples"]), options["num"])
    return {_GUIDE: ARM(engines.model, prompt=partial(with_examples, turns=turns), form=SHIFT)}


def with_examples(prompt: Prompt, turns: Sequence[Message]) -> Prompt:
    """A chat with examples behind its system message. Raises PromptError for a prompt that is not a chat."""
    if not is_chat(prompt):
        raise PromptError(
            "Examples are turns of a chat, and this prompt is raw text or token ids. Give chat messages, or write the "
            "examples into the prompt."
        )
    chat = prompt if isinstance(prompt, Chat) else Chat(prompt)  # type: ignore[arg-type]
    begin = next((place for place, message in enumerate(chat) if message.get("role") != "system"), len(chat))
    return Chat([*chat[:begin], *turns, *chat[begin:]], chat.options, required=chat.required)


def read_examples(path: Path, num: int) -> list[Message]:
    """The first `num` examples of a JSON-lines file as turns: `prompt`, and one of `ANSWERS`, texts or messages.

    Other columns, such as the rejected answer of a preference pair, are not read. Raises DataError for a file that is
    not there or has fewer lines, and, with its number, for a line that is not an example.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"there is no file of examples to read ({error}); give one of JSON lines.", path=path) from None
    numbered = [(place, line) for place, line in enumerate(lines, start=1) if line.strip()]
    if len(numbered) < num:
        raise DataError(
            f"the file holds {len(numbered)} examples, and num is {num}; add some, or ask for fewer.", path=path
        )
    turns: list[Message] = []
    for place, line in numbered[:num]:
        try:
            turns += _turns(line)
        except ValueError as error:
            raise DataError(f"{error}.", path=path, line=place) from None
    return turns


def _turns(line: str) -> list[Message]:
    """One example. Raises ValueError, which says what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ValueError('the line is not a JSON object; write {"prompt": "...", "completion": "..."}')
    named = [name for name in ANSWERS if row.get(name) is not None]
    if row.get("prompt") is None:
        raise ValueError("the example has no prompt; give a text or messages")
    if not named:
        raise ValueError(f"the example has no answer; name it {', '.join(ANSWERS[:-1])} or {ANSWERS[-1]}")
    if len(named) > 1:
        raise ValueError(f"the example has both {named[0]} and {named[1]}; leave one of them out")
    asked = _said(row["prompt"], "prompt", first="user", last="user")
    return [*asked, *_said(row[named[0]], named[0], first="assistant", last="assistant")]


def _said(value: object, what: str, *, first: str, last: str) -> list[Message]:
    """A text or messages as messages that take turns, from the role `first` to the role `last`."""
    messages = [{"role": first, "content": value}] if isinstance(value, str) else value
    if not isinstance(messages, list) or not messages or not all(map(_is_turn, messages)):
        raise ValueError(f"{what} is neither a text nor messages of the user and the assistant that say something")
    roles = [message["role"] for message in messages]
    if roles[0] != first or roles[-1] != last or any(one == other for one, other in pairwise(roles)):
        raise ValueError(
            f"the messages of {what} are by {', '.join(roles)}; the first is to be the {first}'s, the last the "
            f"{last}'s, and they take turns"
        )
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _is_turn(message: object) -> bool:
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        return False
    content = message.get("content")
    return isinstance(content, str) and bool(content.strip())
