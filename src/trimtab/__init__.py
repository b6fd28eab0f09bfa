"""trimtab steers a frozen language model token by token with small trained guides."""

from trimtab.core import Answer, Candidates, Guide, LanguageModel, Rule, SamplingParams, Step, TokenTrace
from trimtab.decoding import Decoder
from trimtab.errors import TrimtabError
from trimtab.guides.arm import ARM
from trimtab.loading import load_guide, load_model, save_guide
from trimtab.processor import GuidanceProcessor
from trimtab.rules import Tilt

__all__ = [
    "ARM",
    "Answer",
    "Candidates",
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
    "load_guide",
    "load_model",
    "save_guide",
]
