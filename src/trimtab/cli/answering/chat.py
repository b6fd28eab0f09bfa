"""`trimtab chat`: talk to a steered model, and turn its dials in the middle of the conversation.

Answers stream to standard output as tokens come; notes and errors go to standard error. Lines may come from a pipe:
then a line that could not be carried out makes the exit code 2, and the rest is carried out all the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trimtab.cli import engines, options
from trimtab.cli.constraint_options import add_constraint_options, constraint_of
from trimtab.cli.exits import Exit
from trimtab.cli.results import print_json
from trimtab.cli.template_options import add_template_option, template_options
from trimtab.errors import OptionError, TrimtabError, unknown_name

if TYPE_CHECKING:
    from trimtab.core import SamplingParams
    from trimtab.decoding.engine import GenerationEngine

HELP = """\
/weight NAME NUMBER   how strongly a guide steers, from the next answer on (0: not at all; negative: away,
                      for a guide of the form shift)
/weights              every guide's weight
/system [TEXT]        the system message; without a text, none
/seed [NUMBER]        fix the seed; without a number, a new one for each answer
/temperature NUMBER   0: always the most probable token
/retry                answer the last message again, with the weights and the seed of now
/reset                forget the conversation (weights and system message stay)
/help                 this list
/quit                 leave (so does the end of the input)
Anything else is a message. Ctrl-C stops an answer."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "chat",
        help="talk to a steered model; /weight turns a dial in the conversation",
        description=f"{__doc__}\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_model_options(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument("--json", action="store_true", help="one JSON object for each answer on standard output")
    add_template_option(parser)
    options.add_sampling_options(parser, max_new_tokens=512)
    add_constraint_options(parser)
    engines.add_engine_options(parser)


def run(args: argparse.Namespace) -> Exit:
    """Read lines until the end of the input or /quit."""
    choice = engines.engine_choice(args)
    params = dataclasses.replace(
        options.sampling_params(args, weights={}, seed=args.seed), constraint=constraint_of(args)
    )
    choice.maker.check_params(params)
    guides = engines.GuideFlags.of(args).sources(params)
    asked_options = template_options(args)
    tokenizer, engine = engines.load_for_one(args, choice, guides, params)
    if not tokenizer.has_chat_template:
        raise OptionError(
            f"{args.model} has no chat template. Use a model tuned for chat, or `trimtab generate --raw`."
        )
    conversation = Conversation(
        engine,
        dataclasses.replace(params, weights={name: guide.weight for name, guide in engine.guides.items()}),
        system=args.system,
        template_options=asked_options,
        json=args.json,
        interactive=sys.stdin.isatty(),
    )
    try:
        return _converse(conversation)
    finally:
        engine.close()


def _converse(conversation: Conversation) -> Exit:
    if conversation.interactive:
        import readline  # noqa: F401  makes input() editable

        options.say("Type a message, /help for the dials, /quit to leave.")
    code = Exit.DONE
    while not conversation.finished:
        line = _read_line(conversation)
        if line is None:
            break
        try:
            conversation.take(line)
        except TrimtabError as error:
            options.say(str(error))
            code = Exit.DONE if conversation.interactive else Exit.REFUSED
    return code


def _read_line(conversation: Conversation) -> str | None:
    """The next line without its end; None at the end of the input."""
    if not conversation.interactive:
        line = sys.stdin.readline()
        return line.strip() if line else None
    try:
        return input("" if conversation.json else "> ").strip()
    except EOFError:
        return None


@dataclass(slots=True)
class Conversation:
    """The messages so far, and the dials."""

    engine: GenerationEngine
    params: SamplingParams
    system: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    json: bool = False
    interactive: bool = False
    """Ctrl-C ends an answer and not the conversation."""
    turns: list[dict[str, str]] = field(default_factory=list)
    finished: bool = False

    def take(self, line: str) -> None:
        """Carry out one line: a command, or a message to be answered."""
        if line.startswith("/"):
            name, _, argument = line[1:].partition(" ")
            command = COMMANDS.get(name)
            if command is None:
                raise unknown_name("command", f"/{name}", [f"/{known}" for known in COMMANDS])
            command(self, argument.strip())
        elif line:
            self.ask(line)

    def ask(self, text: str) -> None:
        """Answer a message. One that cannot be answered is forgotten again."""
        self.turns.append({"role": "user", "content": text})
        try:
            self._answer()
        except BaseException:
            self.turns.pop()
            raise

    def _answer(self) -> None:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        seed = self._next_seed()
        from trimtab.core import Chat

        prompt = Chat(system + self.turns, self.template_options)
        request = self.engine.add(prompt, dataclasses.replace(self.params, seed=seed))
        texts, reason = self._stream(request)
        text = "".join(texts)
        self.turns.append({"role": "assistant", "content": text})
        if self.json:
            row = {"text": text, "finish_reason": reason, "weights": dict(self.params.weights), "seed": seed}
            print_json(row)

    def _stream(self, request: int) -> tuple[list[str], str]:
        """The pieces of the answer, shown as they come, and why it ended. Ctrl-C ends it, and keeps what there is."""
        texts: list[str] = []
        reason = None
        try:
            while reason is None:
                for step in self.engine.step():
                    if step.request_id != request:
                        continue
                    if step.error is not None:
                        raise step.error
                    texts.append(step.text)
                    reason = step.finish_reason
                    self._show(step.text)
        except KeyboardInterrupt:
            self.engine.cancel(request)
            if not self.interactive:
                raise
            reason = "cancelled"
        self._show("\n")
        return texts, reason

    def _show(self, text: str) -> None:
        if not self.json:
            print(text, end="", flush=True)

    def _next_seed(self) -> int:
        """The seed that was fixed, plus the number of answers so far; else a new one."""
        if self.params.seed is None:
            return secrets.randbelow(2**31)
        return (self.params.seed + len(self.turns) // 2) % (options.MAX_SEED + 1)

    def weight(self, argument: str) -> None:
        """/weight NAME NUMBER"""
        name, _, number = argument.partition(" ")
        if name not in self.params.weights:
            raise unknown_name("guide", name, self.params.weights)
        if not number.strip():
            raise OptionError(f"/weight {name} has no number behind it; give one, as in /weight {name} 1.")
        changed = dataclasses.replace(self.params, weights={**self.params.weights, name: _number(number, -math.inf)})
        self.engine.weights_of(changed)  # refused now, and not at the next answer
        self.params = changed
        self.weights("")

    def weights(self, argument: str) -> None:
        """/weights"""
        listed = ", ".join(f"{name} {weight:g}" for name, weight in self.params.weights.items())
        options.say(f"weights: {listed or 'no guides'}")

    def set_system(self, argument: str) -> None:
        """/system [TEXT]"""
        self.system = argument or None
        options.say(f"system message: {self.system or 'none'}")

    def seed(self, argument: str) -> None:
        """/seed [NUMBER]"""
        if argument and not (argument.isdecimal() and int(argument) <= options.MAX_SEED):
            raise OptionError(
                f"{argument!r} is not a seed; give a whole number of at least 0, or none for a new one each time."
            )
        self.params = dataclasses.replace(self.params, seed=int(argument) if argument else None)
        options.say(f"seed: {argument or 'a new one for each answer'}")

    def temperature(self, argument: str) -> None:
        """/temperature NUMBER"""
        self.params = dataclasses.replace(self.params, temperature=_number(argument, 0.0))
        options.say(f"temperature: {self.params.temperature:g}")

    def retry(self, argument: str) -> None:
        """/retry"""
        if not self.turns:
            raise OptionError("There is nothing to answer again; send a message first.")
        last = self.turns[-2:]
        del self.turns[-2:]
        try:
            self.ask(last[0]["content"])
        except BaseException:
            self.turns += last
            raise

    def reset(self, argument: str) -> None:
        """/reset"""
        self.turns.clear()
        options.say("the conversation is forgotten")

    def help(self, argument: str) -> None:
        """/help"""
        options.say(HELP)

    def quit(self, argument: str) -> None:
        """/quit"""
        self.finished = True


COMMANDS: dict[str, Callable[[Conversation, str], None]] = {
    "weight": Conversation.weight,
    "weights": Conversation.weights,
    "system": Conversation.set_system,
    "seed": Conversation.seed,
    "temperature": Conversation.temperature,
    "retry": Conversation.retry,
    "reset": Conversation.reset,
    "help": Conversation.help,
    "quit": Conversation.quit,
}


def _number(text: str, low: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < low:
        raise OptionError(f"{text!r} is not accepted; give a finite number{'' if low < 0 else ' of at least 0'}.")
    return value
