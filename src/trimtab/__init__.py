"""trimtab steers a frozen language model token by token with small trained guides.

What is listed in `__all__` is the public surface, and so are `trimtab.errors`, `trimtab.statistics`, `trimtab.testing`
and, for lm-eval, `trimtab.evaluation.lm_eval`. Every other module is private: it may move in any version.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trimtab.answers import Answer, Step, TokenTrace, finished
from trimtab.constraint import Constraint
from trimtab.core import Candidates, Chat, Guide, LanguageModel, Message, Prompt, Rule, SamplingParams, Selection
from trimtab.decoding.decoder import Decoder
from trimtab.decoding.transformers_processor import GuidanceProcessor
from trimtab.engines.vllm.engine import VLLMEngine
from trimtab.errors import TrimtabError
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.guides.arm import ARM, AdapterARM
from trimtab.guides.parm import PARM
from trimtab.guides.prompt import PromptGuide
from trimtab.guides.stateless import StatelessGuide
from trimtab.mixing.rules import Tilt
from trimtab.storage.gguf_files import load_llama
from trimtab.storage.loading import load_guide, load_model, load_parm, save_guide
from trimtab.storage.scorers import load_reward_model, load_scorer

if TYPE_CHECKING:
    from trimtab.evaluation.acceptance import acceptance_of, counted_passes
    from trimtab.evaluation.judging.length_control import GamedRow, length_controlled_win_rate
    from trimtab.evaluation.judging.preference import preference_rate
    from trimtab.evaluation.judging.win_rates import read_win_rates
    from trimtab.methods.catalogue import build_policy
    from trimtab.models.hf import HFModel
    from trimtab.models.rewards.whole import RewardModel
    from trimtab.models.tabular import TabularModel
    from trimtab.training.agent.settings import AgentSettings
    from trimtab.training.agent.train import train_agent
    from trimtab.training.arm.train import train_arm
    from trimtab.training.dpo.settings import DpoSettings
    from trimtab.training.dpo.train import train_dpo
    from trimtab.training.pairs.data import PairData, read_pairs
    from trimtab.training.pairs.formats import PreferencePair
    from trimtab.training.parm.settings import ParmSettings
    from trimtab.training.parm.train import train_parm
    from trimtab.training.reward.settings import RewardSettings
    from trimtab.training.reward.train import train_reward
    from trimtab.training.rl.settings import RLSettings
    from trimtab.training.rl.train import train_rl
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
    "DpoSettings",
    "GamedRow",
    "GuidanceProcessor",
    "Guide",
    "HFModel",
    "Interrupted",
    "LanguageModel",
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
    "counted_passes",
    "finished",
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
    "train_dpo",
    "train_parm",
    "train_reward",
    "train_rl",
]

_LATE = {
    "AgentReward": "trimtab.training.run.rewards",
    "AgentSettings": "trimtab.training.agent.settings",
    "ArmSettings": "trimtab.training.run.settings",
    "DpoSettings": "trimtab.training.dpo.settings",
    "GamedRow": "trimtab.evaluation.judging.length_control",
    "HFModel": "trimtab.models.hf",
    "Interrupted": "trimtab.training.run.interruption",
    "PairData": "trimtab.training.pairs.data",
    "ParmSettings": "trimtab.training.parm.settings",
    "PreferencePair": "trimtab.training.pairs.formats",
    "RLSettings": "trimtab.training.rl.settings",
    "RewardModel": "trimtab.models.rewards.whole",
    "RewardSettings": "trimtab.training.reward.settings",
    "SoupPart": "trimtab.training.soup",
    "TabularModel": "trimtab.models.tabular",
    "acceptance_of": "trimtab.evaluation.acceptance",
    "build_policy": "trimtab.methods.catalogue",
    "counted_passes": "trimtab.evaluation.acceptance",
    "length_controlled_win_rate": "trimtab.evaluation.judging.length_control",
    "preference_rate": "trimtab.evaluation.judging.preference",
    "read_pairs": "trimtab.training.pairs.data",
    "read_win_rates": "trimtab.evaluation.judging.win_rates",
    "soup": "trimtab.training.soup",
    "train_agent": "trimtab.training.agent.train",
    "train_arm": "trimtab.training.arm.train",
    "train_dpo": "trimtab.training.dpo.train",
    "train_parm": "trimtab.training.parm.train",
    "train_reward": "trimtab.training.reward.train",
    "train_rl": "trimtab.training.rl.train",
}
"""What decoding does not need, or what imports transformers, which takes seconds: imported when first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
