"""Take over nanoGPT's data folder: train.bin, val.bin (uint16 ids) and, for a character vocabulary, meta.pkl.

    data = import_folder(Path("data/shakespeare_char"))      # adds tokenizer.json and meta.json

nanoGPT reads the folder as before. Without meta.pkl the ids are GPT-2's, as in nanoGPT. Nothing in a pickle is executed.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from sampan.data.encode import count_documents
from sampan.data.meta import FORMAT, Data, Meta, read_meta
from sampan.errors import UserError
from sampan.fetch import fetch
from sampan.files import write_json
from sampan.messages import N_, _
from sampan.pickles import read_pickle
from sampan.tokens.byte_level import GPT2, gpt2_tokenizer
from sampan.tokens.characters import Characters, from_symbols
from sampan.tokens.tokenizer import Tokenizer

FILES = ("train.bin", "val.bin", "meta.pkl")
AT_ONCE = 1 << 24  # ids


def is_new(folder: Path) -> bool:
    """Return whether nanoGPT's prepare.py has written files here since they were taken over, if they were."""
    meta = read_meta(folder)
    if meta is None:
        return (folder / "train.bin").is_file() and not (folder / "meta.json").exists()
    if meta.source is None:
        return meta.stamp not in (None, stamp_of(folder))
    return (folder / "meta.pkl").is_file() and not Data(folder, meta).is_whole()  # it was ours


def import_folder(folder: Path) -> Data:
    """Add tokenizer.json and meta.json to nanoGPT's data folder and return it. Raises UserError."""
    pickled = folder / "meta.pkl"
    tokenizer = from_meta(pickled) if pickled.is_file() else fetch_gpt2_tokenizer()  # nanoGPT's rule
    counts, digest, documents = {}, hashlib.sha256(), 0
    try:
        stamp = stamp_of(folder)
        for split in ("train", "val"):
            size = (folder / f"{split}.bin").stat().st_size
            ids = np.memmap(folder / f"{split}.bin", "<u2", "r") if size else np.empty(0, "<u2")
            counts[split] = len(ids)
            for start in range(0, len(ids), AT_ONCE):
                some = ids[start : start + AT_ONCE]
                digest.update(some.tobytes())
                documents += count_documents(some, tokenizer, folder / f"{split}.bin")
    except (OSError, ValueError) as error:
        raise UserError(_("{folder}: not a data folder of nanoGPT ({error})", folder=folder, error=error)) from None
    digest.update(tokenizer.to_json().encode())
    total, is_char = sum(counts.values()), isinstance(tokenizer, Characters)
    meta = Meta(
        name=folder.resolve().name,
        origin=f"nanoGPT's {folder}",
        format=FORMAT,
        sha256=digest.hexdigest(),
        tokenizer="char" if is_char else "gpt2",
        reason=N_("nanoGPT's"),
        val_fraction=counts["val"] / max(1, total),
        characters=total if is_char else 0,
        symbols=tokenizer.vocab_size if is_char else 0,
        documents=max(1, documents),
        vocab_size=tokenizer.vocab_size,
        dtype="uint16",
        train_tokens=counts["train"],
        val_tokens=counts["val"],
        stamp=stamp,
    )
    try:
        tokenizer.save(folder)
        write_json(folder / "meta.json", meta.to_json())
    except OSError as error:
        raise UserError(_("{folder}: cannot be written ({reason})", folder=folder, reason=error.strerror)) from None
    return Data(folder, meta)


def stamp_of(folder: Path) -> str:
    """Return what changes when one of nanoGPT's files does."""
    paths = [path for path in (folder / name for name in FILES) if path.is_file()]
    state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def from_meta(path: Path) -> Tokenizer:
    """Return the tokenizer of nanoGPT's meta.pkl. Raises UserError if its tokens are not single characters."""
    meta = read_pickle(path)
    names = meta.get("itos") if isinstance(meta, dict) else None
    if not isinstance(names, dict) or set(names) != set(range(len(names))) or not names:
        raise UserError(_("{path}: it has no itos that numbers the tokens from 0", path=path))
    symbols = [names[i] for i in range(len(names))]
    if not all(isinstance(s, str) and len(s) == 1 for s in symbols) or len(set(symbols)) < len(symbols):
        raise UserError(
            _("{path}: its tokens are not distinct single characters, so they cannot be imported", path=path)
        )
    return from_symbols(symbols)


def fetch_gpt2_tokenizer() -> Tokenizer:
    """Return GPT-2's tokenizer; its files are fetched once and checked. Raises UserError where they cannot be had."""
    return gpt2_tokenizer(*map(fetch, GPT2.files))
