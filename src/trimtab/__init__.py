"""trimtab steers a frozen language model token by token with small trained guides."""

from trimtab.answers import Answer, Step, TokenTrace
from trimtab.core import Candidates, Chat, Guide, LanguageModel, Rule, SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.decoding.transformers_processor import GuidanceProcessor
from trimtab.engines.vllm.engine import VLLMEngine
from trimtab.errors import TrimtabError
from trimtab.guides.arm import ARM
from trimtab.mixing.rules import Tilt
from trimtab.storage.loading import load_guide, load_model, save_guide

__all__ = [
    "ARM",
    "Answer",
    "Candidates",
    "Chat",
    "Decoder",
    "GuidanceProcessor",
    "Guide",
    "LanguageModel",
    "Rule",
    "SamplingParams",
    "Step",
    "Tilt",
    "TokenTrace",
    "TrimtabError",
    "VLLMEngine",
    "load_guide",
    "load_model",
    "save_guide",
]
