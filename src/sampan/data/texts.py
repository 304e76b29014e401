"""What is prepared: the text of train and, where val is not a part of it, the text of val.

texts = find_texts(["my-novel.txt"], DataConfig())
texts.stamp                                   # changes when one of its files does; nothing has been read yet
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sampan.config import DataConfig
from sampan.data.meta import Facts
from sampan.errors import UserError
from sampan.messages import _
from sampan.text.characters import Block
from sampan.text.sources import Source, find_source
from sampan.tokens.choose import check_tokenizer, choose_tokenizer

VAL_FRACTION = 0.1  # nanoGPT's
SETTLED = 2.0  # seconds; a file younger than that may change again without a new time


@dataclass(frozen=True)
class Texts:
    train: Source
    val: Source | None  # None where val is the end of train
    config: DataConfig

    @property
    def sources(self) -> list[Source]:
        return [self.train] if self.val is None else [self.train, self.val]

    @property
    def stamp(self) -> str | None:
        """What tells without reading that a text is the one that was read; None where nothing does."""
        stamps = [source.stamp for source in self.sources if source.stamp is not None]
        return " ".join(stamps) if len(stamps) == len(self.sources) else None

    def is_settled(self, read_at: int) -> bool:
        """Return whether it was read so long after its last change that another one would have another time."""
        return read_at > max(source.changed for source in self.sources) + SETTLED

    @property
    def val_fraction(self) -> float | None:
        """The share of train that is val; None where val is a text of its own."""
        fractions = (self.config.val_fraction, self.train.val_fraction, VAL_FRACTION)
        return next(f for f in fractions if f is not None) if self.val is None else None

    def cut(self, facts: Facts) -> int:
        """Return the number of characters before val."""
        if self.val_fraction is None:
            return facts.train_characters
        return int(facts.characters * (1 - self.val_fraction))  # as nanoGPT's int(n * 0.9)

    def choose(self, facts: Facts, wanted: str) -> tuple[str, str]:
        """Return the tokenizer that a setting means for this text, and why."""
        return choose_tokenizer(wanted, facts.characters, facts.symbols, self.train.tokenizer)

    def blocks(self) -> Iterator[Block]:
        return itertools.chain.from_iterable(source.blocks() for source in self.sources)


def find_texts(names: Iterable[str], config: DataConfig) -> Texts:
    """Return the texts that the names and --val_file mean. Raises UserError."""
    if config.val_file is not None and config.val_fraction is not None:
        raise UserError(_("--val_file and --val_fraction both say what val is: give one of them"))
    check_tokenizer(config.tokenizer)
    if config.val_file is None:
        return Texts(find_source(names, config), None, config)
    val = find_source([config.val_file], config)
    train = find_source(names, config, [part.file for part in val.parts if part.file])
    if not train.parts or train.key == val.key:
        raise UserError(_("--val_file {val} is the whole text: nothing is left to train on", val=config.val_file))
    return Texts(train, val, config)
