"""Scorers: from prompts and texts to one reward each.

`sentiment` is VADER (Hutto and Gilbert, ICWSM 2014): a lexicon with rules for negation, emphasis and punctuation. It
knows words, not meaning: it can be pleased by empty praise, and it reads English only.

`offence` is alt-profanity-check: the probability that a text is offensive, from a linear classifier on a bag of words.
HIGHER IS WORSE, so it is used with a negative multiplier. It knows words, not meaning either: it finds abuse in rude
words and misses it in polite ones, and a question about a rude word is rude to it.

A directory or a hub id is a reward model (`models/reward.py`), and `module:function` or `FILE.py:function` one of your
own.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trimtab.core import Prompt
from trimtab.errors import (
    CheckpointError,
    CompatibilityError,
    MissingExtraError,
    ModelError,
    OptionError,
    unknown_name,
)

if TYPE_CHECKING:
    import torch

    from trimtab.models.reward import RewardModel

log = logging.getLogger(__name__)

ScoreFunction = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_WAY_OUT = (
    "Give module:function, with the module in the working directory (in a recipe: beside the recipe) or installed, or "
    "FILE.py:function."
)
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")


@dataclass(frozen=True, slots=True)
class Scorer:
    """A score function with what a report says about it."""

    name: str
    description: str
    function: ScoreFunction

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """One finite reward for each text. Raises ModelError where the function gives others."""
        rewards = self.raw(prompts, texts)
        for index, reward in enumerate(rewards):
            if not math.isfinite(reward):
                raise ModelError(f"Scorer {self.name} gave {reward} for text {index}; rewards are finite numbers.")
        return rewards

    def raw(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """One reward for each text, NaN and infinities as they come, for callers that leave such texts out and count.

        Raises ModelError where the function gives more or fewer rewards than there are texts.
        """
        rewards = [float(reward) for reward in self.function(prompts, texts)]
        if len(rewards) != len(texts):
            raise ModelError(
                f"Scorer {self.name} gave {len(rewards)} rewards for {len(texts)} texts; it must give one each."
            )
        return rewards


def load_scorer(name: str) -> Scorer:
    """A scorer by name, a reward model by its directory or hub id, or a function of your own.

    `module:function` is looked for in the working directory, as `python -m` does, then where Python finds modules;
    `FILE.py:function` names the file. The function takes the prompts and the texts and returns one number for each; its
    module is imported, so it runs whatever it holds. What lies beside the file can be imported by it; nobody else finds
    it there, since `sys.path` is as before once it is imported, and changed again only while it is called. A name that
    is in `SCORERS` is never a directory: give `./sentiment` for one. Raises OptionError, CheckpointError for a
    directory that is no reward model, or MissingExtraError where a package is not installed.
    """
    if name in SCORERS:
        return SCORERS[name]()
    if Path(name).is_dir() or _HUB_ID.fullmatch(name):
        return _reward_model(name)
    if ":" in name:
        return _own_scorer(name)
    raise unknown_name("scorer", name, [*SCORERS, *_FORMS])


def load_reward_model(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
) -> RewardModel:
    """A trajectory reward model from a directory or a hub id: what `trimtab train reward` wrote, in either form, or
    any sequence-classification model of one label that transformers loads.

    An adapter's base is loaded too and must be the one it was trained on. `max_length` is what the model was trained
    with where it says so. Warns of one that ranked its held-out pairs worse than a coin. Raises CheckpointError for a
    directory that is none, BaseMismatchError or VocabularyMismatchError for another base.
    """
    from trimtab.directories import read_guide_card, resolve_model

    directory = resolve_model(name)
    card = read_guide_card(directory)
    kind = card.get("kind", "reward")
    if kind != "reward":
        raise CheckpointError(
            f"{name} holds a guide of kind {kind!r}, which has no score head. Accepted: what `trimtab train reward` "
            "wrote, and sequence-classification models of one label."
        )
    recorded = card.get("reward", {})
    limit = max_length or recorded.get("max_length")
    if (directory / "adapter_config.json").exists():
        model = _adapter_reward(str(name), directory, card, dtype, device, limit, trust_remote_code)
    else:
        from trimtab.models.reward import load_reward_model as load_whole

        model = load_whole(
            directory,
            name=str(name),
            dtype=dtype,
            device=device,
            max_length=limit,
            trust_remote_code=trust_remote_code,
        )
    _check_template(str(name), model, recorded)
    if card.get("metrics", {}).get("eval_accuracy_high", 1.0) < 0.5:
        log.warning("%s ranked its own held-out pairs worse than a coin: the sign may be turned", name)
    return model


def _adapter_reward(
    name: str,
    directory: Path,
    card: Mapping[str, Any],
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    max_length: int | None,
    trust_remote_code: bool,
) -> RewardModel:
    import torch

    from trimtab.loading import load_model
    from trimtab.models.reward import RewardModel
    from trimtab.models.reward_adapter import merged_reward_module

    base_name = card.get("base", {}).get("name")
    if not base_name:
        raise CheckpointError(
            f"{name} holds an adapter and no guide.json that names its base, so it cannot be scored with. Merge it "
            "into its base with peft, which trained it, and give the directory of the result."
        )
    # Merged in float32 on the CPU, whatever it runs in: a sum of roundings is no reward.
    base = load_model(base_name, dtype="float32", device="cpu", trust_remote_code=trust_remote_code)
    module = merged_reward_module(base, directory, card)
    assert base.tokenizer is not None
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype == "auto":
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return RewardModel(module.to(device, wanted), base.tokenizer.hf, name=name, max_length=max_length)


def _check_template(name: str, model: RewardModel, recorded: Mapping[str, Any]) -> None:
    """Raise CompatibilityError where prompts would be written otherwise than in training."""
    if "template" in recorded and recorded["template"] != model.template:
        raise CompatibilityError(
            f"{name} was trained with another chat template than its tokenizer has now, so it would read other text "
            "than it learnt from. Put the tokenizer's files of the base it was trained on back, or train it again."
        )


def _sentiment() -> Scorer:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise MissingExtraError("vaderSentiment", "demo", "The sentiment scorer") from error
    analyzer = SentimentIntensityAnalyzer()

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [analyzer.polarity_scores(text)["compound"] for text in texts]

    return Scorer("sentiment", "VADER's compound sentiment of the answer, from −1 to 1", score)


def _offence() -> Scorer:
    try:
        from profanity_check import predict_prob
    except ImportError as error:
        raise MissingExtraError("alt-profanity-check", "scorers", "The offence scorer") from error

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [float(share) for share in predict_prob(list(texts))] if texts else []

    about = "alt-profanity-check's probability that the answer is offensive, from 0 to 1, higher is worse"
    return Scorer("offence", about, score)


def _reward_model(name: str) -> Scorer:
    from trimtab.directories import resolve_model

    try:
        resolve_model(name)
    except CheckpointError as error:
        if Path(name).is_dir():
            raise
        raise OptionError(
            f"There is no scorer {name!r}: it is no directory here, and the hub did not give it ({error.__cause__}). "
            f"Accepted: {', '.join([*SCORERS, *_FORMS])}."
        ) from error
    model = load_reward_model(name)
    return Scorer(name, f"the reward model {name} ({type(model.module).__name__})", model.rewards)


def module_file(module: str, directory: Path) -> Path | None:
    """The file of a module in a directory: `a.b` is a/b.py or a/b/__init__.py; None where there is neither."""
    if not _MODULE.fullmatch(module):
        return None
    path = directory.joinpath(*module.split("."))
    found = next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
    return None if found is None else found.resolve()


def is_function_name(name: str) -> bool:
    """Whether a scorer's name is `module:function` or `FILE.py:function`, one of somebody's own."""
    target, colon, function = name.rpartition(":")
    return bool(colon) and function.isidentifier() and (target.endswith(".py") or bool(_MODULE.fullmatch(target)))


def _own_scorer(name: str) -> Scorer:
    target, _, function_name = name.rpartition(":")
    if target.endswith(".py"):
        file: Path | None = Path(target).expanduser()
        if not Path(target).expanduser().is_file():
            raise OptionError(f"Scorer {name!r}: there is no file {target}. Give FILE.py:function, or module:function.")
    elif _MODULE.fullmatch(target):
        file = module_file(target, Path.cwd())
    else:
        raise OptionError(f"Scorer {name!r}: {target!r} cannot be imported, as it is not a module's name. {_WAY_OUT}")
    root, module_name = (None, target) if file is None else _root_and_name(file.resolve())
    module = _imported(name, module_name, file, root)
    function = getattr(module, function_name, None)
    if not callable(function):
        where = getattr(module, "__file__", None) or module_name
        raise OptionError(f"Scorer {name!r}: {where} has no function {function_name!r}. {_WAY_OUT}")
    described = (getattr(function, "__doc__", None) or name).strip().splitlines()[0]
    return Scorer(name, described, function if root is None else _beside(root, function))


def _root_and_name(file: Path) -> tuple[Path, str]:
    """The directory where Python would find a file, and the module's name there, the packages above it included."""
    parts = [] if file.name == "__init__.py" else [file.stem]
    root = file.parent
    while (root / "__init__.py").is_file():
        parts.append(root.name)
        root = root.parent
    return root, ".".join(reversed(parts))


def _imported(name: str, module_name: str, file: Path | None, root: Path | None) -> ModuleType:
    """A scorer's module: the one in `file`, or the one that Python finds. Raises OptionError with the file and why."""
    importlib.invalidate_caches()
    if file is not None and root is not None:
        top = module_name.partition(".")[0]
        other = _another(top, root)
        if other is not None:
            raise OptionError(
                f"Scorer {name!r}: {file} cannot be used under its name, because Python has another module "
                f"{top!r} ({other}), and whoever imports one would get the other. Rename the file."
            )
    try:
        if root is None:
            return importlib.import_module(module_name)
        with _on_path(root):
            return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        where = f"{module_name!r}" if file is None else str(file)
        reason = f"{type(error).__name__}: {error}{_line_of(error, file)}"
        raise OptionError(f"Scorer {name!r}: {where} cannot be imported ({reason}). {_WAY_OUT}") from error


def _another(top: str, root: Path) -> str | None:
    """Where Python has a module of this name that is not the one below `root`; None where it has no other."""
    loaded = sys.modules.get(top)
    try:
        spec = importlib.util.find_spec(top) if loaded is None else loaded.__spec__
    except (ImportError, ValueError):
        spec = None
    origin = getattr(loaded, "__file__", None) or (spec.origin if spec is not None else None)
    if origin is None:  # nothing, or a directory without __init__.py, which gives way to any module
        return None
    return None if Path(origin).resolve() in {root / f"{top}.py", root / top / "__init__.py"} else origin


def _line_of(error: BaseException, file: Path | None) -> str:
    """`, line N` of the file, where the error came from there."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    return f", line {lines[-1]}" if lines else ""


@contextmanager
def _on_path(root: Path) -> Iterator[None]:
    """A directory in front of where Python looks for modules, for as long as this lasts."""
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        with suppress(ValueError):  # the module may have taken it out itself
            sys.path.remove(str(root))


def _beside(root: Path, function: ScoreFunction) -> ScoreFunction:
    """A function that finds what lies beside it, also what it imports no sooner than it is called."""

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> Sequence[float]:
        with _on_path(root):
            return function(prompts, texts)

    return score


SCORERS: dict[str, Callable[[], Scorer]] = {"sentiment": _sentiment, "offence": _offence}
"""Name -> what builds it."""

_FORMS = ("module:function", "FILE.py:function", "the directory of a reward model", "the hub id of one (owner/name)")
"""What else `load_scorer` takes."""
