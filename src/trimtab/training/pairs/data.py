"""Preference pairs from local JSON lines or a hub data set, with an account of what was left out.

A line that cannot be used stops the run and is named by file and number, unless the caller says to go on; then it is
counted. Nothing is dropped in silence.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trimtab.documents import read_json
from trimtab.errors import DataError, MissingExtraError, OptionError, PromptError, naming
from trimtab.prompts import as_json, with_options
from trimtab.training.pairs.formats import (
    FORMATS,
    PreferencePair,
    RowError,
    TieError,
    check_format,
    convert,
    detect,
)

__all__ = ["FORMATS", "PairData", "PreferencePair", "fingerprint", "hold_out", "read_pairs", "sample", "without_stock"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PairData:
    """Pairs, where they came from, and how many rows gave none."""

    pairs: tuple[PreferencePair, ...]
    names: tuple[str, ...] = ()
    """File names (without their directories) and hub ids."""
    num_skipped: int = 0
    """Rows that could not be used, passed over because the caller said so."""
    num_ties: int = 0
    """Rows in order whose answers have equal scores."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content of the pairs, in order."""
        return fingerprint(self.pairs)

    def without_stock(self, max_prompts: int) -> PairData:
        """The pairs whose responses answer at most `max_prompts` different prompts each, as a training leaves out the
        others (`max_prompts_per_response`); 0 keeps all. Raises DataError where none is left."""
        return replace(self, pairs=tuple(without_stock(self.pairs, max_prompts)))

    def sample(self, num_pairs: int, *, seed: int) -> PairData:
        """`num_pairs` of the pairs drawn without replacement, in their own order; all of them where there are fewer."""
        return replace(self, pairs=tuple(sample(self.pairs, num_pairs, seed=seed)))

    def hold_out(self, share: float, *, seed: int) -> tuple[PairData, PairData]:
        """(training, evaluation) pairs. Whole prompts are held out: no prompt is on both sides. Raises OptionError for
        a share that is not between 0 and 1, DataError where all pairs share one prompt."""
        train, held = hold_out(self.pairs, share, seed=seed)
        return replace(self, pairs=tuple(train)), replace(self, pairs=tuple(held))


def read_pairs(
    sources: Sequence[str | Path],
    *,
    format: str = "auto",
    skip_bad_lines: bool = False,
    ignore_columns: Collection[str] = (),
    template_options: Mapping[str, object] | None = None,
) -> PairData:
    """All pairs of some sources: `.jsonl` files, or hub data sets as `owner/name` or `owner/name@split` (split: train).

    `format` is "auto" (by the shape of the first row of each source) or a name in `FORMATS`. Columns named in
    `ignore_columns` are as if they were not there; `template_options` go to the chat template with each prompt of
    messages, under what its row says (`chat_template_kwargs`, `tools`). Raises DataError with the path and the 1-based
    line for the first line that is empty, no JSON, no pair, or has a column that would be lost, unless
    `skip_bad_lines`; and for a raw text where there are template options.
    """
    check_format(format)
    pairs: list[PreferencePair] = []
    skipped = ties = 0
    for source in sources:
        reader = _Reader(str(source), format, frozenset(ignore_columns), dict(template_options or {}))
        for number, row in _rows(source):
            try:
                pairs.append(reader.pair(row))
            except TieError:
                ties += 1
            except RowError as problem:
                if not skip_bad_lines:
                    raise DataError(f"{problem}. {_WAY_OUT}", path=source, line=number) from None
                skipped += 1
    if not pairs:
        names = ", ".join(map(str, sources)) or "no source"
        raise DataError(f"{names} holds no preference pair ({skipped} bad lines, {ties} ties). Give at least one.")
    if skipped or ties:
        log.warning("%d bad lines passed over, %d rows without a preferred answer", skipped, ties)
    return PairData(tuple(pairs), tuple(_name(source) for source in sources), skipped, ties)


def sample(pairs: Sequence[PreferencePair], num_pairs: int, *, seed: int) -> list[PreferencePair]:
    """`num_pairs` of the pairs drawn without replacement, in their own order; all of them where there are fewer."""
    if num_pairs >= len(pairs):
        return list(pairs)
    return [pairs[i] for i in sorted(random.Random(seed).sample(range(len(pairs)), num_pairs))]


def without_stock(pairs: Sequence[PreferencePair], max_prompts: int) -> list[PreferencePair]:
    """The pairs whose responses answer at most `max_prompts` different prompts each; 0 keeps all.

    A text that is preferred whatever was asked (a stock phrase, or an attack on the judge that labelled the data, as in
    Zheng et al., arXiv 2410.07137) teaches the text, not what makes an answer good.
    """
    if max_prompts == 0 or not pairs:
        return list(pairs)
    prompts: dict[str, set[str]] = {}
    for pair in pairs:
        for response in filter(None, (pair.chosen, pair.rejected)):  # a call of a tool may come without a text
            prompts.setdefault(response, set()).add(prompt_key(pair))
    stock = {response for response, asked in prompts.items() if len(asked) > max_prompts}
    kept = [pair for pair in pairs if pair.chosen not in stock and pair.rejected not in stock]
    if stock:
        worst = max(stock, key=lambda response: len(prompts[response]))
        log.warning(
            "%d of %d pairs are left out: %d responses answer more than %d different prompts each. The most frequent "
            "answers %d and begins %r",
            *(len(pairs) - len(kept), len(pairs), len(stock), max_prompts, len(prompts[worst]), worst[:60]),
        )
    if not kept:
        raise naming(
            DataError,
            "Every pair has a response that answers more than {0} different prompts. Check the data, or keep such "
            "pairs: {max_prompts_per_response} 0.",
            max_prompts,
        )
    return kept


def hold_out(
    pairs: Sequence[PreferencePair], share: float, *, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """(training, evaluation) pairs. Whole prompts are held out: no prompt is on both sides."""
    if not 0 < share < 1:
        raise naming(OptionError, "{eval_share} is {0}; give a number between 0 and 1, for example 0.05.", share)
    prompts = sorted({prompt_key(pair) for pair in pairs})
    random.Random(seed).shuffle(prompts)
    held = set(prompts[: max(1, round(share * len(prompts)))])
    if len(held) == len(prompts):
        raise naming(
            DataError,
            "All pairs share one prompt, so none can be held out. Give {eval_pairs} of their own, or {eval_share} 0.",
        )
    train = [pair for pair in pairs if prompt_key(pair) not in held]
    return train, [pair for pair in pairs if prompt_key(pair) in held]


def fingerprint(pairs: Iterable[PreferencePair]) -> str:
    """SHA-256 of the content of the pairs, in order."""
    digest = hashlib.sha256()
    for pair in pairs:
        keys = [dict(pair.chosen_keys), dict(pair.rejected_keys)]
        content = [as_json(pair.prompt), pair.chosen, pair.rejected, *(keys if any(keys) else [])]
        line = json.dumps(content, ensure_ascii=True, sort_keys=True)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def prompt_key(pair: PreferencePair) -> str:
    """What tells one prompt from another."""
    return json.dumps(as_json(pair.prompt), sort_keys=True)


_WAY_OUT = "Correct the line, or go on without such lines: --skip-bad-lines"


class _Reader:
    """Reads rows of one source; the first usable row settles the format."""

    def __init__(self, source: str, format_name: str, ignored: frozenset[str], options: Mapping[str, object]) -> None:
        self._source = source
        self._format = format_name
        self._ignored = ignored
        self._options = options

    def pair(self, row: object) -> PreferencePair:
        if isinstance(row, RowError):
            raise row
        if not isinstance(row, dict):
            raise RowError(f"{str(row)[:40]!r} is not a JSON object")
        row = {name: value for name, value in row.items() if name not in self._ignored}
        if self._format == "auto":
            self._format = detect(row)
            log.info("%s: format %s", self._source, self._format)
        pair = convert(row, self._format)
        if not self._options:
            return pair
        try:
            return replace(pair, prompt=with_options(pair.prompt, self._options))  # type: ignore[arg-type]
        except PromptError as error:
            raise RowError(str(error).rstrip(".")) from None


def _rows(source: str | Path) -> Iterator[tuple[int, object]]:
    """(1-based number, row) of a file or data set; a line that is no JSON comes as the RowError it is."""
    path = Path(source)
    if path.is_file():
        yield from _lines(path)
    elif path.is_dir():
        raise DataError("is a directory; give a .jsonl file or a hub data set id", path=path)
    elif path.suffix in (".jsonl", ".json") or str(source).startswith((".", "/", "~")):
        raise DataError("there is no such file. Give a .jsonl file or a hub data set id", path=path)
    else:
        yield from enumerate(_hub_rows(str(source)), 1)


def _lines(path: Path) -> Iterator[tuple[int, object]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield number, read_json(line) if line.strip() else RowError("the line is empty")
            except UnicodeDecodeError:
                yield number, RowError("the line is not UTF-8 text")
            except ValueError as error:
                yield number, RowError(f"the line is no JSON ({error})")


def _hub_rows(source: str) -> Iterator[object]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "train", f"Reading the hub data set {source}") from error
    name, _, split = source.partition("@")
    try:
        yield from datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError) as error:  # datasets' own errors are of these two kinds
        raise DataError(
            f"{source!r} is not a file here, and the hub did not give it ({error}). "
            "Accepted: a .jsonl file, or a data set as owner/name or owner/name@split"
        ) from error


def _name(source: str | Path) -> str:
    return Path(source).name if Path(source).is_file() else str(source)
