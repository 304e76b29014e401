"""A prepared data folder, and the meta.json that describes it.

    data = open_folder("data/my-novel"); data.train      # uint16 or uint32 (n,)

A folder holds train.bin and val.bin (raw ids, as nanoGPT's), tokenizer.json and meta.json. prepare.py writes it.
"""

import functools
import json
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sampan.errors import UserError
from sampan.tokens.tokenizer import Tokenizer, read_tokenizer

# What meta.json keeps of a reading.
FACTS = ("sha256", "characters", "train_characters", "symbols", "documents", "encodings", "undecodable", "places")
FORMAT = 2  # of a data folder; raise it when the same text would give other files


@dataclass(frozen=True)
class Data:
    """A prepared folder. `meta` is its meta.json."""

    folder: Path
    meta: dict

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.folder / "tokenizer.json")

    @property
    def train(self) -> np.ndarray:
        return self.tokens("train")

    @property
    def val(self) -> np.ndarray:
        return self.tokens("val")

    def tokens(self, split: str) -> np.ndarray:
        """All ids of a split, uint16 or uint32 (n,), read from the file as they are used.

        Raises UserError where the file is missing or has not the size that meta.json says.
        """
        path, count = self.folder / f"{split}.bin", self.meta[f"{split}_tokens"]
        dtype = np.dtype(self.meta["dtype"])
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); prepare the text again") from None
        if size != count * dtype.itemsize:
            raise UserError(f"{path} has {size} bytes, meta.json says {count * dtype.itemsize}; prepare the text again")
        return np.memmap(path, dtype=dtype, mode="r") if count else np.empty(0, dtype)

    def is_whole(self) -> bool:
        """Whether every file that meta.json speaks of is there."""
        try:
            self.tokens("train"), self.tokens("val")
        except UserError:
            return False
        return (self.folder / "tokenizer.json").is_file()

    def summary(self) -> list[str]:
        """What `sampan prepare` prints."""
        m = self.meta
        lines = [f"{m['name']}: {m['origin']}"]
        count = f"{m['characters']:,} characters, {m['symbols']:,} distinct symbols"
        if m["documents"] > 1:
            count += f", {m['documents']:,} documents"
        encodings = [name if len(m["encodings"]) == 1 else f"{n:,} x {name}" for name, n in m["encodings"].items()]
        if m["characters"]:
            lines.append(f"{count}; {', '.join(encodings)}" if encodings else count)
        if m["undecodable"]:
            lines.append(
                f"{m['undecodable']:,} bytes could not be decoded and became U+FFFD: {'; '.join(m.get('places', []))}"
            )
        trained = f", trained on {m['trained_on']:,} characters of it" if m.get("trained_on") else ""
        lines.append(f"tokenizer {m['tokenizer']} ({m['reason']}{trained}): vocabulary {m['vocab_size']:,}")
        lines.append(f"{m['train_tokens']:,} train tokens, {m['val_tokens']:,} val tokens, in {self.folder}{os.sep}")
        return [textwrap.fill(line, 80, subsequent_indent="  ") for line in lines]


def open_folder(folder: str | Path) -> Data:
    """A data folder as it is. Raises UserError where it is none."""
    meta = read_meta(Path(folder))
    if not meta:
        raise UserError(f"{folder} is not a prepared data folder; run sampan prepare")
    return Data(Path(folder), meta)


def read_meta(folder: Path) -> dict | None:
    """meta.json; {} where it is incomplete or unreadable, None where there is none."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    complete = isinstance(meta, dict) and meta.get("complete") and meta.get("dtype") in ("uint16", "uint32")
    return meta if complete and is_sound(meta) else {}


def is_sound(meta: dict) -> bool:
    """Whether everything that is read from a meta.json is there and of its kind."""
    encodings, places = meta.get("encodings"), meta.get("places", [])
    texts = [meta.get(key) for key in ("name", "origin", "tokenizer", "reason")]
    counts = [
        meta.get(key) for key in ("train_tokens", "val_tokens", "vocab_size", "characters", "symbols", "documents")
    ]
    counts += [meta.get("undecodable"), meta.get("trained_on") or 0]
    if not isinstance(encodings, dict) or not isinstance(places, list):
        return False
    texts += places if meta.get("undecodable") else []
    is_count = (type(count) is int and 0 <= count < 1 << 53 for count in (*counts, *encodings.values()))
    return all(isinstance(text, str) for text in texts) and all(is_count)


DATA_IDENTITY = ("name", "sha256", "tokenizer", "tokenizer_sha256", "val_fraction")  # what makes data the same data


def is_recorded(data: Data, recorded: dict) -> bool:
    return all(data.meta.get(key) == recorded.get(key) for key in DATA_IDENTITY)


def identity(data: Data) -> dict:
    """What run.json keeps of the data, and a resume compares."""
    return {"folder": str(data.folder)} | {key: data.meta.get(key) for key in DATA_IDENTITY}
