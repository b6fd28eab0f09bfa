"""A trajectory reward model: a transformers sequence-classification model with one label, which scores whole answers.

What it does not know: it takes whatever number the head gives, higher is better. Rewards are a Bradley-Terry model's
log-odds (Bradley and Terry 1952; Ouyang et al., arXiv 2203.02155, equation 1), so only differences between answers to
one prompt mean something. For a cost model lower is better; the caller turns the sign.

The last token is found by length, never by the padding's id, and the mask is built from lengths too: a batch gives what
each text gives alone (float32). At construction a probe compares this road with the model's own forward pass.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from trimtab.core import Chat, Message, Prompt
from trimtab.errors import CheckpointError, CompatibilityError, NotFiniteError, OptionError, PromptError
from trimtab.models.networks.kinds import longest
from trimtab.models.networks.probing import RATIO, company_length, disturbed
from trimtab.models.quantize.network import quantize as quantized
from trimtab.models.quantize.network import refuse_place
from trimtab.models.rewards.beginnings import at_ends, beginnings, sees_everything, states_after
from trimtab.models.tokenizing.beginning import begun_once
from trimtab.models.tokenizing.conversations import Conversations
from trimtab.models.tokenizing.templates import check_messages, readable, render

log = logging.getLogger(__name__)

_BATCH_TOKENS = 4096
_EXACT = 1e-4
"""Relative difference from a row's own reward up to which no rounding is measured."""
_NUM_DISTURBED = 8
_ACCEPTED = "Accepted: encoders with an attention mask, and decoders with a linear `score` on the last token."


class RewardModel:
    """Rewards of answers by a transformers sequence-classification model of one label.

    `module` and `tokenizer` are transformers'; the weights are never written to. A text of more than `max_length`
    tokens (default: what the tokenizer and the model take) is cut from the left, and `num_cut` counts such texts. A
    forward pass has at most `batch_tokens` tokens, padding included, unless one text alone has more. Raises
    CheckpointError for another number of labels, CompatibilityError for a model whose batches differ from single rows.
    """

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
        *,
        name: str = "",
        max_length: int | None = None,
        batch_tokens: int = _BATCH_TOKENS,
    ) -> None:
        if max_length is not None and max_length < 1:
            raise OptionError(f"max_length is {max_length}; give at least 1.")
        module.eval().requires_grad_(False)
        self.module = module
        self.name = name or str(module.config.name_or_path)
        _check_num_labels(module.config, self.name)
        self.num_cut = 0
        """Texts that were longer than `max_length` so far."""
        self.tokenizer = tokenizer
        self._text = _Text(tokenizer)
        self._batch_tokens = batch_tokens
        self.max_length = min(_limits(module, tokenizer, max_length), default=None)
        if self.max_length is not None and self.max_length <= self._text.num_special:
            raise OptionError(
                f"max_length is {self.max_length}, and the tokenizer adds {self._text.num_special} tokens of its own. "
                "Give more."
            )
        self._alone_past = company_length(module.config)
        self._shares = False
        self._probe()

    @property
    def device(self) -> torch.device:
        return torch.device(self.module.get_input_embeddings().weight.device)

    @property
    def template(self) -> str | None:
        """SHA-256 of the chat template that prompts are written with; None without one."""
        text = self.tokenizer.chat_template
        return None if not text else hashlib.sha256(str(text).encode()).hexdigest()

    def rewards(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        """One reward for each answer, in order; not checked to be finite.

        A prompt of text is one user message. Where the tokenizer has a chat template, prompt and answer go through it
        as a finished conversation; elsewhere the messages and the answer are joined by line breaks. Raises PromptError
        for token ids, for a prompt without an answer beside it, and for messages that the template refuses.
        """
        values = self._map(self._rewards_of, self._rewards_at, prompts, answers)
        return [float(value) for value in values]

    def states(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Tensor:
        """[N, D] float32 on the CPU: what the score head reads, the state of the last token after the final norm.

        Raises CompatibilityError for a model without such a head (`score`), an encoder for example.
        """
        if not self._reads_last_token:
            raise CompatibilityError(
                f"{self.name} is a {type(self.module).__name__}, which has no linear `score` on its last token. "
                "Accepted: decoder-style sequence-classification models."
            )
        return torch.stack(self._map(self._last_states, lambda states: states, prompts, answers))

    def token_ids(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[list[int]]:
        """What the model reads of each prompt and answer: at most `max_length` ids, cut from the left and counted.

        Raises PromptError as `rewards` does.
        """
        if len(prompts) != len(answers):
            raise PromptError(f"There are {len(prompts)} prompts and {len(answers)} answers; give one of each.")
        texts = [self._text.encode(*pair) for pair in zip(prompts, answers, strict=True)]
        for index, (_, body, _) in enumerate(texts):
            if not body:
                raise PromptError(f"Prompt and answer {index} give no token at all. Give some text.")
        return self._fitted(texts)

    @property
    def _reads_last_token(self) -> bool:
        return isinstance(getattr(self.module, "score", None), nn.Module)

    def _map(
        self,
        forward: Callable[[Tensor, Tensor], Tensor],
        after: Callable[[Tensor], Tensor],
        prompts: Sequence[Prompt],
        answers: Sequence[str],
    ) -> list[Tensor]:
        """`forward` of every text in length-sorted batches, in the order of the texts.

        What several begin with is read once, and then `after` is asked with the states [B, D] of their last tokens.
        """
        rows = self.token_ids(prompts, answers)
        found: dict[int, Tensor] = {}
        for shared, group in beginnings(rows) if self._shares else ():
            for batch in _batches([len(rows[index]) for index in group], self._batch_tokens, None):
                members = [group[place] for place in batch]
                states = self._states_after(rows[members[0]][:shared], [rows[index][shared:] for index in members])
                found.update(zip(members, after(states).float().cpu(), strict=True))
        left = [index for index in range(len(rows)) if index not in found]
        for batch in _batches([len(rows[index]) for index in left], self._batch_tokens, self._alone_past):
            members = [left[place] for place in batch]
            token_ids, mask = self._padded([rows[index] for index in members], self._text.pad_id)
            found.update(zip(members, forward(token_ids, mask).float().cpu(), strict=True))
        return [found[index] for index in range(len(rows))]

    def _fitted(self, texts: Sequence[tuple[list[int], list[int], list[int]]]) -> list[list[int]]:
        """Token ids of at most `max_length`; the first cut is logged, all are counted."""
        rows, num_cut = [], 0
        for start, body, end in texts:
            room = len(body) if self.max_length is None else self.max_length - len(start) - len(end)
            num_cut += len(body) > room
            rows.append([*start, *body[max(0, len(body) - room) :], *end])
        if num_cut and not self.num_cut:
            log.warning(
                "%s: %d of %d texts are longer than %s tokens and lose their beginning. More such are counted, not "
                "logged",
                *(self.name, num_cut, len(rows), self.max_length),
            )
        self.num_cut += num_cut
        return rows

    @torch.inference_mode()
    def _rewards_of(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """[B] rewards of [B, T] ids with their [B, T] mask."""
        if self._reads_last_token:
            return self._rewards_at(self._last_states(token_ids, mask))
        score: Tensor = self.module(input_ids=token_ids, attention_mask=mask).logits
        return score[:, 0]

    @torch.inference_mode()
    def _rewards_at(self, states: Tensor) -> Tensor:
        """[B] rewards of the states [B, D] of last tokens."""
        score: Tensor = self.module.score(states)
        return score[:, 0]

    @torch.inference_mode()
    def _states_after(self, shared: list[int], rows: Sequence[list[int]]) -> Tensor:
        """[B, D] states of the last tokens of rows that go on from the tokens that they share."""
        return states_after(self.module.base_model, shared, *self._padded(rows, self._text.pad_id))

    @torch.inference_mode()
    def _last_states(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """[B, D] states of each row's last token."""
        output = self.module.base_model(input_ids=token_ids, attention_mask=mask, use_cache=False)
        return at_ends(output.last_hidden_state, mask)

    def _padded(self, rows: Sequence[list[int]], filler: int) -> tuple[Tensor, Tensor]:
        """[B, T] ids, filled up on the right, and [B, T] int64, 1 where a token is."""
        width = max(map(len, rows))
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        token_ids = torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], device=self.device)
        return token_ids, (torch.arange(width, device=self.device) < lengths[:, None]).long()

    @torch.inference_mode()
    def _probe(self) -> None:
        """Compare our road, in a batch filled up with a token like any other, with the model's own on single rows."""
        size = int(self.module.get_input_embeddings().weight.shape[0])
        token_ids = [token_id for token_id in range(1, min(size, 9)) if token_id != self._text.pad_id]
        rows = [token_ids[:4], token_ids, token_ids[-1:]]
        try:
            expected = self._own_rewards(rows)
            ours = self._rewards_of(*self._padded(rows, filler=token_ids[0])).float()
        except Exception as error:  # each architecture has its own for what it cannot do
            raise CompatibilityError(
                f"{type(self.module).__name__} does not take a batch of plain token ids ({error}). {_ACCEPTED}"
            ) from error
        if bool(torch.isnan(ours - expected).any()):
            raise NotFiniteError(f"{self.name} gives NaN. Its weights are damaged, or need another dtype.")
        if not self._agrees(ours, expected, rows):
            gap = float((ours - expected).abs().max())
            raise CompatibilityError(
                f"{type(self.module).__name__} gives a text in a batch a reward that is {gap:.2g} from what it gives "
                f"the text alone: it looks at the padding. {_ACCEPTED}"
            )
        self._shares = self._reads_last_token and self._alone_past is None and self._can_share(rows[:2], expected[:2])

    def _can_share(self, rows: Sequence[list[int]], expected: Tensor) -> bool:
        """Whether rows [2] that begin alike get their `expected` rewards where what they share is read once."""
        if not sees_everything(self.module.config):
            return False
        try:
            found = self._rewards_at(self._states_after(rows[0][:2], [row[2:] for row in rows])).float()
        except Exception:  # each architecture has its own for what it cannot do
            return False
        return self._agrees(found, expected, rows)

    def _agrees(self, found: Tensor, expected: Tensor, rows: Sequence[list[int]]) -> bool:
        """Whether rewards of rows are those expected, up to rounding, measured only where they are not exact."""
        gap = float((found - expected).abs().max())
        return gap <= _EXACT * (1 + float(expected.abs().max())) or gap <= RATIO * self._rounding(rows, expected)

    def _own_rewards(self, rows: Sequence[list[int]]) -> Tensor:
        """[N] rewards of rows, each by the model's own forward pass over it alone."""
        alone = [self.module(input_ids=torch.tensor([row], device=self.device)).logits[0, 0] for row in rows]
        return torch.stack(alone).float()

    def _rounding(self, rows: Sequence[list[int]], rewards: Tensor) -> float:
        """By how much the model's own rewards change where each of its layers is disturbed as it rounds."""
        found = []
        for seed in range(_NUM_DISTURBED):
            with disturbed(self.module, seed):
                found.append((self._own_rewards(rows) - rewards).abs())
        return float(torch.stack(found).mean())


class _Text:
    """Prompt and answer as token ids, through one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._hf = tokenizer
        self._start, self._end = Conversations(tokenizer).habits
        pad = tokenizer.pad_token_id
        self.pad_id = int(pad) if pad is not None else 0
        self.num_special = len(self._start) + len(self._end)

    def encode(self, prompt: Prompt, answer: str) -> tuple[list[int], list[int], list[int]]:
        """(what stays in front, what may be cut from the left, what stays behind)."""
        messages = _conversation(prompt, answer)
        if not self._hf.chat_template:
            return self._start, self._plain("\n".join(message.get("content") or "" for message in messages)), self._end
        try:
            chat = readable(self._hf, messages)
            text = render(self._hf, chat, options=chat.options, opened=False)
        except PromptError as error:
            raise PromptError(
                f"The reward model does not read a conversation of {len(messages)} messages. {error} "
                "Give prompts in the shape that it accepts."
            ) from error
        bos = self._hf.bos_token_id
        habit = [int(bos)] if bos in self._start else []
        return *begun_once(self._plain(text), bos, habit, as_written=True), []

    def _plain(self, text: str) -> list[int]:
        # Not verbose: a text that is too long is cut and counted here.
        token_ids = self._hf(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [int(token_id) for token_id in token_ids]


def load_whole_reward_model(
    directory: str | Path,
    *,
    name: str = "",
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    device: str | torch.device | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
) -> RewardModel:
    """Load a reward model and its tokenizer from a local directory.

    `dtype` "auto" is float32 on a CPU and the checkpoint's own elsewhere; `device` defaults to the GPU where there is
    one; `quantize` is `load_model`'s. Raises CheckpointError for a directory that does not load, without safetensors,
    with another number of labels than one, or that lacks weights: a score head that transformers would make up gives
    random rewards.
    """
    directory = Path(directory)
    name = name or str(directory)
    if (directory / "adapter_config.json").exists():
        raise CheckpointError(
            f"{name} holds an adapter, whose rewards need its base too. Load it with trimtab.load_reward_model."
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() and quantize is None else "cpu"))
    if quantize is not None:
        refuse_place(quantize, dtype, device)
    if dtype == "auto" and device.type == "cpu":
        dtype = torch.float32
    if not any(directory.glob("*.safetensors")):
        raise CheckpointError(
            f"{name} holds no safetensors, so no reward model that is read here; pickled weights can run code when "
            "loaded. Accepted: a directory that save_pretrained wrote for a sequence-classification model."
        )
    try:
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        _check_num_labels(config, name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
        module, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises a dozen kinds for a bad directory
        raise CheckpointError(f"{name} does not load as a sequence-classification model: {error}") from error
    if missing := sorted(set(loaded["missing_keys"])):
        raise CheckpointError(
            f"{name} lacks {len(missing)} weights (first: {missing[0]}), which would be newly initialised, so its "
            "rewards would be random. Give a model that was trained as a reward model."
        )
    module.to(device)
    if quantize is not None:
        quantized(module, quantize)
    return RewardModel(module, tokenizer, name=name, max_length=max_length)


def _conversation(prompt: Prompt, answer: str) -> Chat:
    """The prompt's messages and the answer's; an assistant's message at the end of the prompt is continued.

    What a chat says to the answering model's template is said to the reward model's, where that reads it.
    """
    if isinstance(prompt, str):
        return Chat([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])
    if len(prompt) > 0 and isinstance(prompt[0], int):
        raise PromptError(
            f"A reward model reads text with its own tokenizer, and the prompt is {len(prompt)} token ids. "
            "Give it as text or as chat messages."
        )
    messages: list[Message] = list(prompt)  # type: ignore[arg-type]
    check_messages(messages)
    if messages[-1]["role"] == "assistant":
        answer = (messages.pop().get("content") or "") + answer
    options = prompt.options if isinstance(prompt, Chat) else {}
    return Chat([*messages, {"role": "assistant", "content": answer}], options, required=False)


def _check_num_labels(config: Any, name: str) -> None:
    if config.num_labels != 1:
        raise CheckpointError(
            f"{name} has {config.num_labels} labels; a reward model has one. A language model without a score head is "
            "no reward model, and a classifier of several classes has several numbers to choose from: wrap it in a "
            "function of your own (module:function)."
        )


def _limits(module: Any, tokenizer: Any, max_length: int | None) -> Iterator[int]:
    """What the caller, the model and the tokenizer allow; a tokenizer without a limit names an astronomical one."""
    for limit in (max_length, longest(module.base_model), tokenizer.model_max_length):
        if limit and 0 < limit < 1 << 30:
            yield int(limit)


def _batches(lengths: Sequence[int], max_tokens: int, alone_past: int | None) -> Iterator[list[int]]:
    """Indices, longest first, in batches of at most `max_tokens` with their padding; at least one in each.

    One that is longer than `alone_past` has a batch to itself.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        alone = alone_past is not None and lengths[order[0]] > alone_past
        num_rows = 1 if alone else max(1, max_tokens // lengths[order[0]])
        yield order[:num_rows]
        order = order[num_rows:]
