"""Which layers a run adapts: chosen or checked before its first step, so that what it writes loads and acts as trained.

A guide's adapter is B(A x) on linear layers, row by row (`models.lora`). peft can adapt more (bare parameters,
embeddings), and turns names into others for some mixtures of experts; so what it would adapt is seen on a copy of the
model without weights, and where each of these layers holds the rows of a batch is measured (`models.row_layers`).
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear, LoraLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trimtab.errors import OptionError, naming
from trimtab.models.adapters.config import Targets, block_of
from trimtab.models.adapters.row_layers import Placement, Verdict, row_layers
from trimtab.models.adapters.row_lora import output_head
from trimtab.models.networks.backbone import Backbone
from trimtab.training.run.settings import ALL_LINEAR, RunSettings

log = logging.getLogger(__name__)

_PREFIX = "base_model.model."


@contextmanager
def known_targets(settings: RunSettings) -> Iterator[None]:
    """Inside, peft's complaint about layers that it does not know or cannot adapt is an OptionError."""
    try:
        yield
    except ValueError as error:
        if "arget" not in str(error) or isinstance(error, OptionError):
            raise
        raise naming(OptionError, "{lora_targets} {0}: {1}", ", ".join(settings.lora_targets), error) from error


def adapter_config(
    module: PreTrainedModel, settings: RunSettings, *, task: str = "CAUSAL_LM", whole: Sequence[str] = ()
) -> LoraConfig | None:
    """peft's LoRA of a transformers model, None where all weights are trained; `whole`: modules trained as they are.

    By default every linear layer that can run row by row, but the output head. Raises OptionError for more blocks than
    the model has, and for layers that it does not have or that cannot run row by row.
    """
    if settings.full:
        return None
    blocks = _last_blocks(module, settings.lora_last_layers)

    def make(targets: Sequence[str], layers: Sequence[int] | None = None) -> LoraConfig:
        return LoraConfig(
            task_type=task,
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=list(targets),
            layers_to_transform=layers and list(layers),
            modules_to_save=list(whole) or None,
        )

    with known_targets(settings):
        if settings.lora_targets == (ALL_LINEAR,):
            return make(_default_layers(module, whole, blocks, make))
        config = make(settings.lora_targets, blocks)
        parts = {name: part for name, part in module.named_modules() if name.split(".")[0] not in whole}
        _check_names(module, parts, settings.lora_targets, blocks)
        _check_layers(module, parts, config, settings.lora_targets)
        return config


def _last_blocks(module: PreTrainedModel, count: int) -> list[int] | None:
    """The numbers of the last blocks; None for all of them."""
    num_layers = int(module.config.get_text_config().num_hidden_layers)
    if count > num_layers:
        raise naming(
            OptionError,
            "{lora_last_layers} is {0}; {1} has {2} blocks.",
            *(count, module.config.name_or_path, num_layers),
        )
    return list(range(num_layers - count, num_layers)) if count else None


def _default_layers(
    module: nn.Module, whole: Sequence[str], blocks: Sequence[int] | None, make: Callable[[Sequence[str]], LoraConfig]
) -> list[str]:
    """Every linear layer, the output head left out, that peft adapts as such and that can run row by row."""
    head = output_head(module)
    linear = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | Conv1D) and name != head and name.split(".")[0] not in whole
    ]
    verdicts = _verdicts(module, linear)
    names = [name for name in linear if _runs(verdicts[name]) and (blocks is None or block_of(name) in blocks)]
    while names:
        adapted = _adapted(module, make(names))
        plain = [name for name in names if adapted.get(name, "") is None]
        if len(plain) == len(names) == len(adapted):
            break
        names = plain  # what peft adapts in another way goes with the names that it was asked for by
    if not names:
        raise naming(
            OptionError,
            "{lora_targets} is {0}, and no linear layer of {1} can be adapted row by row. Name others, or train all "
            "weights with {full}.",
            *(ALL_LINEAR, type(module).__name__),
        )
    left = sorted(
        {name.rsplit(".", 1)[-1] for name in linear if blocks is None} - {n.rsplit(".", 1)[-1] for n in names}
    )
    if left:
        log.info("adapting %d linear layers; those called %s cannot be adapted", len(names), ", ".join(left))
    return names


def _check_names(
    module: nn.Module, parts: Mapping[str, nn.Module], targets: Sequence[str], blocks: Sequence[int] | None
) -> None:
    """Raise OptionError for a name that none of the parts has."""
    layers = None if blocks is None else frozenset(blocks)
    for target in targets:
        if not any(Targets(frozenset({target}), layers=layers).match(name) for name in parts):
            where = f" in the last {len(blocks)} blocks" if blocks else ""
            raise naming(
                OptionError,
                "{lora_targets} {0}: {1} has no layer that is called {2}{3}. Its linear layers are called {4}; {5}, "
                "alone, stands for all of them.",
                *(", ".join(targets), type(module).__name__, target, where, _linear_names(parts), ALL_LINEAR),
            )


def _check_layers(
    module: nn.Module, parts: Mapping[str, nn.Module], config: LoraConfig, targets: Sequence[str]
) -> None:
    """Raise OptionError for a layer that peft would adapt and a guide could not run."""
    adapted = _adapted(module, config)
    head = output_head(module)
    verdicts = _verdicts(module, [name for name, kind in adapted.items() if kind is None and name != head])
    asked = Targets(frozenset(targets), layers=config.layers_to_transform and frozenset(config.layers_to_transform))
    reasons = {
        **{
            name: "is not what peft adapts by that name here (it has other layers in mind)"
            for name, part in parts.items()
            if asked.match(name) and isinstance(part, nn.Linear | Conv1D) and name not in adapted
        },
        **{name: f"is {kind} and no linear layer" for name, kind in adapted.items() if kind is not None},
        **{name: "is never reached by text" for name, verdict in verdicts.items() if verdict is Placement.NOWHERE},
        **{name: verdict for name, verdict in verdicts.items() if isinstance(verdict, str)},
    }
    for name, reason in reasons.items():
        raise naming(
            OptionError,
            "{lora_targets} {0}: {1} of {2} {3}, so a guide with an adapter of it could not be loaded. The model's "
            "linear layers are called {4}; {5} adapts those that can be.",
            *(", ".join(targets), name, type(module).__name__, reason, _linear_names(parts), ALL_LINEAR),
        )


def _linear_names(parts: Mapping[str, nn.Module]) -> str:
    linear = (name for name, part in parts.items() if isinstance(part, nn.Linear | Conv1D))
    return ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))


def _runs(verdict: Verdict) -> bool:
    return verdict in (Placement.ROWS, Placement.TOKENS)


def _verdicts(module: nn.Module, names: Sequence[str]) -> Mapping[str, Verdict]:
    """What is known of each layer on a batch of rows (`models.row_layers`)."""
    return row_layers(Backbone(module), names)


def _adapted(module: nn.Module, config: LoraConfig) -> dict[str, str | None]:
    """What peft would adapt: name -> None for a plain linear layer, else what it is. `module` is left alone."""
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    weightless = {
        id(tensor): type(tensor)(torch.empty_like(tensor, device="meta"), requires_grad=False)
        if isinstance(tensor, nn.Parameter)
        else torch.empty_like(tensor, device="meta")
        for _, tensor in tensors
    }
    twin = copy.deepcopy(module, weightless)
    with torch.random.fork_rng(devices=[]):
        model = get_peft_model(twin, copy.deepcopy(config))
    return {
        name.removeprefix(_PREFIX): _kind(layer)
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def _kind(layer: LoraLayer) -> str | None:
    base = layer.get_base_layer()
    if isinstance(layer, Linear) and isinstance(base, nn.Linear | Conv1D):
        return None
    parameter = getattr(layer, "parameter_name", None)
    what = f"of type {type(base).__name__}"
    return what if parameter is None else f"{what}, whose parameter {parameter} peft would adapt,"
