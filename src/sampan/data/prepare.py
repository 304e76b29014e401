"""Make a text into train.bin and val.bin.

    data = prepare("my-novel.txt", DataConfig())            # data/my-novel/, again only if something changed

A folder holds train.bin and val.bin (raw ids, uint16 or uint32, as nanoGPT's), tokenizer.json and meta.json.

A text of any size is read twice, block by block: once to count it (survey.py), from which the tokenizer follows, and once
to encode it (encode.py). The first 1 - val_fraction of its characters are train and the rest is val. Nothing is shuffled
here: lines or documents of one source on both sides would leak what val measures.

Where text comes from, its formats and encodings are sources.py's; batches of tokens are windows.py's.
"""

import contextlib
import functools
import glob
import logging
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from sampan.config import DataConfig, change
from sampan.data.encode import encode_blocks, write_folder
from sampan.data.given import check_flags, command_of, find_change, in_data, is_given, is_made_in_place, open_given
from sampan.data.meta import FORMAT, Data, Facts, Meta, read_meta
from sampan.data.survey import Survey, read_through, recall, sample_documents
from sampan.data.texts import Texts, find_texts
from sampan.errors import UserError, command
from sampan.fetch import fetch
from sampan.files import lock_file, write_json
from sampan.messages import _
from sampan.progress import Progress, silent
from sampan.tokens.kinds import find_kind, fingerprint, read_tokenizer
from sampan.tokens.tokenizer import Material, Tokenizer

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
    texts = find_texts(names, config)
    folders = [Path(config.data_dir)] if config.data_dir else Path("data").glob(f"{glob.escape(texts.train.name)}*")
    survey = recall(folders, texts) or read_through(texts, progress)
    key = key_of(texts, survey.facts)
    folder = folder_of(key, texts, survey.facts)
    if made := up_to_date(folder, key):
        return renewed(made, survey, texts) if survey.sample else made  # else the facts were recalled
    refuse_foreign(folder)
    if not survey.sample:  # the facts were recalled, and now the text is needed
        survey = read_through(texts, progress)
    while True:
        with preparation_lock(folder):
            chosen = folder_of(key, texts, survey.facts)  # another text of this name may have taken the folder
            if chosen == folder:
                return up_to_date(folder, key) or make_folder(folder, key, texts, survey, progress)
        folder = chosen


def use_given(data: Data, config: DataConfig) -> Data:
    """Return a data folder as it is. Raise UserError for flags that cannot change it; say if its text has changed."""
    check_flags(data, config)
    if names := find_change(data):
        log.warning(
            _(
                "{text} has changed since {folder} was made from it; using the old tokens. To prepare it again: {command}",
                text=" ".join(names),
                folder=data.folder,
                command=command_of(data),
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


def renewed(data: Data, survey: Survey, texts: Texts) -> Data:
    """Return the folder with the time of this reading, so that a text that was only touched is not read again."""
    stamp = texts.stamp
    if stamp == data.meta.stamp and not texts.is_settled(survey.begun):
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


def key_of(texts: Texts, facts: Facts) -> Key:
    wanted, _why = texts.choose(facts, texts.config.tokenizer)
    if find_kind(wanted):
        return Key(facts.sha256, wanted, None, texts.val_fraction)
    return Key(facts.sha256, Path(wanted).resolve().parent.name, fingerprint(Path(wanted)), texts.val_fraction)


def folder_of(key: Key, texts: Texts, facts: Facts) -> Path:
    """Return data/NAME, data/NAME-TOKENIZER for one that was asked for; with four digits more where NAME is taken."""
    if texts.config.data_dir:
        return Path(texts.config.data_dir)
    train, (own, _why) = texts.train, texts.choose(facts, "auto")
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
                "{folder} holds a train.bin that Sampan did not write: move it away or choose another --data_dir. If it is "
                "nanoGPT's, it can be trained on: {command}",
                folder=folder,
                command=command("train", folder),
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


def make_folder(folder: Path, key: Key, texts: Texts, survey: Survey, progress: Progress) -> Data:
    """Make the tokenizer, encode the text and write the folder."""
    meta = read_meta(folder)
    if meta and meta.sha256 != key.sha256:
        log.warning(_("{folder} was made from another text; preparing it again", folder=folder))
    train, facts = texts.train, survey.facts
    cut = texts.cut(facts)
    wanted, reason = texts.choose(facts, texts.config.tokenizer)
    tokenizer = make_tokenizer(wanted, survey, cut)
    sampled = sum(map(len, sample_documents(survey, cut)))
    is_several = texts.val is None and len(train.parts) > 1 and cut < facts.characters
    describe = functools.partial(
        Meta,
        name=train.name,
        source=train.key,
        origin=train.origin,
        reason=reason,
        val_from=train.part_at(cut).where if is_several else None,
        stamp=texts.stamp,
        read_at=survey.begun,
        made_with={"dataset": train.names} | given_settings(texts.config),
        trained_on=sampled if wanted.startswith("bpe:") and sampled < cut else None,
        **asdict(facts) | asdict(key),
    )
    with progress("encoding", facts.characters) as tick:
        parts = encode_blocks(tokenizer, texts.blocks(), cut, facts.documents > 1, tick)
        return write_folder(folder, tokenizer, describe, parts)


def make_tokenizer(wanted: str, survey: Survey, cut: int) -> Tokenizer:
    """Return the tokenizer that --tokenizer names, made of a text or read from a file."""
    found = find_kind(wanted)
    if found is None:
        return read_tokenizer(wanted)
    kind, size = found
    sample = functools.partial(sample_documents, survey, cut)
    return kind.make(Material(survey.counts, sample, survey.facts.documents > 1, size, [*map(fetch, kind.files)]))
