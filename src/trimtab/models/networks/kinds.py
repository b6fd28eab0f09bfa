"""What kind of network a transformers model is, as far as its code and its config say it, and which kinds are refused.

A network is driven row by row where it takes three things in each pass: a cache of keys and values, the position of
each token, and a mask of what each token sees. What its signature or its config does not give away is found by running
it (`probing`).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import CompatibilityError, TrimtabError
from trimtab.models.forward.row_cache import Reach

ACCEPTED = (
    "Accepted: decoder-only models that attend to a cache of keys and values; "
    "docs/reference/models.md lists the families."
)
_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}
_STATES = {"cache_params": "a recurrent state", "state": "a recurrent state", "mems": "memories of whole segments"}
_TABLES = ("position_embeddings", "position_embedding", "positions_embed", "embed_positions", "wpe")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_seq_len", "n_ctx")


def refusal(module: Any, reason: str) -> CompatibilityError:
    """The error that a model's kind is refused with; the reason is the end of a sentence."""
    return CompatibilityError(f"{type(module).__name__} cannot be driven row by row: {reason}. {ACCEPTED}")


@contextlib.contextmanager
def refusing(module: Any) -> Iterator[None]:
    """Turn whatever a model's code raises while it is looked at into a refusal that names the model's type."""
    try:
        yield
    except TrimtabError:
        raise
    except Exception as error:  # each architecture has its own for what it cannot do
        said = " ".join(str(error).split())[:200]
        reason = f"with a cache, positions and a mask of unequal rows it ends in {type(error).__name__}"
        raise refusal(module, f"{reason} ({said})" if said else reason) from error


def decoder_of(module: Any) -> Any:
    """The stack that turns token ids into states. Raises CompatibilityError for one that cannot be driven by rows."""
    decoder = _stack(module)
    if getattr(module.config, "is_encoder_decoder", False):
        raise refusal(module, "it has an encoder beside its decoder, and its answers depend on what the encoder read")
    unknown = set(getattr(decoder.config.get_text_config(), "layer_types", None) or ()) - _KINDS
    if unknown:
        kinds = ", ".join(sorted(unknown))
        raise refusal(module, f"it has layers of kind {kinds}, which keep more than a key and a value of each token")
    takes = _takes(decoder)
    if not {"past_key_values", "cache"} & takes:
        kept = next((what for name, what in _STATES.items() if name in takes), "nothing")
        raise refusal(module, f"between passes it keeps {kept} instead of keys and values")
    if "position_ids" not in takes:
        raise refusal(module, "it counts positions itself, by the longest row of a batch (it takes no `position_ids`)")
    if "attention_mask" not in takes:
        raise refusal(module, "it makes its mask itself, from the whole batch (it takes no `attention_mask`)")
    if any(_is_mask(buffer) for buffer in decoder.buffers()):
        raise refusal(module, "it cuts its masks and windows out of a table, by the columns of the whole batch")
    if any(table.padding_idx is not None for table in _position_tables(decoder)):
        raise refusal(module, "it counts positions by token ids, and skips the padding's id wherever it stands")
    return decoder


def _stack(module: Any) -> Any:
    """What `get_decoder` gives, unless that is the whole model or its output layer, as some have it."""
    found = [module.get_decoder()] if hasattr(module, "get_decoder") else []
    found += [module.base_model, getattr(module, "model", None)]
    for part in found:
        if part is not None and part is not module and "input_ids" in _takes(part):
            return part
    raise refusal(module, "it has no stack of layers apart from its output layer")


def cache_argument(decoder: Any) -> str:
    """The name by which a decoder takes its cache: transformers 5.24 calls it `cache`, and `past_key_values` before."""
    names = _takes(decoder)
    return "cache" if "cache" in names and "past_key_values" not in names else "past_key_values"


def reaches(config: Any) -> Mapping[str, Reach]:
    """Kind of attention layer -> how far back it sees; the kind is "" where a model takes one mask for all layers."""
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    sliding = Reach(window=int(window) if window else None)
    if getattr(config, "layer_types", None) is None:
        return {"": sliding}
    chunked = {"chunked_attention": Reach(chunk=int(chunk))} if chunk else {}
    return {"full_attention": Reach(), "sliding_attention": sliding, **chunked}


def longest(network: Any) -> int | None:
    """How many tokens a row may have, by a network's config and its learned positions; None where neither says."""
    config = network.config.get_text_config()
    limits = [limit for limit in (getattr(config, name, None) for name in _LENGTHS) if limit and limit > 0]
    return min([*limits[:1], *map(_num_positions, _position_tables(network))], default=None)


def _num_positions(table: nn.Embedding) -> int:
    """How many positions a learned table holds: some begin after an offset, or after the padding's id."""
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - max(first, int(getattr(table, "offset", 0)))


def _takes(part: Any) -> set[str]:
    """What a part of a network takes in a pass, by its class: an instance's `forward` may be wrapped by accelerate.

    A `forward` that somebody has put in the class's place, and that hands on whatever it is given, is taken to take
    what most take; running it tells.
    """
    parameters = inspect.signature(type(part).forward).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    hidden = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds
    return set(parameters) | (_USUAL if hidden else set())


_USUAL = {"input_ids", "attention_mask", "position_ids", "past_key_values"}


def _is_mask(buffer: Tensor) -> bool:
    """Whether a buffer is a table of what each of a layer's columns sees: GPT-Neo's triangles, bands where local."""
    return buffer.dtype == torch.bool and buffer.ndim == 4 and buffer.shape[-1] == buffer.shape[-2] > 1


def _position_tables(network: Any) -> list[nn.Embedding]:
    return [
        table
        for name, table in network.named_modules()
        if isinstance(table, nn.Embedding) and name.rpartition(".")[2] in _TABLES
    ]
