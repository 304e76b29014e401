"""Flags of the command line, made from the dataclasses of config.py.

add_flags(parser, TrainConfig)
"""

import argparse
import dataclasses
import textwrap

from sampan.config import types_of
from sampan.config_files import find_file, read_file
from sampan.errors import UserError

TEXTS = (
    "a corpus's name, or files (.txt .md .jsonl .txt.gz .jsonl.gz .parquet .zip), folders of them, quoted globs such as "
    "'src/**/*.py', hf:NAME[:CONFIG[:SPLIT]] of the Hugging Face Hub, - for standard input"
)
SOURCE = f"{TEXTS}; or a configuration, .toml or nanoGPT's .py"


def print_lines(lines: list[str]) -> None:
    for line in lines:
        print(textwrap.fill(line, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


# ---- flags ----


def is_configuration(word: str) -> bool:
    return word.endswith((".toml", ".py")) and "*" not in word


def file_settings(source: list[str]) -> dict:
    """What the configuration files among these words say, later ones over earlier ones."""
    settings = {}
    for file in filter(is_configuration, source):
        settings |= read_file(find_file(file))
    return settings


def add_flags(parser: argparse.ArgumentParser, cls) -> None:
    """A flag for each field of a settings dataclass, in nanoGPT's two spellings: --key value and --key=value."""
    owners = {
        f.name: base
        for base in reversed(cls.__mro__)
        if dataclasses.is_dataclass(base)
        for f in dataclasses.fields(base)
    }
    groups = {base: parser.add_argument_group(base.title) for base in dict.fromkeys(owners.values())}
    kinds = types_of(cls)
    for f in dataclasses.fields(cls):
        kind, optional = kinds[f.name]
        if kind is dict:  # only a checkpoint sets it
            continue
        names = [f"--{f.name}", *f.metadata["aliases"]]
        default = "auto" if f.default is None else f.default
        if isinstance(default, tuple):
            default = " ".join(default) or "none"
        help = f"{f.metadata['help']} [{default}]".replace("%", "%%")
        choices = f.metadata["choices"]
        metavar = "|".join(choices) if choices else {bool: "BOOL", int: "N", float: "X"}.get(kind, "TEXT")
        how = (
            {"nargs": "?", "const": "True"} if kind is bool else {"action": "append"} if kind == tuple[str, ...] else {}
        )
        groups[owners[f.name]].add_argument(*names, dest=f.name, help=help, metavar=metavar, default=None, **how)


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help")
