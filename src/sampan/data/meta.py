"""A prepared data folder, and the meta.json that describes it.

    data = open_folder("data/my-novel"); data.train      # uint16 or uint32 (n,)
    data.meta.train_tokens, data.meta.vocab_size         # checked when the folder was opened

A folder holds train.bin and val.bin (raw ids, as nanoGPT's), tokenizer.json and meta.json. Nothing is written here
(encode.py).
"""

import functools
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from sampan.errors import UserError
from sampan.messages import _, fill
from sampan.tokens.kinds import read_tokenizer
from sampan.tokens.tokenizer import Tokenizer, unknown_sentence

FORMAT = 4  # of a data folder; raise it when the same text would give other files
DATA_IDENTITY = ("name", "sha256", "tokenizer", "tokenizer_sha256", "val_fraction")  # what makes data the same data
DTYPES = ("uint16", "uint32")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What one reading of a text finds. Raises ValueError for a value of another kind."""

    sha256: str
    characters: int
    train_characters: int = 0  # less than `characters` where val is a text of its own
    symbols: int
    documents: int
    encodings: dict[str, int] = field(default_factory=dict)  # {"utf-8 (detected)": number of files}
    undecodable: int = 0  # characters that became U+FFFD
    places: list[str] = field(default_factory=list)  # where the first of them are

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not IS_KIND[f.type](value):
                raise ValueError(f"{f.name} is {value!r}")


@dataclass(frozen=True, kw_only=True)
class Meta(Facts):
    """What meta.json says of a data folder."""

    name: str
    origin: str  # a sentence: where the text comes from
    source: str | None = None  # the Source's key; None for another program's data
    tokenizer: str  # char, char+bytes, gpt2, bpe:SIZE, or the name of the folder that it was taken from
    reason: str  # why it was chosen
    vocab_size: int
    dtype: str  # of train.bin and val.bin
    train_tokens: int
    val_tokens: int
    format: int = 0
    val_fraction: float | None = None  # None where val is a text of its own
    val_from: str | None = None  # where val begins in a text of several files
    tokenizer_sha256: str | None = None  # of a tokenizer.json that was given
    unknown: int = 0  # characters or words that became the tokenizer's unknown token
    unknown_most: list[str] = field(default_factory=list)  # the most frequent of them
    losses: list[str] = field(default_factory=list)  # what the tokenizer does not keep of a text
    trained_on: int | None = None  # characters that a BPE was learnt from, where that is not all of train
    stamp: str | None = None  # changes when the files of the text change; None where that cannot be told
    read_at: int | None = None  # when they were read, seconds since 1970
    made_with: dict[str, Any] = field(default_factory=dict)  # the dataset, and the settings that were given

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Meta":
        """Return what a meta.json says; other keys are ignored. Raises ValueError or TypeError."""
        return cls(**{f.name: value[f.name] for f in fields(cls) if f.name in value})

    def to_json(self) -> dict[str, Any]:
        """Return the contents of meta.json for a folder that is complete."""
        return {name: value for name, value in asdict(self).items() if value is not None} | {"complete": True}

    @property
    def identity(self) -> dict[str, Any]:
        """What makes data the same data: run.json keeps it, and a resume compares it."""
        return {name: getattr(self, name) for name in DATA_IDENTITY}

    def tokens(self, split: str) -> int:
        """Return the number of tokens in `split`, "train" or "val"."""
        return self.train_tokens if split == "train" else self.val_tokens


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


IS_KIND: dict[Any, Callable[[Any], bool]] = {
    str: lambda value: isinstance(value, str),
    int: is_count,
    str | None: lambda value: value is None or isinstance(value, str),
    int | None: lambda value: value is None or is_count(value),
    float | None: lambda value: value is None or (type(value) in (int, float) and 0 <= value <= 1),
    list[str]: lambda value: isinstance(value, list) and all(isinstance(text, str) for text in value),
    dict[str, Any]: lambda value: isinstance(value, dict),
    dict[str, int]: lambda value: isinstance(value, dict) and all(map(is_count, value.values())),
}


@dataclass(frozen=True)
class Data:
    """A prepared folder and what its meta.json says."""

    folder: Path
    meta: Meta

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.folder)

    @property
    def train(self) -> np.ndarray:
        return self.tokens("train")

    @property
    def val(self) -> np.ndarray:
        return self.tokens("val")

    def tokens(self, split: str) -> np.ndarray:
        """Return all ids of a split, uint16 or uint32 (n,), read from the file as they are used.

        Raises UserError where the file is missing or does not have the size that meta.json gives.
        """
        path, dtype = self.folder / f"{split}.bin", np.dtype(self.meta.dtype)
        expected = self.meta.tokens(split) * dtype.itemsize
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(
                _("{path}: cannot be read ({reason}); prepare the text again", path=path, reason=error.strerror)
            ) from None
        if size != expected:
            raise UserError(
                _(
                    "{path} has {size} bytes, meta.json says {expected}; prepare the text again",
                    path=path,
                    size=size,
                    expected=expected,
                )
            )
        return np.memmap(path, dtype=dtype, mode="r") if size else np.empty(0, dtype)

    def is_whole(self) -> bool:
        """Return whether every file that meta.json speaks of is there."""
        try:
            self.tokens("train"), self.tokens("val")
        except UserError:
            return False
        return (self.folder / "tokenizer.json").is_file()

    def record(self) -> dict[str, Any]:
        """Return what run.json keeps of the data."""
        return {"folder": str(self.folder), "documents": self.meta.documents} | self.meta.identity

    def is_recorded(self, record: dict[str, Any]) -> bool:
        """Return whether this is the data that a run.json recorded."""
        return all(record.get(name) == value for name, value in self.meta.identity.items())

    def summary(self) -> list[str]:
        """Return the lines that `sampan prepare` prints."""
        m = self.meta
        origin = "; ".join(map(_, m.origin.split("; ")))  # meta.json is in English
        lines = [f"{m.name}: {origin}"]
        counts = [
            _("{characters:,} characters", characters=m.characters),
            _("{symbols:,} distinct symbols", symbols=m.symbols),
        ]
        if m.documents > 1:
            counts.append(_("{documents:,} documents", documents=m.documents))
        count = ", ".join(counts)
        encodings = []
        for label, files in m.encodings.items():
            encoding, _space, how = label.partition(" ")
            shown = f"{encoding} ({_(how.strip('()'))})" if how else encoding
            encodings.append(shown if len(m.encodings) == 1 else f"{files:,} x {shown}")
        if m.characters:
            lines.append(f"{count}; {', '.join(encodings)}" if encodings else count)
        if m.undecodable:
            lines.append(
                _(
                    "{undecodable:,} unreadable characters became U+FFFD: {places}",
                    undecodable=m.undecodable,
                    places="; ".join(m.places),
                )
            )
        reasons = [_(m.reason)]
        if m.trained_on:
            reasons.append(_("trained on {trained_on:,} characters of it", trained_on=m.trained_on))
        lines.append(
            _(
                "tokenizer {tokenizer} ({reasons}): vocabulary {vocab_size:,}",
                tokenizer=m.tokenizer,
                reasons=", ".join(reasons),
                vocab_size=m.vocab_size,
            )
        )
        if m.losses:
            lines.append(_("the tokenizer does not keep {losses}", losses=", ".join(map(_, m.losses))))
        if m.unknown:
            lines.append(unknown_sentence(m.unknown, m.unknown_most))
        lines.append(
            _(
                "{train_tokens:,} train tokens, {val_tokens:,} val tokens, in {folder}{sep}",
                train_tokens=m.train_tokens,
                val_tokens=m.val_tokens,
                folder=self.folder,
                sep=os.sep,
            )
        )
        if m.val_from:
            lines.append(
                _("val is the end of the text, from {val_from} on (--val_file takes another)", val_from=m.val_from)
            )
        return [fill(line, indent="  ") for line in lines]


def open_folder(folder: str | Path) -> Data:
    """Return a data folder as it is. Raises UserError where it is none."""
    meta = read_meta(Path(folder))
    if meta is None:
        raise UserError(_("{folder} is not a prepared data folder; run sampan prepare", folder=folder))
    return Data(Path(folder), meta)


def read_meta(folder: Path) -> Meta | None:
    """Return what a folder's meta.json says; None where there is none, or it is incomplete or damaged."""
    try:
        value = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return Meta.from_json(value) if value.get("complete") else None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
