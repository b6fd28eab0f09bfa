"""What `trimtab pairs` writes for people: the card beside the pairs, and the last lines on standard error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trimtab.cli import options
from trimtab.cli.results import print_json
from trimtab.making.settings import AWAY, TOWARDS

if TYPE_CHECKING:
    from trimtab.cli.pairs.job import Job
    from trimtab.making.files import PairFiles
    from trimtab.making.result import PairSet
    from trimtab.making.run import Way


def write(
    job: Job, files: PairFiles, way: Way, found: PairSet, settings: Mapping[str, Any], *, num_repeated: int
) -> None:
    """Write pairs, pairs held out and card, all of them or none."""
    from importlib.metadata import version

    from trimtab.making.card import About, card

    shown = {name: value for name, value in settings.items() if name not in ("contents", "prompts", "sentences")}
    about = About(
        files.out.name,
        files.held_out.name,
        job.model.name,
        job.prompts,
        _how(job, way, files),
        {**shown, **dataclasses.asdict(job.choice)},
        version("trimtab"),
        num_repeated,
    )
    files.write(found.pairs, found.held_out, card(found, about))


def _how(job: Job, way: Way, files: PairFiles) -> str:
    """What tells the answers apart, for the card."""
    from trimtab.making.run import ByJudge, ByReward
    from trimtab.making.sampling import read_samples

    if isinstance(way, ByReward):
        return (
            f"The chosen answer is the one with the higher reward: {way.rewarder.description}. The rewards stand in "
            "`score_chosen` and `score_rejected`."
        )
    if isinstance(way, ByJudge):
        orders = "" if not way.judge.sees_order else "; pairs on which it changed its mind with the order are left out"
        return f"The chosen answer is the one that the judge prefers: {way.judge.description}{orders}."
    place = next((one.place for one in read_samples(files.samples) if one.place), "")
    return (
        f"The chosen answer was sampled under the sentence “{job.sentences[TOWARDS]}”, the rejected one under "
        f"“{job.sentences[AWAY]}” (contrast distillation, arXiv 2307.12950). The sentence stood in the {place}; it is "
        "not in the pairs."
    )


def report(files: PairFiles, found: PairSet, *, as_json: bool) -> None:
    """Say what came of it, and with `as_json` print it."""
    from trimtab.making.card import margins_and_lengths
    from trimtab.making.result import ANSWERS_OUT, PAIRS_OUT
    from trimtab.making.result import as_json as account_of

    account = found.account
    held = f" and {len(found.held_out)} held out in {files.held_out}" if found.held_out else ""
    options.say(
        f"{len(found.pairs)} pairs in {files.out}{held}, of {found.num_prompts} of {account.num_prompts} prompts"
    )
    out = [
        f"{account.answers_out[why]} answers: {text}" for why, text in ANSWERS_OUT.items() if account.answers_out[why]
    ]
    out += [f"{account.pairs_out[why]} pairs: {text}" for why, text in PAIRS_OUT.items() if account.pairs_out[why]]
    for line in [*([f"left out: {'; '.join(out)}"] if out else []), *margins_and_lengths(found)]:
        options.say(line)
    if as_json:
        names = {"out": files.out, "held_out": files.held_out if found.held_out else None, "card": files.card}
        places = {name: None if path is None else str(path) for name, path in names.items()}
        print_json({**places, **account_of(found)})
