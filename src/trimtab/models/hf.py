"""Any causal language model that transformers loads, as a `LanguageModel`.

What it does not do: it never copies a model's code. It calls the stock decoder with a cache whose rows have their own
length (`rows.RowCache`), explicit positions and an explicit mask, then the stock output head. A probe at construction
compares this road with the model's own forward pass and refuses an architecture for which the two differ.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import torch
import transformers
from torch import Tensor

from trimtab.core import Message, ModelSession, TokenIds
from trimtab.errors import CheckpointError, CompatibilityError, NotFiniteError, PromptError
from trimtab.models.backbone import Backbone
from trimtab.models.decoders import Decoding
from trimtab.spelling import Spelling, shown

log = logging.getLogger(__name__)

_PROBE_TOLERANCE = 5e-2


class HFTokenizer:
    """A transformers tokenizer as a `Tokenizer`. `hf` is the tokenizer itself."""

    def __init__(self, hf: Any) -> None:
        self.hf = hf

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

    def encode(self, text: str) -> list[int]:
        return self._token_ids(text)

    def _token_ids(self, text: str, **how: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PromptError("The prompt holds a lone surrogate, which is half of a character.") from None
        return [int(token_id) for token_id in self.hf(text, **how)["input_ids"]]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Messages to ids. An assistant's message at the end is continued; else a fresh answer is opened."""
        if not self.has_chat_template:
            raise PromptError("This model has no chat template. Give the prompt as raw text or token ids.")
        check_messages(messages)
        unfinished = messages[-1]["role"] == "assistant"
        try:
            text = self.hf.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=not unfinished,
                continue_final_message=unfinished,
            )
        except jinja2.TemplateError as error:
            raise PromptError(f"The model's chat template refuses these messages: {error}.") from None
        return self._with_one_bos(self._token_ids(text, add_special_tokens=False))

    def _with_one_bos(self, token_ids: list[int]) -> list[int]:
        bos = self.hf.bos_token_id
        if bos is None:
            return token_ids
        start = 0
        while token_ids[start : start + 2] == [bos, bos]:
            start += 1
        token_ids = token_ids[start:]
        habit = self.encode("a")[:1] == [bos]
        return [bos, *token_ids] if habit and token_ids[:1] != [bos] else token_ids

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


def check_messages(messages: Sequence[Message]) -> None:
    """Raise PromptError unless these are chat messages with a role and a text."""
    if not messages:
        raise PromptError("The prompt is empty. Give at least one message.")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise PromptError(f"Message {number} is {message!r}; a message is a mapping with `role` and `content`.")
        if not isinstance(message.get("content"), str):
            raise PromptError(f"The content of message {number} is {message.get('content')!r}; give a string.")


class HFModel(Backbone):
    """A frozen transformers causal language model.

    `module` is the transformers model, whose weights are never written to; `tokenizer` may be left out for a model of
    bare token ids. Raises CompatibilityError for an architecture that cannot be driven row by row.
    """

    def __init__(self, module: Any, tokenizer: Any | None = None, *, name: str = "") -> None:
        super().__init__(module)
        self.tokenizer = HFTokenizer(tokenizer) if tokenizer is not None else None
        self.name = name or str(module.config.name_or_path)
        self._output = module.get_output_embeddings()
        self.vocab_size = int(self._output.weight.shape[0])
        self.eos_ids = end_ids(getattr(module, "generation_config", None), module.config, tokenizer)
        self._nameless = self._nameless_ids()
        self._probe()

    def open(self, beside: ModelSession | None = None) -> ModelSession:
        return self.open_rows(beside, None)

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """[N, D] states -> [N, V] float32 log-probabilities. Raises NotFiniteError for NaN."""
        logits = self._logits(hidden).float()
        if self._nameless is not None:
            logits[:, self._nameless] = -torch.inf
        return torch.log_softmax(logits, dim=-1)

    def describe(self) -> dict[str, Any]:
        """What tells this base from another: its name, and `Backbone.describe`."""
        return {"name": self.name, **super().describe()}

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self._output(hidden.to(self._output.weight.device))
        if scale := getattr(self._config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if scaling := getattr(self._config, "logits_scaling", None):  # Granite
            logits = logits / scaling
        if cap := getattr(self._config, "final_logit_softcapping", None):  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        return logits.to(self.device)  # type: ignore[no-any-return]

    def _nameless_ids(self) -> Tensor | None:
        """Ids of the logits that no token has: padding, never to be sampled."""
        if self.tokenizer is None:
            return None
        named = torch.zeros(self.vocab_size, dtype=torch.bool)
        named[[token_id for token_id in self.tokenizer.tokens.values() if token_id < self.vocab_size]] = True
        return None if bool(named.all()) else (~named).nonzero().flatten().to(self.device)

    @torch.inference_mode()
    def _probe(self) -> None:
        """Compare our road (cache, positions, masks, head) with the model's own on a short sequence."""
        ids = torch.arange(1, 7, device=self.device)[None] % self.vocab_size
        output = self.module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        theirs = output.logits[:, -1].float().to(self.device)
        ours = self._logits(self.probe_states(ids)).float()
        gap = float((torch.log_softmax(ours, -1) - torch.log_softmax(theirs, -1)).abs().max())
        if gap != gap:
            raise NotFiniteError(f"{self.name} gives NaN. Its weights are damaged, or need another dtype.")
        precise = self.module.dtype == torch.float32
        if gap > (1e-3 if precise else _PROBE_TOLERANCE * 20):
            raise CompatibilityError(
                f"{type(self.module).__name__} cannot be driven row by row: with a cache its log-probabilities are "
                f"{gap:.2g} nats from its own. Accepted: decoder-only models with standard attention caches."
            )


def load_pretrained(
    directory: Path,
    *,
    name: str,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    device_map: str | Mapping[str, Any] | None,
    quantization_config: Any | None,
    attn_implementation: str | None,
    trust_remote_code: bool,
) -> HFModel:
    """An HFModel from a local directory (see `loading.load_model`). Safetensors only."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
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
    return HFModel(module, tokenizer, name=name)


def convert_gguf(path: Path, directory: Path) -> None:
    """Write a GGUF file as float32 safetensors with config and tokenizer."""
    options = {"gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **options)
    module = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, dtype=torch.float32, quantization_config=transformers.GgufConfig(dequantize=True), **options
    )
    module.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def end_ids(generation_config: Any | None, config: Any, tokenizer: Any | None) -> frozenset[int]:
    """Every end-of-sequence id that the generation config, the config or the tokenizer names."""
    found: set[int] = set()
    for owner in (generation_config, config, tokenizer):
        value = getattr(owner, "eos_token_id", None)
        if value is not None:
            found.update([int(value)] if isinstance(value, int) else [int(item) for item in value])
    return frozenset(found)
