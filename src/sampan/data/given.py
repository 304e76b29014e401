"""A data folder that is given where a text could be: which one a name means, and whether it can be used as it is.

    names = in_data(["mine"])                # ("data/mine",), which nanoGPT's prepare.py or `sampan prepare` has made
    data = open_given(Path("data/mine"))     # nanoGPT's is taken over first (nanogpt.py)
    check_flags(data, config)                # raises UserError for flags that cannot change it

As in nanoGPT, a name is that of a folder in data/ before it is a corpus's.
"""

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sampan.config import DataConfig, build
from sampan.data.meta import Data, open_folder, read_meta
from sampan.data.nanogpt import import_folder, is_new
from sampan.data.texts import find_texts
from sampan.errors import UserError, command
from sampan.messages import _
from sampan.text.corpora import find_corpus
from sampan.text.folders import texts_in
from sampan.text.sources import source_key
from sampan.tokens.kinds import find_kind, read_tokenizer, tokenizer_file

log = logging.getLogger(__name__)


def in_data(names: Sequence[str]) -> Sequence[str]:
    """Return data/NAME for one name that is a data folder's, unless it is also that of the text it was made from."""
    folder = Path("data", *names)
    if len(names) != 1 or folder.name != names[0] or Path(names[0]).exists() or not is_data(folder):
        return names
    meta = read_meta(folder)
    if meta and meta.source == source_key(names):
        return names
    if find_corpus(names[0]):
        log.warning(_("{name}: taking the folder {folder}, not the corpus of that name", name=names[0], folder=folder))
    return (str(folder),)


def is_data(folder: Path) -> bool:
    return (folder / "train.bin").is_file() or (folder / "meta.json").is_file()


def is_given(names: Sequence[str]) -> bool:
    """Return whether the names mean a data folder that is used as it is."""
    names = in_data(names)
    return len(names) == 1 and is_data(Path(names[0])) and not is_made_in_place(names)


def is_made_in_place(names: Sequence[str]) -> bool:
    """Return whether the names are a data folder that was made from the texts in it, which are still there."""
    meta = read_meta(Path(names[0])) if len(names) == 1 else None
    return meta is not None and meta.source == source_key(names) and bool(texts_in(Path(names[0]), Counter()))


def open_given(folder: Path) -> Data:
    """Return a data folder, nanoGPT's too. Raises UserError where it is none."""
    return import_folder(folder) if is_new(folder) else open_folder(folder)


def check_flags(data: Data, config: DataConfig) -> None:
    """Raise UserError for a setting that would have given another folder."""
    for f in fields(DataConfig):
        asked = getattr(config, f.name)
        if asked == f.default or is_made_with(data, f.name, asked):
            continue
        about = dict(folder=data.folder, name=f.name, asked=asked, command=command_of(data, {f.name: asked}))
        message = (
            _(
                "{folder} is prepared already: --{name} {asked} cannot change it. Leave the flag out, or prepare its text "
                "with it: {command}"
            )
            if data.meta.made_with
            else _("{folder} is prepared already: --{name} {asked} cannot change it. Leave the flag out.")
        )
        raise UserError(message.format(**about))


def command_of(data: Data, changes: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return the command that prepares a folder's text as before, apart from some settings."""
    made = dict(data.meta.made_with)
    names = made.pop("dataset", ())
    flags = [word for name, value in {**made, **changes}.items() for word in (f"--{name}", value)]
    return command("prepare", *names, *flags)


def find_change(data: Data) -> list[str]:
    """Return the names of the texts that a folder was made from if they have been written since, else [].

    It is [] too if the texts are not there any more, or cannot tell.
    """
    made = dict(data.meta.made_with)
    names = made.pop("dataset", [])
    if not names or data.meta.stamp is None:
        return []
    with contextlib.suppress(UserError):
        return names if find_texts(names, build(DataConfig, made)).stamp not in (None, data.meta.stamp) else []
    return []


def is_made_with(data: Data, name: str, asked: object) -> bool:
    """Return whether a folder is what a setting asks for."""
    if name == "tokenizer":
        file = None if find_kind(str(asked)) else tokenizer_file(str(asked))
        return read_tokenizer(file).to_json() == data.tokenizer.to_json() if file else asked == data.meta.tokenizer
    if name == "val_fraction":
        return data.meta.val_fraction is not None and math.isclose(
            float(str(asked)), data.meta.val_fraction, abs_tol=1e-3
        )
    if name == "data_dir":
        return Path(str(asked)).resolve() == data.folder.resolve()
    return data.meta.made_with.get(name) == asked
