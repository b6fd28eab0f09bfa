"""The pairs and prompts that recipes take, built from the public data sets they come from, and held against checksums.

    python recipes/public_data.py --list                          # what is wanted, from where, and its checksum
    python recipes/public_data.py --sources DIR --out DATA        # build what DIR has the sources of
    python recipes/public_data.py --check DATA                    # hold what lies in DATA against the checksums

DIR/REPOSITORY holds a downloaded data set, its files in its folders: `huggingface-cli download REPOSITORY --repo-type
dataset --local-dir DIR/REPOSITORY`, or `git clone`. Nothing is fetched here. Every row of a source is brought into the
shape that recipes read; those whose digest is on record are kept, in the order of the record, so that it need not be
known how they were drawn. Checksums are of rows (as JSON with sorted keys) and not of a file's bytes. Where rows differ
it says how many are missing or too many, and which is the first. No revision was noted when the rows were drawn: the
checksums stand in its place, and a revision whose rows have changed is seen by them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
DIGESTS = Path(__file__).with_name("public_data.json")
"""File -> number of rows, SHA-256 of all, and a short digest of each row, so that a difference can be placed."""
SHORT = 10


@dataclass(frozen=True, slots=True)
class Source:
    """Where the rows of a file come from."""

    repository: str
    """Of the data set, on huggingface.co or github.com."""
    files: tuple[str, ...]
    """Patterns of the files that are read, in the repository."""
    licence: str
    shape: Callable[[Mapping[str, Any], str], Row | None] | None
    """A row of the source and the file it is of, in the shape that recipes read; None: it has none. No function: what
    the rows were made of is not on record well enough to make them again."""


def gsm8k(row: Mapping[str, Any], file: str) -> Row | None:
    """A problem, its number, and its solution without the marks of a calculator and the closing line."""
    solution, _, answer = row["answer"].rpartition("####")
    return {
        "prompt": _user(row["question"]),
        "answer": answer.strip().replace(",", ""),
        "solution": re.sub(r"<<.*?>>", "", solution).rstrip(),
    }


def turns(text: str) -> list[dict[str, str]]:
    """A dialogue of HH-RLHF as messages; empty where it is no dialogue that an assistant ends."""
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    roles = [{"Human": "user", "Assistant": "assistant"}[name] for name in parts[::2]]
    alternate = ["user", "assistant"] * (len(roles) // 2)
    return (
        [{"role": r, "content": c.strip()} for r, c in zip(roles, parts[1::2], strict=True)]
        if roles == alternate
        else []
    )


def hh_pair(row: Mapping[str, Any], file: str) -> Row | None:
    """A pair whose two dialogues are one until their last answer."""
    chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
    if not chosen or chosen[:-1] != rejected[:-1]:
        return None
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def hh_prompt(row: Mapping[str, Any], file: str) -> Row | None:
    """The first message of a dialogue, with the part of the data set that it is of."""
    messages = turns(row["chosen"])
    return {"prompt": _user(messages[0]["content"]), "source": file.split("/")[0]} if messages else None


def prompt(row: Mapping[str, Any], file: str) -> Row | None:
    """A prompt alone."""
    return {"prompt": _user(row["prompt"])}


def beavertails(row: Mapping[str, Any], file: str) -> Row | None:
    """A prompt with the kind of harm that it asks for."""
    return {"prompt": _user(row["prompt"]), "category": row["category"]}


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


HH, GSM8K = "Anthropic/hh-rlhf", "openai/grade-school-math"
SAFE_RLHF = Source("PKU-Alignment/PKU-SafeRLHF", ("**/*.jsonl", "**/*.parquet"), "CC BY-NC 4.0", prompt)
ALPACA_EVAL = Source(
    "tatsu-lab/alpaca_eval", ("results/*/weighted_alpaca_eval_gpt4_turbo/annotations.json",), "CC BY-NC 4.0", None
)
HH_PROMPTS = Source(HH, ("helpful-base/*.jsonl*", "harmless-base/*.jsonl*"), "MIT", hh_prompt)
SOURCES: Mapping[str, Source] = {
    "gsm8k/train.jsonl": Source(GSM8K, ("grade_school_math/data/train.jsonl",), "MIT", gsm8k),
    "gsm8k/test.jsonl": Source(GSM8K, ("grade_school_math/data/test.jsonl",), "MIT", gsm8k),
    "harmless/train.jsonl": Source(HH, ("harmless-base/*.jsonl*",), "MIT", hh_pair),
    "harmless/validation.jsonl": Source(HH, ("harmless-base/*.jsonl*",), "MIT", hh_pair),
    "helpful/train.jsonl": ALPACA_EVAL,
    "helpful/validation.jsonl": ALPACA_EVAL,
    "prompts/hh_train.jsonl": HH_PROMPTS,
    "prompts/hh_test.jsonl": HH_PROMPTS,
    "prompts/safe_rlhf_train.jsonl": SAFE_RLHF,
    "prompts/safe_rlhf_test.jsonl": SAFE_RLHF,
    "prompts/beavertails.jsonl": Source(
        "PKU-Alignment/BeaverTails-Evaluation", ("**/*.jsonl", "**/*.json", "**/*.parquet"), "CC BY-NC 4.0", beavertails
    ),
    "prompts/ultrafeedback_test.jsonl": Source(
        "HuggingFaceH4/ultrafeedback_binarized", ("**/*.parquet", "**/*.jsonl"), "MIT", prompt
    ),
}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines, plain or compressed, of a JSON list, or of parquet (which pyarrow reads)."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
        return
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
        if path.suffix == ".json":
            yield from json.load(stream)
        else:
            yield from map(json.loads, stream)


def row_digest(row: Row) -> str:
    """The SHA-256 of a row, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(row, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def digest(rows: Sequence[Row]) -> dict[str, Any]:
    """What is on record of the rows of a file."""
    found = [row_digest(row) for row in rows]
    return {
        "rows": len(rows),
        "sha256": hashlib.sha256("\n".join(found).encode()).hexdigest(),
        "each": "".join(one[:SHORT] for one in found),
    }


def differences(rows: Sequence[Row], known: Mapping[str, Any]) -> list[str]:
    """How rows differ from those on record, in sentences; nothing where they do not."""
    found = digest(rows)
    if found["sha256"] == known["sha256"]:
        return []
    each, wanted = _each(found), _each(known)
    said = [f"{len(each)} rows, and {known['rows']} are on record"] if len(each) != len(wanted) else []
    missing, more = {*wanted} - {*each}, {*each} - {*wanted}
    if missing:
        said.append(f"{len(missing)} rows on record are not there, the first of them row {_at(wanted, missing)}")
    if more:
        said.append(f"{len(more)} rows are not on record, the first of them row {_at(each, more)}")
    if not missing and not more:
        first = next((at for at, pair in enumerate(zip(each, wanted, strict=False)) if pair[0] != pair[1]), len(wanted))
        said.append(f"the rows are those on record in another order or number, from row {first} on")
    return said


def _each(record: Mapping[str, Any]) -> list[str]:
    return [record["each"][at : at + SHORT] for at in range(0, len(record["each"]), SHORT)]


def _at(digests: Sequence[str], some: set[str]) -> int:
    return next(at for at, one in enumerate(digests) if one in some)


def selected(source: Source, directory: Path, known: Mapping[str, Any]) -> list[Row]:
    """The rows of a source that are on record, in the order of the record. Raises FileNotFoundError without a file."""
    assert source.shape is not None
    paths = sorted({path for pattern in source.files for path in directory.glob(pattern)})
    if not paths:
        raise FileNotFoundError(f"{directory} has no {' or '.join(source.files)}")
    wanted = _each(known)
    found: dict[str, Row] = {}
    for path in paths:
        for given in _lines(path):
            row = source.shape(given, path.relative_to(directory).as_posix())
            if row is not None:
                found.setdefault(row_digest(row)[:SHORT], row)
    return [found[one] for one in wanted if one in found]


def build(sources: Path, out: Path, known: Mapping[str, Mapping[str, Any]]) -> int:
    """Write what can be built; returns how many files are not those on record."""
    num_wrong = 0
    for name, source in SOURCES.items():
        if source.shape is None:
            print(f"{name}: not built: how its rows were made of {source.repository} is not on record")
            num_wrong += 1
            continue
        try:
            rows = selected(source, sources / source.repository, known[name])
        except FileNotFoundError as error:
            print(f"{name}: not built: {error}")
            num_wrong += 1
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / name).write_text(lines, encoding="utf-8")
        num_wrong += _say(name, rows, known)
    return num_wrong


def check(data: Path, known: Mapping[str, Mapping[str, Any]]) -> int:
    """Hold the files of a directory against the record; returns how many are not as recorded."""
    num_wrong = 0
    for name in SOURCES:
        if (data / name).is_file():
            num_wrong += _say(name, list(_lines(data / name)), known)
        else:
            print(f"{name}: is not there")
            num_wrong += 1
    return num_wrong


def _say(name: str, rows: Sequence[Row], known: Mapping[str, Mapping[str, Any]]) -> int:
    said = differences(rows, known[name])
    print(f"{name}: {'; '.join(said) if said else f'the {len(rows)} rows on record'}")
    return int(bool(said))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 where a file is not as recorded, so that no script goes on with other rows unaware."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="what is wanted, from where")
    what.add_argument("--sources", type=Path, metavar="DIR", help="where the downloaded sources lie")
    what.add_argument("--check", type=Path, metavar="DATA", help="hold these files against the record")
    parser.add_argument("--out", type=Path, metavar="DATA", help="where the files go that --sources builds")
    args = parser.parse_args(argv)
    known = json.loads(DIGESTS.read_text(encoding="utf-8"))
    if args.check:
        return int(check(args.check, known) > 0)
    if args.sources:
        if args.out is None:
            parser.error("--sources needs --out DATA")
        return int(build(args.sources, args.out, known) > 0)
    for name, source in SOURCES.items():
        how = "built" if source.shape else "checked alone"
        print(f"{name}: {known[name]['rows']} rows, {known[name]['sha256'][:16]}, {how}")
        print(f"    {source.repository} ({source.licence}): {', '.join(source.files)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
