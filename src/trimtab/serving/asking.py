"""What a request of the wire means: prompts, sampling parameters, and which guides run at which weights."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trimtab.constraint import Constraint
from trimtab.core import Chat, KnownModel, Prompt, SamplingParams
from trimtab.errors import OptionError, PromptError, UnknownModelError, about, naming, unknown_name
from trimtab.fields import MAX_SEED
from trimtab.guides.brought import bringing
from trimtab.guides.prompt import PromptGuide
from trimtab.params import FORCED_DRAFT, MOST_DRAFTED, NO_DRAFT
from trimtab.prompts import encode_prompt, options_of
from trimtab.serving.field_names import LENGTH
from trimtab.serving.forms import constraint_of
from trimtab.serving.guidance_schema import Guidance, Sentences
from trimtab.serving.limits import Limits
from trimtab.serving.problems import MalformedError
from trimtab.serving.schema import Asked, ChatRequest, CompletionRequest
from trimtab.serving.tools import TOOLS, Calling, calling_of, messages_of
from trimtab.serving.wordings import cut

_MOST_CHARACTERS = 64
"""The most characters of a token, as prompts go: a longer text is refused before it is made tokens of, which takes
seconds."""


_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_PROMPTS = "guidance.prompts"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a server offers: the base, its guides at their own weights, and presets of weights."""

    model: KnownModel
    name: str
    guides: Mapping[str, float]
    """Guide -> its weight in a request that does not say (0: off)."""
    presets: Mapping[str, Mapping[str, float]]
    """Model name -> weights."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is told where a request does not say otherwise."""
    places: Sequence[str] = ()
    """Guides that hold the sentences of a request (`guides.brought`); none: requests may bring none."""

    def weights(
        self, name: str, asked: Mapping[str, float], limits: Limits, brought: Collection[str] = ()
    ) -> dict[str, float]:
        """The weight of every guide: the model name's, with what the request says over it.

        `brought` are the guides that the request brings itself, at 1 where it does not say. Raises UnknownModelError
        for an unknown name, MalformedError for an unknown guide, OptionError for a weight out of range.
        """
        if name != self.name and name not in self.presets:
            listed = ", ".join([self.name, *self.presets])
            raise about(
                "model", UnknownModelError(f"The model {cut(name)!r} does not exist. This server has: {listed}.")
            )
        for guide, weight in asked.items():
            if guide not in self.guides and guide not in brought:
                raise _unknown_guide(guide, [*self.guides, *brought], _weight(guide))
            if not math.isfinite(weight) or abs(weight) > limits.max_weight:
                refusal = f"The weight of guide {guide} is {weight}; give at most {limits.max_weight:g} either way."
                raise about(_weight(guide), OptionError(refusal))
        start = self.guides if name == self.name else {**dict.fromkeys(self.guides, 0.0), **self.presets[name]}
        weights = {**start, **dict.fromkeys(brought, 1.0), **asked}
        running = [guide for guide, weight in weights.items() if weight]
        if len(running) > limits.max_guides:
            refusal = f"{len(running)} guides would run; at most {limits.max_guides} may in one request."
            raise about("guidance.weights", OptionError(f"{refusal} Give the others the weight 0."))
        return weights


def _unknown_guide(guide: str, known: Sequence[str], place: str) -> MalformedError:
    """The error for a guide that is none of the server's or the request's, in the words of the request."""
    return MalformedError(str(unknown_name("guide", cut(guide), known)), place)


def _weight(guide: str) -> str:
    return f"guidance.weights.{cut(guide)}"


ANSWER, NOTHING, SCORES = "answer", "nothing", "scores"
"""What is to be made: an answer; one without a token; what the policy says of the prompt's own tokens."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One answer to make, or what to say of a prompt."""

    prompt: Prompt
    params: SamplingParams
    guides: tuple[str, ...]
    num_prompt_tokens: int
    place: int
    """Which of the request's prompts it answers."""
    brought: Mapping[str, str] = field(default_factory=dict)
    """Places of sentences -> what the request calls them."""
    kind: str = ANSWER
    first_id: int = 0
    """The prompt's first token."""
    calling: Calling | None = None
    """How the answer calls tools; None: it calls none."""

    @property
    def weights(self) -> dict[str, float]:
        """The weights as the request knows the guides."""
        return {self.brought.get(name, name): weight for name, weight in self.params.weights.items()}


def wanted_chat(body: ChatRequest, catalogue: Catalogue, limits: Limits) -> list[Wanted]:
    """The answers that a chat asks for. Raises InputError."""
    prompt = _chat(body, catalogue)
    if (body.top_logprobs or 0) > 0 and not body.logprobs:
        raise about("top_logprobs", OptionError("top_logprobs is part of logprobs; send logprobs: true with it."))
    num_new = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    num_rivals = (body.top_logprobs or 0) if body.logprobs else None
    calling = calling_of(body, prompt, catalogue.model)
    constraint = None if calling is None else calling.constraint
    wanted = _wanted(body, [prompt], num_new, num_rivals, catalogue, limits, constraint)
    return [replace(one, calling=calling) if one.kind == ANSWER else one for one in wanted]


def _chat(body: ChatRequest, catalogue: Catalogue) -> Chat:
    """The messages with what the chat template reads of each, and what it is told."""
    template_options = {**catalogue.template_options, **(body.chat_template_kwargs or {})}
    if tools := body.callable:
        if TOOLS in template_options:
            raise MalformedError(f"{TOOLS} stand in chat_template_kwargs too; give them once.", "chat_template_kwargs")
        template_options[TOOLS] = [tool.told for tool in tools]
    return Chat(messages_of(body, catalogue.model), template_options, opened=body.opened)


def wanted_completion(body: CompletionRequest, catalogue: Catalogue, limits: Limits) -> list[Wanted]:
    """The answers that a completion asks for, `n` to each prompt in turn. Raises InputError."""
    return _wanted(body, body.prompts, body.max_tokens, body.logprobs, catalogue, limits)


def _wanted(
    body: Asked,
    prompts: Sequence[Prompt],
    num_new: int | None,
    num_rivals: int | None,
    catalogue: Catalogue,
    limits: Limits,
    constraint: Constraint | None = None,
) -> list[Wanted]:
    guidance = body.guidance or Guidance()
    sentences = _sentences(guidance.prompts, catalogue, limits)
    weights = catalogue.weights(body.model, guidance.weights, limits, guidance.prompts)
    names = dict(zip(catalogue.places, guidance.prompts, strict=False))
    weights |= {place: weights.pop(name) for place, name in names.items()}
    guidance = _placed(guidance, catalogue, names)
    _check(body, len(prompts), num_new, num_rivals, limits)
    each = body.n or 1
    if constraint is None:
        constraint = constraint_of(body, catalogue.model)
    guides = tuple(name for name, weight in weights.items() if weight)
    wanted: list[Wanted] = []
    scored: list[Wanted] = []
    for place, prompt in enumerate(prompts):
        ids = _prompt_ids(prompt, catalogue.model, limits)
        for _ in range(each):
            length = num_new or limits.default_new_tokens
            params = _params(body, guidance, weights, length, num_rivals, len(wanted), constraint)
            kind = NOTHING if num_new == 0 else ANSWER
            wanted.append(Wanted(bringing(prompt, sentences), params, guides, len(ids), place, names, kind, ids[0]))
        if body.scored_by is not None and len(ids) > 1:
            params = _scoring(ids, guidance, weights, max(num_rivals or 0, body.prompt_logprobs or 0))
            scored.append(Wanted(bringing(ids[:1], sentences), params, guides, len(ids), place, names, SCORES))
    return [*wanted, *scored]


def _placed(guidance: Guidance, catalogue: Catalogue, names: Mapping[str, str]) -> Guidance:
    """Masks and gates by the places of the sentences that they are for. Raises MalformedError for an unknown guide."""
    place_of = {name: place for place, name in names.items()}
    placed = {}
    for field_name in ("guide_plausibility", "gates"):
        asked = getattr(guidance, field_name)
        for guide in asked:
            if guide not in catalogue.guides and guide not in place_of:
                known = [*catalogue.guides, *place_of]
                raise _unknown_guide(guide, known, f"guidance.{field_name}.{cut(guide)}")
        placed[field_name] = {place_of.get(guide, guide): value for guide, value in asked.items()}
    return guidance.model_copy(update=placed)


def _scoring(ids: Sequence[int], guidance: Guidance, weights: Mapping[str, float], num_rivals: int) -> SamplingParams:
    """How a prompt's own tokens are scored: as an answer to the first of them that is forced, at temperature 1."""
    return SamplingParams(
        weights=dict(weights),
        max_new_tokens=len(ids) - 1,
        temperature=1.0,
        plausibility=guidance.plausibility,
        guide_plausibility=guidance.guide_plausibility,
        gates=guidance.gates,
        ignore_eos=True,
        seed=0,
        trace=True,
        num_alternatives=num_rivals,
        forced=tuple(ids[1:]),
        draft=FORCED_DRAFT,
        draft_tokens=MOST_DRAFTED,
    )


def _sentences(prompts: Mapping[str, Sentences], catalogue: Catalogue, limits: Limits) -> dict[str, PromptGuide]:
    """Place -> the sentences that a request brings for it. Raises OptionError for those that are not taken."""
    if prompts and not catalogue.places:
        refusal = (
            "guidance.prompts brings sentences, and this server takes none from requests (whoever runs it may allow "
            f"them: --allow-prompt-guides). Guides that it has: {', '.join(catalogue.guides) or 'none'}."
        )
        raise about(_PROMPTS, OptionError(refusal))
    if len(prompts) > len(catalogue.places):
        refusal = f"guidance.prompts brings {len(prompts)} guides; this server takes at most {len(catalogue.places)}."
        raise about(_PROMPTS, OptionError(refusal))
    for name, said in prompts.items():
        if name in catalogue.guides or not _NAME.fullmatch(name):
            refusal = (
                f"guidance.prompts has the name {cut(name)!r}; give one of letters, digits, '.', '_' and '-' that no "
                f"guide of this server has ({', '.join(catalogue.guides) or 'it has none'})."
            )
            raise MalformedError(refusal, f"{_PROMPTS}.{cut(name)}")
        for sentence in (said.towards, said.away or ""):
            _check_sentence(name, sentence, catalogue.model, limits)
    guides = (_guide(name, said) for name, said in prompts.items())
    return dict(zip(catalogue.places, guides, strict=False))


def _guide(name: str, said: Sentences) -> PromptGuide:
    try:
        return PromptGuide(said.towards, said.away, place=said.place)
    except OptionError as error:
        raise about(f"{_PROMPTS}.{name}", error) from None


def _check_sentence(name: str, sentence: str, model: KnownModel, limits: Limits) -> None:
    most, tokenizer = limits.max_sentence_tokens, model.tokenizer
    if tokenizer is None or len(sentence) > most * _MOST_CHARACTERS:
        refusal = f"A sentence of {name} has {len(sentence)} characters; this server takes at most {most} tokens."
        raise about(f"{_PROMPTS}.{name}", OptionError(refusal))
    if (num_tokens := len(tokenizer.encode(sentence))) > most:
        refusal = f"A sentence of {name} has {num_tokens} tokens; this server takes at most {most}."
        raise about(f"{_PROMPTS}.{name}", OptionError(refusal))


def _check(body: Asked, num_prompts: int, num_new: int | None, num_rivals: int | None, limits: Limits) -> None:
    num_answers = num_prompts * (body.n or 1)
    rivals = "top_logprobs" if isinstance(body, ChatRequest) else "logprobs"
    for field_name, what, value, limit in (
        ("n", "prompts times n", num_answers, limits.max_n),
        (LENGTH, f"{{{LENGTH}}}", num_new or 0, limits.max_new_tokens),
        (rivals, rivals, num_rivals or 0, limits.max_top_logprobs),
        ("prompt_logprobs", "prompt_logprobs", body.prompt_logprobs or 0, limits.max_top_logprobs),
        ("stop", "the number of stop strings", len(body.stops), limits.max_stop),
        ("seed", "the seed of the last answer, seed + n − 1,", (body.seed or 0) + num_answers - 1, MAX_SEED),
    ):
        if value > limit:
            error = naming(OptionError, f"{what} is {{0}}; this server takes at most {{1}}.", value, limit)
            raise about(field_name, error)
    if not num_prompts:
        raise PromptError("There is no prompt. Give at least one.")


def _prompt_ids(prompt: Prompt, model: KnownModel, limits: Limits) -> list[int]:
    """The tokens of a prompt. Raises PromptError for one that cannot be read or is too long."""
    num_characters = len(prompt) if isinstance(prompt, str) else sum(_size(item) for item in prompt)
    if (tools := options_of(prompt).get(TOOLS)) is not None:
        num_characters += len(json.dumps(tools, ensure_ascii=False))
    if num_characters > limits.max_prompt_tokens * _MOST_CHARACTERS:
        raise PromptError(
            f"The prompt has {num_characters} characters; this server takes at most {limits.max_prompt_tokens} tokens."
        )
    ids = encode_prompt(model, prompt)
    if len(ids) > limits.max_prompt_tokens:
        raise PromptError(f"The prompt has {len(ids)} tokens; this server takes at most {limits.max_prompt_tokens}.")
    return ids


def _size(item: int | Mapping[str, Any]) -> int:
    """Characters of a message, with what it calls; 1 of a token id."""
    if isinstance(item, int):
        return 1
    return len(item["content"]) + (
        len(json.dumps(calls, ensure_ascii=False)) if (calls := item.get("tool_calls")) else 0
    )


def _params(
    body: Asked,
    guidance: Guidance,
    weights: Mapping[str, float],
    num_new: int,
    num_rivals: int | None,
    number: int,
    constraint: Constraint | None,
) -> SamplingParams:
    """How answer `number` of a request is decoded: seeds go up by one from answer to answer."""
    if guidance.draft_tokens is not None and guidance.draft == NO_DRAFT:
        raise naming(
            OptionError,
            "{draft_tokens} is {0}, and there are no drafts. Give {draft} too.",
            guidance.draft_tokens,
        )
    explained = guidance.alternatives if guidance.explain else 0
    return SamplingParams(
        weights=dict(weights),
        max_new_tokens=num_new,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p or 0.0,
        plausibility=guidance.plausibility,
        guide_plausibility=guidance.guide_plausibility,
        gates=guidance.gates,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=body.logit_bias or {},
        min_tokens=body.min_tokens or 0,
        stop=body.stops,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos or False,
        seed=secrets.randbits(31) if body.seed is None else body.seed + number,
        trace=guidance.explain or num_rivals is not None,
        num_alternatives=max(explained, num_rivals or 0),
        draft=guidance.draft,
        draft_tokens=guidance.draft_tokens,
        constraint=constraint,
    )
