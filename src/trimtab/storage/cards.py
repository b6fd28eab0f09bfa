"""The card of a guide, `guide.json`: what the guide is, what it runs on and what is known of its training.

A card keeps all that was written, also what this version does not know, so that writing it again loses nothing. The
table of the kinds of guides stands here: loading, packing for vLLM, commands and messages ask it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from trimtab.documents import read_json
from trimtab.errors import CheckpointError, OptionError, unknown_name
from trimtab.mixing.forms import FORMS, PRODUCT, SHIFT
from trimtab.models.trained_on import TrainedOn
from trimtab.storage.calibrated import CALIBRATION, Calibration
from trimtab.storage.card_values import Section
from trimtab.storage.files import write_text
from trimtab.storage.recorded import FILES, RecordedFile, read_record, record

GUIDE_FILE = "guide.json"
GUIDE_FORMAT = 1
ADAPTER_FILE = "adapter_config.json"
HEAD_KEYS = ("rank", "hidden_size", "vocab_size")
SENTENCE_KEYS = ("towards", "away", "place", "separator")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideKind:
    """What holds of every guide of one kind."""

    what: str
    forms: tuple[str, ...] = ()
    """The forms that a guide which is a language model may have, first the one of a card that names none."""
    adapter: bool = False
    """It is an adapter of a base, though not in peft's format."""
    has_weights: bool = True
    """Its directory holds weights."""
    not_in_vllm: str = ""
    """Why vLLM does not run it and what to do, after "Guide NAME"; empty where it runs there."""


GUIDE_KINDS: Mapping[str, GuideKind] = {
    "agent": GuideKind(what="an accept-reject agent"),
    "arm": GuideKind(what="a language model that scores by its log-probabilities", forms=(PRODUCT, SHIFT)),
    "head": GuideKind(
        what="a low-rank head on the model's final state",
        not_in_vllm="adds to the logits what it maps the model's final state to, and inside vLLM guides are rows that "
        "are mixed from logits: no state is handed to them. Accepted in vLLM: {accepted}. Use the built-in engine, or "
        "llama.cpp.",
    ),
    "parm": GuideKind(
        what="a preference-aware language model",
        forms=(PRODUCT, SHIFT),
        adapter=True,
        not_in_vllm="is made for every preference vector; vLLM runs one. Save it at a vector first "
        "(docs/serving/vllm.md says how) and pack that, or use the built-in engine (--preference).",
    ),
    "policy": GuideKind(what="a tuned policy", forms=(SHIFT,)),
    "prompt": GuideKind(
        what="a sentence that the steered model reads",
        has_weights=False,
        not_in_vllm="is made of a sentence: rows of the base that read another prompt than the request's; inside vLLM "
        "every guide reads the request's own. Accepted in vLLM: {accepted}. Use the built-in engine, or write the "
        "sentence into the system message (which is its weight 1).",
    ),
    "reward": GuideKind(
        what="a trajectory reward model",
        not_in_vllm="is a trajectory reward model, which scores candidates one by one or after roll-outs; vLLM has no "
        "place for that. Accepted in vLLM: {accepted}. Use the built-in engine.",
    ),
}
"""The one table of the kinds of guides, by the name that a card gives."""

FORMED_KINDS = tuple(name for name, kind in GUIDE_KINDS.items() if kind.forms)
"""Kinds of guides that are language models, and so have a form."""
KINDS_IN_VLLM = tuple(name for name, kind in GUIDE_KINDS.items() if not kind.not_in_vllm)


@dataclass(frozen=True, slots=True)
class GuideCard:
    """What a guide's directory says of the guide. What is not known is None or empty."""

    kind: str
    """A key of `GUIDE_KINDS`: what the card says, else what the files look like."""
    guessed: bool = False
    """No card names the kind."""
    guide_form: str | None = None
    """The form that the card names, `product` or `shift`."""
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    objectives: tuple[str, ...] = ()
    """The names of what a preference-aware guide weighs."""
    scale: float | None = None
    """The scale of its bilinear adapter."""
    selection: Mapping[str, object] = field(default_factory=dict)
    """An agent's rule, threshold and candidates."""
    head: Mapping[str, int] = field(default_factory=dict)
    """Shape of a head (`models.adapters.low_rank_head`): `rank`, `hidden_size`, `vocab_size`."""
    sentences: Mapping[str, str] = field(default_factory=dict)
    """What a guide made of sentences is made of (`guides.sentences.Sentences`): `towards`, `away`,
    `place`, `separator`."""
    weight: float | None = None
    """The strength that the guide is kept with: the calibrated one, else that of a guide made of sentences."""
    calibration: Calibration | None = None
    """What was measured of its strength; it decides `weight`, and the form where none is asked for."""
    max_length: int | None = None
    """Tokens of a prompt and an answer together that a reward model was trained with."""
    eval_accuracy_high: float | None = None
    """Upper end of the interval of its accuracy on held-out pairs."""
    files: Mapping[str, RecordedFile] = field(default_factory=dict)
    """The files that the card was written for; empty in older ones."""
    written: Mapping[str, object] = field(default_factory=dict)
    """All of the card; empty where there is none."""

    @property
    def base_name(self) -> str | None:
        """The name of the model that the guide was trained on."""
        return self.trained_on.base.get("name") or None

    def form(self, asked: str | None = None) -> str:
        """The form of a guide that is a language model: the one that is asked for, else the card's.

        Raises CheckpointError for a card with another form than there is, OptionError where one is asked for that does
        not exist, or of a guide that has none.
        """
        calibrated = None if self.calibration is None else self.calibration.form
        return form_of(self.kind, calibrated or self.guide_form, asked=asked)

    def weight_as(self, form: str | None = None, *, rule: str | None = None) -> float | None:
        """The strength that the guide is kept with, where it is run in this form or under this rule; None: not known.

        A strength that was calibrated in one form says nothing of another, nor does an agent's threshold of another
        rule. `form` and `rule` are what is asked for; None: nothing.
        """
        if rule is not None or (form is not None and self.calibration is not None and form != self.form()):
            return None
        return self.weight

    def strength_alone(
        self, asked: float | None, *, form: str | None = None, rule: str | None = None, otherwise: float = 1.0
    ) -> float:
        """The strength in a request that does not say, where somebody loads the guide to run it: what is `asked` for
        then, else what the guide is kept with for this form or rule, else `otherwise`."""
        kept = self.weight_as(form, rule=rule) if asked is None else asked
        return otherwise if kept is None else kept

    def strength_served(
        self, asked: float | None, *, form: str | None = None, rule: str | None = None, otherwise: float = 0.0
    ) -> float:
        """The same where guides wait until they are asked for, on a server: only a measured strength turns one on."""
        if asked is None and self.calibration is None:
            return otherwise
        return self.strength_alone(asked, form=form, rule=rule, otherwise=otherwise)

    def with_form(self, form: str) -> GuideCard:
        """The same card with this form written into it, and its kind; a calibration in another form is left out."""
        card = self
        if self.calibration is not None and self.calibration.form != form:
            card = self.with_calibration(None)
        head = {"format": GUIDE_FORMAT, "kind": self.kind}
        written = {**head, **card.written, "guide_form": form}
        return replace(card, guide_form=form, guessed=False, written=written)

    def with_calibration(self, calibration: Calibration | None) -> GuideCard:
        """The same card with this calibration in it, in the place of an earlier one; None: without any."""
        head = {} if self.written else {"format": GUIDE_FORMAT, "kind": self.kind}
        written = {**head, **{key: value for key, value in self.written.items() if key != CALIBRATION}}
        if calibration is not None:
            written[CALIBRATION] = calibration.as_json()
        place = Path(GUIDE_FILE)
        return replace(GuideCard.of_mapping(written, place, kind=self.kind), guessed=self.guessed)

    @staticmethod
    def of_mapping(written: Mapping[str, object], path: Path, *, kind: str) -> GuideCard:
        """The card in what was read from `path`; `kind` is that of a card which names none.

        Raises CheckpointError, which names the file, the key and the value, and what is accepted.
        """
        if written.get("format") != GUIDE_FORMAT:
            raise CheckpointError(
                f"{path} is of format {written.get('format')!r}; this version reads format {GUIDE_FORMAT}. "
                "Update trimtab, or train the guide again."
            )
        section = Section(written, path)
        named = section.text("kind") or kind
        if named not in GUIDE_KINDS:
            raise CheckpointError(
                f"{path.parent} holds a guide of kind {named!r}, which this version does not know. "
                f"Known: {', '.join(GUIDE_KINDS)}. Update trimtab."
            )
        base, vocabulary = section.part("base"), section.part("vocabulary")
        parm, reward, metrics = section.part("parm"), section.part("reward"), section.part("metrics")
        prompt, head = section.part("prompt"), section.part("head")
        calibration = Calibration.read(section.part(CALIBRATION), has_form=bool(GUIDE_KINDS[named].forms))
        return GuideCard(
            kind=named,
            guessed="kind" not in written,
            guide_form=_form(written.get("guide_form"), named),
            trained_on=TrainedOn(base.model_facts(), vocabulary.vocabulary_facts()),
            objectives=parm.texts("objectives"),
            scale=parm.number("scale"),
            selection=section.part("selection").values,
            head={key: count for key in HEAD_KEYS if (count := head.count(key)) is not None},
            sentences={key: text for key in SENTENCE_KEYS if (text := prompt.text(key)) is not None},
            weight=prompt.number("weight") if calibration is None else calibration.strength,
            calibration=calibration,
            max_length=reward.count("max_length"),
            eval_accuracy_high=metrics.number("eval_accuracy_high"),
            files=read_record(section.part(FILES)),
            written=dict(written),
        )


def read_card(directory: Path) -> GuideCard:
    """The card of a guide's directory; where there is none, one that knows the kind from the files alone.

    Raises CheckpointError for a card that cannot be read.
    """
    path = directory / GUIDE_FILE
    if not path.exists():
        return GuideCard(_kind_of_files(directory), guessed=True)
    try:
        written = read_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}). Train or download the guide again.") from error
    return GuideCard.of_mapping(written if isinstance(written, Mapping) else {}, path, kind=_kind_of_files(directory))


def write_card(directory: Path, card: GuideCard | Mapping[str, object]) -> None:
    """Write `guide.json` into a directory whose other files are there, and record them; whole or not at all.

    Raises CheckpointError for a card that could not be read again.
    """
    written = dict(card.written if isinstance(card, GuideCard) else card)
    written.pop(FILES, None)
    files = record(directory)
    recorded = {FILES: files} if files else {}
    path = directory / GUIDE_FILE
    change_card(directory, GuideCard.of_mapping({**written, **recorded}, path, kind=_kind_of_files(directory)))


def change_card(directory: Path, card: GuideCard) -> None:
    """Write another card for the same files: what is recorded of them stays, and nothing is where nothing was."""
    write_text(directory / GUIDE_FILE, card_text(card))


def card_text(card: GuideCard) -> str:
    """The text of `guide.json`."""
    return json.dumps(card.written, indent=2, allow_nan=False) + "\n"


def form_of(kind: str, written: str | None, *, asked: str | None = None) -> str:
    """The form of a guide of a kind: the one that is asked for, else the one its card names, else the kind's own.

    Raises CheckpointError and OptionError as `GuideCard.form` does.
    """
    if asked is not None and asked not in FORMS:
        raise unknown_name("form of a guide", asked, FORMS)
    forms = GUIDE_KINDS[kind].forms
    if not forms:
        raise OptionError(
            f"A guide of kind {kind!r} has no form, since it is not a language model; name no form for it. Kinds that "
            f"have one: {', '.join(FORMED_KINDS)}."
        )
    _form(written, kind)
    if asked is not None and asked not in forms:
        raise OptionError(
            f"A tuned policy (kind {kind!r}) is always a {forms[0]}: at weight 1 it is the policy itself. Leave its "
            "form out; to use the same weights as a product, load them without their guide.json."
        )
    return asked or written or forms[0]


def _form(written: object, kind: str) -> str | None:
    """The form that a card names, checked where a guide of its kind has one."""
    forms = GUIDE_KINDS[kind].forms
    if written is None or (isinstance(written, str) and written in forms):
        return written
    if not forms:
        return None
    accepted = f"accepted: {', '.join(forms)}" if len(forms) > 1 else f"{GUIDE_KINDS[kind].what} is a {forms[0]}"
    raise CheckpointError(
        f"The guide's card ({GUIDE_FILE}) has guide_form {written!r}; {accepted}. Mend the card, or update trimtab."
    )


def named_base(directory: Path, card: GuideCard) -> str | None:
    """What the card, or else peft's configuration, calls the model that a guide was trained on."""
    if card.base_name:
        return card.base_name
    try:
        config = read_json((directory / ADAPTER_FILE).read_text(encoding="utf-8"))
        name = config.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    return str(name) if name else None


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter of another model, in peft's format."""
    return (directory / ADAPTER_FILE).exists()


def _kind_of_files(directory: Path) -> str:
    """The kind of a directory without a card: a model of one label is a reward model."""
    try:
        config = read_json((directory / "config.json").read_text(encoding="utf-8"))
        return "reward" if str(config["architectures"][0]).endswith("ForSequenceClassification") else "arm"
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return "arm"
