"""`trimtab demo`: steer a real model with the guide that ships, at several strengths, and write what came of it.

With --train it goes the whole road: sample answers from the base, let the scorer say which are better, train a guide
on the pairs, then steer with that one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli.options import list_of, number, say, seed_number, whole
from trimtab.errors import MissingExtraError, OptionError, OutputExistsError
from trimtab.mixing.forms import PRODUCT, SHIFT
from trimtab.storage.directories import guide_directory

if TYPE_CHECKING:
    from trimtab.evaluation.report.frontier import Point, Sweep
    from trimtab.evaluation.report.frontier_report import Study
    from trimtab.models.hf import HFModel
    from trimtab.storage.scorers import Scorer
    from trimtab.training.arm.train import ArmSettings

SHIPPED_GUIDE = "builtin:sentiment"
NUM_PROMPTS = 64
NUM_HELD_OUT_PROMPTS = 60


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "demo", help="see it work: a real model at several strengths, and a report", description=__doc__
    )
    parser.add_argument("--train", action="store_true", help="train the guide first, from the base's own answers")
    parser.add_argument("--model", default="demo", metavar="NAME", help="a model as in generate (%(default)s)")
    parser.add_argument("--guide", metavar="PATH", help=f"steer with this guide ({SHIPPED_GUIDE})")
    parser.add_argument(
        "--scorer", default="sentiment", metavar="NAME", help="sentiment, or module:function of your own (%(default)s)"
    )
    parser.add_argument(
        "--strengths",
        type=list_of(number(-100, 100)),
        default=[-1.0, 0.0, 0.5, 1.0, 2.0],
        metavar="W,W,...",
        help="strengths of the guide as a shift; those above 0 also as a product (-1,0,0.5,1,2)",
    )
    parser.add_argument(
        "--prompts", type=whole(2, NUM_PROMPTS), default=NUM_PROMPTS, metavar="N", help="how many of the %(default)s"
    )
    parser.add_argument("--max-new-tokens", type=whole(1), default=32, metavar="N", help="(%(default)s)")
    parser.add_argument("--batch-size", type=whole(1), default=64, metavar="N", help="answers at once (%(default)s)")
    parser.add_argument("--seed", type=seed_number, default=0, metavar="N", help="prompt i uses N+i (%(default)s)")
    parser.add_argument("--out", metavar="DIR", help="where the report goes (a new directory under runs)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="with --train: continue what was begun in --out")
    existing.add_argument("--overwrite", action="store_true", help="write into --out though it exists")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")


def run(args: argparse.Namespace) -> int:
    """Check, load, perhaps train, steer, report."""
    _check(args)
    from trimtab.evaluation.report.frontier_report import write_report
    from trimtab.storage.scorers import load_scorer

    out = _directory(args)
    scorer = load_scorer(args.scorer)
    once = " (the first time it is converted, which takes about half a minute)" if args.model == "demo" else ""
    say(f"loading {args.model}{once}")
    from trimtab.storage.loading import load_model

    model = load_model(args.model)
    guide = _trained(args, model, scorer, out) if args.train else args.guide or SHIPPED_GUIDE
    if guide is None:
        return 130
    study = _measure(args, model, guide, scorer)
    report = write_report(study, out)
    if args.json:
        print(json.dumps(_summary(study, report)))
    else:
        _show(study)
        print(f"\nReport: {report}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise for flags that do not go together, before anything is loaded."""
    if args.train and args.guide is not None:
        raise OptionError("--train makes the guide that it steers with; leave --guide out, or --train.")
    if args.resume and not (args.train and args.out):
        raise OptionError("--resume continues a training; give --train and the --out DIR that it was begun with.")
    if args.overwrite and args.out is None:
        raise OptionError("--overwrite is about the directory of the report; give --out DIR with it.")
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "report", "The report")
    if args.train and find_spec("trl") is None:
        raise MissingExtraError("trl", "train", "Training")


def _directory(args: argparse.Namespace) -> Path:
    """Where to write; by default a directory that is not there yet."""
    if args.out is None:
        name = "demo-train" if args.train else "demo"
        tries = (Path("runs") / (name if count == 1 else f"{name}-{count}") for count in range(1, sys.maxsize))
        return next(path for path in tries if not path.exists())
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise OptionError(f"--out {out} is a file; give a directory.")
    if out.is_dir() and any(out.iterdir()) and not (args.resume or args.overwrite):
        raise OutputExistsError(out, resume=args.train)
    return out


def _trained(args: argparse.Namespace, model: HFModel, scorer: Scorer, out: Path) -> str | None:
    """The directory of the guide; None where a signal ended its training, once it is said how to go on."""
    from trimtab.cli.train.interruption import resume_command
    from trimtab.training.run.interruption import Interrupted

    try:
        return _train(args, model, scorer, out)
    except Interrupted as stop:
        given = args.given if args.out is not None else [*args.given, "--out", str(out)]
        say(f"{stop}. Go on with:\n{resume_command(given)}")
        return None


def _train(args: argparse.Namespace, model: HFModel, scorer: Scorer, out: Path) -> str:
    """The whole road to a guide; returns its directory."""
    from trimtab.decoding.decoder import Decoder
    from trimtab.evaluation.prompt_sets import training_prompts
    from trimtab.training.arm.train import train_arm
    from trimtab.training.pairs import synthetic
    from trimtab.training.pairs.data import read_pairs
    from trimtab.training.run.card import few_prompts

    prompts = training_prompts()
    path = out / "samples.jsonl"
    if args.overwrite:
        path.unlink(missing_ok=True)
    # Far from the seeds that the measurement draws from.
    settings, labels = synthetic.SamplingSettings(seed=args.seed + 1000), synthetic.LabelSettings()
    with _Bar(f"[1/3] {settings.num_answers} answers of the base to {len(prompts)} prompts", len(prompts)) as bar:
        decoder = Decoder(model, max_rows=args.batch_size)
        samples = synthetic.sample_into(path, decoder, prompts, settings, on_prompt=bar.advance)
    parts = {"pairs.jsonl": samples[:-NUM_HELD_OUT_PROMPTS], "held_out.jsonl": samples[-NUM_HELD_OUT_PROMPTS:]}
    data = {}
    for name, part in parts.items():
        synthetic.write_pairs(out / name, synthetic.label_pairs(part, scorer, labels))
        data[name] = read_pairs([out / name])
    num_pairs = len(data["pairs.jsonl"].pairs)
    with _Bar(f"[2/3] training the guide on {num_pairs} pairs", None) as bar:
        result = train_arm(
            args.model,
            data["pairs.jsonl"],
            eval_pairs=data["held_out.jsonl"],
            out=out / "guide",
            settings=_arm_settings(args.seed, model.max_length or 192),
            resume=args.resume,
            overwrite=args.overwrite,
            progress=lambda progress: bar.at(progress.step, progress.num_steps),
        )
    say(
        f"accuracy on {result.num_eval_pairs} held-out pairs: {result.eval_accuracy:.3f} "
        f"[{result.eval_accuracy_low:.3f}, {result.eval_accuracy_high:.3f}]. {few_prompts(result.metrics)}".rstrip()
    )
    return str(result.out)


def _arm_settings(seed: int, context: int) -> ArmSettings:
    """GenARM's settings, but for smaller batches and a lower rate: there are a few hundred short pairs."""
    from trimtab.training.arm.train import ArmSettings

    length = min(192, context)
    return ArmSettings(
        learning_rate=4e-4,
        batch_size=8,
        gradient_accumulation=1,
        epochs=1,
        max_length=length,
        max_prompt_length=length // 2,
        save_dtype="bfloat16",
        save_steps=20,
        seed=seed,
    )


def _measure(args: argparse.Namespace, model: HFModel, guide: str, scorer: Scorer) -> Study:
    """The base alone, then every strength, over the same prompts and seeds."""
    from trimtab.decoding.decoder import Decoder
    from trimtab.evaluation.prompt_sets import demo_prompts
    from trimtab.evaluation.report.frontier import Sweep
    from trimtab.evaluation.report.frontier_report import Study
    from trimtab.storage.loading import load_guide

    prompts = demo_prompts()[: args.prompts]
    sweep = Sweep(prompts, scorer, max_new_tokens=args.max_new_tokens, seed=args.seed)
    base = Decoder(model, max_rows=args.batch_size)
    forms = _forms(guide)
    guides = {form: load_guide(guide, beside=model, form=form or None) for form in forms}
    guided = Decoder(model, guides, max_rows=args.batch_size)
    wanted = [(form, weight) for form in forms for weight in sorted(args.strengths) if form != PRODUCT or weight > 0]
    for decoder in (base, guided):  # the first passes pay for memory that later ones find
        list(decoder.generate(prompts[:2], max_new_tokens=2, seed=0))
    step = "[3/3] " if args.train else ""
    with _Bar(f"{step}{len(prompts)} answers of the base, then at {_listed(wanted)}", None) as bar:
        bar.at(0, len(prompts) * (1 + len(wanted)))
        reference = sweep.measure(base, {}, 0.0, bar.advance)
        off = dict.fromkeys(forms, 0.0)
        points = [
            sweep.measure(guided, {**off, form: weight}, weight, bar.advance, form=form) for form, weight in wanted
        ]
    return Study(
        title=_title(args, guide),
        points=points,
        reference=reference,
        reward_name=f"{scorer.name} reward",
        notes=_notes(args, model, guide, sweep),
    )


def _title(args: argparse.Namespace, guide: str) -> str:
    if args.model == "demo" and args.scorer == "sentiment" and (args.train or guide == SHIPPED_GUIDE):
        return "A frozen SmolLM2-135M-Instruct, steered towards positive sentiment"
    return f"{args.model}, frozen, steered by {guide}"


def _notes(args: argparse.Namespace, model: HFModel, guide: str, sweep: Sweep) -> dict[str, str]:
    """What a reader must know to judge the figures."""
    from trimtab.evaluation import throughput

    own = args.train or (guide == SHIPPED_GUIDE and args.scorer == "sentiment")
    machine, versions = throughput.machine(model.device), throughput.versions()
    unseen = ", none of which the guide was trained on" if own else ""
    return {
        "Model": f"{'SmolLM2-135M-Instruct' if args.model == 'demo' else args.model}, not trained",
        "Guide": _guide_note(guide),
        "Prompts": f"{args.prompts} of our own{unseen}",
        **sweep.notes(),
        "Judge": _OWN_JUDGE if own else "what the guide was trained on, its own card says",
        "Speed": f"{args.batch_size} answers at once, prompts and traces included; {machine['processor']}, "
        f"{machine['num_threads']} threads",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Made": f"{date.today().isoformat()} by: trimtab {shlex.join(sys.argv[1:])}",
    }


_OWN_JUDGE = (
    "The same scorer labelled the pairs that the guide was trained on. The rise shows that the guide does what it was "
    "taught, on prompts it has not seen; whether readers would agree is another question."
)


def _guide_note(guide: str) -> str:
    from importlib.resources import files

    from trimtab.storage.cards import read_card

    name = guide.removeprefix("builtin:")
    directory = Path(guide) if name == guide else Path(str(files("trimtab"))) / "shipped" / name
    card: dict[str, Any] = dict(read_card(directory).written)
    if not card:
        return guide
    text = f"{guide}, an autoregressive reward model ({card['form']})"
    metrics, data = card.get("metrics", {}), card.get("data", {})
    if data.get("num_pairs"):
        text += f", trained on {data['num_pairs']} preference pairs"
    if metrics.get("eval_accuracy") is not None:
        text += (
            f"; it prefers the better answer of {metrics['num_eval_pairs']} held-out pairs in "
            f"{metrics['eval_accuracy']:.0%} of cases (95 % interval {metrics['eval_accuracy_low']:.0%} to "
            f"{metrics['eval_accuracy_high']:.0%})"
        )
    return text


def _summary(study: Study, report: Path) -> dict[str, Any]:
    keys = ("form", "weight", "reward", "reward_low", "reward_high", "kl", "tokens_per_s")
    rows = [study.row(point) for point in study.points]
    return {
        "strengths": [{key: row[key] for key in keys} for row in rows],
        "base_tokens_per_s": study.reference.tokens_per_s,
        "report": str(report),
    }


def _show(study: Study) -> None:
    """The table and the samples, on standard output."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from trimtab.evaluation.report.page import prompt_text

    console = Console()
    table = Table(box=None, pad_edge=False, title=None)
    for heading in ("strength", "reward (95 % interval)", "KL, nats an answer", "tokens/s", "ratio to base"):
        table.add_column(heading, justify="right")
    for row in map(study.row, study.points):
        table.add_row(
            f"{row['form']} {row['weight']:g}".strip(),
            f"{row['reward']:.3f} [{row['reward_low']:.3f}, {row['reward_high']:.3f}]",
            f"{row['kl']:.1f}",
            f"{row['tokens_per_s']:.0f}",
            f"{row['ratio_to_base']:.2f}",
        )
    console.print(table)
    shown = _three(study.points)
    for index in study.samples:
        console.print(f"\n{prompt_text(shown[0].answers[index].prompt)}", style="bold", markup=False, highlight=False)
        beside = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
        for point in shown:
            name = f"{point.form or 'strength'} {point.weight:g}"
            beside.add_column(f"{name}, reward {point.rewards[index]:.2f}", ratio=1)
        beside.add_row(*(Text(" ".join(point.answers[index].text.split())) for point in shown))
        console.print(beside)


def _three(points: Sequence[Point]) -> list[Point]:
    """The weakest, the middle one and the strongest of the first form: what fits side by side in a terminal."""
    points = [point for point in points if point.form == points[0].form]
    return [points[index] for index in sorted({0, len(points) // 2, len(points) - 1})]


def _forms(guide: str) -> list[str]:
    """The forms in which a guide is measured: both of a reward model, the one of a tuned policy, else none ("")."""
    from trimtab.storage.cards import GUIDE_KINDS, read_card

    forms = GUIDE_KINDS[read_card(guide_directory(guide, None)).kind].forms
    return [form for form in (SHIFT, PRODUCT) if form in forms] or [""]


def _listed(wanted: Sequence[tuple[str, float]]) -> str:
    """`shift -1, 0, 1; product 1`."""
    forms = dict.fromkeys(form for form, _ in wanted)
    return "; ".join(
        f"{form or 'strength'} {', '.join(f'{weight:g}' for own, weight in wanted if own == form)}" for form in forms
    )


class _Bar:
    """Progress on standard error: a bar where that is a terminal, else a line for each tenth."""

    def __init__(self, label: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._label, self._done, self._total = label, 0, total
        self._lines = not sys.stderr.isatty()
        self._bar = Progress(*columns, console=Console(stderr=True), disable=self._lines)
        self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> _Bar:
        self._bar.start()
        if self._lines:
            say(self._label)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One more."""
        self.at(self._done + 1, self._total)

    def at(self, done: int, total: int | None) -> None:
        """So many of so many."""
        before, self._done, self._total = self._done, done, total
        self._bar.update(self._task, completed=done, total=total)
        if self._lines and total and done * 10 // total > before * 10 // total:
            say(f"  {done} of {total}")
