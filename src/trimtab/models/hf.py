"""Any causal language model that transformers loads, as a `LanguageModel`.

What it does not do: it never copies a model's code. It calls the stock decoder with a cache whose rows have their own
length (`rows.RowCache`), explicit positions and an explicit mask, then the stock output head. A probe at construction
compares this road with the model's own forward pass and refuses an architecture for which the two differ.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from trimtab.calls import CallFormat
from trimtab.core import Message, ModelSession, TokenIds
from trimtab.errors import CheckpointError
from trimtab.models.adapters.row_lora import routed
from trimtab.models.forward.grouping import RowAdapter
from trimtab.models.gguf_text import write_tokenizer
from trimtab.models.half_precision import warn_where_slower
from trimtab.models.networks.backbone import Backbone
from trimtab.models.networks.heads import Head
from trimtab.models.networks.kinds import refusing
from trimtab.models.networks.probing import Numbers, probe
from trimtab.models.quantize.network import quantize as quantized
from trimtab.models.quantize.network import refuse_place
from trimtab.models.tokenizing.calls import CallTemplate
from trimtab.models.tokenizing.conversations import Conversations
from trimtab.models.tokenizing.decoders import Decoding
from trimtab.models.tokenizing.spelling import Spelling, shown
from trimtab.models.tokenizing.templates import reads_key
from trimtab.models.trained_on import ModelFacts

log = logging.getLogger(__name__)

_DEEPEST = 50.0
"""Nats below which log-probabilities are not told apart by the probe."""

_MOST_FORMATS = 16
"""Formats of calls that are kept, one for each way of telling the chat template its options."""


class HFTokenizer:
    """A transformers tokenizer as a `Tokenizer`. `hf` is the tokenizer itself."""

    def __init__(self, hf: Any) -> None:
        self.hf = hf
        self._call_formats: dict[str, CallFormat] = {}

    @cached_property
    def tokens(self) -> Mapping[str, int]:
        """Every token and its id, added ones included."""
        return dict(self.hf.get_vocab())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all (id, token) pairs: the vocabulary by content."""
        digest = hashlib.sha256()
        for token, token_id in sorted(self.tokens.items(), key=lambda item: item[1]):
            digest.update(f"{token_id}\t{token}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    @property
    def has_chat_template(self) -> bool:
        return bool(self.hf.chat_template)

    @cached_property
    def conversations(self) -> Conversations:
        """Prompts and answers as ids, for decoding and for training alike."""
        return Conversations(self.hf)

    def encode(self, text: str) -> list[int]:
        return self.conversations.text_ids(text)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Messages to ids. An assistant's message at the end is continued; else a fresh answer is opened."""
        return self.conversations.chat_ids(messages)

    def reads_key(self, key: str) -> bool:
        """Whether the chat template may read this key of a message."""
        return reads_key(self.hf, key)

    def call_format(self, options: Mapping[str, Any], end_ids: frozenset[int]) -> CallFormat:
        """See `prompts.WritesCalls`."""
        key = json.dumps([dict(options), sorted(end_ids)], sort_keys=True, default=repr)
        found = self._call_formats.get(key)
        if found is None:
            added = self.hf.added_tokens_decoder
            silent = {token.content: token_id for token_id, token in added.items() if not self.token_bytes(token_id)}
            ends = [self.hf.decode([token_id], skip_special_tokens=False) for token_id in end_ids]
            found = CallTemplate(self.hf, options, silent=silent, end_texts=ends).written()
            if len(self._call_formats) >= _MOST_FORMATS:
                self._call_formats.clear()
            self._call_formats[key] = found
        return found

    def decode(self, token_ids: TokenIds) -> str:
        """Ids to text, special tokens left out; no space is cleaned up, whatever the tokenizer's settings say."""
        return self._decoding.decode(token_ids)

    def spelling(self, prompt_ids: TokenIds) -> Spelling:
        """See `spelling.Spells`."""
        return self._decoding.spelling(prompt_ids)

    def token_bytes(self, token_id: int) -> bytes:
        """See `spelling.Spells`."""
        return self._decoding.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        r"""A token as in the middle of a text; a special one by its name, part of a character as `bytes:\xf0`."""
        added = self.token_bytes(token_id)
        if added:
            return shown(added)
        text: str = self.hf.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def _decoding(self) -> Decoding:
        return Decoding(self.hf)


class HFModel(Backbone):
    """A frozen transformers causal language model.

    `module` is the transformers model, whose weights are never written to; `tokenizer` may be left out for a model of
    bare token ids. Raises CompatibilityError for an architecture that cannot be driven row by row.
    """

    def __init__(self, module: Any, tokenizer: Any | None = None, *, name: str = "") -> None:
        super().__init__(module)
        self.tokenizer = HFTokenizer(tokenizer) if tokenizer is not None else None
        self.name = name or str(module.config.name_or_path)
        with refusing(module):
            self._head = Head(module, self._decoder)
            self.vocab_size = self._head.vocab_size
        self.eos_ids = end_ids(getattr(module, "generation_config", None), module.config, tokenizer)
        self._nameless = self._nameless_ids()
        probe(self, Numbers(self._own_logprobs, lambda states: _probed(self._head.logits(states)).to(self.device)))

    def open(self, beside: ModelSession | None = None) -> ModelSession:
        return self.open_rows(beside, None)

    @torch.inference_mode()
    def head(self, hidden: Tensor, adapters: Sequence[tuple[RowAdapter, list[int]]] = ()) -> Tensor:
        """[N, D] states -> [N, V] float32 log-probabilities. Raises NotFiniteError for NaN.

        `adapters`: which of the states run with which adapter.
        """
        with routed(adapters, (len(hidden), 1)):
            logits = self._head.logits(hidden).to(self.device).float()
        if self._nameless is not None:
            logits[:, self._nameless] = -torch.inf
        return torch.log_softmax(logits, dim=-1)

    @property
    def nameless(self) -> Tensor | None:
        """Ids that are never sampled, whatever their logits: those without a token, and those that cannot be fed."""
        return self._nameless

    def describe(self) -> ModelFacts:
        """What tells this base from another: its name, and `Backbone.describe`."""
        return {"name": self.name, **super().describe()}

    def _nameless_ids(self) -> Tensor | None:
        """Ids of the logits that no token has (padding), or that the model could not be fed: never to be sampled."""
        named = torch.zeros(self.vocab_size, dtype=torch.bool)
        if self.tokenizer is None:
            named[:] = True
        else:
            named[[token_id for token_id in self.tokenizer.tokens.values() if token_id < self.vocab_size]] = True
        named[self.num_embeddings :] = False
        return None if bool(named.all()) else (~named).nonzero().flatten().to(self.device)

    def _own_logprobs(self, token_ids: Tensor) -> Tensor:
        """[B, T] ids -> [B, T, V], by the model's own forward pass."""
        output = self.module(input_ids=token_ids, attention_mask=torch.ones_like(token_ids), use_cache=False)
        return _probed(output.logits)


def load_pretrained(
    directory: Path,
    *,
    name: str,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    device_map: str | Mapping[str, Any] | None,
    quantize: str | None,
    quantization_config: Any | None,
    attn_implementation: str | None,
    trust_remote_code: bool,
) -> HFModel:
    """An HFModel from a local directory (see `loading.load_model`). Safetensors only."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() and quantize is None else "cpu"
    if quantize is not None:
        refuse_place(quantize, dtype, device, device_map=device_map, quantization_config=quantization_config)
    if dtype == "auto" and torch.device(device).type == "cpu" and quantization_config is None:
        dtype = torch.float32
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code, "use_safetensors": True}
    if device_map is not None:
        options["device_map"] = device_map
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        if attn_implementation is None and getattr(config.get_text_config(), "attn_logit_softcapping", None):
            options["attn_implementation"] = "eager"  # the only stock attention that knows soft caps
        module, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            directory, config=config, output_loading_info=True, **options
        )
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises a dozen kinds for a bad directory
        raise CheckpointError(f"{directory} does not load as a causal language model: {error}") from error
    missing = sorted(set(loaded["missing_keys"]))
    if missing:
        raise CheckpointError(
            f"{directory} lacks {len(missing)} weights (first: {missing[0]}), which would be random. "
            "Give a complete checkpoint."
        )
    if device_map is None and quantization_config is None:
        module.to(device)
    if quantize is not None:
        quantized(module, quantize)
    if quantization_config is None:
        warn_where_slower(module, name)
    return HFModel(module, tokenizer, name=name)


def convert_gguf(path: Path, directory: Path) -> None:
    """Write a GGUF file as float32 safetensors with config and tokenizer."""
    write_tokenizer(path, directory)  # first: a file whose text cannot be read is refused before its weights are
    module = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
        gguf_file=path.name,
    )
    module.save_pretrained(directory)


def _probed(logits: Tensor) -> Tensor:
    """Log-probabilities as a probe compares them: those of tokens that are never drawn would drown all others."""
    return torch.log_softmax(logits.float(), dim=-1).clamp(min=-_DEEPEST)


def end_ids(generation_config: Any | None, config: Any, tokenizer: Any | None) -> frozenset[int]:
    """The end-of-sequence ids of a model: its generation config's, where that speaks for itself.

    Where it says nothing, or only repeats the config that it was made of, every id that the config or the tokenizer
    names.
    """
    said, configured, known = (_ids_of(owner) for owner in (generation_config, config, tokenizer))
    repeats = bool(getattr(generation_config, "_from_model_config", False)) and said <= configured
    return said if said and not repeats else said | configured | known


def _ids_of(owner: Any | None) -> frozenset[int]:
    value = getattr(owner, "eos_token_id", None)
    if value is None:
        return frozenset()
    return frozenset([int(value)] if isinstance(value, int) else map(int, value))
