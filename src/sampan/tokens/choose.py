"""Choose a tokenizer for a text.

choose_tokenizer("auto", characters=1_115_394, symbols=65)      # ("char", why)
"""

from pathlib import Path

from sampan.errors import UserError
from sampan.tokens.kinds import check_size

ALPHABET = 256  # symbols; a text with more has characters that it seldom uses, and prompts with some that it lacks
SEEN_ENOUGH = 10  # times that a symbol occurs on average; where it is less, most of a text would be spelt in bytes
CHARACTERS_UP_TO = 5_000_000  # longer texts get a trained BPE: more text in a block, and enough of it to learn from


def is_kind(tokenizer: str) -> bool:
    """char, char+bytes, gpt2 or bpe:SIZE, and not the path of a tokenizer.json."""
    return tokenizer in ("char", "char+bytes", "gpt2") or (tokenizer.startswith("bpe:") and tokenizer[4:].isdecimal())


def tokenizer_path(wanted: str) -> Path:
    return Path(wanted) / "tokenizer.json" if Path(wanted).is_dir() else Path(wanted)


def check_tokenizer(wanted: str) -> None:
    """Before a large text is read."""
    if wanted == "auto" or is_kind(wanted):
        if wanted.startswith("bpe:"):
            check_size(int(wanted[4:]))
    elif not tokenizer_path(wanted).is_file():
        raise UserError(
            f"tokenizer {wanted!r}: expected char, char+bytes, gpt2, bpe:SIZE such as bpe:4096, or a tokenizer.json"
        )


def choose_tokenizer(wanted: str, characters: int, symbols: int, corpus_choice: str | None = None) -> tuple[str, str]:
    """(char | char+bytes | gpt2 | bpe:SIZE | path of a tokenizer.json, why it was chosen).

    >>> choose_tokenizer("auto", 1_115_394, 65)[0]
    'char'
    >>> choose_tokenizer("auto", 928_466, 4513)[0]
    'char+bytes'
    >>> choose_tokenizer("auto", 60_000_000, 110)[0]
    'bpe:8192'
    """
    if wanted != "auto":
        return (
            (wanted, "as asked")
            if is_kind(wanted)
            else (str(tokenizer_path(wanted)), f"of {tokenizer_path(wanted).parent}")
        )
    if corpus_choice:
        return corpus_choice, "the corpus's own"
    if characters > CHARACTERS_UP_TO:
        # Where a script has thousands of characters, half of a small vocabulary would only spell them.
        size = 16384 if symbols > 2000 else 8192
        return f"bpe:{size}", f"the text has more than {CHARACTERS_UP_TO:,} characters"
    if characters < SEEN_ENOUGH * symbols:
        return "char", "its symbols are too rare to be spelt in bytes"
    if symbols > ALPHABET:
        return "char+bytes", f"with more than {ALPHABET} symbols, a prompt may have others"
    return "char", f"no more than {ALPHABET} symbols, and {CHARACTERS_UP_TO:,} characters"
