"""The guided policy as a model of lm-eval, so that what steering costs in capability is one standard command.

    python -m trimtab.evaluation.lm_eval run --model trimtab \
        --model_args model=demo,guide=builtin:sentiment,weight=1.0 --tasks arc_easy

lm-eval finds models in its own registry only, so the command above puts `trimtab` there and then is `lm_eval` itself,
with all of its flags. From Python, give a `GuidedLM` to `lm_eval.simple_evaluate`.

Texts become ids as in lm-eval's own model for transformers (`hf`), so at weight 0 both give the same numbers. A
continuation is scored by decoding it with its tokens forced: log-probabilities are the guided policy's at temperature
1, and a continuation is greedy where each token is the most probable one. A sequence, its last token included, has to
fit into the shortest of the model's and the guides' contexts; `hf` lets the last token stick out, so texts that have to
be cut lose one token more here.

What it cannot do: guides that select a token (MARA's agents, ARGS, Transfer-Q) give no probability of another one, so
they answer (`generate_until`) and are refused where continuations are scored. It runs in one process.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trimtab.core import Guide, SamplingParams
from trimtab.engines import arguments
from trimtab.engines.builtin import BuiltinMaker
from trimtab.engines.maker import FORCED, IN_PROCESS, QUANTIZE, GuideSource
from trimtab.engines.registry import BUILTIN, maker_of
from trimtab.errors import CheckpointError, MissingExtraError, OptionError, PromptError, unknown_name
from trimtab.models.hf import HFModel, HFTokenizer
from trimtab.models.quantize.layers import kind_of
from trimtab.storage.digests import model_contents
from trimtab.storage.gguf_files import TRANSFORMERS
from trimtab.storage.model_source import ModelSource
from trimtab.storage.same_run import check_same

try:
    import lm_eval.models  # noqa: F401  # fills the registry, which stays empty once something else is in it
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    raise MissingExtraError("lm_eval", "lm-eval", "The model for lm-eval") from error

log = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 2048
"""Where neither the model nor a guide says."""
MAX_GEN_TOKS = 256
"""Where a task does not say; lm-eval's own."""

CACHE_KEY = "trimtab"
"""Under this a file of lm-eval's answers says what answered."""

_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens")


@dataclass(slots=True)
class _Decoded:
    """What came of one request."""

    text: str = ""
    logprob: float = 0.0
    greedy: bool = True
    error: Exception | None = field(default=None)


@register_model("trimtab")
class GuidedLM(TemplateLM):  # type: ignore[misc]
    """A language model with guides.

    `model` is a name or an HFModel; `guide` names one, or several with ";" between them, each with its part of `weight`
    (left out: its own), of `form` (`product` or `shift`; left out: what its card says) and of `guide_base` (the model
    that it was trained on where that is not `model`; left out: what its card says). A mapping of names to guides is
    taken as it is. `engine` names what decodes, and `engine_options` holds its options, KEY:VALUE with ";" between.
    Raises OptionError for parts that do not fit the guides, CheckpointError for a model without a tokenizer.
    """

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> GuidedLM:
        """A model out of `--model_args`. Raises OptionError for an argument that there is not."""
        return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> GuidedLM:
        """A model out of a mapping of arguments. Raises OptionError for one that there is not."""
        accepted = inspect.signature(cls).parameters
        for name in arg_dict:
            if name not in accepted:
                raise unknown_name("model argument", name, accepted)
        made: GuidedLM = super().create_from_arg_obj(arg_dict, additional_config)
        return made

    def __init__(
        self,
        model: str | HFModel,
        guide: str | Mapping[str, Guide] = "",
        weight: float | str | None = None,
        *,
        form: str = "",
        guide_base: str = "",
        batch_size: int | str = 16,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        seed: int = 0,
        engine: str = BUILTIN,
        engine_options: str = "",
        dtype: str = "auto",
        quantize: str | None = None,
        device: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        device = _present(device)
        self._content: dict[str, object] = {"model": model_contents(model) if isinstance(model, str) else None}
        kind = maker_of(engine)
        options = arguments.engine_options(engine_options)
        kind.check_options(options)
        if isinstance(model, str):
            if quantize is not None:
                kind.check_features([QUANTIZE], what="quantize")
            source = ModelSource(model, dtype, device, trust_remote_code, revision, quantize, TRANSFORMERS)
            engines = kind.open(source, options)
        else:
            kind.check_features([IN_PROCESS], what="A model that is loaded already")
            engines = BuiltinMaker(model)
        tokenizer = engines.facts.tokenizer
        if not isinstance(tokenizer, HFTokenizer):
            raise CheckpointError(f"{model} has no tokenizer of transformers', so it cannot read text here.")
        self._engines = engines
        self.tokenizer = tokenizer.hf
        self._conversations = tokenizer.conversations
        if isinstance(guide, str):
            guides = self._named_guides(arguments.guide_names(guide), form, guide_base)
        elif form or guide_base:
            raise OptionError("Guides that are loaded already have their form and base; leave both out.")
        else:
            guides = dict(guide)
        self._weights = arguments.weights(weight, list(guides))
        # "auto" asks for what fits; an engine takes what is given to it.
        rows = 16 if str(batch_size).startswith("auto") else int(batch_size)
        self._engine = engines.make(guides, max_rows=min(rows, max_batch_size or rows))
        limits = [self._engine.model.max_length, max_length]
        limits += [getattr(one, "max_length", None) for one in self._engine.guides.values()]
        self.max_length = min((limit for limit in limits if limit is not None), default=DEFAULT_MAX_LENGTH)
        self._seed = int(seed)
        self._num_generated = 0
        self._settings = self._described(form)

    def _named_guides(self, names: Sequence[str], form: str, guide_base: str) -> dict[str, GuideSource | Guide]:
        forms, bases = arguments.parts("form", form, names), arguments.parts("guide_base", guide_base, names)
        self._content["guides"] = {name: model_contents(name) for name in names}
        self._content["guide_bases"] = [None if base is None else model_contents(base) for base in bases]
        return {
            name: GuideSource(name, form=one_form, guide_base=one_base)
            for name, one_form, one_base in zip(names, forms, bases, strict=True)
        }

    def _described(self, form: str) -> dict[str, object]:
        """What answers depend on, for a file of them."""
        guides, contents = self._engine.guides, self._content.get("guides")
        of_guides = contents if isinstance(contents, Mapping) else {}
        model = self._engine.model
        loaded: dict[str, str] = {}
        if isinstance(model, HFModel):
            loaded = {"dtype": str(model.module.dtype), "weights": _sampled_digest(model.module)}
            loaded |= {} if (kind := kind_of(model.module)) is None else {"quantize": kind}
        return {
            "model": {**self._engines.describe(), **loaded, "content": self._content["model"]},
            "guides": {name: {"content": of_guides.get(name)} for name in guides},
            "guide_bases": self._content.get("guide_bases"),
            "form": form,
            "weights": {name: float(self._weights.get(name, guide.weight)) for name, guide in guides.items()},
            "max_length": self.max_length,
            "seed": self._seed,
            **self._engines.settings,
        }

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: BOS, or EOS where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def device(self) -> Any:
        return self._engines.device

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Called by lm-eval where answers are kept (`--use_cache`). It knows them by the question alone.

        So what answered is noted beside them, and a file of another model, guide or weight is refused by name: raises
        OptionError. Guides that were given loaded are known by their names alone.
        """
        kept = cache_hook.dbdict
        if kept is not None:
            problem, way_out = f"The cache {kept.filename} cannot be used", "Give another, or none."
            if CACHE_KEY in kept:
                check_same(json.loads(kept[CACHE_KEY]), self._settings, problem=problem, way_out=way_out)
            elif len(kept):
                raise OptionError(f"{problem}: it does not say which model and guides answered. {way_out}")
            kept[CACHE_KEY] = json.dumps(self._settings)
        super().set_cache_hook(cache_hook)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Text to ids; what the tokenizer puts before a text unless told, never a second BOS, and nothing behind it."""
        if add_special_tokens is None:
            starts = string.startswith(self.tokenizer.decode([self.prefix_token_id]))
            options = {"add_special_tokens": False} if starts else {}
        else:
            options = {"add_special_tokens": add_special_tokens}
        token_ids = [int(token) for token in self.tokenizer.encode(string, **options)]
        end = self._conversations.habits[1] if options.get("add_special_tokens", True) else []
        return token_ids[: -len(end)] if end and token_ids[-len(end) :] == end else token_ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Chat messages as the text that the model's template makes of them."""
        return self._conversations.chat_text(chat_history, opened=add_generation_prompt)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, each in windows of the context's length that do not overlap."""
        windows: list[tuple[int, list[int], list[int]]] = []
        for index, request in enumerate(requests):
            pieces = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            windows += [(index, *utils.make_disjoint_window(window)) for window in pieces]
        scores = self._scored([(context, continuation) for _, context, continuation in windows])
        totals = [0.0] * len(requests)
        for (index, _, _), (logprob, _) in zip(windows, scores, strict=True):
            totals[index] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, each until one of its stop texts, an end-of-sequence token or its number of tokens."""
        wanted = [self._generation(*request.args) for request in requests]
        texts = [decoded.text for decoded in self._decoded(wanted)]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is greedy) of continuations, given as ids; called by `loglikelihood`."""
        scores = self._scored([(context, continuation) for _, context, continuation in requests])
        for (texts, _, _), score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, score)
        return scores

    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """What the guided policy says of each continuation of its context, whose beginning is cut if need be."""
        self._engines.check_features([FORCED], what="A task that scores continuations")
        filled = [index for index, (_, continuation) in enumerate(pairs) if continuation]
        wanted = []
        for index in filled:
            context, continuation = pairs[index]
            room = self.max_length - len(continuation)
            if room < 1:
                raise PromptError(
                    f"A continuation has {len(continuation)} tokens, and the context holds {self.max_length}, one of "
                    "them before it. Use a model with a longer context."
                )
            params = SamplingParams(
                weights=self._weights,
                forced=tuple(continuation),
                max_new_tokens=len(continuation),
                ignore_eos=True,
                temperature=1.0,
                trace=True,
                seed=0,
            )
            wanted.append((context[-room:], params))
        scores = [(0.0, True)] * len(pairs)
        for index, decoded in zip(filled, self._decoded(wanted), strict=True):
            scores[index] = (decoded.logprob, decoded.greedy)
        return scores

    def _generation(self, context: str, options: Mapping[str, Any]) -> tuple[list[int], SamplingParams]:
        """Ids and parameters of one request. Raises OptionError for what we cannot honour."""
        given = normalize_gen_kwargs(dict(options), MAX_GEN_TOKS)
        limit, until = int(given.pop("max_gen_toks")), given.pop("until", None) or []
        given.pop("do_sample", None)
        temperature = float(given.pop("temperature", 0.0))
        filters = {name: given.pop(name) for name in _SAMPLING if name in given}
        if given:
            raise OptionError(
                f"The task asks for {', '.join(sorted(given))}, which trimtab does not know. Accepted: do_sample, "
                f"temperature, until, max_gen_toks, {', '.join(_SAMPLING)}."
            )
        room = self.max_length - limit
        if room < 1:
            raise OptionError(
                f"The task asks for {limit} new tokens, and the context holds {self.max_length}. Give "
                "--gen_kwargs max_gen_toks=N with fewer."
            )
        self._num_generated += 1
        params = SamplingParams(
            weights=self._weights,
            max_new_tokens=limit,
            temperature=temperature,
            stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
            seed=self._seed + self._num_generated - 1,
            **filters,
        )
        return self.tok_encode(context)[-room:], params

    def _decoded(self, wanted: Sequence[tuple[list[int], SamplingParams]]) -> list[_Decoded]:
        """Decode requests in one batch, long prompts first; raises the error of one that fails."""
        results = [_Decoded() for _ in wanted]
        order = sorted(range(len(wanted)), key=lambda index: -len(wanted[index][0]))
        places = {self._engine.add(wanted[index][0], wanted[index][1]): index for index in order}
        while self._engine.num_running or self._engine.num_waiting:
            for step in self._engine.step():
                one = results[places[step.request_id]]
                one.text += step.text
                one.error = step.error or one.error
                if step.trace is not None:
                    one.logprob += step.trace.chosen.mixed_logprob
                    one.greedy = one.greedy and step.trace.chosen.mixed_rank == 0
        for one in results:
            if one.error is not None:
                raise one.error
        return results


def _sampled_digest(module: Any) -> str:
    """SHA-256 of up to 256 numbers of each of a network's weights, spread evenly: tells trained networks apart."""
    digest = hashlib.sha256()
    for name, weight in module.named_parameters():
        flat = weight.detach().flatten()
        part = flat[:: max(1, len(flat) // 256)].float().cpu().numpy()
        digest.update(name.encode() + part.tobytes())
    return digest.hexdigest()


def _present(device: str | None) -> str | None:
    """The device, if it is there: lm-eval asks for a GPU where nobody has said anything."""
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        log.warning("there is no %s here; running where trimtab would by itself", device)
        return None
    return device


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
