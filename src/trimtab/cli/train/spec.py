"""What the flags of a training say, as frozen values: what runs below a command sees no parsed arguments."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.cli.template_options import template_options
from trimtab.cli.train.run_options import is_main
from trimtab.training.run.rewards import AgentReward


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """The model that is trained and where the result goes."""

    model: str
    revision: str | None
    trust_remote_code: bool
    out: str
    resume: bool
    overwrite: bool
    as_json: bool
    """Whether this process prints the result as JSON on standard output."""

    @classmethod
    def of(cls, args: argparse.Namespace) -> RunSpec:
        """What --model, --out and the flags beside them say."""
        return cls(
            model=args.model,
            revision=args.revision,
            trust_remote_code=args.trust_remote_code,
            out=args.out,
            resume=args.resume,
            overwrite=args.overwrite,
            as_json=args.json and is_main(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsSpec:
    """Where preference pairs come from and how their rows are read."""

    data: tuple[str, ...]
    eval_data: tuple[str, ...]
    """Empty: a share of `data` is held out."""
    format: str
    skip_bad_lines: bool
    ignore_columns: tuple[str, ...]
    template_options: Mapping[str, object]

    @classmethod
    def of(cls, args: argparse.Namespace) -> PairsSpec:
        """What --data and the flags beside it say. Raises OptionError for a template option that is given twice."""
        return cls(
            data=tuple(args.data),
            eval_data=tuple(args.eval_data),
            format=args.format,
            skip_bad_lines=args.skip_bad_lines,
            ignore_columns=tuple(args.ignore_columns),
            template_options=template_options(args),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsSpec:
    """The prompts of a training on the model's own answers, and what these are worth."""

    path: str
    rewards: tuple[AgentReward, ...]
    """Empty where answers are not rewarded."""
    template: str
    template_options: Mapping[str, object]
    skip_bad_lines: bool
    ignore_columns: tuple[str, ...]

    @classmethod
    def of(cls, args: argparse.Namespace) -> PromptsSpec:
        """What --prompts, --reward and the flags beside them say. Raises OptionError as `template_options`."""
        return cls(
            path=args.prompts,
            rewards=tuple(getattr(args, "rewards", ())),
            template=args.template,
            template_options=template_options(args),
            skip_bad_lines=args.skip_bad_lines,
            ignore_columns=tuple(args.ignore_columns),
        )
