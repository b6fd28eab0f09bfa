"""Whether a guide is what its card says, as far as its files tell: no model is loaded and no code of the guide runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trimtab.documents import read_json
from trimtab.errors import CheckpointError, OptionError
from trimtab.storage.card_values import sign_accuracy
from trimtab.storage.cards import GUIDE_FILE, GUIDE_KINDS, GuideCard, named_base, read_card
from trimtab.storage.directories import guide_directory, locate_guide, resolve_model
from trimtab.storage.files import file_digest, files_of
from trimtab.storage.recorded import QUICK, differences
from trimtab.storage.sentences import is_sentence

_PICKLES = ("bin", "pt", "pth", "pkl", "pickle", "ckpt", "joblib")
_CODE = ("py", "pyc", "so", "pyd", "dll", "dylib")
_CONFIGS = ("config.json", "tokenizer_config.json", "adapter_config.json")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    holds: bool | None
    """None where it cannot be told."""
    said: str


@dataclass(frozen=True, slots=True)
class File:
    """A file of a guide that a loader may read."""

    name: str
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Weights:
    """What the safetensors of a guide hold."""

    num_tensors: int = 0
    num_parameters: int = 0
    dtypes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckedGuide:
    """A guide, and what was found."""

    directory: Path
    card: GuideCard
    base: str | None
    files: tuple[File, ...] = ()
    weights: Weights = field(default_factory=Weights)
    findings: tuple[Finding, ...] = ()


def check_files(name: str | Path) -> CheckedGuide:
    """Look at a guide's files: a directory, a hub id, `builtin:NAME` or a sentence.

    Raises OptionError where there is none of that name, CheckpointError where its card cannot be read.
    """
    if not str(name).strip():
        raise OptionError("The guide's name is empty; give a directory, a hub id, builtin:NAME or a sentence.")
    if is_sentence(name):
        located = locate_guide(name)
        return CheckedGuide(located.directory, located.card, None, findings=(_sentence(),))
    # A directory here is looked at whatever is in it: what a loader refuses is a finding.
    directory = Path(name) if Path(name).is_dir() else guide_directory(name, None)
    if directory.is_file():
        raise OptionError(f"{directory} is a file; give a guide's directory, a hub id, builtin:NAME or a sentence.")
    card = read_card(directory)
    files = tuple(
        File(path.relative_to(directory).as_posix(), path.stat().st_size, file_digest(path))
        for path in files_of(directory)
    )
    weights, readable = _weights(directory, card)
    findings = (_safe(directory), readable, _recorded(directory, card, files), *_head(directory, card), *_known(card))
    return CheckedGuide(directory, card, named_base(directory, card), files, weights, findings)


def _sentence() -> Finding:
    return Finding("files", True, "it is made of a sentence, so it has no files and no code")


def _safe(directory: Path) -> Finding:
    """Whether anything in a directory could run code."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    found = [
        f"{path.relative_to(directory)} ({'a pickle' if path.suffix[1:] in _PICKLES else 'code'})"
        for path in paths
        if path.suffix[1:] in (*_PICKLES, *_CODE)
    ]
    found += [f"{name} (it names code, auto_map)" for name in _CONFIGS if _names_code(directory / name)]
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        said = f"it holds what may run code when it is loaded: {', '.join(found[:3])}{more}"
        return Finding("safety", False, f"{said}; guides are safetensors and settings")
    return Finding("safety", True, "safetensors and settings alone: no pickles, no code")


def _names_code(path: Path) -> bool:
    try:
        config = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, Mapping) and bool(config.get("auto_map"))


def _weights(directory: Path, card: GuideCard) -> tuple[Weights, Finding]:
    """What the weights are, and whether all of them can be read and are numbers."""
    paths = sorted(path for path in directory.glob("*.safetensors") if path.is_file())
    if not paths:
        needed = GUIDE_KINDS[card.kind].has_weights
        said = "there are no safetensors in it" if needed else "a guide of this kind has no weights"
        return Weights(), Finding("weights", not needed, said)
    from safetensors import SafetensorError

    num_tensors, num_parameters, dtypes, bad = 0, 0, set(), []
    for path in paths:
        try:
            for tensor, count, dtype, finite in _tensors(path):
                num_tensors, num_parameters = num_tensors + 1, num_parameters + count
                dtypes.add(dtype)
                bad += [] if finite else [tensor]
        except (SafetensorError, OSError) as error:
            return Weights(), Finding("weights", False, f"{path.name} cannot be read ({error})")
    weights = Weights(num_tensors, num_parameters, tuple(sorted(dtypes)))
    if bad:
        return weights, Finding("weights", False, f"{len(bad)} tensors hold NaN or infinity, first {bad[0]}")
    large = [path.name for path in paths if path.stat().st_size > QUICK]
    looked = f"; whether all are numbers was not looked at in {', '.join(large)}" if large else ", all of them numbers"
    return weights, Finding("weights", True, f"{num_tensors} tensors can be read{looked}")


def _tensors(path: Path) -> Iterator[tuple[str, int, str, bool]]:
    """(name, number of values, dtype, whether all are finite) of each tensor; large files are not looked into."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stream:
        for name in stream.keys():  # noqa: SIM118  it is no mapping
            about = stream.get_slice(name)
            count = 1
            for size in about.get_shape():
                count *= size
            finite = path.stat().st_size > QUICK or bool(torch.isfinite(stream.get_tensor(name)).all())
            yield name, count, about.get_dtype(), finite


def _recorded(directory: Path, card: GuideCard, files: tuple[File, ...]) -> Finding:
    """Whether the files are those that the card was written for."""
    if not card.files:
        return Finding("files", None, "the card records no digests, so whether files changed cannot be told")
    others = [f"{one.name} {one.said}" for one in differences(directory, card.files)]
    others += [f"{file.name} is not recorded" for file in files if file.name not in {*card.files, GUIDE_FILE}]
    if others:
        return Finding("files", False, f"not those that the card was written for: {'; '.join(others)}")
    return Finding("files", True, f"all {len(card.files)} have the digests that the card records")


def _head(directory: Path, card: GuideCard) -> Iterator[Finding]:
    """Whether the matrices of a head are of the shape that its card says, and of the model that it was trained on."""
    if card.kind != "head":
        return
    from trimtab.models.adapters.low_rank_head import LowRankHead

    try:
        head = LowRankHead.load(directory, card.trained_on)
    except CheckpointError as error:
        yield Finding("head", False, str(error))
        return
    trained = card.trained_on.base
    of_base = {"hidden_size": trained.get("hidden_size"), "vocab_size": trained.get("vocab_size")}
    for source, said in (("the card says", card.head), ("the model that it was trained on has", of_base)):
        for key, number in said.items():
            if number is not None and number != head.shape[key]:
                yield Finding("head", False, f"its {key} is {head.shape[key]}, and {source} {number}")
                return
    shape = f"rank {head.rank}, from states of {head.hidden_size} numbers to {head.vocab_size} logits"
    yield Finding("head", True, shape)


def _known(card: GuideCard) -> Iterator[Finding]:
    """What the card says of its base and of what was measured."""
    if not card.written:
        yield Finding("card", None, f"there is no {GUIDE_FILE}: kind and form are guessed from the files")
        return
    accuracy = sign_accuracy(metrics_of(card))
    if accuracy is not None and accuracy.low <= 0.5 <= accuracy.high:
        yield Finding("accuracy", None, "its interval holds 0.5, a coin's; it may steer all the same")
    if accuracy is not None and accuracy.high < 0.5:
        yield Finding("accuracy", False, "it is below a coin's: the sign may be turned")
    if GUIDE_KINDS[card.kind].has_weights and not card.trained_on.base:
        yield Finding("base", None, "the card does not say which model it was trained on")


def metrics_of(card: GuideCard) -> Mapping[str, object]:
    """What a card says was measured; empty where that is nothing."""
    metrics = card.written.get("metrics")
    return metrics if isinstance(metrics, Mapping) else {}


def digests_of(model: str | Path) -> dict[str, str]:
    """SHA-256 of the settings and the tokenizer of a model, by file; the weights are known by `describe`."""
    directory = resolve_model(model)
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return {name: file_digest(directory / name) for name in names if (directory / name).is_file()}
