"""Every causal family of transformers as a tiny random model: does it run row by row, or is it refused, and why?

    python -m tests.families docs/reference/models.md      write the page (some minutes)
    python -m tests.families llama gpt_neo       one line for each of these

A family is built from its own default config with every size that these names know made small, whatever it is called
there; so families that a later transformers brings are built too, or are listed as not built. What runs is compared
with the model's own forward pass, row by row, then has to keep the laws of `trimtab.testing.check_model`.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.tiny import peaked_module
from trimtab.errors import TrimtabError
from trimtab.models.hf import HFModel
from trimtab.models.networks.probing import RATIO
from trimtab.testing import LawViolation, check_model

VOCAB = 61
LENGTH = 48
_LARGEST = 50_000_000
_TOLERANCE = 2e-3
ROWS = ((7, 3, 22, 31, 5, 5, 18, 39, 1, 12, 30, 44, 60, 2, 8, 9, 10, 11), (9,), (2, 2, 17, 33, 8, 26), (14, 0, 39))
"""The longest sees less than all of itself through three layers with windows of 5; 1 is the padding's id."""

_SIZES: Mapping[int, str] = {
    VOCAB: "vocab_size vocab_size_per_layer_input",
    LENGTH: "max_position_embeddings n_positions max_seq_len max_target_positions n_ctx",
    64: "ffn_dim decoder_ffn_dim encoder_ffn_dim d_ff ffn_hidden_size n_inner intermediate_size intermediate_size_mlp "
    "moe_intermediate_size attention_hidden_size shared_expert_intermediate_size d_inner",
    32: "hidden_size n_embd d_model embedding_size word_embed_proj_dim output_embedding_size input_embedding_size dim",
    16: "q_lora_rank kv_lora_rank lru_width",
    8: "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim d_kv rotary_dim global_head_dim "
    "hidden_size_per_layer_input mamba_d_head mamba_n_heads mamba_chunk_size chunk_size attention_window_size "
    "index_head_dim",
    5: "sliding_window window_size attention_chunk_size sliding_window_size local_attention",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
    "num_local_experts num_experts n_routed_experts moe_num_experts state_size mamba_d_state conv_kernel "
    "time_step_rank laurel_rank index_n_heads",
    3: "num_hidden_layers n_layer n_layers num_layers decoder_layers",
    2: "num_key_value_heads num_experts_per_tok moe_topk moe_k mamba_expand expand expansion_ratio num_codebooks "
    "num_query_groups",
    1: "n_group topk_group first_k_dense_replace encoder_layers mamba_n_groups n_shared_experts pad_token_id "
    "eos_token_id",
    0: "bos_token_id",
}
_SIZE = {name: size for size, names in _SIZES.items() for name in names.split()}
_LATENT = {"num_key_value_heads": 4}
_SHARED_CACHES = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_HYBRID = {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]}
_CHANGES: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text"), _LATENT),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3", "youtu"), _LATENT),
    "gemma2": {"final_logit_softcapping": 2.0},
    "gemma3n_text": _SHARED_CACHES,
    "gemma4_text": _SHARED_CACHES,
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0},
    "hyperclovax": {"logits_scaling": 0.25},
    "cohere": {"logit_scale": 0.0625},
    "falcon_h1": {"mamba_d_ssm": 64},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "zamba": _HYBRID,
    "zamba2": _HYBRID,
    "reformer": {"is_decoder": True, "axial_pos_shape": (6, 8), "axial_pos_embds_dim": (16, 16)},
}
"""What a family needs besides small sizes, or what makes it show what it has."""

FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 8.0]}
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bert as a decoder": ("bert", {"is_decoder": True}),
    "camembert as a decoder": ("camembert", {"is_decoder": True}),
    "rembert as a decoder": ("rembert", {"is_decoder": True}),
    "falcon with ALiBi": ("falcon", {"alibi": True}),
    "gpt_neo, global layers only": ("gpt_neo", {"attention_types": [[["global"], 3]]}),
    "lfm2 with convolutions": ("lfm2", {"layer_types": ["conv", "full_attention", "full_attention"]}),
    "llama4_text, hotter with length": ("llama4_text", {"floor_scale": 24, "no_rope_layers": [1, 0, 0]}),
    "minimax_m3_vl_text with chosen blocks": (
        "minimax_m3_vl_text",
        {"layer_types": ["full_attention", *["minimax_m3_sparse"] * 2], "index_block_size": 4, "index_topk_blocks": 2},
    ),
    "ministral3, scaled by position": (
        "ministral3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 2.0,
                "llama_4_scaling_beta": 0.5,
                "original_max_position_embeddings": 8,
            }
        },
    ),
    "doge past its kept keys": ("doge", {"keep_window_size": 8}),
    "llama, dynamic NTK": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama, linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama, yarn": (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 24}},
    ),
    "phi3, longrope": (
        "phi3",
        {"rope_scaling": {"rope_type": "longrope", **FACTORS}, "original_max_position_embeddings": 32},
    ),
    "opt, states projected": ("opt", {"word_embed_proj_dim": 16}),
    "qwen2 with windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "mistral with a window longer than the probe": ("mistral", {"sliding_window": 20}),
}
"""Mechanisms that no family shows by its default config: name -> (family, changes of its config)."""


@dataclass(frozen=True)
class Verdict:
    """What became of a family."""

    kind: str
    """runs, refused, wrong or not built."""
    said: str
    """The class, the reason of a refusal, or what was seen."""


def names() -> list[str]:
    """Every family that transformers has, then the variants."""
    return [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]


def build(name: str) -> Any:
    """A tiny random model of a family or variant; weights are large, so that its distributions are peaked."""
    family, changes = VARIANTS.get(name, (name, {}))
    config = tiny_config(CONFIG_MAPPING[family], {**_CHANGES.get(family, {}), **changes})
    with torch.device("meta"):
        size = sum(weight.numel() for weight in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if size > _LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million parameters with the sizes that are known here")
    if getattr(config.get_text_config(), "attn_logit_softcapping", None):
        config._attn_implementation = "eager"
    return peaked_module(config)


def tiny_config(kind: Any, changes: Mapping[str, Any]) -> Any:
    """A config of a kind with small sizes, and small parts where it is made of several."""
    known = set(inspect.signature(kind.__init__).parameters)
    parts: dict[str, Any] = {}
    try:
        default = kind()
    except Exception:  # some have no default that is whole
        default = None
    if default is not None:
        known |= set(default.to_dict())
        parts = {name: getattr(default, name, None) for name in getattr(kind, "sub_configs", {})}
    aliases = getattr(kind, "attribute_map", {})
    given = {name: size for name, size in _SIZE.items() if name in known or name in aliases}
    given = {name: size for name, size in given.items() if aliases.get(name) not in given}
    small = {
        name: tiny_config(type(part), _CHANGES.get(part.model_type, {}))
        for name, part in parts.items()
        if part is not None
    }
    return kind(**{**given, **small, **changes})


def own_logprobs(module: Any, token_ids: Iterable[int]) -> Tensor:
    """[V] by the model's own forward pass over one row, without a cache."""
    with torch.no_grad():
        logits = module(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits
    return torch.log_softmax(logits[0, -1].float(), -1)


def verdict_on(name: str) -> Verdict:
    """Build a family, load it, run it."""
    try:
        module = build(name)
        own_logprobs(module, ROWS[0])
    except Exception as error:  # what a config refuses is as varied as the families
        return Verdict("not built", f"{type(error).__name__}: {error}")
    try:
        model = HFModel(module, name=name)
    except TrimtabError as error:
        return Verdict("refused", str(error))
    held = "" if model.max_length is None or model.max_length == LENGTH else f", rows of {model.max_length} tokens"
    try:
        gap = walk(model, module)
        check_model(model, ROWS, num_candidates=3)
    except LawViolation as error:
        return Verdict("wrong", str(error))
    if not gap < _TOLERANCE:
        return Verdict("wrong", f"{gap:.2g} nats from its own forward pass")
    return Verdict("runs", f"{type(module).__name__}{held}")


def walk(model: HFModel, module: Any) -> float:
    """The largest gap, in nats, of rows that join, grow, are peeked at, leave and fork to the model's own numbers."""
    session, rows, gaps = model.open(), [list(row) for row in ROWS[:2]], []

    def read() -> None:
        for found, row in zip(session.logprobs(), rows, strict=True):
            expected = own_logprobs(module, row)
            gaps.append(float((found - expected)[expected.isfinite()].abs().max()))

    def grow(tokens: list[int]) -> None:
        session.advance(torch.arange(len(rows)), torch.tensor(tokens))
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)

    session.admit([list(row) for row in rows])
    read()
    session.admit([list(row) for row in ROWS[2:]])
    rows += [list(row) for row in ROWS[2:]]
    for step in range(6):
        grow([(11 * step + 5 * row + 4) % VOCAB for row in range(len(rows))])
        read()
        if step % 3 == 0:
            candidates = torch.tensor([[(13 * step + row + 7 * k) % VOCAB for k in range(3)] for row in range(4)])
            session.peek(candidates)
            grow(candidates[:, 2].tolist())
    session.keep(torch.tensor([2, 0, 2]))
    rows[:] = [list(rows[row]) for row in (2, 0, 2)]
    grow([4, 5, 6])
    read()
    return max(gaps)


_PAGE = """# Models

What `load_model` runs, and what it refuses, of the {count} families of causal language models in
transformers {version}. This page is written by `python -m tests.families docs/reference/models.md`, which builds each
family as a tiny random model, compares the rows of a batch with the model's own forward pass over each row alone,
beyond windows and at the end of the context, and has it keep the laws of `trimtab.testing.check_model`. A family that
a later transformers brings is judged the same way when it is loaded: no list is consulted, the model itself is asked.

## What loading checks

A model is driven row by row: rows of unequal length share a pass, with a cache, positions and masks of their own. So a
model has to take all three in each pass (`past_key_values`, `position_ids`, `attention_mask`), and its numbers must not
depend on the batch. When a model is loaded, three rows of unequal lengths join, grow and are peeked at, past its
windows (a long one is shortened while that lasts, in the config that both sides build their masks from), and each of
their states is compared with the model's own pass over the row. The difference may be {ratio:g} times the model's own
rounding, whatever its dtype. A larger one, and any error in the model's code, is a `CompatibilityError` that names the
model's type and the reason.

Positions or attention that are scaled by the longest row of a pass (longrope; Llama 4's temperature) would make a row
depend on its company. Such a model is held to a length up to which nothing is scaled, which `max_length` and a warning
say.

## Families that run

{runs}

## Families that are refused

{refused}

## Mechanisms

Masks, windows and positions that no family shows by its default config.

{variants}

## Not built

These {num_unbuilt} could not be made small by their config, or need a package that is not here; each is judged when it
is loaded.

{unbuilt}
"""


def page(verdicts: Mapping[str, Verdict]) -> str:
    """docs/reference/models.md."""
    families = {name: verdict for name, verdict in verdicts.items() if name not in VARIANTS}
    refused: dict[str, list[str]] = {}
    for name, verdict in families.items():
        if verdict.kind == "refused":
            refused.setdefault(_reason(verdict), []).append(name)
    unbuilt = {name: verdict for name, verdict in families.items() if verdict.kind == "not built"}
    rows = [f"| {name} | {verdict.kind} | {_told(verdict)} |" for name, verdict in verdicts.items() if name in VARIANTS]
    return _PAGE.format(
        count=len(families),
        version=transformers.__version__,
        ratio=RATIO,
        runs=_listed(name for name, verdict in families.items() if verdict.kind == "runs"),
        refused="\n".join(f"- {reason}: {', '.join(members)}." for reason, members in sorted(refused.items())),
        variants="\n".join(["| model | | |", "|---|---|---|", *rows]),
        num_unbuilt=len(unbuilt),
        unbuilt="\n".join(f"- {name}: {_cut(verdict.said)}" for name, verdict in unbuilt.items()),
    )


def _reason(verdict: Verdict) -> str:
    """Why a family is refused, without its name and without what is accepted."""
    reason = verdict.said.partition("row by row: ")[2].partition(". Accepted: ")[0] or verdict.said
    return re.sub(r"[\d.]+(e-\d+)? of their spread from (.*), which rounds by .*", r"far from \2", reason)


def _told(verdict: Verdict) -> str:
    return _reason(verdict) if verdict.kind == "refused" else verdict.said


def _cut(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 100 else f"{words[:97]}..."


def _listed(families: Iterable[str]) -> str:
    return textwrap.fill(", ".join(families) + ".", width=118, break_on_hyphens=False)


def main(arguments: list[str]) -> int:
    """Write the page, or a line for each family that is named; 1 where one is wrong."""
    transformers.logging.set_verbosity_error()
    target = next((Path(argument) for argument in arguments if argument.endswith(".md")), None)
    verdicts = {}
    for name in names() if target else arguments or names():
        verdicts[name] = verdict_on(name)
        print(f"{name:28} {verdicts[name].kind:9} {' '.join(verdicts[name].said.split())[:160]}", flush=True)
    if target is not None:
        target.write_text(page(verdicts), encoding="utf-8")
    return int(any(verdict.kind == "wrong" for verdict in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
