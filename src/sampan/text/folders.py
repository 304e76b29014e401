"""Find the texts in folders, globs and archives, in natural order; what is left out is counted.

    left_out = Counter()
    for path in files_of(Path("letters"), left_out):
        parts += parts_of_file(path, str(path), False, DataConfig(), left_out)
    left_out                               # {".png": 2, "hidden": 1}

Members of an archive are read from within it and never written anywhere.
"""

import glob
import importlib
import os
from collections import Counter
from functools import partial
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from sampan.config import DataConfig
from sampan.errors import UserError
from sampan.messages import _
from sampan.text.corpora import unknown_corpus
from sampan.text.formats import READERS, NoField
from sampan.text.order import natural
from sampan.text.parts import Part, kept, reading

KINDS = {
    ".txt": "text", ".md": "text", ".csv": "text", ".tsv": "text", ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".parquet": "parquet", ".zip": "zip",
}  # fmt: skip
PACKED = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}  # Python's module for it
PREPARED = (
    "train.bin", "val.bin", "meta.json", "meta.pkl", "tokenizer.json", "tokenizer_config.json", "look.json", ".lock",
)  # fmt: skip


def packing(name: str) -> str:
    """Return the suffix of a packed file, as it is spelled; "" of others."""
    suffix = PurePath(name).suffix
    return suffix if suffix.lower() in PACKED else ""


def plain_suffix(name: str) -> str:
    """Return the suffix under that of a packed file, in small letters."""
    return PurePath(name.removesuffix(packing(name))).suffix.lower()


def files_of(path: Path, left_out: Counter[str]) -> list[Path]:
    """Return the files that a path or a glob stands for, in natural order. Raises UserError where there is none."""
    if path.is_dir():
        return texts_in(path, left_out)
    if path.exists():
        return [path]
    if not glob.has_magic(str(path)):
        raise UserError(unknown_corpus(str(path)))
    found = [file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file()]
    if not found:
        raise UserError(_("{name}: no file matches", name=path))
    return sorted(found, key=natural)


def texts_in(folder: Path, left_out: Counter[str]) -> list[Path]:
    """Return the texts in a folder and those below it."""
    found = []
    for here, folders, files in os.walk(folder, onerror=lambda error: left_out.update([_("unreadable folder")])):
        if "run.json" in files:  # of `sampan train`; its metrics are no text
            left_out[_("folder of a run")] += 1
            folders.clear()
            continue
        if "train.bin" in files:  # of `sampan prepare`, perhaps of the texts beside it
            files = [name for name in files if name not in PREPARED]
        left_out[_("hidden")] += sum(name.startswith(".") for name in folders)
        folders[:] = [name for name in folders if not name.startswith(".")]
        left_out[_("linked folder")] += sum(Path(here, name).is_symlink() for name in folders)
        for path in (Path(here, name) for name in files):
            if is_text(PurePath(path.name), left_out):
                if path.is_file():
                    found.append(path)
                else:
                    left_out[_("broken link")] += 1
    return sorted(found, key=natural)


def is_text(path: PurePath, left_out: Counter[str]) -> bool:
    """Return whether a file that was not named is read, by its name alone."""
    if any((name.startswith(".") and name != "..") or name == "__MACOSX" for name in path.parts):
        left_out[_("hidden")] += 1
    elif plain_suffix(path.name) not in KINDS:
        left_out[path.suffix.lower() or _("without suffix")] += 1
    else:
        return True
    return False


def parts_of_file(path: Path, where: str, is_named: bool, config: DataConfig, left_out: Counter[str]) -> list[Part]:
    """Return the part of a file, or those of an archive. A .json that was not named may be no text: any program's."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(_("{path}: cannot be read ({reason})", path=path, reason=error.strerror)) from None
    kind = KINDS.get(plain_suffix(path.name), "text")
    if not path.is_file():  # a pipe, such as bash's <(command)
        return [Part(where, "text", kept(lambda: path.open("rb")))]
    if kind == "zip":
        parts = members_of(path, where, left_out)
        is_named = False
    else:
        parts = [Part(where, kind, lambda: unpacked(path.open("rb"), path.name), size, path)]
    return [part for part in parts if is_named or has_records(part, config, left_out)]


def members_of(path: Path, where: str, left_out: Counter[str]) -> list[Part]:
    """Return the texts in a .zip. Raises UserError where it is damaged or encrypted."""
    import zipfile

    with reading(where):
        archive = zipfile.ZipFile(path)
    parts = []
    for member in sorted(archive.infolist(), key=lambda member: natural(PurePath(member.filename))):
        name = PurePath(member.filename)
        kind = KINDS.get(plain_suffix(name.name), "")
        if member.is_dir() or not is_text(name, left_out):
            continue
        if member.flag_bits & 1:
            raise UserError(_("{path} is encrypted; unpack it first", path=where))
        if kind == "zip":
            left_out[_(".zip in a .zip")] += 1
            continue
        opened = partial(lambda member: unpacked(archive.open(member), member.filename), member)
        again = kept(opened) if kind == "parquet" else opened  # a table is not read from its beginning to its end
        parts.append(Part(f"{where}/{member.filename}", kind, again, member.compress_size, path))
    return parts


def unpacked(file: Any, name: str) -> BinaryIO:
    module = PACKED.get(packing(name).lower())
    return importlib.import_module(module).open(file, "rb") if module else file


def has_records(part: Part, config: DataConfig, left_out: Counter[str]) -> bool:
    """Return whether the first record of a .json has the field of the text; True of other files, and of damaged ones."""
    if plain_suffix(part.where) != ".json":
        return True
    try:
        next(READERS["json"](part, config, lambda count: None), None)
    except NoField:
        left_out[_('.json without "{name}"', name=config.text_field)] += 1
        return False
    except UserError:
        pass  # said when it is read
    return True
