"""transformers' `generate`, steered: what a directory that `trimtab export transformers` wrote calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.answers import finished
from trimtab.core import Guide
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError, unknown_name
from trimtab.models.hf import HFModel
from trimtab.storage.files import files_of
from trimtab.storage.generate_arguments import Asked, read_arguments
from trimtab.storage.loading import load_guide

_KEPT = "_trimtab_steered"
"""The attribute of a network that holds what was made for it: it goes when the network does."""


def generate_with_guides(model: Any, guides: Mapping[str, str], arguments: Mapping[str, Any]) -> Tensor:
    """Answer prompts with a steered model of transformers, as its own `generate` would be called.

    `model` is a causal language model of transformers, `guides` maps names to what `load_guide` takes, and `arguments`
    holds all that `generate` was given (`HONOURED` in `storage.generate_arguments`). Returns ids [B · n, L + T]: each
    prompt as it was given, n = `num_return_sequences` times, and its answer behind it, padded on the right. Draws are
    those of `Decoder`: row i of them from `seed` + i.

    Raises OptionError for an argument that is not honoured, BaseMismatchError or VocabularyMismatchError for a guide
    that does not belong to the model, before a token is decoded.
    """
    config = getattr(model, "generation_config", None)
    asked = read_arguments(arguments, {} if config is None else vars(config))
    wanted = {**guides, **asked.guides}
    for name in {name for weights in asked.weights for name in weights}:
        if name not in wanted:
            raise unknown_name("guide", name, wanted)
    if asked.tokenizer is None:
        raise OptionError("Give tokenizer=..., the model's: vocabularies are compared before a guide steers.")
    if model.training:
        raise OptionError("The model is in training mode, where layers drop states at random. Call model.eval() first.")
    steered, loaded = _loaded(model, asked.tokenizer, wanted)
    if asked.end_ids is not None and not asked.end_ids <= set(steered.eos_ids):
        raise OptionError(
            f"eos_token_id is {sorted(asked.end_ids)}, and an answer here ends with {sorted(steered.eos_ids)}. "
            "Leave it out, or give stop_strings."
        )
    return _answered(Decoder(steered, loaded, max_rows=len(asked.prompts)), asked)


def _loaded(model: Any, tokenizer: Any, wanted: Mapping[str, str]) -> tuple[HFModel, dict[str, Guide]]:
    """The model as trimtab drives it, and its guides; what was made before for the same ones is used again."""
    parameter = next(model.parameters())
    key = (id(tokenizer), parameter.device, parameter.dtype)
    kept = vars(model).get(_KEPT)
    if kept is None or kept[0] != key:
        kept = (key, HFModel(model, tokenizer), {})
        vars(model)[_KEPT] = kept
    _, steered, guides = kept
    found: dict[str, Guide] = {}
    for name, path in wanted.items():
        files = _files(path)
        if guides.get(path, (None,))[0] != files:
            guides[path] = (files, load_guide(path, beside=steered))
        found[name] = guides[path][1]
    return steered, found


def _files(path: str) -> list[tuple[str, int, int]]:
    """What tells the files of a guide from others, as far as no file has to be read: a name is not a content."""
    found = [(file.name, file.stat()) for file in files_of(Path(path))] if Path(path).is_dir() else []
    return [(name, about.st_size, about.st_mtime_ns) for name, about in found]


def _answered(decoder: Decoder, asked: Asked) -> Tensor:
    params = asked.params
    answers = decoder.generate(
        [list(prompt) for prompt in asked.prompts],
        weights=list(asked.weights),
        max_new_tokens=params.max_new_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        min_tokens=params.min_tokens,
        stop=params.stop,
        seed=asked.seed,
    )
    rows: list[Sequence[int]] = [answer.token_ids for answer in finished(answers)]
    pad = asked.pad_id if asked.pad_id is not None else next(iter(sorted(decoder.model.eos_ids)), 0)
    width, longest = asked.ids.shape[1], max(map(len, rows))
    ids = torch.full((len(rows), width + longest), pad, dtype=asked.ids.dtype, device=asked.ids.device)
    ids[:, :width] = asked.ids.repeat_interleave(asked.repeats, dim=0)
    for row, answer in zip(ids, rows, strict=True):
        row[width : width + len(answer)] = torch.tensor(answer, dtype=ids.dtype)
    return ids
