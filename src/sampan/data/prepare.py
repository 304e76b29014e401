"""Make a text into train.bin and val.bin.

    data = prepare("my-novel.txt", DataConfig())            # data/my-novel/, again only if something changed

A folder holds train.bin and val.bin (raw ids, uint16 or uint32, as nanoGPT's), tokenizer.json and meta.json.

A text of any size is read twice, block by block: once to count it, from which the tokenizer follows, and once to
encode it. The first 1 - val_fraction of its characters are train and the rest is val; a document over the cut gives a
part to each. Nothing is shuffled here: lines or documents of one source on both sides would leak what val measures.

Where text comes from, its formats and encodings are sources.py's; batches of tokens are windows.py's.
"""

import contextlib
import functools
import glob
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sampan.config import DataConfig
from sampan.data.meta import FORMAT, Data, Facts, Meta, open_folder, read_meta
from sampan.data.survey import Survey, read_through, recall, sample_documents, stamp_of_sources
from sampan.errors import UserError
from sampan.fetch import fetch
from sampan.files import lock_file, write_json
from sampan.messages import _
from sampan.progress import Progress, silent
from sampan.text.characters import Block
from sampan.text.sources import Source, find_source
from sampan.tokens.byte_level import GPT2, gpt2_tokenizer
from sampan.tokens.choose import check_tokenizer, choose_tokenizer
from sampan.tokens.kinds import find_kind, fingerprint, read_tokenizer
from sampan.tokens.tokenizer import Material, Tokenizer

VAL_FRACTION = 0.1  # nanoGPT's
log = logging.getLogger(__name__)


# ---- prepare ----


def prepare(dataset: str | Iterable[str], config: DataConfig, progress: Progress = silent) -> Data:
    """Return the data folder of one or more sources (sources.py says which), made unless it is up to date.

    A folder that was prepared before is taken as it is. Raises UserError for a source that is missing, empty, binary or
    in no known encoding, and for a folder that is not ours.
    """
    names = (dataset,) if isinstance(dataset, str) else tuple(dataset)
    if len(names) == 1 and (Path(names[0]) / "meta.json").is_file():
        return open_folder(names[0])
    train, val = find_both(names, config)
    folders = [Path(config.data_dir)] if config.data_dir else Path("data").glob(f"{glob.escape(train.name)}*")
    survey = recall(folders, stamp_of_sources(train, val)) or read_through(train, val, progress)
    key = key_of(train, val, survey.facts, config)
    folder = folder_of(key, train, survey.facts, config)
    if made := up_to_date(folder, key):
        return made
    refuse_foreign(folder)
    if not survey.sample:  # the facts were recalled, and now the text is needed
        survey = read_through(train, val, progress)
    with preparation_lock(folder):
        return up_to_date(folder, key) or make_folder(folder, key, train, val, survey, config, progress)


@dataclass(frozen=True)
class Key:
    """What the files of a folder follow from, under the names that Meta has for it."""

    sha256: str
    tokenizer: str
    tokenizer_sha256: str | None
    val_fraction: float | None
    format: int = FORMAT


def key_of(train: Source, val: Source | None, facts: Facts, config: DataConfig) -> Key:
    wanted, why = choose_tokenizer(config.tokenizer, facts.characters, facts.symbols, train.tokenizer)
    fraction = None if val else fraction_of(train, config)
    if find_kind(wanted):
        return Key(facts.sha256, wanted, None, fraction)
    return Key(
        facts.sha256,
        Path(wanted).resolve().parent.name,
        fingerprint(Path(wanted)),
        fraction,
    )


def folder_of(key: Key, train: Source, facts: Facts, config: DataConfig) -> Path:
    """Return data/NAME, data/NAME-TOKENIZER for one that was asked for; with four digits more where NAME is taken."""
    if config.data_dir:
        return Path(config.data_dir)
    own, why = choose_tokenizer("auto", facts.characters, facts.symbols, train.tokenizer)
    name = train.name if own == key.tokenizer else f"{train.name}-{key.tokenizer.replace(':', '')}"
    meta = read_meta(Path("data") / name)
    if meta is None or train.key == meta.source or key.sha256 == meta.sha256:
        return Path("data") / name
    folder = Path("data") / f"{name}-{train.key}"
    if not folder.exists():
        taken = Path("data") / name
        log.warning(_("{taken} holds another text of this name; this one goes to {folder}", taken=taken, folder=folder))
    return folder


def up_to_date(folder: Path, key: Key) -> Data | None:
    meta = read_meta(folder)
    is_same = meta is not None and all(getattr(meta, name) == value for name, value in asdict(key).items())
    return Data(folder, meta) if meta and is_same and Data(folder, meta).is_whole() else None


def refuse_foreign(folder: Path) -> None:
    """Raise UserError where a folder holds data that are not ours."""
    if not (folder / "meta.json").exists() and (folder / "train.bin").exists():
        raise UserError(
            _(
                "{folder} holds a train.bin that Sampan did not write. If it is nanoGPT's, run sampan import "
                "{folder}; otherwise move it away or choose another --data_dir",
                folder=folder,
            )
        )


@contextlib.contextmanager
def preparation_lock(folder: Path) -> Iterator[None]:
    """Hold the lock beside a folder while this process prepares it; wait for another process that has it."""
    path = folder.resolve()
    path = path.with_name(f".{path.name}.lock")  # not in the folder, which may not even be made

    def waiting(holder: str) -> None:
        log.warning(_("{folder} is being prepared by {holder}; waiting", folder=folder, holder=holder))

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no place for a lock: files are replaced whole anyway
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_file(path, f"process {os.getpid()}", waiting))
        yield


def make_folder(
    folder: Path, key: Key, train: Source, val: Source | None, survey: Survey, config: DataConfig, progress: Progress
) -> Data:
    """Make the tokenizer, encode the text and write the folder."""
    meta = read_meta(folder)
    if meta and meta.sha256 != key.sha256:
        log.warning(_("{folder} was made from another text; preparing it again", folder=folder))
    cut, facts = cut_of(survey, train, val, config), survey.facts
    wanted, reason = choose_tokenizer(config.tokenizer, facts.characters, facts.symbols, train.tokenizer)
    tokenizer = make_tokenizer(wanted, survey, cut)
    sampled = sum(map(len, sample_documents(survey, cut)))
    describe = functools.partial(
        Meta,
        name=train.name,
        source=train.key,
        origin=train.origin,
        reason=reason,
        stamp=stamp_of_sources(train, val),
        trained_on=sampled if wanted.startswith("bpe:") and sampled < cut else None,
        **asdict(facts) | asdict(key),
    )
    blocks = itertools.chain(train.blocks(), val.blocks() if val else ())
    with progress("encoding", facts.characters) as tick:
        return write_folder(
            folder, tokenizer, describe, encode_blocks(tokenizer, blocks, cut, facts.documents > 1, tick)
        )


def find_both(names: Iterable[str], config: DataConfig) -> tuple[Source, Source | None]:
    """Return the sources of train and of val; None where val is a part of train's."""
    if config.val_file is not None and config.val_fraction is not None:
        raise UserError(_("--val_file and --val_fraction both say what val is: give one of them"))
    check_tokenizer(config.tokenizer)
    if config.val_file is None:
        return find_source(names, config), None
    return find_source(names, config, [Path(config.val_file)]), find_source([config.val_file], config)


def fraction_of(train: Source, config: DataConfig) -> float:
    fractions = (config.val_fraction, train.val_fraction, VAL_FRACTION)
    return next(f for f in fractions if f is not None)


def cut_of(survey: Survey, train: Source, val: Source | None, config: DataConfig) -> int:
    """Return the number of characters before val."""
    if val is not None:
        return survey.facts.train_characters
    return int(survey.facts.characters * (1 - fraction_of(train, config)))  # as nanoGPT's int(n * 0.9)


def make_tokenizer(wanted: str, survey: Survey, cut: int) -> Tokenizer:
    """Return the tokenizer that --tokenizer names, made of a text or read from a file."""
    found = find_kind(wanted)
    if found is None:
        return read_tokenizer(wanted)
    kind, size = found
    sample = functools.partial(sample_documents, survey, cut)
    return kind.make(Material(survey.counts, sample, survey.facts.documents > 1, size, [*map(fetch, kind.files)]))


def fetch_gpt2_tokenizer() -> Tokenizer:
    """Return GPT-2's tokenizer; its files are fetched once and checked. Raises UserError where they cannot be had."""
    return gpt2_tokenizer(*map(fetch, GPT2.files))


# ---- the second reading ----


def split_blocks(blocks: Iterable[Block], cut: int) -> Iterator[tuple[str, Block]]:
    """Yield ("train" or "val", block) in order: the first `cut` characters, then the rest.

    A document over the cut ends there and goes on as one of val's.
    """
    done = 0
    for text, ends in blocks:
        here = min(max(0, cut - done), len(text))
        if here:
            over = [here] if done + here == cut and here not in ends else []
            yield "train", Block(text[:here], [e for e in ends if e <= here] + over)
        if here < len(text):
            yield "val", Block(text[here:], [e - here for e in ends if e > here])
        done += len(text)


def join_words(parts: Iterable[tuple[str, Block]], tokenizer: Tokenizer) -> Iterator[tuple[str, Block]]:
    """Yield the same text in blocks that the tokenizer gives the ids that it would give for whole documents.

    That is, cut where a document ends, or where the tokenizer's `last_cut` says.
    """
    held = ""
    for split, (text, ends) in parts:
        text, ends = held + text, [len(held) + e for e in ends]
        begin = ends[-1] if ends else 0
        end = begin + tokenizer.last_cut(text[begin:])
        if end:
            yield split, Block(text[:end], ends)
        held = text[end:]


def encode_blocks(
    tokenizer: Tokenizer, blocks: Iterable[Block], cut: int, has_documents: bool, tick: Callable[[int], None]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield pairs (split, ids) in order; where there are several documents, the end-of-text token is after each.

    What the tokenizer's template begins a text with, such as BOS, is before each document and each split.
    """
    done, begins, last = 0, True, "train"
    for split, (text, ends) in join_words(split_blocks(blocks, cut), tokenizer):
        if tokenizer.begin and (begins or split != last):
            yield split, np.array(tokenizer.begin, np.int32)
        yield split, tokenizer.encode(text, ends=ends if has_documents else (), before=done)
        begins, last = bool(ends) and has_documents and ends[-1] == len(text), split
        done += len(text)
        tick(len(text))


def write_folder(
    folder: Path, tokenizer: Tokenizer, describe: Callable[..., Meta], parts: Iterable[tuple[str, np.ndarray]]
) -> Data:
    """Write the ids of `parts`, pairs (split, ids), and all that goes with them; nothing half-made is left.

    `describe` makes the Meta of what only the ids tell: vocab_size, dtype, train_tokens and val_tokens. The old
    meta.json is marked incomplete before the first file is replaced and the new one comes last, so that a reader never
    meets files that do not belong together.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    counts, outcome = {"train": 0, "val": 0}, _("nothing was changed")
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
        sizes: dict[str, Any] = {"train_tokens": counts["train"], "val_tokens": counts["val"]}
        meta = describe(vocab_size=tokenizer.vocab_size, dtype=dtype.name, **sizes)
        outcome = _("prepare it again")  # the old meta.json may be gone even where the sync behind it fails
        write_json(folder / "meta.json", {"complete": False})
        for split, path in partial.items():
            os.replace(path, folder / f"{split}.bin")
        tokenizer.save(folder)
        write_json(folder / "meta.json", meta.to_json())
    except OSError as error:
        raise UserError(
            _(
                "{folder}: cannot be written ({reason}); {outcome}",
                folder=folder,
                reason=error.strerror,
                outcome=outcome,
            )
        ) from None
    finally:
        for path in partial.values():
            with contextlib.suppress(OSError):  # the folder may be a file
                path.unlink(missing_ok=True)
    return Data(folder, meta)
