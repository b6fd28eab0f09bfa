"""`train_dpo`: a policy from preference pairs by direct preference optimisation (NeurIPS 2023, arXiv 2305.18290).

The model itself is tuned, where a guide would steer it: −log σ(β((log π(y_w) − log π_ref(y_w)) − (log π(y_l) −
log π_ref(y_l)))), sums over the response's tokens, the reference being the model before training. What is written is a
LoRA adapter of the base (or a whole model), which is a guide too: at weight 1 it is the tuned policy, between 0 and 1
decoding-time realignment (arXiv 2402.02992).

Where it differs from the paper: LoRA unless all weights are asked for, AdamW for RMSprop, a cosine schedule; responses
end with the token that ends a turn in the model's own chat template.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.training.dpo.settings import DpoSettings
from trimtab.training.pairs.run import PairMethod, PairResult, Pairs, PairSplit, token_job, train_on_pairs
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.card import About
from trimtab.training.run.run import Job
from trimtab.training.run.settings import TrainProgress

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel

__all__ = ["DpoSettings", "TrainProgress", "train_dpo"]


def train_dpo(
    model: str | Path,
    pairs: Pairs,
    *,
    out: str | Path,
    eval_pairs: Pairs | None = None,
    settings: DpoSettings | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    push_to_hub: str | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> PairResult:
    """Train on preference pairs and write a policy's directory that `load_guide` reads.

    Arguments, resuming and errors are those of `arm.train_arm`; the accuracy is that of the implicit reward
    β·(log π − log π_ref).
    """
    arguments = RunArguments(
        out=Path(out),
        resume=resume,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        revision=revision,
        push_to_hub=push_to_hub,
        progress=progress,
    )
    return train_on_pairs(_METHOD, model, pairs, eval_pairs, settings or DpoSettings(), arguments)


def _job(host: HFModel, split: PairSplit, settings: DpoSettings, arguments: RunArguments) -> Job:
    from trimtab.training.dpo.trainer import dpo_config, dpo_parts

    return token_job(
        *(host, split, settings, arguments), config=dpo_config, parts=dpo_parts, about=_ABOUT, facts={"method": "dpo"}
    )


_METHOD: PairMethod[Pairs, DpoSettings, PairSplit] = PairMethod("policy", PairSplit, _job)

_ABOUT = About(
    "trained as a policy by direct preference optimisation (DPO, arXiv 2305.18290). As a guide of its base it is the "
    "tuned policy at weight 1 and something between the two below that.",
    (
        "import trimtab",
        "",
        "model = trimtab.load_model({base})",
        'policy = trimtab.load_guide("path/to/this/directory")',
        'decoder = trimtab.Decoder(model, guides={{"policy": policy}})',
    ),
    title="A policy for trimtab",
    tags=("dpo",),
    correct="whose preferred response has gained more log-probability over the base than the other",
)
