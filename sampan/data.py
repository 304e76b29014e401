"""Text to train.bin and val.bin, and those to batches of integers.

    data = prepare("my-novel.txt", DataConfig())            # data/my-novel/, again only if something changed
    windows = Windows(data.train, block_size=64, seed=1337)
    x, y = windows.batch(first=0, count=12)                 # int32 (12, 64) each; y is x one token later

A folder holds train.bin and val.bin (raw ids, uint16 or uint32, as nanoGPT's), tokenizer.json and meta.json.
A batch is a function of (seed, index): nothing needs to be saved to continue where a run stopped.

It reads UTF-8 only, and a text (but not a streamed corpus) whole into memory.
"""

import contextlib
import hashlib
import json
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from . import corpus, tokenizer as tokenizers
from .config import DataConfig
from .errors import UserError
from .files import replace_file
from .tokenizer import Tokenizer

FORMAT = 1  # of a data folder; raise it when the same text would give other files
CHARACTERS_UP_TO = 5_000_000  # longer texts get a trained BPE: more text in a block, and enough of it to learn from
STREAMED_VAL_EVERY = 2000  # documents; nanoGPT keeps 0.05% of openwebtext


@dataclass(frozen=True)
class Source:
    """A text to prepare: its documents in order, and what identifies it."""

    name: str
    documents: Iterable[str]
    sha256: str
    origin: str  # one sentence for meta.json: where it came from
    tokenizer: str | None = None  # the corpus's own choice
    streamed: bool = False


@dataclass(frozen=True)
class Data:
    """A prepared folder. `meta` is its meta.json."""

    folder: Path
    meta: dict

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizers.load(self.folder / "tokenizer.json")

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
        if m["characters"]:
            lines.append(f"{m['characters']:,} characters, {m['symbols']:,} distinct symbols")
        lines.append(f"tokenizer {m['tokenizer']} ({m['reason']}): vocabulary {m['vocab_size']:,}")
        lines.append(f"{m['train_tokens']:,} train tokens, {m['val_tokens']:,} val tokens, in {self.folder}{os.sep}")
        return [textwrap.fill(line, 80, subsequent_indent="  ") for line in lines]


# ---- prepare ----


def prepare(dataset: str, config: DataConfig) -> Data:
    """The data folder of a corpus's name, a text file, a folder of .txt or a .jsonl; made unless it is up to date.

    Raises UserError for a source that is missing, empty, binary or not UTF-8, and for a folder that is not ours.
    """
    source = find_source(dataset)
    wanted, reason = choose_tokenizer(config.tokenizer, source)
    label = wanted if is_kind(wanted) else Path(wanted).resolve().parent.name
    is_own_choice = choose_tokenizer("auto", source)[0] == wanted
    folder = Path(
        config.data_dir or Path("data") / (source.name if is_own_choice else f"{source.name}-{label.replace(':', '')}")
    )
    identity = {"format": FORMAT, "sha256": source.sha256, "tokenizer": label, "val_fraction": config.val_fraction}
    if not is_kind(wanted):
        identity["tokenizer_sha256"] = hashlib.sha256(Path(wanted).read_bytes()).hexdigest()
    meta = read_meta(folder)
    if meta and all(meta.get(key) == value for key, value in identity.items()) and Data(folder, meta).is_whole():
        return Data(folder, meta)
    if meta is None and (folder / "train.bin").exists():
        raise UserError(
            f"{folder} holds a train.bin that Sampan did not write; if it is nanoGPT's, use it with sampan import {folder}; "
            "else move it away, or choose another --data_dir"
        )
    if meta and meta.get("sha256") != source.sha256:
        print(f"{folder}: held another text, is prepared again", file=sys.stderr)
    if source.streamed:
        if wanted == "char" or wanted.startswith("bpe:"):
            raise UserError(
                f"{source.name} is streamed: take gpt2 or a tokenizer.json, {wanted} needs the whole text first"
            )
        return write_streamed(folder, source, load_tokenizer(wanted, ""), identity | {"reason": reason})
    return write_whole(folder, source, wanted, config.val_fraction, identity | {"reason": reason})


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
    except (OSError, ValueError):
        return {}
    complete = isinstance(meta, dict) and meta.get("complete") and meta.get("dtype") in ("uint16", "uint32")
    return meta if complete and all(isinstance(meta.get(f"{s}_tokens"), int) for s in ("train", "val")) else {}


def find_source(dataset: str) -> Source:
    entry = corpus.find(dataset)
    path = Path(dataset)
    if entry is not None and entry.streamed:
        return Source(entry.name, corpus.documents(entry), entry.name, entry.summary, entry.tokenizer, streamed=True)
    if entry is not None:
        text, origin = corpus.text(entry)
        return Source(entry.name, [text], hashlib.sha256(text.encode()).hexdigest(), origin, entry.tokenizer)
    if not path.exists():
        raise UserError(corpus.unknown(dataset))
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.txt") if p.is_file())
        if not files:
            raise UserError(
                f"{path} has no .txt files; give a text file, a folder of .txt, a .jsonl or a corpus's name"
            )
        documents = [text for text in map(read_text, files) if text]
        origin = f"{len(files)} file{'s' if len(files) > 1 else ''} of {path}"
    elif path.suffix == ".jsonl":
        documents = read_jsonl(path)
        origin = f"{len(documents):,} documents of {path}"
    else:
        documents, origin = [read_text(path)], str(path)
    if not any(documents):
        raise UserError(f"{path} is empty; there is nothing to learn from")
    digest = hashlib.sha256()
    for document in documents:
        raw = document.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return Source(source_name(dataset), documents, digest.hexdigest(), origin)


def source_name(dataset: str) -> str:
    """What a corpus or a text is called, and its folders are."""
    entry = corpus.find(dataset)
    return entry.name if entry else Path(dataset).resolve().stem or "text"


def read_text(path: Path) -> str:
    """A UTF-8 text, without its byte order mark, every line ended by one newline character."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8")
    if b"\0" in raw[: 1 << 20]:
        raise UserError(f"{path} is binary: it has a zero byte at offset {raw.index(0)}; give a text file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start}); "
            "convert it first: iconv -f GB18030 -t UTF-8 if it is Chinese, -f LATIN1 if it is Western"
        ) from None
    return normalize_lines(text)


def normalize_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_jsonl(path: Path) -> list[str]:
    documents = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            text = record["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f'{path}, line {number}: expected an object with a "text" field') from None
        if not isinstance(text, str):
            raise UserError(f'{path}, line {number}: "text" is not a string')
        if not is_unicode(text):
            raise UserError(f'{path}, line {number}: "text" has half of a surrogate pair')
        documents.append(normalize_lines(text))
    return documents


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_kind(tokenizer: str) -> bool:
    """char, gpt2 or bpe:SIZE, and not the path of a tokenizer.json."""
    return tokenizer in ("char", "gpt2") or (tokenizer.startswith("bpe:") and tokenizer[4:].isdecimal())


def choose_tokenizer(wanted: str, source: Source) -> tuple[str, str]:
    """(char | gpt2 | bpe:SIZE | path of a tokenizer.json, why it was chosen)."""
    if wanted != "auto":
        path = Path(wanted)
        if path.is_dir():
            path = path / "tokenizer.json"
        if is_kind(wanted):
            return wanted, "as asked"
        if not path.is_file():
            raise UserError(
                f"tokenizer {wanted!r}: expected char, gpt2, bpe:SIZE such as bpe:4096, or a tokenizer.json"
            )
        return str(path), f"of {path.parent}"
    if source.tokenizer:
        return source.tokenizer, "the corpus's own"
    length = sum(len(d) for d in source.documents)
    if length <= CHARACTERS_UP_TO:
        return "char", f"the text has no more than {CHARACTERS_UP_TO:,} characters"
    return "bpe:8192", f"the text has more than {CHARACTERS_UP_TO:,} characters"


def load_tokenizer(wanted: str, train_text: str, whole_text: str = "", end_of_text: bool = False) -> Tokenizer:
    if wanted == "char":  # every symbol gets an id, also one that only val has
        return tokenizers.characters(whole_text or train_text, end_of_text)
    if wanted == "gpt2":
        return tokenizers.gpt2()
    if wanted.startswith("bpe:"):
        return tokenizers.train_bpe([train_text], int(wanted[4:]))
    return tokenizers.load(wanted)


def write_whole(folder: Path, source: Source, wanted: str, val_fraction: float, meta: dict) -> Data:
    documents = list(source.documents)
    text = "".join(documents)
    cut = int(len(text) * (1 - val_fraction))  # characters, as nanoGPT's int(n * 0.9)
    tokenizer = load_tokenizer(wanted, text[:cut], text, end_of_text=len(documents) > 1)
    splits = {"train": [], "val": []}
    start = 0
    for document in documents:
        here = min(max(cut - start, 0), len(document))  # the document over the cut gives a part to each split
        for split, part in (("train", document[:here]), ("val", document[here:])):
            if part:
                splits[split].append(tokenizer.encode(part))
                if len(documents) > 1 and tokenizer.end_of_text is not None:
                    splits[split].append(np.array([tokenizer.end_of_text], dtype=np.int32))
        start += len(document)
    meta |= {"characters": len(text), "symbols": len(tokenizers.distinct(text))}
    return write_folder(folder, source, tokenizer, meta, ((split, ids) for split in splits for ids in splits[split]))


def write_streamed(folder: Path, source: Source, tokenizer: Tokenizer, meta: dict) -> Data:
    if tokenizer.end_of_text is None:
        raise UserError(f"{source.name} is streamed by documents: it needs a tokenizer with an end-of-text token")

    def parts() -> Iterator[tuple[str, np.ndarray]]:
        for number, document in enumerate(source.documents):
            ids = np.append(tokenizer.encode(document), np.int32(tokenizer.end_of_text))
            yield ("val" if number % STREAMED_VAL_EVERY == STREAMED_VAL_EVERY - 1 else "train"), ids

    return write_folder(folder, source, tokenizer, meta | {"characters": 0, "symbols": 0}, parts())


def write_folder(folder: Path, source: Source, tokenizer: Tokenizer, meta: dict, parts) -> Data:
    """Write the ids of `parts`, pairs (split, ids), and all that goes with them; nothing half-made is left.

    The old meta.json is marked incomplete before the first file is replaced and the new one comes last, so that a
    reader never meets files that do not belong together.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    counts, outcome = {"train": 0, "val": 0}, "nothing was changed"
    partial = {split: folder / f"{split}.bin.partial" for split in counts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = {split: path.open("wb") for split, path in partial.items()}
        try:
            for split, ids in parts:
                files[split].write(np.asarray(ids).astype(dtype).tobytes())
                counts[split] += len(ids)
        finally:
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
        meta = {"name": source.name, "origin": source.origin, **meta, "vocab_size": tokenizer.vocab_size}
        meta |= {"dtype": np.dtype(dtype).name, "train_tokens": counts["train"], "val_tokens": counts["val"]}
        write_json(folder / "meta.json", {"complete": False})
        outcome = "prepare it again"
        for split, path in partial.items():
            os.replace(path, folder / f"{split}.bin")
        write_text(folder / "tokenizer.json", tokenizer.to_json())
        write_json(folder / "meta.json", meta | {"complete": True})
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); {outcome}") from None
    finally:
        for path in partial.values():
            with contextlib.suppress(OSError):  # the folder may be a file
                path.unlink(missing_ok=True)
    return Data(folder, meta)


def write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    replace_file(path, text.encode())


# ---- batches ----


class Windows:
    """The training windows of a split, endlessly, each once per epoch and shuffled, as a function of (seed, index).

    An epoch lays windows of block_size tokens end to end from an offset of its own, so that over the epochs a
    token is met in every position, and visits them in an order of its own.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, seed: int, vocab_size: int | None = None):
        if len(tokens) < block_size + 1:
            raise UserError(
                f"the train split has {len(tokens):,} tokens, and a block needs {block_size + 1:,}; "
                "lower --block_size or give more text"
            )
        self.tokens, self.block_size, self.seed, self.vocab_size = tokens, block_size, seed, vocab_size
        self.per_epoch = max(1, (len(tokens) - block_size) // block_size)
        # An epoch leaves out some tokens, between one block and two of them: the offset says how many at the beginning,
        # from none to all, so that over the epochs every token is learnt from, the last one too.
        self.offsets = len(tokens) - self.per_epoch * block_size

    def starts(self, first: int, count: int) -> np.ndarray:
        """Positions of windows first .. first + count - 1 of the endless order, int64 (count,)."""
        index = np.arange(first, first + count, dtype=np.uint64)
        epoch, within = np.divmod(index, np.uint64(self.per_epoch))
        key = mix(mix(np.uint64(self.seed)) + epoch)
        order = shuffle(within, self.per_epoch, key)
        return (key % np.uint64(self.offsets) + order * np.uint64(self.block_size)).astype(np.int64)

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of `count` windows, int32 (count, block_size) each."""
        return cut_windows(self.tokens, self.starts(first, count), self.block_size, self.vocab_size)


def mix(x: np.ndarray) -> np.ndarray:
    """A well-mixed 64-bit hash of each uint64 (the finalizer of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def shuffle(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Where a permutation of 0 .. n-1, named by `key`, puts each index; uint64, elementwise, in no memory.

    A Feistel network permutes the next power of four; an index that lands beyond n goes through it again
    ("cycle walking", Black and Rogaway 2002), which keeps it a permutation of 0 .. n-1.
    """
    half = np.uint64((max(n - 1, 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    result = index.astype(np.uint64)
    key = np.broadcast_to(key, result.shape)
    out = np.ones(result.shape, dtype=bool)  # first all, then those that are still beyond n
    while out.any():
        left, right = result[out] >> half, result[out] & mask
        for turn in range(4):
            with np.errstate(over="ignore"):
                left, right = right, left ^ (mix(key[out] + right * np.uint64(4) + np.uint64(turn)) & mask)
        result[out] = (left << half) | right
        out = result >= np.uint64(n)
    return result


def evaluation_batches(tokens, block_size: int, batch_size: int, batches: int, vocab_size: int | None = None):
    """A list of (x, y) that covers a split evenly, and whole where it has no more windows than asked for.

    The same windows every time; they do not overlap. Where the whole split is read, a last window ends at its last
    token, and the targets that it shares with the one before are -1 (ignored).
    """
    available = (len(tokens) - 1) // block_size
    if available < 1:
        raise UserError(
            f"the val split has {len(tokens):,} tokens, and a block needs {block_size + 1:,}; "
            "lower --block_size, raise --val_fraction or give more text"
        )
    count = min(available, batch_size * batches)
    starts = np.arange(count, dtype=np.int64) * available // count * block_size
    rest = len(tokens) - 1 - available * block_size
    whole = count == available and rest > 0
    if whole:
        starts = np.append(starts, len(tokens) - 1 - block_size)
    result = []
    for i in range(0, len(starts), batch_size):
        result.append(cut_windows(tokens, starts[i : i + batch_size], block_size, vocab_size))
    if whole:
        result[-1][1][-1, : block_size - rest] = -1
    return result


def cut_windows(tokens, starts: np.ndarray, block_size: int, vocab_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    rows = np.stack([tokens[s : s + block_size + 1] for s in starts]).astype(np.int32)
    if vocab_size is not None and rows.max() >= vocab_size:
        raise UserError(f"the data has token {rows.max()}, and the vocabulary {vocab_size}; prepare the text again")
    return rows[:, :-1].copy(), rows[:, 1:].copy()
