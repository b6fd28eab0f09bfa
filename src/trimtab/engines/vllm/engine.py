"""vLLM as an engine of trimtab's: the requests, answers and traces of `Decoder`, the batching and caches of vLLM.

It runs vLLM in this process (workers of further ranks in their own), a step at a time, so that requests join and leave
between steps and each token can be asked about. Greedy answers are those of the built-in engine up to float32; a seed
gives the same answer again, but not the draw that the built-in engine makes of it.

What it does not do: guides that select, prompts of a guide's own, what `sampling` refuses (a plausibility mask, forced
tokens and others), and noticing NaN, of which vLLM samples something.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.answers import Step, TokenTrace
from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.engine import GenerationEngine
from trimtab.decoding.failures import unexpected, without_frames
from trimtab.decoding.requests import Request, check_named, room_for
from trimtab.engines.vllm.admission import as_extra_args, read_weights
from trimtab.engines.vllm.manifest import ARCHITECTURE, Manifest
from trimtab.engines.vllm.sampling import as_theirs, check_drafted, check_params
from trimtab.engines.vllm.served import RunningGuide, ServedModel
from trimtab.engines.vllm.versions import check_version
from trimtab.errors import CheckpointError, CompatibilityError, ModelError, OptionError, unknown_name
from trimtab.prompts import encode_prompt

log = logging.getLogger(__name__)

OWN_OPTIONS = ("max_model_len", "tensor_parallel_size", "gpu_memory_utilization", "enforce_eager")
"""Options of vLLM that are parameters of the engine."""
_OURS = {
    "model": "served",
    "max_num_seqs": "max_rows",
    **{name: name for name in ("dtype", "trust_remote_code", *OWN_OPTIONS)},
}
"""Option of vLLM -> the parameter that sets it."""
_FIXED: Mapping[str, Any] = {
    "async_scheduling": False,
    "skip_tokenizer_init": True,
    "worker_extension_cls": "trimtab.engines.vllm.network.notes.TraceExtension",
    "generation_config": "vllm",
    "disable_log_stats": True,
}
_living: weakref.WeakSet[VLLMEngine] = weakref.WeakSet()


class VLLMEngine(GenerationEngine):
    """Decodes inside vLLM what `trimtab.engines.vllm.packing.pack` (`trimtab vllm pack`) has put together.

    `served` is the packed directory. At most `max_rows` requests run at a time; the others wait. `max_model_len` is the
    longest sequence, prompt included (left out: what base and guides hold); `dtype` "auto" is float32 on a CPU and the
    checkpoint's own elsewhere; `tensor_parallel_size`, `gpu_memory_utilization` and `enforce_eager` are vLLM's, and
    `options` holds any others by name. An engine belongs to one thread; `close` frees its memory.

    Raises MissingExtraError without vLLM, CompatibilityError for a version that was not tested or a directory with an
    agent, CheckpointError for one that was not packed, OptionError for an unknown option.
    """

    guides: Mapping[str, RunningGuide]
    model: ServedModel
    has_plausibility = False
    has_forced = False

    def __init__(
        self,
        served: str | Path,
        *,
        max_rows: int = 64,
        max_model_len: int | None = None,
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float | None = None,
        enforce_eager: bool = False,
        trust_remote_code: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_version()
        if max_rows < 1:
            raise OptionError(f"max_rows is {max_rows}; give at least 1.")
        manifest = _manifest(Path(served))
        self.max_rows = max_rows
        self._defaults = manifest.weights
        given = {
            "model": str(served),
            "max_num_seqs": max_rows,
            "max_model_len": max_model_len,
            "dtype": dtype,
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
            "enforce_eager": enforce_eager,
            "trust_remote_code": trust_remote_code,
        }
        self._engine = _start(manifest, given, options or {})
        self._explains = self._engine.vllm_config.speculative_config is None
        self.model = ServedModel(
            manifest,
            name=manifest.base,
            max_length=self._engine.model_config.max_model_len,
            device=_device(),
            trust_remote_code=trust_remote_code,
        )
        self.guides = {guide.name: RunningGuide(guide.weight, guide.form) for guide in manifest.guides}
        self._running: dict[int, tuple[Request, str]] = {}  # with vLLM's own id
        self._watching = False
        self._next_id = 0
        _living.add(self)

    def _running_ids(self) -> set[int]:
        return set(self._running)

    def close(self) -> None:
        """End vLLM and free its memory; the engine is of no more use afterwards. Idempotent."""
        if self not in _living:
            return
        _living.discard(self)
        self._waiting.clear()
        self._running.clear()
        self._engine.engine_core.shutdown()
        del self._engine
        if not _living:
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()

    def _request(self, prompt: Prompt, params: SamplingParams) -> Request:
        check_params(params)
        check_named(params, self.model.vocab_size)
        weights = self.weights_of(params)
        read_weights(as_extra_args(weights), self._defaults)
        if not self._explains:
            check_drafted(params)
        params = dataclasses.replace(
            params,
            temperature=1.0 if params.temperature is None else params.temperature,
            top_k=params.top_k or 0,
            top_p=1.0 if params.top_p is None else params.top_p,
        )
        prompt_ids = encode_prompt(self.model, prompt)
        room = room_for(len(prompt_ids), self.model.max_length, "this engine")
        self._next_id += 1
        limit = int(min(params.max_new_tokens, room))
        return Request(self._next_id, prompt, prompt_ids, {}, params, weights, limit, self.model)

    def _admit(self) -> list[Step]:
        """Hand over who may run; the last steps of those that vLLM does not take."""
        from vllm.inputs.engine import tokens_input

        refused = []
        while self._waiting and len(self._running) < self.max_rows:
            request = self._waiting.popleft()
            try:
                prompt = tokens_input(list(request.prompt_ids))
                vllm_id = self._engine.add_request(str(request.request_id), prompt, self._params(request))
            except Exception as error:
                refused.append(_failed(request, error))
            else:
                self._running[request.request_id] = request, vllm_id
        return refused

    def _params(self, request: Request) -> Any:
        """A request's parameters as vLLM's."""
        from vllm.sampling_params import RequestOutputKind
        from vllm.sampling_params import SamplingParams as TheirParams

        return TheirParams(
            **as_theirs(request),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=as_extra_args(request.weights),
        )

    def _decoded(self) -> list[Step]:
        """One step of vLLM, the requests told of it. One that vLLM gives up ends with an error."""
        refused = self._admit()
        if not self._running:
            return refused
        self._watch()
        outputs = [output for output in self._engine.step() if int(output.request_id) in self._running]
        notes = self._notes(outputs)
        grown = [step for output in outputs for step in self._grow(output, notes.get(int(output.request_id)))]
        return [*refused, *grown]

    def _grow(self, output: Any, trace: TokenTrace | None) -> Iterator[Step]:
        """The steps that an output is: several, where drafts were accepted."""
        request, _ = self._running[int(output.request_id)]
        for token_id in output.outputs[0].token_ids:
            try:
                step = request.push(int(token_id), trace)
            except Exception as error:  # a text that cannot be made is nobody else's affair
                step = _failed(request, error)
            yield step
            if request.finish_reason is not None:
                break
        if output.finished:
            del self._running[request.request_id]
            if request.finish_reason is None:
                yield request.fail(ModelError(f"vLLM gave this answer up ({output.outputs[0].finish_reason})."))
        elif request.finish_reason is not None:  # a stop string, which vLLM knows nothing of
            self._stop(request.request_id)

    def _stop(self, request_id: int) -> None:
        _, vllm_id = self._running.pop(request_id)
        self._engine.abort_request([vllm_id], internal=True)

    def _watch(self) -> None:
        """Have tables kept while a request with a trace runs, and no longer."""
        wanted = any(request.params.trace for request, _ in self._running.values())
        if wanted != self._watching:
            self._engine.collective_rpc("watch_steps", args=(wanted,))
            self._watching = wanted

    def _notes(self, outputs: Sequence[Any]) -> dict[int, TokenTrace]:
        """Request id -> the trace of its token."""
        asked, ids = [], []
        for output in outputs:
            request, vllm_id = self._running[int(output.request_id)]
            if request.params.trace and output.outputs[0].token_ids:
                how = request.params
                token_id = int(output.outputs[0].token_ids[0])
                filters = (how.temperature, how.top_k, how.top_p, how.min_p)
                asked.append((vllm_id, token_id, filters, how.num_alternatives))
                ids.append(request.request_id)
        if not asked:
            return {}
        answers = self._engine.collective_rpc("explain_step", args=(asked,))
        traces = next(answer for answer in answers if answer is not None)
        return dict(zip(ids, traces, strict=True))


def _failed(request: Request, error: Exception) -> Step:
    """The last step of a request that an error nobody foresaw has ended."""
    log.error("request %s failed: %.500s", request.request_id, repr(error), exc_info=error)
    return request.fail(unexpected(without_frames(error)))


def _manifest(directory: Path) -> Manifest:
    """What a packed directory says. Raises CheckpointError, or CompatibilityError for an agent's."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{directory} is not a packed directory ({error}). Write one with `trimtab vllm pack`."
        ) from error
    manifest = Manifest.of(config)
    if ARCHITECTURE not in config.get("architectures", ()):
        raise CompatibilityError(
            "An accept-reject agent has an engine of its own in vLLM, without seeds, temperatures or traces. Serve the "
            "directory with `vllm serve`, or use the built-in engine."
        )
    return manifest


def _start(manifest: Manifest, given: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """vLLM's engine with these options. Raises OptionError for one that is unknown or ours to set."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in options:
        if name in _OURS:
            raise OptionError(f"The option {name} is a parameter of the engine: give it as {_OURS[name]}.")
        if name in _FIXED:
            raise OptionError(f"The option {name} is {_FIXED[name]!r} in this engine; leave it out.")
        if name not in known:
            raise unknown_name("option of vLLM", name, known)
    chosen = {name: value for name, value in given.items() if value is not None}
    args = EngineArgs(**{**_FIXED, **chosen, **options, "dtype": _dtype(manifest, given["dtype"])})
    config = args.create_engine_config()
    return LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False)


def _dtype(manifest: Manifest, asked: str) -> str:
    if asked != "auto":
        return asked
    if _device() == "cpu":
        return "float32"
    config = json.loads((Path(manifest.base) / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")


def _device() -> str:
    from vllm.platforms import current_platform

    return str(current_platform.device_type)
