"""`trimtab export`: a guide in a format that other programs load.

`trimtab export transformers guides/polite --out polite` writes a directory for `custom_generate` of transformers'
`generate`, which then decodes with trimtab.

`trimtab export gguf guides/polite --out polite.gguf` writes a LoRA guide as an adapter for llama.cpp:
`llama-server -m BASE.gguf --lora polite.gguf` answers as the guide's own model does, which is what it adds at weight 1
as a shift.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trimtab.cli import options
from trimtab.cli.exits import Exit
from trimtab.cli.results import print_json


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command and one sub-command for each format."""
    parser = subparsers.add_parser("export", help="write a guide for another program", description=__doc__)
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    gguf = formats.add_parser(
        "gguf", help="a LoRA guide as an adapter that llama.cpp loads", description=__doc__, allow_abbrev=False
    )
    gguf.add_argument("guide", metavar="GUIDE", help="a directory, a hub id or builtin:NAME")
    gguf.add_argument("--out", required=True, metavar="FILE", help="where the adapter goes, a name that ends in .gguf")
    gguf.add_argument(
        "--model", metavar="FILE", help="the GGUF file of the model that the guide was trained on (what its card says)"
    )
    gguf.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    gguf.add_argument("--json", action="store_true", help="what was written as JSON on standard output")
    _register_transformers(formats)
    parser.set_defaults(run=run)


def _register_transformers(formats: argparse._SubParsersAction[Any]) -> None:
    parser = formats.add_parser(
        "transformers", help="a directory for custom_generate of transformers", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("guide", metavar="GUIDE", help='a directory, a hub id, builtin:NAME or prompt:"SENTENCE"')
    parser.add_argument("--out", required=True, metavar="DIR", help="the directory to write")
    parser.add_argument("--name", default="guide", help="what the guide is called in weights (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    parser.add_argument("--json", action="store_true", help="what was written as JSON on standard output")


def run(args: argparse.Namespace) -> Exit:
    """Write the guide in the format that was named."""
    return _FORMATS[args.format](args)


def _transformers(args: argparse.Namespace) -> Exit:
    from trimtab.storage.generate_export import export_generate

    carried = export_generate(args.guide, args.out, name=args.name, overwrite=args.overwrite)
    if args.json:
        print_json({"out": args.out, "format": args.format, "name": args.name, "guide": carried})
    options.say(f"{args.out}: for custom_generate of transformers; it imports trimtab, and README.md shows the call")
    return Exit.DONE


def _gguf(args: argparse.Namespace) -> Exit:
    from trimtab.storage.gguf_files import export_adapter

    base = export_adapter(args.guide, Path(args.out), base=args.model, overwrite=args.overwrite)
    if args.json:
        print_json({"out": args.out, "format": args.format, "base": str(base)})
    options.say(f"{args.out}: an adapter of {base}, {Path(args.out).stat().st_size / 1e6:.1f} MB")
    return Exit.DONE


_FORMATS: Mapping[str, Callable[[argparse.Namespace], Exit]] = {"gguf": _gguf, "transformers": _transformers}
"""The one table from a format to what writes it."""
