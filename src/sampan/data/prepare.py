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
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from sampan.config import DataConfig, change
from sampan.data.given import check_flags, find_change, in_data, is_given, is_made_in_place, open_given
from sampan.data.meta import FORMAT, Data, Facts, Meta, read_meta
from sampan.data.survey import Survey, find_both, is_settled, read_through, recall, sample_documents, stamp_of_sources
from sampan.errors import UserError
from sampan.fetch import fetch
from sampan.files import lock_file, write_json
from sampan.messages import _
from sampan.progress import Progress, silent
from sampan.text.characters import Block
from sampan.text.sources import Source
from sampan.tokens.choose import choose_tokenizer
from sampan.tokens.kinds import find_kind, fingerprint, read_tokenizer
from sampan.tokens.tokenizer import Material, Tokenizer

VAL_FRACTION = 0.1  # nanoGPT's
log = logging.getLogger(__name__)


# ---- prepare ----


def prepare(dataset: str | Iterable[str], config: DataConfig, progress: Progress = silent) -> Data:
    """Return the data folder of one or more sources (sources.py says which), made unless it is up to date.

    A data folder is taken as it is, unless it was made from texts in it. Raises UserError for a source that is missing,
    empty, binary or in no known encoding, for a folder that is not ours, and for a setting that cannot change one.
    """
    names = in_data((dataset,) if isinstance(dataset, str) else tuple(dataset))
    if is_given(names):
        return use_given(open_given(Path(names[0])), config)
    if is_made_in_place(names):
        config = made_again(Path(names[0]), config)
    train, val = find_both(names, config)
    folders = [Path(config.data_dir)] if config.data_dir else Path("data").glob(f"{glob.escape(train.name)}*")
    survey = recall(folders, train, val) or read_through(train, val, progress)
    key = key_of(train, val, survey.facts, config)
    folder = folder_of(key, train, survey.facts, config)
    if made := up_to_date(folder, key):
        return renewed(made, survey, train, val) if survey.sample else made  # else the facts were recalled
    refuse_foreign(folder)
    if not survey.sample:  # the facts were recalled, and now the text is needed
        survey = read_through(train, val, progress)
    while True:
        with preparation_lock(folder):
            chosen = folder_of(key, train, survey.facts, config)  # another text of this name may have taken the folder
            if chosen == folder:
                made = up_to_date(folder, key)
                return made or make_folder(folder, key, names, train, val, survey, config, progress)
        folder = chosen


def use_given(data: Data, config: DataConfig) -> Data:
    """Return a data folder as it is. Raise UserError for flags that cannot change it; say if its text has changed."""
    check_flags(data, config)
    if text := find_change(data):
        log.warning(
            _(
                "{text} has changed since {folder} was made from it; using the old tokens. To use the new text, give "
                "{text} instead of {folder}",
                text=text,
                folder=data.folder,
            )
        )
    return data


def made_again(folder: Path, config: DataConfig) -> DataConfig:
    """Return the settings with those that the folder was made with before, where they are open."""
    made = read_meta(folder)
    before = {} if made is None else {n: v for n, v in made.made_with.items() if n != "dataset"}
    return change(config, before | given_settings(config))


def given_settings(config: DataConfig) -> dict[str, Any]:
    """Return the data settings that are not at their defaults."""
    return {f.name: value for f in fields(DataConfig) if (value := getattr(config, f.name)) != f.default}


def renewed(data: Data, survey: Survey, train: Source, val: Source | None) -> Data:
    """Return the folder with the time of this reading, so that a text that was only touched is not read again."""
    stamp = stamp_of_sources(train, val)
    if stamp == data.meta.stamp and not is_settled(survey.begun, train, val):
        return data
    data = Data(data.folder, replace(data.meta, stamp=stamp, read_at=survey.begun))
    with contextlib.suppress(OSError):
        write_json(data.folder / "meta.json", data.meta.to_json())
    return data


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
    taken = Path("data") / name
    meta = read_meta(taken)
    is_ours = not is_foreign(taken) if meta is None else train.key == meta.source or key.sha256 == meta.sha256
    if is_ours:
        return taken
    folder = Path("data") / f"{name}-{train.key}"
    if not folder.exists():
        log.warning(_("{taken} holds another text of this name; this one goes to {folder}", taken=taken, folder=folder))
    return folder


def up_to_date(folder: Path, key: Key) -> Data | None:
    meta = read_meta(folder)
    is_same = meta is not None and all(getattr(meta, name) == value for name, value in asdict(key).items())
    return Data(folder, meta) if meta and is_same and Data(folder, meta).is_whole() else None


def is_foreign(folder: Path) -> bool:
    """Return whether a folder holds data that are not ours."""
    return not (folder / "meta.json").exists() and (folder / "train.bin").exists()


def refuse_foreign(folder: Path) -> None:
    """Raise UserError where --data_dir names a folder with data that are not ours."""
    if is_foreign(folder):
        raise UserError(
            _(
                "{folder} holds a train.bin that Sampan did not write. If it is nanoGPT's, run sampan import "
                "{folder}; otherwise move it away or choose another --data_dir",
                folder=folder,
            )
        )


@contextlib.contextmanager
def preparation_lock(folder: Path) -> Iterator[None]:
    """Hold the lock in a folder while this process prepares it; wait for another process that has it."""

    def waiting(holder: str) -> None:
        log.warning(_("{folder} is being prepared by {holder}; waiting", folder=folder, holder=holder))

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a file system without locks; a folder that cannot be written fails later
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_file(folder / ".lock", f"process {os.getpid()} on {platform.node()}", waiting))
        yield


def make_folder(
    folder: Path,
    key: Key,
    names: Sequence[str],
    train: Source,
    val: Source | None,
    survey: Survey,
    config: DataConfig,
    progress: Progress,
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
        val_from=train.part_at(cut).where if val is None and len(train.parts) > 1 and cut < facts.characters else None,
        stamp=stamp_of_sources(train, val),
        read_at=survey.begun,
        made_with={"dataset": list(names)} | given_settings(config),
        trained_on=sampled if wanted.startswith("bpe:") and sampled < cut else None,
        **asdict(facts) | asdict(key),
    )
    blocks = itertools.chain(train.blocks(), val.blocks() if val else ())
    with progress("encoding", facts.characters) as tick:
        return write_folder(
            folder, tokenizer, describe, encode_blocks(tokenizer, blocks, cut, facts.documents > 1, tick)
        )


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


def shortcomings(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what meta.json says of that which a tokenizer does not keep of the text that it has encoded."""
    return {
        "unknown": tokenizer.unknowns.total(),
        "unknown_most": tokenizer.most_unknown(),
        "losses": tokenizer.losses(),
    }


def write_folder(
    folder: Path, tokenizer: Tokenizer, describe: Callable[..., Meta], parts: Iterable[tuple[str, np.ndarray]]
) -> Data:
    """Write the ids of `parts`, pairs (split, ids), and all that goes with them; nothing half-made is left.

    `describe` makes the Meta of what only the ids tell: vocab_size, dtype, train_tokens, val_tokens, and what the
    tokenizer could not keep. The old meta.json is marked incomplete before the first file is replaced and the new one
    comes last, so that a reader never meets files that do not belong together.
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
        meta = describe(vocab_size=tokenizer.vocab_size, dtype=dtype.name, **sizes, **shortcomings(tokenizer))
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
