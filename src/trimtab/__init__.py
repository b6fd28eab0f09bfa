"""trimtab steers a frozen language model token by token with small trained guides.

What is listed in `__all__` is the public surface, and so are `trimtab.errors`, `trimtab.statistics`, `trimtab.testing`
and, for lm-eval, `trimtab.evaluation.lm_eval`. Every other module is private: it may move in any version.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trimtab.constraint import Constraint
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.answers import Answer, Step, TokenTrace, finished
    from trimtab.core import Candidates, Chat, Guide, LanguageModel, Message, Prompt, Rule, SamplingParams, Selection
    from trimtab.decoding.decoder import Decoder
    from trimtab.decoding.transformers_processor import GuidanceProcessor
    from trimtab.engines.vllm.engine import VLLMEngine
    from trimtab.evaluation.acceptance import acceptance_of, counted_passes
    from trimtab.evaluation.judging.length_control import GamedRow, length_controlled_win_rate
    from trimtab.evaluation.judging.preference import preference_rate
    from trimtab.evaluation.judging.win_rates import read_win_rates
    from trimtab.evaluation.prompt_sets import builtin_prompts
    from trimtab.guides.agent import Agent, AgentNetwork
    from trimtab.guides.arm import ARM, AdapterARM
    from trimtab.guides.head import Head
    from trimtab.guides.parm import PARM
    from trimtab.guides.prompt import PromptGuide
    from trimtab.guides.stateless import StatelessGuide
    from trimtab.methods.catalogue import build_policy
    from trimtab.mixing.rules import Tilt
    from trimtab.models.adapters.low_rank_head import LowRankHead
    from trimtab.models.hf import HFModel
    from trimtab.models.rewards.whole import RewardModel
    from trimtab.models.tabular import TabularModel
    from trimtab.storage.gguf_files import load_llama
    from trimtab.storage.loading import load_guide, load_model, load_parm, save_guide
    from trimtab.storage.scorers import load_reward_model, load_scorer
    from trimtab.storage.steered_generate import generate_with_guides
    from trimtab.training.agent.settings import AgentSettings
    from trimtab.training.agent.train import train_agent
    from trimtab.training.arm.train import train_arm
    from trimtab.training.distill.settings import DistillSettings
    from trimtab.training.distill.train import train_distill
    from trimtab.training.dpo.settings import DpoSettings
    from trimtab.training.dpo.train import train_dpo
    from trimtab.training.pairs.data import PairData, read_pairs
    from trimtab.training.pairs.formats import PreferencePair
    from trimtab.training.parm.settings import ParmSettings
    from trimtab.training.parm.train import train_parm
    from trimtab.training.reward.settings import RewardSettings
    from trimtab.training.reward.train import train_reward
    from trimtab.training.rl.settings import GuideRLSettings, RLSettings
    from trimtab.training.rl.train import train_guide_rl, train_rl
    from trimtab.training.run.interruption import Interrupted
    from trimtab.training.run.rewards import AgentReward
    from trimtab.training.run.settings import ArmSettings
    from trimtab.training.soup import SoupPart, soup

__all__ = [
    "ARM",
    "PARM",
    "AdapterARM",
    "Agent",
    "AgentNetwork",
    "AgentReward",
    "AgentSettings",
    "Answer",
    "ArmSettings",
    "Candidates",
    "Chat",
    "Constraint",
    "Decoder",
    "DistillSettings",
    "DpoSettings",
    "GamedRow",
    "GuidanceProcessor",
    "Guide",
    "GuideRLSettings",
    "HFModel",
    "Head",
    "Interrupted",
    "LanguageModel",
    "LowRankHead",
    "Message",
    "PairData",
    "ParmSettings",
    "PreferencePair",
    "Prompt",
    "PromptGuide",
    "RLSettings",
    "RewardModel",
    "RewardSettings",
    "Rule",
    "SamplingParams",
    "Selection",
    "SoupPart",
    "StatelessGuide",
    "Step",
    "TabularModel",
    "Tilt",
    "TokenTrace",
    "TrimtabError",
    "VLLMEngine",
    "acceptance_of",
    "build_policy",
    "builtin_prompts",
    "counted_passes",
    "finished",
    "generate_with_guides",
    "length_controlled_win_rate",
    "load_guide",
    "load_llama",
    "load_model",
    "load_parm",
    "load_reward_model",
    "load_scorer",
    "preference_rate",
    "read_pairs",
    "read_win_rates",
    "save_guide",
    "soup",
    "train_agent",
    "train_arm",
    "train_distill",
    "train_dpo",
    "train_guide_rl",
    "train_parm",
    "train_reward",
    "train_rl",
]

_LATE = {
    "ARM": "trimtab.guides.arm",
    "AdapterARM": "trimtab.guides.arm",
    "Agent": "trimtab.guides.agent",
    "AgentNetwork": "trimtab.guides.agent",
    "AgentReward": "trimtab.training.run.rewards",
    "AgentSettings": "trimtab.training.agent.settings",
    "Answer": "trimtab.answers",
    "ArmSettings": "trimtab.training.run.settings",
    "Candidates": "trimtab.core",
    "Chat": "trimtab.core",
    "Decoder": "trimtab.decoding.decoder",
    "DistillSettings": "trimtab.training.distill.settings",
    "DpoSettings": "trimtab.training.dpo.settings",
    "GamedRow": "trimtab.evaluation.judging.length_control",
    "GuidanceProcessor": "trimtab.decoding.transformers_processor",
    "Guide": "trimtab.core",
    "HFModel": "trimtab.models.hf",
    "Head": "trimtab.guides.head",
    "Interrupted": "trimtab.training.run.interruption",
    "LanguageModel": "trimtab.core",
    "LowRankHead": "trimtab.models.adapters.low_rank_head",
    "Message": "trimtab.core",
    "PARM": "trimtab.guides.parm",
    "PairData": "trimtab.training.pairs.data",
    "ParmSettings": "trimtab.training.parm.settings",
    "PreferencePair": "trimtab.training.pairs.formats",
    "Prompt": "trimtab.core",
    "PromptGuide": "trimtab.guides.prompt",
    "RLSettings": "trimtab.training.rl.settings",
    "GuideRLSettings": "trimtab.training.rl.settings",
    "RewardModel": "trimtab.models.rewards.whole",
    "RewardSettings": "trimtab.training.reward.settings",
    "Rule": "trimtab.core",
    "SamplingParams": "trimtab.core",
    "Selection": "trimtab.core",
    "SoupPart": "trimtab.training.soup",
    "StatelessGuide": "trimtab.guides.stateless",
    "Step": "trimtab.answers",
    "TabularModel": "trimtab.models.tabular",
    "Tilt": "trimtab.mixing.rules",
    "TokenTrace": "trimtab.answers",
    "VLLMEngine": "trimtab.engines.vllm.engine",
    "acceptance_of": "trimtab.evaluation.acceptance",
    "build_policy": "trimtab.methods.catalogue",
    "builtin_prompts": "trimtab.evaluation.prompt_sets",
    "counted_passes": "trimtab.evaluation.acceptance",
    "finished": "trimtab.answers",
    "generate_with_guides": "trimtab.storage.steered_generate",
    "length_controlled_win_rate": "trimtab.evaluation.judging.length_control",
    "load_guide": "trimtab.storage.loading",
    "load_llama": "trimtab.storage.gguf_files",
    "load_model": "trimtab.storage.loading",
    "load_parm": "trimtab.storage.loading",
    "load_reward_model": "trimtab.storage.scorers",
    "load_scorer": "trimtab.storage.scorers",
    "preference_rate": "trimtab.evaluation.judging.preference",
    "read_pairs": "trimtab.training.pairs.data",
    "read_win_rates": "trimtab.evaluation.judging.win_rates",
    "save_guide": "trimtab.storage.loading",
    "soup": "trimtab.training.soup",
    "train_agent": "trimtab.training.agent.train",
    "train_arm": "trimtab.training.arm.train",
    "train_distill": "trimtab.training.distill.train",
    "train_dpo": "trimtab.training.dpo.train",
    "train_parm": "trimtab.training.parm.train",
    "train_reward": "trimtab.training.reward.train",
    "train_rl": "trimtab.training.rl.train",
    "train_guide_rl": "trimtab.training.rl.train",
}
"""What imports torch, or what belongs to an extra: imported when first asked for, so the command starts without it."""


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
