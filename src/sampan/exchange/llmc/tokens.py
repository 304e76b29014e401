"""llm.c's token files: uint16 ids (GPT-2's), or uint32 ids (Llama 3's, and other large vocabularies).

    ids = read_tokens(Path("tiny_shakespeare_val.bin"))
    data = read_data(Path("tiny_shakespeare_val.bin"), Path("data/tiny"), "auto")     # it and its _train.bin
    write_data(data, Path("dev/data")); write_text("tinyshakespeare", Path("dev/data"))

Its multiple-choice files are not read.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sampan.config import DataConfig
from sampan.data.encode import count_documents, write_folder
from sampan.data.meta import FORMAT, Data, Meta
from sampan.data.nanogpt import fetch_gpt2_tokenizer
from sampan.errors import UserError
from sampan.exchange.llmc.header import HEADER, TOKENS, TOKENS_LLAMA3, check_size, read_header, write_header
from sampan.exchange.llmc.tokenizer import find_tokenizer
from sampan.files import replacing
from sampan.messages import _
from sampan.text.sources import find_source
from sampan.tokens.tokenizer import Tokenizer

FORMATS: dict[int, tuple[int, np.dtype[Any]]] = {  # magic number: version, type of an id
    TOKENS: (1, np.dtype("<u2")),
    TOKENS_LLAMA3: (7, np.dtype("<u4")),
}
SHARD = 100_000_000  # tokens in a file, as in llm.c's large data sets; its reader seeks with 31 bits
PIECE = 1 << 22  # ids that are copied at a time
VAL_TOKENS = 32_768  # that llm.c's script takes from the beginning of a text
NAMES = {"tinyshakespeare": "tiny_shakespeare"}  # where llm.c's programs expect another file name


def read_tokens(path: Path) -> np.ndarray:
    """Return the ids of a token file, uint16 or uint32 (n,), mapped into memory. Raises UserError."""
    magic, version, count = read_header(path, *FORMATS)[:3]
    expected, dtype = FORMATS[magic]
    if version != expected or count < 1:
        raise UserError(
            _(
                "{path}: unsupported token file (version {version}, {count} tokens); expected version {expected}",
                path=path,
                version=version,
                count=count,
                expected=expected,
            )
        )
    check_size(path, 4 * HEADER + count * dtype.itemsize)
    return np.memmap(path, dtype, "r", 4 * HEADER, (count,))


def write_tokens(path: Path, ids: np.ndarray, vocab_size: int) -> None:
    """Write a token file. Raises OSError."""
    magic = TOKENS if vocab_size <= 1 << 16 else TOKENS_LLAMA3
    version, dtype = FORMATS[magic]
    with replacing(path) as file:
        write_header(file, magic, version, len(ids))
        for piece in pieces(ids):
            file.write(piece.astype(dtype).data)


def pieces(ids: np.ndarray) -> Iterator[np.ndarray]:
    return (ids[start : start + PIECE] for start in range(0, len(ids), PIECE))


# ---- data folders ----


def read_data(path: Path, out: Path, tokenizer: str) -> Data:
    """Make a data folder of a token file and its siblings: NAME_train.bin and NAME_val.bin, or shards of them.

    Raises UserError if one is missing, damaged or does not match the tokenizer (`find_tokenizer` says which that is).
    """
    files = sibling_files(path)
    ids = {split: [read_tokens(p) for p in paths] for split, paths in files.items()}
    if (out / "train.bin").exists():
        raise UserError(_("{out} already contains data; choose another folder", out=out))
    if read_header(path)[0] == TOKENS_LLAMA3 and tokenizer == "auto":
        raise UserError(
            _("{path} contains ids of Llama 3's tokenizer; give its tokenizer.json with --tokenizer", path=path)
        )
    found = find_tokenizer(tokenizer, path)
    documents = sum(
        count_documents(piece, found, file)
        for split, arrays in ids.items()
        for array, file in zip(arrays, files[split], strict=True)
        for piece in pieces(array)
    )
    counts = {split: sum(map(len, arrays)) for split, arrays in ids.items()}
    digest = hashlib.sha256()
    for file in (*files["train"], *files["val"]):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    describe = partial(
        Meta,
        name=out.name,
        origin=f"{files['train'][0]}, {files['val'][0]} of llm.c",
        format=FORMAT,
        sha256=digest.hexdigest(),
        tokenizer="gpt2" if found.vocab_size == 50257 else "llmc",
        reason="llm.c's ids",
        val_fraction=counts["val"] / sum(counts.values()),
        characters=0,
        symbols=0,
        documents=max(1, documents),
    )

    parts = ((split, piece) for split, arrays in ids.items() for array in arrays for piece in pieces(array))
    return write_folder(out, found, describe, parts)


def sibling_files(path: Path) -> dict[str, list[Path]]:
    """Return the files of both splits that belong to a token file, in order. Raises UserError if a split has none."""
    parts = re.fullmatch(r"(.*_)?(train|val)(_\d+)?\.bin", path.name)
    if not parts:
        raise UserError(
            _("{path}: cannot tell train from val; rename the files to NAME_train.bin and NAME_val.bin", path=path)
        )
    pattern = re.compile(re.escape(parts[1] or "") + r"(train|val)(_\d+)?\.bin")
    files: dict[str, list[Path]] = {"train": [], "val": []}
    for other in sorted(path.parent.iterdir()):
        if match := pattern.fullmatch(other.name):
            files[match[1]].append(other)
    for split, found in files.items():
        if not found:
            raise UserError(
                _("{path}: there is no {parts}{split}.bin beside it", path=path, parts=parts[1] or "", split=split)
            )
    return files


def write_data(data: Data, out: Path) -> list[Path]:
    """Write a data folder's ids; return the files. Raises UserError if a split is empty, and OSError."""
    splits = {"train": data.train, "val": data.val}
    for split, ids in splits.items():
        if not len(ids):
            raise UserError(
                _("{folder}: its {split} split is empty, which llm.c cannot read", folder=data.folder, split=split)
            )
    return write_splits(out, data.meta.name, splits, data.meta.vocab_size)


def write_splits(out: Path, name: str, splits: dict[str, np.ndarray], vocab_size: int) -> list[Path]:
    """Write NAME_train.bin and NAME_val.bin, or shards of them if they are large; return the files."""
    paths = []
    for split, ids in splits.items():
        starts = range(0, len(ids), SHARD)
        for number, start in enumerate(starts):
            shard = f"_{number:06d}" if len(starts) > 1 else ""
            paths.append(out / f"{NAMES.get(name, name)}_{split}{shard}.bin")
            write_tokens(paths[-1], ids[start : start + SHARD], vocab_size)
    return paths


def write_text(text: str, out: Path) -> list[Path]:
    """Write the GPT-2 tokens of a corpus or text file, cut and split as by llm.c's dev/data/tinyshakespeare.py.

    Returns the files. Raises UserError if the text is too short or is one to stream, and OSError.
    """
    source = find_source([text], DataConfig())
    if any(part.kind == "hub" for part in source.parts):
        raise UserError(_("{text} is streamed; prepare it first, then export its data folder", text=text))
    tokenizer = fetch_gpt2_tokenizer()
    ids = encode_sections("\n\n".join(filter(None, map("".join, source.documents()))), tokenizer)
    if len(ids) <= VAL_TOKENS:
        raise UserError(
            _(
                "{text}: too short; llm.c takes {val_tokens:,} tokens for val, and there are only {count:,}",
                text=text,
                val_tokens=VAL_TOKENS,
                count=len(ids),
            )
        )
    splits = {"train": ids[VAL_TOKENS:], "val": ids[:VAL_TOKENS]}
    return write_splits(out, source.name, splits, tokenizer.vocab_size)


def encode_sections(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Return the ids, int32, of the sections between blank lines, each preceded by the end-of-text token.

    Every section but the last keeps the blank line after it.
    """
    sections = [section + "\n\n" for section in text.split("\n\n")]
    sections[-1] = sections[-1][:-2]
    begin = np.array([tokenizer.end_of_text], np.int32)
    return np.concatenate([part for section in sections for part in (begin, tokenizer.encode(section))])
