"""Tokenizers side by side on a text: what `sampan prepare FILE --compare` prints. Nothing is written.

    print(table(compare_tokenizers("my-novel.txt", DataConfig())))

Each is made from the train part and measured on it and on the val part; of a text of more than SAMPLE characters, on
blocks spread over it. The one that is marked is what `sampan train FILE` takes: the choice is choose.py's,
which needs no comparison.
"""

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from sampan.config import DataConfig
from sampan.data.prepare import make_tokenizer
from sampan.data.survey import read_through, sample_documents
from sampan.data.texts import find_texts
from sampan.errors import UserError
from sampan.messages import _, fill
from sampan.progress import Progress, silent
from sampan.text.characters import split_at
from sampan.tokens.byte_level import first_merges, train_bpe
from sampan.tokens.kinds import KINDS
from sampan.tokens.tokenizer import Tokenizer

SIZES = (1024, 2048, 4096, 8192, 16384, 32768)


@dataclass(frozen=True)
class Row:
    """A tokenizer on a text, or why it is left out."""

    name: str
    vocab_size: int = 0
    characters_per_token: float = 0.0  # of the val part: a text that the tokenizer was not made from
    used: float = 0.0  # share of the vocabulary that the train part has
    seconds: float = 0.0  # to encode both
    left_out: str = ""


@dataclass(frozen=True)
class Comparison:
    rows: list[Row]
    recommended: str
    reason: str
    characters: int  # that were measured
    training_seconds: float  # of the largest BPE; the smaller ones are its first merges


def compare_tokenizers(dataset: str | Iterable[str], config: DataConfig, progress: Progress = silent) -> Comparison:
    """Measure every tokenizer on a text. Raises UserError as `prepare` does."""
    both = find_texts((dataset,) if isinstance(dataset, str) else dataset, config)
    survey = read_through(both, progress)
    cut = both.cut(survey.facts)
    texts = sample_documents(survey, cut), sample_documents(survey, survey.facts.train_characters, cut)
    if not texts[1]:  # val is a file of its own, or too short a part to be in the sample
        blocks = itertools.islice(both.val.blocks(), 8) if both.val else ()
        texts = texts[0], [part for text, ends in blocks for part in split_at(text, ends) if part] or texts[0]
    rows = [
        time_tokenizer(kind, partial(make_tokenizer, kind, survey, cut), texts)
        for kind in (kind.label for kind in KINDS if ":" not in kind.label)
    ]
    start = time.perf_counter()
    largest = train_bpe(texts[0], SIZES[-1])
    seconds = time.perf_counter() - start
    for size in SIZES:
        if largest.vocab_size < size:
            rows.append(
                Row(
                    f"bpe:{size}",
                    left_out=_(
                        "the text has no more than {vocab_size:,} tokens to learn", vocab_size=largest.vocab_size
                    ),
                )
            )
            break
        rows.append(time_tokenizer(f"bpe:{size}", partial(first_merges, largest, size), texts))
    name, reason = both.choose(survey.facts, "auto")
    return Comparison(rows, name, reason, sum(len(t) for part in texts for t in part), seconds)


def time_tokenizer(name: str, make: Callable[[], Tokenizer], texts: tuple[list[str], list[str]]) -> Row:
    try:
        tokenizer = make()
    except UserError as error:
        return Row(name, left_out=str(error))
    tokenizer.encode("".join(texts[0][:1])[: 1 << 15])  # the library's tables are made at the first call
    start = time.perf_counter()
    train, val = ([tokenizer.encode(text) for text in part] for part in texts)
    seconds = time.perf_counter() - start
    characters = sum(map(len, texts[1]))
    seen = np.zeros(tokenizer.vocab_size, dtype=bool)
    for ids in train:
        seen[ids] = True
    tokens = sum(len(ids) for ids in val)
    return Row(name, tokenizer.vocab_size, characters / max(tokens, 1), float(seen.mean()), seconds)


def table(comparison: Comparison) -> str:
    """80 columns; the recommended one has a mark."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for number, name in enumerate(("", _("tokenizer"), _("vocabulary"), _("characters/token"), _("used"), _("time"))):
        grid.add_column(name, justify="left" if number < 2 else "right")
    skipped = []
    for row in comparison.rows:
        mark = "*" if row.name == comparison.recommended else ""
        if row.left_out:
            skipped.append(_("{name} is left out: {left_out}", name=row.name, left_out=row.left_out))
            continue
        figures = f"{row.vocab_size:,}", f"{row.characters_per_token:.2f}", f"{row.used:.1%}", f"{row.seconds:.2f} s"
        grid.add_row(mark, row.name, *figures)
    console = Console(width=80, color_system=None)
    with console.capture() as shown:
        console.print(grid)
        note = _(
            "* the choice for this text: {reason}. Measured on {characters:,} characters; the BPEs were trained in "
            "{seconds:.1f} s.",
            reason=_(comparison.reason),
            characters=comparison.characters,
            seconds=comparison.training_seconds,
        )
        console.print(fill(note), highlight=False, markup=False)
        for line in skipped:
            console.print(line, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in shown.get().splitlines())
