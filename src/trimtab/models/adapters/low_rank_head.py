"""The two matrices of a head, B A h: their file, their shapes, and the model that they belong to.

A head is a LoRA of the output head that is added after it (`guides.head`), so its weights are named and checked here as
adapters' are.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trimtab.core import LanguageModel
from trimtab.errors import BaseMismatchError, CheckpointError, OptionError, VocabularyMismatchError
from trimtab.models.adapters.lora import difference
from trimtab.models.trained_on import UNKNOWN, TrainedOn

WEIGHTS_FILE = "model.safetensors"
DOWN, UP = "down.weight", "up.weight"
"""The names of A and B in the file."""
_WAY_OUT = (
    "A head runs on the model that it was trained on: use that one, or train one (trimtab train arm --head-only)."
)


class LowRankHead:
    """A [r, D] and B [V, r], in float32, and what is known of the model that they were trained on.

    Raises OptionError for shapes that are not a head's: of two ranks, of a rank below 1 or above the states' width.

    >>> import torch
    >>> from trimtab import LowRankHead
    >>> head = LowRankHead(torch.ones(2, 4), torch.ones(9, 2))
    >>> head.rank, head.hidden_size, head.vocab_size, tuple(head.scores(torch.ones(3, 4)).shape)
    (2, 4, 9, (3, 9))
    """

    def __init__(self, down: Tensor, up: Tensor, trained_on: TrainedOn = UNKNOWN) -> None:
        if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
            raise OptionError(
                f"A head is A [r, D] and B [V, r]; these have shapes {tuple(down.shape)} and {tuple(up.shape)}. Give "
                "two matrices of one rank r."
            )
        self.rank, self.hidden_size, self.vocab_size = int(down.shape[0]), int(down.shape[1]), int(up.shape[0])
        """r, the width D of the states that it reads, and the number V of logits that it adds to."""
        check_rank(self.rank, self.hidden_size)
        self.down = down.detach().to(torch.float32)
        self.up = up.detach().to(torch.float32)
        self.trained_on = trained_on

    @staticmethod
    def load(directory: Path, trained_on: TrainedOn = UNKNOWN) -> LowRankHead:
        """The weights that `save` wrote. Raises CheckpointError where they are missing, damaged or not a head's."""
        path = directory / WEIGHTS_FILE
        if not path.exists():
            raise CheckpointError(f"{directory} holds no {WEIGHTS_FILE}. Train the head again, or download it whole.")
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}). Train the head again.") from error
        if set(tensors) != {DOWN, UP}:
            named = ", ".join(sorted(tensors)[:4]) or "nothing"
            raise CheckpointError(f"{path} holds {named}; a head is {DOWN} and {UP} and nothing else.")
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{path}: {name} holds NaN or infinite numbers. Train the head again.")
        try:
            return LowRankHead(tensors[DOWN], tensors[UP], trained_on)
        except OptionError as error:
            raise CheckpointError(f"{path} is not a head: {error}") from error

    def save(self, directory: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write the two matrices into an existing directory."""
        tensors = {DOWN: self.down, UP: self.up}
        on_disk = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
        save_file(on_disk, directory / WEIGHTS_FILE, metadata={"format": "pt"})

    def facts(self) -> dict[str, object]:
        """What a card (`guide.json`) says of the head, beside its kind."""
        known = {"base": dict(self.trained_on.base), "vocabulary": dict(self.trained_on.vocabulary)}
        return {**{key: facts for key, facts in known.items() if facts}, "head": self.shape}

    @property
    def shape(self) -> dict[str, int]:
        """The `head` section of a card."""
        return {"rank": self.rank, "hidden_size": self.hidden_size, "vocab_size": self.vocab_size}

    def to(self, device: torch.device) -> LowRankHead:
        """The same head on a device; itself where it is there."""
        if self.down.device == device:
            return self
        return LowRankHead(self.down.to(device), self.up.to(device), self.trained_on)

    def scores(self, states: Tensor) -> Tensor:
        """[N, D] states, in any dtype and on any device -> [N, V] float32 on the head's: B A h of each."""
        return states.to(self.down.device, torch.float32) @ self.down.T @ self.up.T

    def check(self, base: LanguageModel) -> None:
        """Raise BaseMismatchError or VocabularyMismatchError for a model that this head was not trained on: another
        width of states, another vocabulary, or other weights, as far as is known of both."""
        name = self.trained_on.base.get("name")
        trained = f" (it was trained on {name})" if name else ""
        if base.hidden_size != self.hidden_size:
            raise BaseMismatchError(
                f"This head reads states of width {self.hidden_size}{trained}; the model's have {base.hidden_size}. "
                f"{_WAY_OUT}"
            )
        written, tokenizer = self.trained_on.vocabulary.get("fingerprint"), base.tokenizer
        if written and tokenizer is not None and tokenizer.fingerprint != written:
            raise VocabularyMismatchError(
                f"This head was trained with another vocabulary ({self.trained_on.vocabulary.get('size')} tokens) than "
                f"the model's ({len(tokenizer.tokens)} tokens); they differ in content. {_WAY_OUT}"
            )
        if base.vocab_size != self.vocab_size:
            raise VocabularyMismatchError(
                f"This head adds to {self.vocab_size} logits{trained}; the model has {base.vocab_size}. {_WAY_OUT}"
            )
        describe = getattr(base, "describe", None)
        if describe is not None and self.trained_on.base:
            here = describe()
            different = difference(self.trained_on.base, here)
            if different is not None:
                raise BaseMismatchError(
                    f"This head was trained on {name}; the model here, {here['name']}, has {different}. {_WAY_OUT}"
                )


def check_rank(rank: int, width: int) -> None:
    """Raise OptionError for a rank that no head on states of this width has."""
    if not 1 <= rank <= width:
        raise OptionError(
            f"The rank of the head is {rank}, and the model's states have width {width}. Give a rank of at least 1 and "
            f"at most {width}."
        )
