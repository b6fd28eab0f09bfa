"""`trimtab vllm`: guides inside vLLM. `pack` writes what `vllm serve` loads; `check` looks whether this vLLM fits."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from trimtab.cli import guide_options, options
from trimtab.cli.exits import Exit
from trimtab.cli.results import print_json
from trimtab.engines.vllm.manifest import LORA_WAYS
from trimtab.errors import OptionError

PACK = """A base and its guides as one directory that `vllm serve` loads. No weight is copied: the directory holds links
to the base's files and a config.json that names the guides."""
CHECK = """Compares the names, signatures and attributes of vLLM that guides rely on with the files of the vLLM that is
installed, without importing it, and says in what they differ. Exit code 1 where guides would be refused inside it."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its sub-commands."""
    parser = subparsers.add_parser("vllm", help="guides inside vLLM", description=__doc__)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _register_pack(actions)
    check = actions.add_parser(
        "check", help="whether the vLLM that is installed fits", description=CHECK, allow_abbrev=False
    )
    check.add_argument("--sources", metavar="DIR", help="an unpacked vLLM instead: DIR holds its directory vllm")
    check.add_argument("--json", action="store_true", help="what was found as JSON on standard output")


def _register_pack(actions: argparse._SubParsersAction[Any]) -> None:
    pack = actions.add_parser(
        "pack", help="a base and its guides as one directory", description=PACK, allow_abbrev=False
    )
    pack.add_argument("--model", required=True, metavar="NAME", help='a hub id, a directory, a .gguf file, or "demo"')
    options.add_guide_option(
        pack, "and its strength in requests that do not name it (0; an agent's threshold: its own)"
    )
    guide_options.add_form_options(pack)
    pack.add_argument("--out", required=True, metavar="DIR", help="the directory to write")
    pack.add_argument(
        "--lora",
        choices=LORA_WAYS,
        default="shared",
        help="how guides that are LoRA adapters run: on rows of their base's pass, or merged into a second copy of its "
        "weights (%(default)s)",
    )
    pack.add_argument(
        "--base-prompts",
        action="store_true",
        help="let guides with a chat template of their own read the base's prompt",
    )
    pack.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    pack.add_argument("--trust-remote-code", action="store_true", help="let the model run its own code")
    pack.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    pack.add_argument("--json", action="store_true", help="what was written as JSON on standard output")


def run(args: argparse.Namespace) -> Exit:
    """Do what the sub-command says."""
    return _check(args) if args.action == "check" else _pack(args)


def _check(args: argparse.Namespace) -> Exit:
    from trimtab.engines.vllm import versions

    found = versions.verdict_of(args.sources)
    if args.json:
        print_json({**asdict(found), "accepted": found.is_accepted})
    else:
        print(found.sentence())
        for difference in found.differences:
            print(f"  {difference}")
    return Exit.of_check(holds=found.is_accepted)


def _pack(args: argparse.Namespace) -> Exit:
    """Pack a base and its guides."""
    options.check_guide_names(args.guides)
    if not args.guides:
        raise OptionError("There is no guide to pack. Give at least one: --guide NAME=PATH.")
    from trimtab.engines.vllm.packing import pack

    forms, bases = guide_options.read(args)
    manifest = pack(
        args.model,
        {spec.name: spec.path for spec in args.guides},
        args.out,
        weights={spec.name: spec.weight for spec in args.guides if spec.weight is not None},
        forms=forms,
        bases=bases,
        lora=args.lora,
        base_prompts=args.base_prompts,
        overwrite=args.overwrite,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
    )
    if args.json:
        print_json({"out": args.out, **manifest.as_config()})
    listed = ", ".join(
        f"{guide.name} ({guide.form or guide.kind}, {guide.way}, weight {guide.weight:g})" for guide in manifest.guides
    )
    options.say(f"{args.out}: {args.model} with {listed}. Serve it: vllm serve {args.out}")
    return Exit.DONE
