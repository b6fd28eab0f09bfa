"""What a packed directory asks of vLLM's settings, refused at start-up with a sentence where it cannot be honoured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from trimtab.engines.vllm.manifest import Manifest, ServedGuide
from trimtab.engines.vllm.network.layout import Layout
from trimtab.engines.vllm.processors import class_path
from trimtab.engines.vllm.versions import check_version
from trimtab.errors import CompatibilityError, OptionError

_DRAFTS = ("ngram", "draft_model")
"""Methods of speculation that were tested."""


class GuidedConfig(VerifyAndUpdateConfig):  # type: ignore[misc]
    """vLLM calls it for `TrimtabForCausalLM`."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Raise CompatibilityError or OptionError for settings that guides cannot run under; make the others fit."""
        check_version()
        manifest = Manifest.of(vllm_config.model_config.hf_config)
        check_memory(vllm_config, manifest)
        check_settings(vllm_config, manifest)
        fit_length(vllm_config, manifest)
        admit(vllm_config, manifest)


class AgentConfig(VerifyAndUpdateConfig):  # type: ignore[misc]
    """vLLM calls it for `TrimtabAgentForCausalLM`."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Raise CompatibilityError or OptionError for settings that an agent cannot run under."""
        check_version()
        from trimtab.engines.vllm.agent.model import check_agent_engine

        manifest = Manifest.of(vllm_config.model_config.hf_config)
        check_memory(vllm_config, manifest)
        check_agent_engine(vllm_config)
        admit(vllm_config, manifest)


def admit(vllm_config: Any, manifest: Manifest) -> None:
    """Have vLLM ask `processors` about every request's weights."""
    path = class_path(manifest.weights, manifest.forms, v2=vllm_config.use_v2_model_runner)
    others = vllm_config.model_config.logits_processors or []
    vllm_config.model_config.logits_processors = [*(other for other in others if other != path), path]


def check_memory(vllm_config: Any, manifest: Manifest) -> None:
    """Raise CompatibilityError for a base, or a model that runs for a guide, that remembers more than keys and values.

    vLLM asks the architecture whether it does, and that is ours; a rejected candidate could not be taken back from such
    a state, and a guide would share it.
    """
    from vllm.transformers_utils.config import get_config

    model_config = vllm_config.model_config
    trusted = model_config.trust_remote_code
    others = (get_config(path, trust_remote_code=trusted).architectures for _, path in _other_models(manifest))
    for architectures in (manifest.architectures, *others):
        if not model_config.registry.model_has_inner_state(list(architectures or ()), model_config):
            continue
        raise CompatibilityError(
            f"{architectures[0]} keeps a recurrent state, which guides inside vLLM cannot share or take back. "
            "Use a base of attention layers alone, or the built-in engine."
        )


def check_settings(vllm_config: Any, manifest: Manifest) -> None:
    """Raise CompatibilityError for what guides that tilt cannot run under."""
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise CompatibilityError(
            "Guides need the base's and their own last states in one place, so they cannot be cut by pipeline "
            "parallelism. Use --tensor-parallel-size instead, and leave --pipeline-parallel-size out."
        )
    speculation = vllm_config.speculative_config
    if speculation is not None:
        if not vllm_config.use_v2_model_runner:
            raise CompatibilityError(
                "Model Runner V1 cannot keep speculative decoding exact under guides. Set VLLM_USE_V2_MODEL_RUNNER=1 "
                "where Triton is, or leave the speculative configuration out."
            )
        if speculation.method not in _DRAFTS:
            raise CompatibilityError(
                f"Speculation by {speculation.method} reads states of the base that guides widen. Accepted: "
                f"{', '.join(_DRAFTS)}."
            )
    if vllm_config.model_config.enable_prompt_embeds:
        raise CompatibilityError("Guides read token ids; leave --enable-prompt-embeds out.")
    if vllm_config.lora_config is not None:
        raise CompatibilityError(
            "vLLM's own adapters (--enable-lora) cannot be switched under guides. Merge the adapter into the base, or "
            "pack it as a guide of kind `policy`."
        )
    if vllm_config.model_config.quantization and len(Layout.of(manifest).networks) > 1:
        raise CompatibilityError(
            "A quantised base was only tried with guides that are LoRA adapters of it (--lora shared); a second model "
            "would be read with the base's quantisation. Give the base unquantised."
        )


def fit_length(vllm_config: Any, manifest: Manifest) -> None:
    """Shorten the longest sequence to what every guide holds, where no length was asked for; else raise OptionError."""
    from vllm.transformers_utils.config import get_config

    model_config = vllm_config.model_config
    for guide, directory in _other_models(manifest):
        config = get_config(directory, trust_remote_code=model_config.trust_remote_code).get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        if limit is None or limit >= model_config.max_model_len:
            continue
        if model_config.original_max_model_len:
            raise OptionError(
                f"Guide {guide.name} holds {limit} tokens, fewer than --max-model-len {model_config.max_model_len}. "
                f"Give at most {limit}."
            )
        model_config.max_model_len = limit
        vllm_config.scheduler_config.max_model_len = limit


def _other_models(manifest: Manifest) -> Iterator[tuple[ServedGuide, str]]:
    """Guides with a directory of another model than the served base that runs for them: their own, or their base's."""
    for guide in manifest.guides:
        if guide.way == "model":
            yield guide, guide.path
        if guide.base is not None:
            yield guide, guide.base
