"""A sentence on the command line: itself, or a file that holds it."""

from __future__ import annotations

from pathlib import Path

from trimtab.errors import OptionError


def read_sentence(name: str, text: str) -> str:
    """The sentence that the flag --`name` gives, from its file where it begins with @.

    Raises OptionError for a file that cannot be read, and for an empty sentence.
    """
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise OptionError(
                f"--{name} {text}: {reason}. Give the sentence itself, or @ and a file that holds it."
            ) from None
    if not text.strip():
        raise OptionError(f'--{name} is empty; give a sentence, such as "Answer in one short sentence."')
    return text.strip()
