"""The cache whose rows have their own length is a `Cache` by transformers' own contract."""

from __future__ import annotations

import functools
import logging
import warnings
from typing import Any

import pytest
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from tests.tiny import FAMILIES, tiny_module
from trimtab.errors import CompatibilityError
from trimtab.models.forward.row_cache import Layout, RowCache
from trimtab.models.hf import HFModel
from trimtab.models.networks.kinds import cache_argument

CPU = torch.device("cpu")


def states(rows: int, width: int, *, depth: int = 4) -> torch.Tensor:
    """Keys or values [rows, 2, width, depth]."""
    return torch.randn(rows, 2, width, depth, generator=torch.Generator().manual_seed(0))


def test_it_is_a_cache_of_layers_that_transformers_knows() -> None:
    cache = RowCache()
    assert isinstance(cache, Cache)
    cache.begin(Layout.extend([0, 1], [0, 0], 3, CPU))
    cache.update(states(2, 3), states(2, 3), 1)
    assert len(cache) == 2
    assert all(isinstance(layer, CacheLayerMixin) for layer in cache.layers)
    assert cache.is_sliding == [False, False]
    assert not cache.is_compileable
    assert cache.layers[1].is_initialized
    assert not cache.layers[0].is_initialized


def test_update_takes_what_a_model_may_hand_over() -> None:
    cache = RowCache()
    cache.begin(Layout.extend([0], [0], 3, CPU))
    keys, values = cache.update(states(1, 3), states(1, 3, depth=6), 0, {"sin": None}, kwargs={"cos": None}, more=1)
    torch.testing.assert_close(keys, states(1, 3), rtol=0, atol=0)
    torch.testing.assert_close(values, states(1, 3, depth=6), rtol=0, atol=0)


@pytest.mark.parametrize("slots", [[0, 1], [0, 2]])
def test_it_says_how_long_it_is_before_and_after_a_pass(slots: list[int]) -> None:
    cache = RowCache()
    assert cache.get_seq_length() == 0
    assert cache.get_mask_sizes(3, 0) == (3, 0)
    for lengths, width in (([0, 0], 3), ([3, 2], 1), ([4, 3], 5)):
        cache.begin(Layout.extend(slots, lengths, width, CPU))
        assert cache.get_seq_length() == max(lengths)
        keys, _ = cache.update(states(2, width), states(2, width), 0)
        assert cache.get_seq_length() == max(lengths) + width
        assert cache.get_mask_sizes(width, 0) == (keys.shape[2], 0)
    assert cache.get_max_length() == -1


def test_what_a_layer_holds_has_the_axes_of_the_contract() -> None:
    cache = RowCache()
    cache.begin(Layout.extend([0, 1], [0, 0], 3, CPU))
    keys, values = cache.update(states(2, 3), states(2, 3, depth=6), 0)
    torch.testing.assert_close(cache.layers[0].keys[:2, :, :3], keys, rtol=0, atol=0)
    torch.testing.assert_close(cache.layers[0].values[:2, :, :3], values, rtol=0, atol=0)
    cache.begin(Layout.extend([0, 5], [3, 0], 100, CPU))  # more slots and more columns than there are
    keys, _ = cache.update(states(2, 100), states(2, 100, depth=6), 0)
    torch.testing.assert_close(keys[0, :, :3], states(2, 3)[0], rtol=0, atol=0)
    cache.reset()
    assert not cache.layers[0].keys.any()


@pytest.mark.parametrize(
    "move",
    [
        lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
        lambda cache: cache.crop(-1),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([0])),
    ],
)
def test_its_rows_are_not_moved_behind_their_sessions(move: Any) -> None:
    cache = RowCache()
    cache.begin(Layout.extend([0, 1], [0, 0], 3, CPU))
    cache.update(states(2, 3), states(2, 3), 0)
    assert not cache.layers[0].is_croppable
    with pytest.raises(CompatibilityError, match="belong to sessions"):
        move(cache)


def test_a_decoder_is_handed_its_cache_under_the_name_that_it_knows() -> None:
    def older(input_ids: Any, past_key_values: Any = None, **options: Any) -> None: ...
    def newer(input_ids: Any, cache: Any = None, **options: Any) -> None: ...
    def open_ended(*inputs: Any, **options: Any) -> None: ...

    decoders = [type("Decoder", (), {"forward": forward})() for forward in (older, newer, open_ended)]
    names = [cache_argument(decoder) for decoder in decoders]
    assert names == ["past_key_values", "cache", "past_key_values"]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_warning_reaches_the_user(family: str, caplog: pytest.LogCaptureFixture) -> None:
    module = tiny_module(family)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            session = HFModel(module).open()
            session.admit([[3, 4, 5], [6]])
            session.logprobs()
            session.peek(torch.tensor([[7, 8], [9, 10]]))
            session.advance(torch.arange(2), torch.tensor([7, 9]))
            session.logprobs()
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == []


def test_a_model_that_counts_positions_by_its_cache_is_refused() -> None:
    """It would be right for one row, and wrong for the shorter of two."""
    module = tiny_module()
    decoder = module.get_decoder()
    forward = decoder.forward

    @functools.wraps(forward)
    def counting(input_ids: Any, attention_mask: Any = None, position_ids: Any = None, **options: Any) -> Any:
        cache = options.get("cache", options.get("past_key_values"))
        start = cache.get_seq_length() if cache is not None else 0
        position_ids = (start + torch.arange(input_ids.shape[1])).expand(len(input_ids), -1)
        return forward(input_ids, attention_mask=attention_mask, position_ids=position_ids, **options)

    decoder.forward = counting
    with pytest.raises(CompatibilityError, match="row by row"):
        HFModel(module)
