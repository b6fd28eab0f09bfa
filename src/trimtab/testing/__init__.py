"""The laws of `trimtab.core` as functions, to be called on a model, a guide, a rule or a tokenizer of your own:

    from trimtab.models.tabular import TabularModel
    from trimtab.testing import check_guide
    check_guide(MyGuide(), TabularModel.random(8, seed=0))

Each raises `LawViolation`, which names the law and the numbers that broke it, or returns None. The numbers compared are
float32: `tolerance` is the largest accepted difference, absolute below 1 and relative above. Run a model or a guide in
float32; in half precision a batch and a single row do not agree.

What they do not show: that a guide is good at anything, or that laws hold for sequences unlike those that were tried.
Give `prompts` like your own, and longer than any window or chunk your code has.
"""

from trimtab.testing.laws import TOLERANCE, LawViolation
from trimtab.testing.rules import check_rule
from trimtab.testing.sessions import check_guide, check_model
from trimtab.testing.texts import check_tokenizer

__all__ = ["TOLERANCE", "LawViolation", "check_guide", "check_model", "check_rule", "check_tokenizer"]
