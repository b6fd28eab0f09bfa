"""`trimtab explain`: answer one prompt and show, token by token, what the base wanted and what each guide made of it.

A guide's share of a token is its weight × (score − centre), in nats; the centre is the guide's mean score of the
tokens recorded at that step (the chosen one and its rivals), each counted by its probability under the base. A
positive share raises the token above what the base was about to say, a negative one lowers it.
base + shares + rest = mixed, where the rest is normalisation, the same for all tokens of a step; filters and the
repetition penalty come after.

Plain text is put to the model as a user's message if it has a chat template; --raw continues it as it stands. In
--json, ranks count from 0.

Where an accept-reject agent chose, the table says how likely it accepted the token, how many candidates were seen of
how many, and which were passed over; --json and the page list every candidate with its verdict.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli import engines, options
from trimtab.cli.exits import Exit
from trimtab.cli.prompts import as_asked, use_template
from trimtab.cli.results import print_json
from trimtab.cli.template_options import add_template_options, template_options
from trimtab.errors import OptionError
from trimtab.storage.files import write_text

if TYPE_CHECKING:
    from trimtab.answers import Answer
    from trimtab.evaluation.explaining.trace import ExplainedToken


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "explain", help="show for each token what base and guides had to say", description=__doc__
    )
    options.add_model_options(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what to answer")
    add_template_options(parser)
    parser.add_argument(
        "--num-alternatives",
        type=options.whole(1, 1000),
        default=10,
        metavar="N",
        help="rivals of each token (%(default)s)",
    )
    parser.add_argument("--html", metavar="PAGE", help="write a page to look at in a browser")
    parser.add_argument("--overwrite", action="store_true", help="replace PAGE if it exists")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    options.add_sampling_options(parser, max_new_tokens=64)
    engines.add_engine_options(parser)


def run(args: argparse.Namespace) -> Exit:
    """Answer, explain, show."""
    _check(args)
    choice = engines.engine_choice(args)
    params = options.sampling_params(
        args, weights={}, seed=args.seed, trace=True, num_alternatives=args.num_alternatives
    )
    choice.maker.check_params(params)
    guides = engines.GuideFlags.of(args).sources(params)
    tokenizer, engine = engines.load_for_one(args, choice, guides, params)
    from trimtab.answers import finished

    prompt = as_asked(args.prompt, chat=use_template(args.template, tokenizer), options=template_options(args))
    try:
        (answer,) = finished(engine.answers([(prompt, params)]))
    finally:
        engine.close()
    from trimtab.decoding.text import shown_tokens
    from trimtab.evaluation.explaining.trace import explain_tokens

    shown = shown_tokens(tokenizer, answer.prompt_ids, answer.token_ids)
    tokens = explain_tokens(answer.trace or (), answer.weights, tokenizer.token_text, shown)
    if args.html is not None:
        _write_page(Path(args.html), args.prompt, args.model, answer, tokens)
    if args.json:
        _print_row(args.prompt, args.html, answer, tokens)
    else:
        _print_text(answer, tokens)
    return Exit.DONE


def _check(args: argparse.Namespace) -> None:
    options.check_guide_names(args.guides)
    template_options(args)
    if not args.prompt:
        raise OptionError("--prompt is empty; give a text.")
    if args.html is not None and Path(args.html).exists() and not args.overwrite:
        raise OptionError(f"{args.html} already exists. Give --overwrite to replace it, or another path.")


def _write_page(path: Path, prompt: str, model: str, answer: Answer, tokens: list[ExplainedToken]) -> None:
    from trimtab.evaluation.explaining.trace_page import trace_page

    page = trace_page(tokens, prompt=prompt, model=model, weights=answer.weights, seed=answer.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    options.say(f"page: {path}")


def _print_row(prompt: str, page: str | None, answer: Answer, tokens: list[ExplainedToken]) -> None:
    from trimtab.evaluation.explaining.trace import as_rows

    row = {
        "prompt": prompt,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "weights": dict(answer.weights),
        "seed": answer.seed,
        "kl": answer.kl,
        "tokens": as_rows(tokens),
        "page": page,
    }
    print_json(row)


def _print_text(answer: Answer, tokens: list[ExplainedToken]) -> None:
    from rich.console import Console

    from trimtab.evaluation.explaining.trace import as_table, coloured_text

    console = Console(highlight=False)
    console.print(coloured_text(tokens), soft_wrap=True)
    console.print()
    console.print(as_table(tokens))
    console.print(
        f"\n{len(tokens)} tokens, ended by {answer.finish_reason}; seed {answer.seed}; "
        f"KL to the base {answer.kl:.2f} nats.\n"
        "Shares in nats. Orange: raised by the guides; blue: lowered; bold: not the base's first choice.",
        soft_wrap=True,
    )
