"""trimtab steers a frozen language model token by token with small trained guides."""

from trimtab.answers import Answer, Step, TokenTrace
from trimtab.core import Candidates, Chat, Guide, LanguageModel, Rule, SamplingParams
from trimtab.decoding import Decoder
from trimtab.engines.vllm.engine import VLLMEngine
from trimtab.errors import TrimtabError
from trimtab.guides.arm import ARM
from trimtab.loading import load_guide, load_model, save_guide
from trimtab.processor import GuidanceProcessor
from trimtab.rules import Tilt

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
