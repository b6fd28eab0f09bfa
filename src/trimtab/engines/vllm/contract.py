"""Names, signatures and attributes of vLLM that the plug-in relies on, said once, and compared with sources of vLLM.

vLLM promises none of them. `differences` reads the files of a vLLM, installed or unpacked, and says in what it differs;
it imports nothing of it. What a name means is beyond it: that is what the tests inside vLLM are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from trimtab.engines.vllm.sources import Found, Parameters, Sources

Names: TypeAlias = tuple[str, ...]


class Clause(Protocol):
    """One thing that is relied on."""

    def differences(self, sources: Sources) -> Iterator[str]:
        """In what some sources differ from it, in sentences."""
        ...


@dataclass(frozen=True, slots=True)
class Exists:
    """A name that is imported."""

    place: str

    def differences(self, sources: Sources) -> Iterator[str]:
        if _find(sources, self.place) is None:
            yield f"{self.place} is not there."


@dataclass(frozen=True, slots=True)
class Calls:
    """A function, class or method that is called with so many arguments by position, and these by name."""

    place: str
    positional: Names = ()
    """What the arguments by position are called there, in their order."""
    keywords: Names = ()

    def differences(self, sources: Sources) -> Iterator[str]:
        taken = _taken(sources, self.place)
        if taken is None:
            yield f"{self.place} is not there."
            return
        by_position = taken.positional[: len(self.positional)]
        if by_position != self.positional and not taken.takes_more_positional:
            yield f"{self.place} takes ({', '.join(taken.names)}); it is called with ({', '.join(self.positional)})."
        missing = [name for name in self.keywords if name not in taken.names]
        if missing and not taken.takes_more_keywords:
            yield f"{self.place} takes no {', '.join(missing)}."


@dataclass(frozen=True, slots=True)
class Overrides:
    """A method that vLLM calls and that a class of ours has in its own way."""

    place: str
    parameters: Names

    def differences(self, sources: Sources) -> Iterator[str]:
        taken = _taken(sources, self.place)
        if taken is None:
            yield f"{self.place}, which is overridden, is not there."
        elif taken.names != self.parameters:
            yield f"{self.place} takes ({', '.join(taken.names)}); ours takes ({', '.join(self.parameters)})."


@dataclass(frozen=True, slots=True)
class Reads:
    """Attributes of a class that are read or set."""

    place: str
    names: Names

    def differences(self, sources: Sources) -> Iterator[str]:
        found = _find(sources, self.place)
        if found is None:
            yield f"{self.place} is not there."
            return
        missing = [name for name in self.names if not sources.has_attribute(found, name)]
        if missing:
            yield f"{self.place} has no {', '.join(missing)}."


@dataclass(frozen=True, slots=True)
class Asks:
    """A module that looks for what a model, a configuration or a stand-in of ours has under these names."""

    module: str
    names: Names

    def differences(self, sources: Sources) -> Iterator[str]:
        text = sources.text_of(self.module)
        if text is None:
            yield f"{self.module} is not there."
            return
        missing = [name for name in self.names if name not in text]
        if missing:
            yield f"{self.module} does not ask for {', '.join(missing)}."


def differences(sources: Sources) -> list[str]:
    """In what sources of vLLM differ from what the plug-in relies on, in sentences; empty where they hold all of it."""
    return [sentence for clause in CONTRACT for sentence in clause.differences(sources)]


def _find(sources: Sources, place: str) -> Found | None:
    """The definition at `module.name` or `module.Class.Inner`."""
    module, _, name = place.rpartition(".")
    found = sources.find(module, name)
    if found is not None or "." not in module:
        return found
    outer = _find(sources, module)
    return outer if outer is not None and sources.has_attribute(outer, name) else None


def _taken(sources: Sources, place: str) -> Parameters | None:
    """What a function, class or method takes; None where there is none."""
    module, _, name = place.rpartition(".")
    found = sources.find(module, name)
    if found is not None:
        return sources.parameters(found)
    above, _, class_name = module.rpartition(".")
    owner = sources.find(above, class_name)
    if owner is None:
        return None
    return sources.member(owner, name)


_GPU = "vllm.v1.worker.gpu"
_LINEAR = "vllm.model_executor.layers.linear"
_STATE = f"{_GPU}.model_states.default.DefaultModelState"
_V2 = f"{_GPU}.sample.logits_processor.LogitsProcessor"
_V1 = "vllm.v1.sample.logits_processor.LogitsProcessor"
_ENGINE = "vllm.v1.engine.llm_engine.LLMEngine"

_REGISTERING: Sequence[Clause] = (
    Calls("vllm.model_executor.models.registry._ModelRegistry.register_model", ("model_arch", "model_cls")),
    Exists("vllm.model_executor.models.ModelRegistry"),
    Exists("vllm.model_executor.models.config.MODELS_CONFIG_MAP"),
    Overrides(
        "vllm.model_executor.models.config.VerifyAndUpdateConfig.verify_and_update_config",
        ("vllm_config",),
    ),
    Calls("vllm.transformers_utils.config.get_config", ("model",), ("trust_remote_code",)),
    Calls(
        "vllm.model_executor.models.registry._ModelRegistry.model_has_inner_state",
        ("architectures", "model_config"),
    ),
)
_SETTINGS: Sequence[Clause] = (
    Reads(
        "vllm.config.VllmConfig",
        (
            *("model_config", "cache_config", "compilation_config", "scheduler_config", "parallel_config"),
            *("speculative_config", "lora_config", "diffusion_config", "kv_transfer_config", "use_v2_model_runner"),
        ),
    ),
    Reads(
        "vllm.config.ModelConfig",
        (
            *("hf_config", "hf_text_config", "model", "trust_remote_code", "logits_processors", "quantization"),
            *("enable_prompt_embeds", "max_model_len", "original_max_model_len", "generation_config", "registry"),
            "seed",
        ),
    ),
    Reads("vllm.config.SchedulerConfig", ("max_num_seqs", "max_model_len", "async_scheduling")),
    Reads("vllm.config.CacheConfig", ("sliding_window", "kv_sharing_fast_prefill")),
    Reads("vllm.config.CompilationConfig", ("static_forward_context",)),
    Reads(
        "vllm.config.ParallelConfig",
        ("pipeline_parallel_size", "prefill_context_parallel_size", "decode_context_parallel_size"),
    ),
    Reads("vllm.config.SpeculativeConfig", ("method",)),
    Calls("vllm.config.diffusion.DiffusionConfig", (), ("canvas_length",)),
    Asks("vllm.config.vllm", ("canvas_length",)),
)
_NETWORK: Sequence[Clause] = (
    Calls(
        "vllm.model_executor.models.utils.init_vllm_registered_model",
        ("vllm_config",),
        ("hf_config", "prefix"),
    ),
    Calls("vllm.model_executor.models.utils.AutoWeightsLoader", ("module",)),
    Calls("vllm.model_executor.models.utils.AutoWeightsLoader.load_weights", ("weights",)),
    Calls(
        "vllm.model_executor.model_loader.default_loader.DefaultModelLoader.Source",
        ("model_or_path",),
        ("revision", "prefix"),
    ),
    Asks("vllm.model_executor.model_loader.default_loader", ("secondary_weights",)),
    Exists("vllm.forward_context.get_forward_context"),
    Reads("vllm.forward_context.ForwardContext", ("attn_metadata",)),
    Reads("vllm.v1.attention.backends.cpu_attn.CPUAttentionMetadata", ("query_start_loc",)),
    Exists("vllm.utils.torch_utils.set_default_torch_dtype"),
    Reads("vllm.model_executor.layers.attention.Attention", ("layer_name",)),
    Calls("vllm.model_executor.layers.attention.Attention.forward", ("query", "key", "value")),
    Overrides(f"{_LINEAR}.LinearMethodBase.apply", ("layer", "x", "bias")),
    Overrides(f"{_LINEAR}.LinearMethodBase.process_weights_after_loading", ("layer",)),
    Reads(f"{_LINEAR}.LinearBase", ("quant_method", "prefix", "output_size", "params_dtype", "tp_size", "tp_rank")),
    Reads(f"{_LINEAR}.QKVParallelLinear", ("num_kv_head_replicas", "output_partition_sizes")),
    *(
        Exists(f"{_LINEAR}.{name}")
        for name in ("MergedColumnParallelLinear", "ReplicatedLinear", "RowParallelLinear", "QKVParallelLinear")
    ),
)
_RUNNER: Sequence[Clause] = (
    Asks(f"{_GPU}.model_states", ("get_model_state_cls",)),
    Calls(_STATE, ("vllm_config", "model", "encoder_cache", "device")),
    Overrides(f"{_STATE}.add_request", ("req_index", "new_req_data")),
    Overrides(f"{_STATE}.prepare_inputs", ("input_batch", "req_states")),
    Overrides(f"{_STATE}.prepare_dummy_inputs", ("num_reqs", "num_tokens")),
    Overrides(f"{_STATE}.custom_sampler", ("sampler",)),
    Reads(_STATE, ("max_num_reqs", "max_num_tokens", "num_new_sampled_tokens_per_step", "model")),
    Reads("vllm.v1.core.sched.output.NewRequestData", ("sampling_params",)),
    Reads(
        f"{_GPU}.input_batch.InputBatch",
        (
            *("req_ids", "num_reqs", "idx_mapping_np", "num_scheduled_tokens", "num_tokens_after_padding"),
            *("logits_indices", "query_start_loc", "cu_num_logits_np", "prefill_len_np"),
            "num_computed_prefill_tokens_np",
        ),
    ),
    Reads(f"{_GPU}.states.RequestState", ("draft_tokens",)),
    Reads(f"{_GPU}.sample.sampler.Sampler", ("req_states", "penalties_state", "add_request", "apply_staged_writes")),
    Calls(
        f"{_GPU}.sample.output.SamplerOutput",
        (),
        ("sampled_token_ids", "logprobs_tensors", "num_nans", "num_sampled", "num_rejected"),
    ),
    Exists(f"{_GPU}.model_runner.GPUModelRunner"),
    Calls(f"{_GPU}.model_runner.GPUModelRunner.get_model"),
    Calls("vllm.v1.worker.gpu_model_runner.GPUModelRunner.get_model"),
)
_REQUESTS: Sequence[Clause] = (
    Overrides(f"{_V2}.validate_params", ("sampling_params",)),
    Overrides(f"{_V2}.add_request", ("req_idx", "sampling_params")),
    Overrides(f"{_V2}.apply", ("logits", "ctx")),
    Calls(_V1, ("vllm_config", "device", "is_pin_memory")),
    Overrides(f"{_V1}.validate_params", ("sampling_params",)),
    Overrides(f"{_V1}.is_argmax_invariant", ()),
    Overrides(f"{_V1}.update_state", ("batch_update",)),
    Overrides(f"{_V1}.apply", ("logits",)),
    Reads("vllm.v1.sample.logits_processor.MoveDirectionality", ("SWAP",)),
    Reads("vllm.v1.sample.logits_processor.BatchUpdate", ("removed", "added", "moved")),
)
_DRIVING: Sequence[Clause] = (
    Reads(
        "vllm.engine.arg_utils.EngineArgs",
        (
            *("model", "max_num_seqs", "max_model_len", "dtype", "tensor_parallel_size", "gpu_memory_utilization"),
            *("enforce_eager", "trust_remote_code", "async_scheduling", "skip_tokenizer_init", "generation_config"),
            *("worker_extension_cls", "disable_log_stats", "create_engine_config"),
        ),
    ),
    Calls(_ENGINE, ("vllm_config", "executor_class"), ("log_stats", "multiprocess_mode")),
    Calls(f"{_ENGINE}.add_request", ("request_id", "prompt", "params")),
    Calls(f"{_ENGINE}.step"),
    Calls(f"{_ENGINE}.abort_request", ("request_ids",), ("internal",)),
    Calls(f"{_ENGINE}.collective_rpc", ("method",), ("args",)),
    Reads(_ENGINE, ("engine_core", "vllm_config", "model_config")),
    Calls("vllm.v1.executor.Executor.get_class", ("vllm_config",)),
    Calls("vllm.inputs.engine.tokens_input", ("prompt_token_ids",)),
    Calls(
        "vllm.sampling_params.SamplingParams",
        (),
        (
            *("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "logit_bias"),
            *("min_tokens", "seed", "max_tokens", "ignore_eos", "stop_token_ids", "detokenize", "output_kind"),
            *("extra_args", "repetition_penalty", "logprobs", "prompt_logprobs", "logprob_token_ids"),
            "prompt_logprob_token_ids",
        ),
    ),
    Reads("vllm.sampling_params.RequestOutputKind", ("DELTA",)),
    Reads("vllm.outputs.RequestOutput", ("request_id", "outputs", "finished")),
    Reads("vllm.outputs.CompletionOutput", ("token_ids", "finish_reason")),
    Calls("vllm.distributed.parallel_state.cleanup_dist_env_and_memory"),
    Reads("vllm.platforms.interface.Platform", ("device_type",)),
    Asks("vllm.platforms", ("current_platform",)),
)

CONTRACT: Sequence[Clause] = (*_REGISTERING, *_SETTINGS, *_NETWORK, *_RUNNER, *_REQUESTS, *_DRIVING)
"""All that the plug-in relies on."""
