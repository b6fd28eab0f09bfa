"""A guide as a directory for transformers: `model.generate(..., custom_generate=DIR, trust_remote_code=True)`.

transformers runs `custom_generate/generate.py` of such a directory in place of its own loop. The file imports trimtab,
which does the decoding; the guide lies beside it.
"""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from string import Template

from trimtab.errors import OptionError
from trimtab.storage.cards import GUIDE_KINDS
from trimtab.storage.checking import check_files
from trimtab.storage.files import files_of, new_directory, write_text
from trimtab.storage.sentences import is_sentence

CODE, REQUIREMENTS = "custom_generate/generate.py", "custom_generate/requirements.txt"
_MUST_HOLD = ("safety", "weights", "files")

_GENERATE = Template('''\
"""Guided decoding inside transformers' `generate`, by trimtab, which this file imports.

    model.generate(**inputs, tokenizer=tokenizer, custom_generate=DIR, trust_remote_code=True,
                   weights={NAME: 1.0}, seed=1, max_new_tokens=64, do_sample=True)

`weights` and `seed` are trimtab's, and so is `guides`, {name: directory or hub id}, which names a guide that has moved
and adds others.
"""

from trimtab import generate_with_guides

GUIDES = {$name: $guide}


def generate(model, **arguments):
    """Token ids: the prompts, each with its answer."""
    return generate_with_guides(model, GUIDES, arguments)
''')
_README = Template("""\
# $title for transformers

$what, for `generate` of transformers. It runs `custom_generate/generate.py`, which imports trimtab
(`pip install trimtab`).

MODEL, where it stands, is the directory or hub id of the model that the guide was trained on.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained($base)
model = AutoModelForCausalLM.from_pretrained($base).eval()
inputs = tokenizer("My day was", return_tensors="pt")
ids = model.generate(
    **inputs, tokenizer=tokenizer, custom_generate=$directory, trust_remote_code=True,
    weights={$name: 1.0}, seed=1, max_new_tokens=32, do_sample=True,
)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
```

Where this directory has moved, say where the guide is now: `guides={$name: "DIR/guide"}`. Left out, a guide's weight is
the one that its card says. A filter that you do not name is off; transformers alone would take top-k 50. An argument
that guided decoding does not honour is refused by its name.
""")


def export_generate(guide: str, out: str | Path, *, name: str = "guide", overwrite: bool = False) -> str:
    """Write a guide as a directory for `custom_generate`, whole or not at all; what its code loads the guide by.

    `name` is what the guide is called in `weights`. Raises OptionError for a guide that cannot be carried so, or whose
    files are not those of its card, OutputExistsError.
    """
    if not name.isidentifier():
        raise OptionError(f"The name {name!r} is none that weights can be given by; give letters, digits and _.")
    if str(guide).endswith(".gguf"):
        raise OptionError(
            f"{guide} is a GGUF file, which llama.cpp runs and transformers' generate does not. Accepted: a guide's "
            "directory, a hub id, builtin:NAME or a sentence."
        )
    checked = check_files(guide)
    kind = GUIDE_KINDS[checked.card.kind]
    for finding in checked.findings:
        if finding.holds is False and finding.what in _MUST_HOLD:
            raise OptionError(f"{guide} is not exported: {finding.said}. `trimtab check` says all of it.")
    if checked.card.kind == "parm":
        raise OptionError(
            f"{guide} is made for every preference vector, and this directory carries one. Save it at a vector first "
            "(docs/serving/vllm.md says how) and export that."
        )
    target = Path(out).absolute()
    carried = guide if is_sentence(guide) else str(target / "guide")
    words = {"directory": repr(str(target)), "name": repr(name), "guide": repr(carried)}
    about = {"title": name, "what": f"{kind.what[0].upper()}{kind.what[1:]}", "base": repr(_hub_id(checked.base))}
    with new_directory(target, overwrite=overwrite) as temporary:
        (temporary / CODE).parent.mkdir()
        write_text(temporary / CODE, _GENERATE.substitute(words))
        write_text(temporary / REQUIREMENTS, f"trimtab>={version('trimtab')}\n")
        write_text(temporary / "README.md", _README.substitute(words, **about))
        if not is_sentence(guide):
            _copy(checked.directory, temporary / "guide")
    return carried


def _hub_id(base: str | None) -> str:
    """What transformers loads the base by; `demo` is a name of trimtab's alone."""
    return "MODEL" if base in (None, "demo") else str(base)


def _copy(directory: Path, target: Path) -> None:
    for file in files_of(directory):
        place = target / file.relative_to(directory)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
