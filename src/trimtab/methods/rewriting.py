"""A second model rewrites the answer of the first: Aligner (Ji et al., NeurIPS 2024, arXiv 2402.02416).

Two stages, each an ordinary request: the base answers, then the aligner reads the question and the answer and writes a
correction. The strength is the weight of the aligner's guide, where it has one; 0 leaves the base's answer as it is.

Where it differs: any model can be the aligner, an instruction model with a template in plain words too; the paper's own
are trained on triples of question, answer and correction. What KL it costs is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from trimtab.answers import Answer
from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.engine import GenerationEngine
from trimtab.errors import OptionError, PromptError
from trimtab.methods.method import UNKNOWN, Strength, answers, derived_seed, number, refuse_constraint
from trimtab.prompts import options_of, with_options

TEMPLATE = (
    "Edit the following question-answer pair to make the answer more helpful and harmless. "
    "Reply with the new answer only.\n\nQuestion: {question}\n\nAnswer: {answer}"
)


class Rewriting:
    """The base's answer, rewritten by another decoder (maybe with guides) through a template."""

    kl_kind = UNKNOWN

    def __init__(
        self, first: GenerationEngine, aligner: GenerationEngine, *, guide: str | None = None, template: str = TEMPLATE
    ) -> None:
        if "{question}" not in template or "{answer}" not in template:
            raise OptionError("The template of a rewriting needs {question} and {answer} in it.")
        self._first = first
        self._aligner = aligner
        self._guide = guide
        self._template = template
        self.num_tokens_read = 0

    def answer(
        self, prompts: Sequence[Prompt], strength: Strength, params: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[Answer]:
        weight = number(strength, what="0 leaves the answer as it is, else the weight of the aligner's guide", low=0)
        refuse_constraint(params, "A rewriting answers twice")
        drafts = list(answers(self._first, prompts, replace(params, weights={}), seeds))
        self.num_tokens_read += sum(len(draft.token_ids) for draft in drafts)
        if weight == 0:
            yield from drafts
            return
        weights = {} if self._guide is None else {self._guide: weight}
        asked = [self._request(draft) for draft in drafts]
        # What the aligner thinks of its tokens is no account of the base's, so there is no trace.
        how = replace(params, weights=weights, trace=False)
        for draft, final in zip(
            drafts, answers(self._aligner, asked, how, [derived_seed(seed, 1) for seed in seeds]), strict=True
        ):
            self.num_tokens_read += len(final.token_ids)
            yield replace(final, prompt=draft.prompt, prompt_ids=draft.prompt_ids, seed=draft.seed)

    def kl(self, answer: Answer, strength: Strength) -> float | None:
        return answer.kl if strength == 0 else None

    def _request(self, draft: Answer) -> Prompt:
        text = self._template.replace("{answer}", draft.text).replace("{question}", _question(draft.prompt))
        tokenizer = self._aligner.model.tokenizer
        if tokenizer is None or not tokenizer.has_chat_template:
            return text
        return with_options([{"role": "user", "content": text}], options_of(draft.prompt), required=False)


def _question(prompt: Prompt) -> str:
    """The words of a prompt, the last message of a chat. Raises PromptError for token ids."""
    if isinstance(prompt, str):
        return prompt
    last = prompt[-1] if prompt else None
    if not isinstance(last, Mapping):
        raise PromptError("A rewriting reads the question as text; give the prompt as text or as chat messages.")
    return str(last.get("content") or "")
