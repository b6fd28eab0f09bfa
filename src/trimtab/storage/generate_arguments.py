"""The arguments of transformers' `generate` as a request of ours: each is honoured, without effect here, or refused by
its name.

transformers fills what is not given from a generation config, the model's own where none is given; so that counts too.
Filters and penalties follow `SamplingParams`: a filter that nobody names is off; transformers would take top-k
50.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import OptionError, renamed
from trimtab.params import SamplingParams

HONOURED = (
    *("inputs", "input_ids", "attention_mask", "tokenizer", "generation_config", "max_new_tokens", "max_length"),
    *("min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "num_return_sequences", "stop_strings"),
    *("eos_token_id", "pad_token_id", "weights", "guides", "seed"),
)
"""`weights` (guide -> weight, or one such for each prompt), `guides` (name -> a guide's directory or hub id) and `seed`
(prompt i draws from seed + i) are trimtab's own."""
WITHOUT_EFFECT = frozenset(
    {
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile"),
        *("low_memory", "bos_token_id", "decoder_start_token_id", "is_assistant", "transformers_version"),
        *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        *("max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind"),
        *("assistant_ensemble_weight", "early_stopping", "renormalize_logits", "prefill_chunk_size"),
    }
)
"""What changes no answer of trimtab's: how transformers computes, beams and assistants that are refused themselves."""
_OFF: Mapping[str, object] = {
    **dict.fromkeys(("num_beams", "num_beam_groups"), 1),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty", "typical_p"), 1.0),
    **dict.fromkeys(("guidance_scale", "top_h"), 1.0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), 0),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "diversity_penalty"), 0.0),
}
"""Arguments whose value for "off" is a number."""
_FILTERS = ("temperature", "top_k", "top_p", "min_p")
_CALLED = {"min_tokens": "min_new_tokens", "stop": "stop_strings"}
"""A field of `SamplingParams` -> what transformers calls it, where that is another name."""
_DEFAULT_LENGTH = 20
"""Tokens of a prompt and its answer, where transformers is told nothing."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call of `generate` comes to."""

    ids: Tensor
    """[B, L] prompts as they were given, padded on the left."""
    prompts: Sequence[Sequence[int]]
    """The same without padding, each `num_return_sequences` times."""
    weights: Sequence[Mapping[str, float]]
    """One for each of `prompts`."""
    params: SamplingParams
    seed: int
    guides: Mapping[str, str]
    tokenizer: Any
    repeats: int
    pad_id: int | None
    end_ids: frozenset[int] | None
    """What somebody says ends an answer; None: nobody does."""


def read_arguments(arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> Asked:
    """Read what `generate` was given; `defaults` is the model's generation config.

    Raises OptionError for an argument that is not honoured, by its name, or a value that means nothing.
    """
    config = arguments.get("generation_config")
    filled = defaults if config is None else dict(config if isinstance(config, Mapping) else vars(config))
    given = {name: value for name, value in arguments.items() if value is not None}
    values = {**{name: value for name, value in filled.items() if value is not None}, **given}
    _refuse_others(values)
    _refuse_in_vain(given, samples=bool(values.get("do_sample")))
    if "max_length" in given:
        values.pop("max_new_tokens", None)  # the config's
    ids, mask = _prompt_ids(values)
    rows = _unpadded(ids, mask, values.get("pad_token_id"))
    repeats = _whole(values, "num_return_sequences", 1)
    return Asked(
        ids=ids,
        prompts=[row for row in rows for _ in range(repeats)],
        weights=[one for one in _weights(values.get("weights"), len(rows)) for _ in range(repeats)],
        params=_params(values, length=ids.shape[1]),
        # From torch's own numbers, so that transformers' set_seed holds here too.
        seed=int(torch.randint(2**31, ())) if "seed" not in values else _whole(values, "seed", 0, least=0),
        guides=_guides(values.get("guides", {})),
        tokenizer=values.get("tokenizer"),
        repeats=repeats,
        pad_id=values.get("pad_token_id"),
        end_ids=_end_ids(values.get("eos_token_id")),
    )


def _refuse_others(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name in HONOURED or name in WITHOUT_EFFECT or name.startswith("_") or _is_off(name, value):
            continue
        if name == "token_type_ids" and not bool(torch.as_tensor(value).any()):
            continue
        off = f" (its value for off is {_OFF[name]})" if name in _OFF else ""
        raise OptionError(
            f"{name} is {value!s:.60}, which guided decoding does not do; leave it out{off}, also of the generation "
            f"config. Accepted: {', '.join(HONOURED)}."
        )


def _refuse_in_vain(given: Mapping[str, Any], *, samples: bool) -> None:
    """Raise OptionError for what a call asks for and what another of its arguments makes void."""
    if "max_new_tokens" in given and "max_length" in given:
        raise OptionError("Both max_new_tokens and max_length say how long an answer may be. Give one of them.")
    for name in _FILTERS:
        if name in given and not samples and (name, given[name]) != ("temperature", 0):
            raise OptionError(
                f"{name} is {given[name]!s:.60}, and without do_sample nothing is drawn. Give do_sample=True, or leave "
                "it out."
            )


def _is_off(name: str, value: Any) -> bool:
    if name in _OFF:
        return bool(value == _OFF[name])
    return value is False or (isinstance(value, Sequence | Mapping) and not value)


def _prompt_ids(values: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    ids = values.get("inputs", values.get("input_ids"))
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not ids.shape[1] or ids.is_floating_point():
        raise OptionError("The prompts are no tensor of token ids [B, L]. Give input_ids, as the tokenizer makes them.")
    mask = values.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
        raise OptionError(f"attention_mask is none of the prompts' shape {tuple(ids.shape)}; give the tokenizer's own.")
    return ids, mask


def _unpadded(ids: Tensor, mask: Tensor | None, pad: int | None) -> list[list[int]]:
    rows: list[list[int]] = ids.tolist()
    if mask is None:
        if pad is not None and len({row[0] == pad for row in rows}) > 1:
            raise OptionError("This batch looks left-padded, and padding cannot be told from ids. Give attention_mask.")
        return rows
    kept: list[list[int]] = mask.bool().int().tolist()
    for keep in kept:
        if keep != sorted(keep) or not keep[-1]:
            raise OptionError(
                "A prompt is padded on its right, where its answer goes, or holds nothing. Pad on the left: "
                'padding_side="left".'
            )
    return [
        [token for token, real in zip(row, keep, strict=True) if real] for row, keep in zip(rows, kept, strict=True)
    ]


def _weights(given: Any, num_prompts: int) -> list[Mapping[str, float]]:
    if given is None or isinstance(given, Mapping):
        return [given or {}] * num_prompts
    weights = list(given) if isinstance(given, Sequence) else [given]
    if not all(isinstance(one, Mapping) for one in weights):
        raise OptionError(f"weights is {given!r:.60}; give {{NAME: NUMBER}}, or one such for each prompt.")
    if len(weights) != num_prompts:
        raise OptionError(
            f"There are weights for {len(weights)} prompts and {num_prompts} prompts; give one for all, or for each."
        )
    return weights


def _params(values: Mapping[str, Any], *, length: int) -> SamplingParams:
    """What is drawn from; without `do_sample` the most probable token, whatever filters a config names."""
    filters = {name: values[name] for name in _FILTERS if name in values}
    stop = values.get("stop_strings", ())
    try:
        return SamplingParams(
            max_new_tokens=_max_new_tokens(values, length),
            min_tokens=_whole(values, "min_new_tokens", 0, least=0),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            **(filters if values.get("do_sample") else {"temperature": 0}),
        )
    except OptionError as error:
        raise OptionError(renamed(error, lambda name: _CALLED.get(name, name)) or str(error)) from None


def _max_new_tokens(values: Mapping[str, Any], length: int) -> int:
    if "max_new_tokens" in values:
        return _whole(values, "max_new_tokens", 0)
    most = _whole(values, "max_length", _DEFAULT_LENGTH)
    if most <= length:
        raise OptionError(
            f"A prompt has {length} tokens, and prompt and answer may have {most} (max_length). Give max_new_tokens."
        )
    return most - length


def _whole(values: Mapping[str, Any], name: str, default: int, *, least: int = 1) -> int:
    value = values.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name} is {value!r:.60}; give a whole number of at least {least}.")
    return value


def _end_ids(given: Any) -> frozenset[int] | None:
    if given is None:
        return None
    ids = given.flatten().tolist() if isinstance(given, Tensor) else [given] if isinstance(given, int) else given
    if not isinstance(ids, Sequence) or not all(isinstance(one, int) for one in ids):
        raise OptionError(f"eos_token_id is {given!r:.60}; give a token id, or several in a list.")
    return frozenset(ids)


def _guides(given: Any) -> Mapping[str, str]:
    if not isinstance(given, Mapping) or not all(isinstance(one, str) for pair in given.items() for one in pair):
        raise OptionError("guides is no mapping from names to directories, hub ids or sentences; give {NAME: DIR}.")
    return given
