"""Text to train.bin and val.bin, and those to batches of integers.

    data = prepare("my-novel.txt", DataConfig())            # data/my-novel/, again only if something changed
    windows = Windows(data.train, block_size=64, seed=1337)
    x, y = windows.batch(first=0, count=12)                 # int32 (12, 64) each; y is x one token later

A folder holds train.bin and val.bin (raw ids, uint16 or uint32, as nanoGPT's), tokenizer.json and meta.json.
A batch is a function of (seed, index): nothing needs to be saved to continue where a run stopped.

A text of any size is read twice, block by block: once to count it, from which the tokenizer follows, and once to
encode it. The first 1 - val_fraction of its characters are train and the rest is val; a document over the cut gives a
part to each. Nothing is shuffled here: lines or documents of one source on both sides would leak what val measures.

Where text comes from, its formats and encodings are sources.py's.
"""

import contextlib
import functools
import glob
import hashlib
import itertools
import json
import mmap
import os
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import tokenizer as tokenizers
from .config import DataConfig
from .errors import UserError
from .fetch import cache_folder
from .files import Held, lock_file, replace_file
from .sources import Source, find
from .tokenizer import END, Tokenizer, code_points, may_cut

# What meta.json keeps of a reading.
FACTS = ("sha256", "characters", "train_characters", "symbols", "documents", "encodings", "undecodable", "places")
FORMAT = 2  # of a data folder; raise it when the same text would give other files
VAL_FRACTION = 0.1  # nanoGPT's
ALPHABET = 256  # symbols; a text with more has characters that it seldom uses, and prompts with some that it lacks
CHUNK = 1024  # examples whose order is computed at once
SEEN_ENOUGH = 10  # times that a symbol occurs on average; where it is less, most of a text would be spelt in bytes
CHARACTERS_UP_TO = 5_000_000  # longer texts get a trained BPE: more text in a block, and enough of it to learn from
SAMPLE = 6_000_000  # bytes that a BPE is trained on, spread over the text; of Chinese, in 400 MB of memory
LONGEST = 1 << 20  # characters without a place to cut, after which a byte-level tokenizer's text is cut all the same
SETTLED = 2.0  # seconds; a file younger than that may change again without a new time


@dataclass
class Survey:
    """What one reading of a text tells about it."""

    facts: dict = field(default_factory=dict)  # what meta.json keeps of it
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0x110000, np.int64))  # of each code point
    again: np.ndarray = field(default_factory=lambda: np.full(0x110000, 1 << 62))  # where each is met a second time
    sample: list[tuple[int, str]] = field(default_factory=list)  # (position, text) of blocks spread over it


@dataclass(frozen=True)
class Data:
    """A prepared folder. `meta` is its meta.json."""

    folder: Path
    meta: dict

    @functools.cached_property
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


# ---- prepare ----


def prepare(dataset: str | Iterable[str], config: DataConfig) -> Data:
    """The data folder of one or more sources (sources.py says which), made unless it is up to date.

    A folder that was prepared before is taken as it is. Raises UserError for a source that is missing, empty, binary or
    in no known encoding, and for a folder that is not ours.
    """
    names = (dataset,) if isinstance(dataset, str) else tuple(dataset)
    if len(names) == 1 and (Path(names[0]) / "meta.json").is_file():
        return open_folder(names[0])
    train, val = find_both(names, config)
    fraction = None if val else fraction_of(train, config)
    folders = [Path(config.data_dir)] if config.data_dir else Path("data").glob(f"{glob.escape(train.name)}*")
    survey = recall(folders, stamp_of(train, val)) or read_through(train, val)
    own, _ = choose_tokenizer("auto", survey.facts, train.tokenizer)
    wanted, reason = choose_tokenizer(config.tokenizer, survey.facts, train.tokenizer)
    label = wanted if is_kind(wanted) else Path(wanted).resolve().parent.name
    name = train.name if own == wanted else f"{train.name}-{label.replace(':', '')}"
    folder = Path(config.data_dir or Path("data") / name)
    identity = {"format": FORMAT, "sha256": survey.facts["sha256"], "tokenizer": label, "val_fraction": fraction}
    if not is_kind(wanted):
        identity["tokenizer_sha256"] = hashlib.sha256(Path(wanted).read_bytes()).hexdigest()
    if made := up_to_date(folder, identity):
        return made
    meta = read_meta(folder)
    if meta is None and (folder / "train.bin").exists():
        raise UserError(
            f"{folder} holds a train.bin that Sampan did not write; if it is nanoGPT's, use it with sampan import {folder}; "
            "else move it away, or choose another --data_dir"
        )
    if meta and meta.get("sha256") != identity["sha256"]:
        print(f"{folder}: held another text, is prepared again", file=sys.stderr)

    if not survey.sample:  # the facts were recalled, and now the text is needed
        survey = read_through(train, val)
    with alone(folder):
        if made := up_to_date(folder, identity):  # by the process that was waited for
            return made
        cut = cut_of(survey, train, val, config)
        tokenizer = make_tokenizer(wanted, survey, cut)
        meta = {"name": train.name, "origin": train.origin, "reason": reason, "stamp": stamp_of(train, val)}
        meta |= survey.facts | identity
        trained_on = sum(map(len, sample_text(survey, cut)))
        if wanted.startswith("bpe:") and trained_on < cut:
            meta["trained_on"] = trained_on
        blocks = itertools.chain(train.blocks(), val.blocks() if val else ())
        return write_folder(folder, tokenizer, meta, encode_blocks(tokenizer, blocks, cut, meta))


def up_to_date(folder: Path, identity: dict) -> Data | None:
    meta = read_meta(folder)
    if meta and all(meta.get(key) == value for key, value in identity.items()) and Data(folder, meta).is_whole():
        return Data(folder, meta)
    return None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While this process prepares the folder; another one of this user and machine that does so already is waited for."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    path, waits = cache_folder() / f"preparing-{name}.lock", False  # not in the folder, which may not even be made
    with contextlib.ExitStack() as stack:
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock_file(path, f"process {os.getpid()}"))
                stack.callback(path.unlink, missing_ok=True)
                break
            except Held as held:
                if not waits:
                    print(f"{folder}: waiting for {held or 'another process'}, which prepares it", file=sys.stderr)
                waits = True
                time.sleep(0.1)
            except OSError:  # no place for a lock: all the same, files are replaced whole
                break
        yield


def find_both(names: Iterable[str], config: DataConfig) -> tuple[Source, Source | None]:
    """The sources of train and of val; None where val is a part of train's."""
    if config.val_file is not None and config.val_fraction is not None:
        raise UserError("--val_file and --val_fraction are two ways to say what val is: give one of them")
    check_tokenizer(config.tokenizer)
    if config.val_file is None:
        return find(names, config), None
    return find(names, config, [Path(config.val_file)]), find([config.val_file], config)


def fraction_of(train: Source, config: DataConfig) -> float:
    fractions = (config.val_fraction, train.val_fraction, VAL_FRACTION)
    return next(f for f in fractions if f is not None)


def cut_of(survey: Survey, train: Source, val: Source | None, config: DataConfig) -> int:
    """The number of characters before val."""
    if val is not None:
        return survey.facts["train_characters"]
    return int(survey.facts["characters"] * (1 - fraction_of(train, config)))  # as nanoGPT's int(n * 0.9)


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


def is_kind(tokenizer: str) -> bool:
    """char, char+bytes, gpt2 or bpe:SIZE, and not the path of a tokenizer.json."""
    return tokenizer in ("char", "char+bytes", "gpt2") or (tokenizer.startswith("bpe:") and tokenizer[4:].isdecimal())


def tokenizer_path(wanted: str) -> Path:
    return Path(wanted) / "tokenizer.json" if Path(wanted).is_dir() else Path(wanted)


def check_tokenizer(wanted: str) -> None:
    """Before a large text is read."""
    if wanted == "auto" or is_kind(wanted):
        if wanted.startswith("bpe:"):
            tokenizers.check_size(int(wanted[4:]))
    elif not tokenizer_path(wanted).is_file():
        raise UserError(
            f"tokenizer {wanted!r}: expected char, char+bytes, gpt2, bpe:SIZE such as bpe:4096, or a tokenizer.json"
        )


def choose_tokenizer(wanted: str, facts: dict, corpus_choice: str | None = None) -> tuple[str, str]:
    """(char | char+bytes | gpt2 | bpe:SIZE | path of a tokenizer.json, why it was chosen).

    >>> choose_tokenizer("auto", {"characters": 1_115_394, "symbols": 65})[0]
    'char'
    >>> choose_tokenizer("auto", {"characters": 928_466, "symbols": 4513})[0]
    'char+bytes'
    >>> choose_tokenizer("auto", {"characters": 60_000_000, "symbols": 110})[0]
    'bpe:8192'
    """
    characters, symbols = facts["characters"], facts["symbols"]
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


def make_tokenizer(wanted: str, survey: Survey, cut: int) -> Tokenizer:
    ends = survey.facts["documents"] > 1
    if wanted == "char":  # every symbol gets an id, also one that only val has
        return tokenizers.characters(map(chr, np.flatnonzero(survey.counts)), ends)
    if wanted == "char+bytes":  # what train has once is spelt in bytes, which are learnt from that
        return tokenizers.characters(map(chr, np.flatnonzero(survey.again < cut)), ends, byte_tokens=True)
    if wanted == "gpt2":
        return tokenizers.gpt2()
    if wanted.startswith("bpe:"):
        return tokenizers.train_bpe(sample_text(survey, cut), int(wanted[4:]))
    return tokenizers.load(wanted)


# ---- the first reading ----


def read_through(train: Source, val: Source | None) -> Survey:
    """Counts, checksum and a sample of a text. Raises UserError where it is empty."""
    survey, digest = Survey(), hashlib.sha256()
    begun, characters, documents, stride, sampled = time.time(), [0, 0], [0, 0], 1, 0
    sources = [source for source in (train, val) if source is not None]
    with progress("reading", sum(source.work for source in sources)) as tick:
        for number, source in enumerate(sources):
            digest.update(b"\xff" * number)  # no part of UTF-8
            for index, block in enumerate(source.blocks(tick)):
                digest.update(block.encode("utf-8", "surrogatepass"))
                position = characters[number]
                documents[number] += block.count(END) + (position == 0)
                text = block.replace(END, "")
                count_characters(survey, code_points(text), position if number == 0 else 1 << 62)
                characters[number] += len(text)
                if number == 0 and index % stride == 0:
                    survey.sample.append((position, block))
                    sampled += len(block) if block.isascii() else len(block.encode("utf-8", "surrogatepass"))
                    if sampled > SAMPLE and len(survey.sample) > 1:
                        survey.sample, stride, sampled = survey.sample[::2], stride * 2, sampled // 2
            if not characters[number]:
                raise UserError(f"{source.origin} is empty; there is nothing to learn from")
    found = [source.findings() for source in sources]
    encodings = {name: sum(f["encodings"].get(name, 0) for f in found) for f in found for name in f["encodings"]}
    places = [place for f in found for place in f["places"]]
    values = digest.hexdigest(), sum(characters), characters[0], int(np.count_nonzero(survey.counts)), max(documents)
    survey.facts = dict(zip(FACTS, (*values, encodings, sum(f["undecodable"] for f in found), places), strict=True))
    if any(source.changed > begun - SETTLED for source in sources):
        for source in sources:
            source.stamp = None
    return survey


def count_characters(survey: Survey, points: np.ndarray, position: int) -> None:
    """Add a block, uint32 (n,), that begins at `position`, to the counts and to the places of second occurrences."""
    here = np.bincount(points)
    before = survey.counts[: len(here)]
    new = (here > 0) & (before < 2)
    if new.any():
        at = np.flatnonzero(new[points])
        place = np.zeros(len(here), np.int64)
        place[points[at][::-1]] = at[::-1]  # the first place: of equal indices the last assignment stays
        once = new & (before == 1)
        survey.again[: len(here)][once] = position + place[once]
        later = at[place[points[at]] != at]
        place[points[later][::-1]] = later[::-1]
        twice = new & (before == 0) & (here > 1)
        survey.again[: len(here)][twice] = position + place[twice]
    before += here


def sample_text(survey: Survey, end: int, begin: int = 0) -> list[str]:
    """The sample's characters from `begin` to `end` of the text, in as few strings as there are gaps between them."""
    runs, expected = [], -1
    for position, block in survey.sample:
        part = block[reach(block, begin - position) : reach(block, end - position)]
        if position != expected or not runs:
            runs.append([])
        runs[-1].append(part)
        expected = position + len(block) - block.count(END)
    return [text for text in map("".join, runs) if text]


def reach(text: str, count: int) -> int:
    """The length of the shortest beginning of `text` that has `count` characters besides END, or all of it.

    >>> reach(f"ab{END}cd", 2), reach(f"ab{END}cd", 3)
    (2, 4)
    """
    if END not in text or count <= 0:
        return max(0, min(count, len(text)))
    return min(int(np.searchsorted(np.cumsum(code_points(text) != ord(END)), count)) + 1, len(text))


def recall(folders: Iterable[Path], stamp: str | None) -> Survey | None:
    """The facts of an earlier reading of the same files, so that a large text is not read to see that it is the same."""
    metas = (read_meta(folder) for folder in folders if stamp)
    meta = next((m for m in metas if m and m.get("stamp") == stamp and set(FACTS) <= set(m)), None)
    return meta and Survey({name: meta[name] for name in FACTS})


def stamp_of(train: Source, val: Source | None) -> str | None:
    """What tells without reading that a text is the one that was read; None where nothing does."""
    if val is None or train.stamp is None or val.stamp is None:
        return train.stamp if val is None else None
    return f"{train.stamp} {val.stamp}"


@contextlib.contextmanager
def progress(what: str, total: int | None):
    """A function that is told how much more has been done; a bar with the time left where there is a terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total or None)
        yield lambda count: bar.advance(task, count)


# ---- the second reading ----


def split_blocks(blocks: Iterable[str], cut: int) -> Iterator[tuple[str, str]]:
    """("train" or "val", text) in order: the first `cut` characters, then the rest. No part begins or ends with END."""
    done, last, held = 0, None, ""
    for block in blocks:
        text = held + block
        held = END if text.endswith(END) else ""
        text = text.removesuffix(END)
        here = reach(text, cut - done)
        for split, part in (("train", text[:here]), ("val", text[here:])):
            if part:
                done += len(part) - part.count(END)
                yield split, part if split == last else part.removeprefix(END)
                last = split


def segments(texts: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """The same, cut only where the tokenizer gives the ids that it would give for the whole.

    That is between any characters, or where `may_cut` and at least every LONGEST characters; or between documents
    where nothing is known of a tokenizer.
    """
    held, holder = "", None
    for split, text in texts:
        if held and split != holder:
            yield holder, held
            held = ""
        holder, text = split, held + text
        end = last_cut(text, tokenizer)
        if end:
            yield split, text[:end]
        held = text[end:]
    if held:
        yield holder, held


def last_cut(text: str, tokenizer: Tokenizer) -> int:
    if tokenizer.is_characters:
        return len(text)
    end = max(text.rfind(END), 0)
    if not tokenizer.may_split:
        return end
    return next((i for i in range(len(text) - 1, end, -1) if may_cut(text, i)), end) or len(text) * (
        len(text) >= LONGEST
    )


def encode_blocks(
    tokenizer: Tokenizer, blocks: Iterable[str], cut: int, meta: dict
) -> Iterator[tuple[str, np.ndarray]]:
    """Pairs (split, ids) in order; where there are several documents, the end-of-text token is after each."""
    ends = [tokenizer.end_of_text] if meta["documents"] > 1 and tokenizer.end_of_text is not None else []
    done, last = 0, "train"
    with progress("encoding", meta["characters"]) as tick:
        for split, text in segments(split_blocks(blocks, cut), tokenizer):
            if split != last and done:
                yield last, np.array(ends, np.int32)
            yield split, tokenizer.encode(text, before=done)
            done, last = done + len(text) - text.count(END), split
            tick(len(text))
    yield last, np.array(ends, np.int32)


def write_folder(folder: Path, tokenizer: Tokenizer, meta: dict, parts: Iterable[tuple[str, np.ndarray]]) -> Data:
    """Write the ids of `parts`, pairs (split, ids), and all that goes with them; nothing half-made is left.

    The old meta.json is marked incomplete before the first file is replaced and the new one comes last, so that a
    reader never meets files that do not belong together.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    counts, outcome = {"train": 0, "val": 0}, "nothing was changed"
    partial = {split: folder / f"{split}.bin.partial" for split in counts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            files = {split: stack.enter_context(path.open("wb")) for split, path in partial.items()}
            for split, ids in parts:
                files[split].write(ids.astype(dtype).data)
                counts[split] += len(ids)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        meta = meta | {"vocab_size": tokenizer.vocab_size, "dtype": np.dtype(dtype).name}
        meta |= {"train_tokens": counts["train"], "val_tokens": counts["val"]}
        outcome = "prepare it again"  # the old meta.json may be gone even where the sync behind it fails
        write_json(folder / "meta.json", {"complete": False})
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
        order, key = endless_order(first, count, self.per_epoch, self.seed)
        return (key % np.uint64(self.offsets) + order * np.uint64(self.block_size)).astype(np.int64)

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of `count` windows, int32 (count, block_size) each."""
        return cut_windows(self.tokens, self.starts(first, count), self.block_size, self.vocab_size)


def endless_order(first: int, count: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(items, keys), uint64 (count,) each, of an endless order of 0 .. n-1: each item once per epoch, shuffled.

    An item's key is a random number of its epoch.
    """
    parts = [order_of_chunk(chunk, n, seed) for chunk in range(first // CHUNK, (first + count - 1) // CHUNK + 1)]
    items, keys = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    here = slice(first % CHUNK, first % CHUNK + count)
    return items[here], keys[here]


@functools.lru_cache(maxsize=4)
def order_of_chunk(chunk: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """CHUNK items of that order at once: for the few of a step alone, it would take longer than reading them."""
    epoch, within = np.divmod(np.arange(chunk * CHUNK, (chunk + 1) * CHUNK, dtype=np.uint64), np.uint64(n))
    key = mix(mix(np.uint64(seed)) + epoch)
    return shuffle(within, n, key), key


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


class EvaluationBatches:
    """(x, y), int32 (B, T) each, that cover a split evenly, and whole where it has no more windows than asked for.

    The same windows every time; they do not overlap, and are cut when they are read, so that they take no memory. Where
    the whole split is read, a last window ends at its last token, and the targets that it shares with the one before are
    -1 (ignored).
    """

    def __init__(self, tokens, block_size: int, batch_size: int, batches: int, vocab_size: int | None = None):
        available = (len(tokens) - 1) // block_size
        if available < 1:
            raise UserError(
                f"the val split has {len(tokens):,} tokens, and a block needs {block_size + 1:,}; "
                "lower --block_size, raise --val_fraction or give more text"
            )
        self.tokens, self.block_size, self.batch_size, self.vocab_size = tokens, block_size, batch_size, vocab_size
        count = min(available, batch_size * batches)
        self.starts = np.arange(count, dtype=np.int64) * available // count * block_size
        rest = len(tokens) - 1 - available * block_size
        self.shared = 0  # targets of the last window that the one before has already
        if count == available and rest > 0:
            self.starts = np.append(self.starts, len(tokens) - 1 - block_size)
            self.shared = block_size - rest

    def __len__(self) -> int:
        return -(-len(self.starts) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for i in range(0, len(self.starts), self.batch_size):
            starts = self.starts[i : i + self.batch_size]
            x, y = cut_windows(self.tokens, starts, self.block_size, self.vocab_size)
            if i + self.batch_size >= len(self.starts):
                y[-1, : self.shared] = -1
            yield x, y


def cut_windows(tokens, starts: np.ndarray, block_size: int, vocab_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    rows = np.stack([tokens[s : s + block_size + 1] for s in starts])
    if hasattr(mmap, "MADV_DONTNEED") and getattr(tokens, "mode", None) == "r":  # of others, it would undo changes
        tokens._mmap.madvise(mmap.MADV_DONTNEED)  # else every page that was ever read counts as this process's memory
    if vocab_size is not None and (rows.max() >= vocab_size or rows.min() < 0):
        wrong = rows.max() if rows.max() >= vocab_size else rows.min()
        raise UserError(f"the data has token {wrong}, and the vocabulary {vocab_size}; prepare the text again")
    return rows[:, :-1].astype(np.int32), rows[:, 1:].astype(np.int32)
