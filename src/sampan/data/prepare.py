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
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sampan.config import DataConfig
from sampan.data.meta import FORMAT, Data, Facts, Meta, open_folder, read_meta
from sampan.data.survey import Survey, progress, reach, read_through, recall, sample_text, stamp_of_sources
from sampan.errors import UserError
from sampan.fetch import cache_folder
from sampan.files import Held, lock_file, write_json, write_text
from sampan.text.characters import END
from sampan.text.sources import Source, find_source
from sampan.tokens.choose import check_tokenizer, choose_tokenizer, is_kind
from sampan.tokens.kinds import characters, gpt2_tokenizer, train_bpe
from sampan.tokens.tokenizer import Tokenizer, may_cut, read_tokenizer

VAL_FRACTION = 0.1  # nanoGPT's
LONGEST = 1 << 20  # characters without a place to cut, after which a byte-level tokenizer's text is cut all the same


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
    survey = recall(folders, stamp_of_sources(train, val)) or read_through(train, val)
    facts = survey.facts
    own, _ = choose_tokenizer("auto", facts.characters, facts.symbols, train.tokenizer)
    wanted, reason = choose_tokenizer(config.tokenizer, facts.characters, facts.symbols, train.tokenizer)
    label = wanted if is_kind(wanted) else Path(wanted).resolve().parent.name
    name = train.name if own == wanted else f"{train.name}-{label.replace(':', '')}"
    folder = Path(config.data_dir or Path("data") / name)
    identity = {"format": FORMAT, "sha256": facts.sha256, "tokenizer": label, "val_fraction": fraction}
    if not is_kind(wanted):
        identity["tokenizer_sha256"] = hashlib.sha256(Path(wanted).read_bytes()).hexdigest()
    if made := up_to_date(folder, identity):
        return made
    if not (folder / "meta.json").exists() and (folder / "train.bin").exists():
        raise UserError(
            f"{folder} holds a train.bin that Sampan did not write; if it is nanoGPT's, use it with sampan import {folder}; "
            "else move it away, or choose another --data_dir"
        )
    meta = read_meta(folder)
    if meta and meta.sha256 != facts.sha256:
        print(f"{folder} was made from another text; preparing it again", file=sys.stderr)

    if not survey.sample:  # the facts were recalled, and now the text is needed
        survey = read_through(train, val)
    with preparation_lock(folder):
        if made := up_to_date(folder, identity):  # by the process that was waited for
            return made
        cut = cut_of(survey, train, val, config)
        tokenizer = make_tokenizer(wanted, survey, cut)
        sampled = sum(map(len, sample_text(survey, cut)))
        describe = functools.partial(
            Meta,
            name=train.name,
            origin=train.origin,
            reason=reason,
            stamp=stamp_of_sources(train, val),
            trained_on=sampled if wanted.startswith("bpe:") and sampled < cut else None,
            **asdict(survey.facts) | identity,
        )
        blocks = itertools.chain(train.blocks(), val.blocks() if val else ())
        return write_folder(folder, tokenizer, describe, encode_blocks(tokenizer, blocks, cut, survey.facts))


def up_to_date(folder: Path, identity: dict) -> Data | None:
    meta = read_meta(folder)
    if meta and all(getattr(meta, key) == value for key, value in identity.items()) and Data(folder, meta).is_whole():
        return Data(folder, meta)
    return None


@contextlib.contextmanager
def preparation_lock(folder: Path) -> Iterator[None]:
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
        return find_source(names, config), None
    return find_source(names, config, [Path(config.val_file)]), find_source([config.val_file], config)


def fraction_of(train: Source, config: DataConfig) -> float:
    fractions = (config.val_fraction, train.val_fraction, VAL_FRACTION)
    return next(f for f in fractions if f is not None)


def cut_of(survey: Survey, train: Source, val: Source | None, config: DataConfig) -> int:
    """The number of characters before val."""
    if val is not None:
        return survey.facts.train_characters
    return int(survey.facts.characters * (1 - fraction_of(train, config)))  # as nanoGPT's int(n * 0.9)


def make_tokenizer(wanted: str, survey: Survey, cut: int) -> Tokenizer:
    ends = survey.facts.documents > 1
    if wanted == "char":  # every symbol gets an id, also one that only val has
        return characters(map(chr, np.flatnonzero(survey.counts)), ends)
    if wanted == "char+bytes":  # what train has once is spelt in bytes, which are learnt from that
        return characters(map(chr, np.flatnonzero(survey.again < cut)), ends, byte_tokens=True)
    if wanted == "gpt2":
        return gpt2_tokenizer()
    if wanted.startswith("bpe:"):
        return train_bpe(sample_text(survey, cut), int(wanted[4:]))
    return read_tokenizer(wanted)


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
    tokenizer: Tokenizer, blocks: Iterable[str], cut: int, facts: Facts
) -> Iterator[tuple[str, np.ndarray]]:
    """Pairs (split, ids) in order; where there are several documents, the end-of-text token is after each."""
    ends = [tokenizer.end_of_text] if facts.documents > 1 and tokenizer.end_of_text is not None else []
    done, last = 0, "train"
    with progress("encoding", facts.characters) as tick:
        for split, text in segments(split_blocks(blocks, cut), tokenizer):
            if split != last and done:
                yield last, np.array(ends, np.int32)
            yield split, tokenizer.encode(text, before=done)
            done, last = done + len(text) - text.count(END), split
            tick(len(text))
    yield last, np.array(ends, np.int32)


def write_folder(
    folder: Path, tokenizer: Tokenizer, describe: Callable[..., Meta], parts: Iterable[tuple[str, np.ndarray]]
) -> Data:
    """Write the ids of `parts`, pairs (split, ids), and all that goes with them; nothing half-made is left.

    `describe` makes the Meta of what only the ids tell: vocab_size, dtype, train_tokens and val_tokens.

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
        meta = describe(
            vocab_size=tokenizer.vocab_size,
            dtype=np.dtype(dtype).name,
            train_tokens=counts["train"],
            val_tokens=counts["val"],
        )
        outcome = "prepare it again"  # the old meta.json may be gone even where the sync behind it fails
        write_json(folder / "meta.json", {"complete": False})
        for split, path in partial.items():
            os.replace(path, folder / f"{split}.bin")
        write_text(folder / "tokenizer.json", tokenizer.to_json())
        write_json(folder / "meta.json", meta.to_json())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); {outcome}") from None
    finally:
        for path in partial.values():
            with contextlib.suppress(OSError):  # the folder may be a file
                path.unlink(missing_ok=True)
    return Data(folder, meta)
