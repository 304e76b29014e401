"""Choose a tokenizer for a text.

choose_tokenizer("auto", characters=1_115_394, symbols=65)      # ("char", why)
"""

from sampan.errors import UserError
from sampan.messages import N_, _
from sampan.tokens.kinds import find_kind, names_of_kinds, tokenizer_file

ALPHABET = 256  # symbols; a text with more has characters that it seldom uses, and prompts with some that it lacks
SEEN_ENOUGH = 10  # times that a symbol occurs on average; where it is less, most of a text would be spelt in bytes
CHARACTERS_UP_TO = 5_000_000  # longer texts get a trained BPE: more text in a block, and enough of it to learn from


def check_tokenizer(wanted: str) -> None:
    """Raise UserError for a setting that names no tokenizer, before a large text is read."""
    found = find_kind(wanted)
    if found and found[1] is not None:
        found[0].check_size(found[1])
    elif wanted != "auto" and not found and not tokenizer_file(wanted):
        raise UserError(
            _(
                "tokenizer {wanted!r}: expected {names_of_kinds}, or the path of a model's folder or tokenizer.json",
                wanted=wanted,
                names_of_kinds=names_of_kinds(),
            )
        )


def choose_tokenizer(wanted: str, characters: int, symbols: int, corpus_choice: str | None = None) -> tuple[str, str]:
    """Return (a kind such as bpe:8192 or the path of a tokenizer.json, why it was chosen, in English).

    >>> choose_tokenizer("auto", 1_115_394, 65)[0]
    'char'
    >>> choose_tokenizer("auto", 928_466, 4513)[0]
    'char+bytes'
    >>> choose_tokenizer("auto", 60_000_000, 110)[0]
    'bpe:8192'
    """
    if wanted != "auto":
        path = tokenizer_file(wanted) if not find_kind(wanted) else None
        return (wanted, N_("as asked")) if path is None else (str(path), _("of {folder}", folder=path.parent))
    if corpus_choice:
        return corpus_choice, N_("the corpus's own")
    if characters > CHARACTERS_UP_TO:
        # Where a script has thousands of characters, half of a small vocabulary would only spell them.
        size = 16384 if symbols > 2000 else 8192
        return f"bpe:{size}", N_("the text has more than 5,000,000 characters")
    if characters < SEEN_ENOUGH * symbols:
        return "char", N_("its symbols are too rare to be spelt in bytes")
    if symbols > ALPHABET:
        return "char+bytes", N_("with more than 256 symbols, a prompt may have others")
    return "char", N_("no more than 256 symbols, and 5,000,000 characters")
