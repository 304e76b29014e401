"""Flags of the command line, made from the dataclasses of config.py, and their help.

parser = make_parser("train", COMMANDS["train"], everything=True)

main.py lists the commands; a command's own file calls what it needs.
"""

import argparse
import dataclasses
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from sampan.config import BOOLEANS, TrainConfig, types_of
from sampan.config_files import find_file, read_file
from sampan.errors import UserError
from sampan.messages import _, width, wrap


class Command(NamedTuple):
    settings: type  # of config.py
    about: str  # what it does
    source: tuple[str, ...]  # what it takes
    first: tuple[str, ...] = ()  # the settings that --help shows; () shows all
    switches: Mapping[str, str] = MappingProxyType({})  # {flag that is no setting: its help text}


def print_lines(lines: Iterable[str]) -> None:
    """Print each line, wrapped."""
    for line in lines:
        print("\n".join(wrap(line, indent="  ")))


# ---- configuration files ----


def is_configuration(word: str) -> bool:
    return word.endswith((".toml", ".py")) and "*" not in word


def file_settings(source: list[str]) -> dict[str, Any]:
    """Return the settings of the configuration files among these words; later files override earlier ones."""
    settings: dict[str, Any] = {}
    for file in filter(is_configuration, source):
        settings |= read_file(find_file(file))
    return settings


# ---- flags ----


def make_parser(name: str, command: Command, everything: bool = True) -> argparse.ArgumentParser:
    """Return the parser of a command. Without `everything` its help shows the flags that most people need."""
    parser = Parser(prog=f"sampan {name}", add_help=False, allow_abbrev=False, formatter_class=Help)
    parser.description = _(command.about)
    parser.usage = f"sampan {name} [SOURCE ...] [--FLAG VALUE ...]"
    parser.add_argument_group(_("source")).add_argument(
        "source", nargs="*", metavar="SOURCE", help="; ".join(map(_, command.source))
    )
    options = parser.add_argument_group(_("options"))
    options.add_argument("--help", metavar="all", nargs="?", help=_("show this help; --help all shows every flag"))
    options.add_argument("--lang", metavar="en|zh", help=_("language of all messages; default: the locale's"))
    for switch, text in command.switches.items():
        options.add_argument(f"--{switch}", action="store_true", default=None, help=_(text))
    shown = [f.name for f in dataclasses.fields(command.settings) if is_flag(f)]
    notes = [_("Defaults are in [ ].")]
    if command.settings is TrainConfig:
        notes = [
            _("Defaults are in [ ]; a config file overrides them."),
            _("For a bare text, smaller values are chosen: see sampan plan."),
        ]
    if command.first and not everything:
        notes.append(
            _("{count} more flags: sampan {name} --help all", count=len(shown) - len(command.first), name=name)
        )
        shown = list(command.first)
    parser.epilog = "\n".join(notes)
    add_flags(parser, command.settings, shown, titled=everything)
    return parser


def add_flags(parser: argparse.ArgumentParser, cls: type, shown: Sequence[str], titled: bool) -> None:
    """Add a flag for each field of a settings dataclass, in nanoGPT's two spellings: --key value and --key=value.

    The help lists those that are `shown`: in groups, one for each dataclass that `cls` is made of, where `titled`.
    """
    parts = [base for base in cls.__mro__ if "title" in base.__dict__]
    owner = {f.name: base for base in parts for f in dataclasses.fields(base)}  # the last is the one that defines it
    titles = {base: vars(base)["title"] for base in parts}
    groups = {base: parser.add_argument_group(_(title)) for base, title in titles.items()} if titled else {}
    common = None if titled else parser.add_argument_group(_("settings"))
    kinds = types_of(cls)
    order = {name: place for place, name in enumerate(shown)}
    for f in sorted(filter(is_flag, dataclasses.fields(cls)), key=lambda f: order.get(f.name, len(order))):
        (kind, _optional), meta = kinds[f.name], f.metadata
        how: dict[str, Any] = {}
        if kind == tuple[str, ...]:
            how = {"action": "append"}
        metavar = "|".join(meta["choices"] or ()) or {bool: "BOOL", int: "N", float: "X"}.get(kind, "TEXT")
        text = f"{_(meta['help'])} [{default_words(f)}]".replace("%", "%%")
        group = common or groups[owner[f.name]]
        group.add_argument(
            f"--{f.name}", *meta["aliases"], dest=f.name, metavar=metavar, default=None,
            help=text if f.name in order else argparse.SUPPRESS, **how,
        )  # fmt: skip


def tidy(words: Sequence[str], cls: type) -> list[str]:
    """Return the words of a command with each flag that has a value as --key=value.

    --max-iters is --max_iters. A yes-or-no flag takes the next word only if that says yes or no, so that a folder can
    follow it. nanoGPT reads the value of --key='value' as Python, and cmd.exe passes the quotes on: they are removed.

    >>> from sampan.config import SampleConfig
    >>> tidy(["--check", "out/t", "--max-new-tokens", "9", "--init_from='resume'"], SampleConfig)
    ['--check=True', 'out/t', '--max_new_tokens=9', '--init_from=resume']
    """
    kinds = {name: kind for name, (kind, _optional) in types_of(cls).items()}
    aliases = {alias[2:]: kinds[f.name] for f in dataclasses.fields(cls) for alias in f.metadata["aliases"]}

    def name_of(word: str) -> str:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        return name if word.startswith("--") and name in kinds | aliases else ""

    found: list[str] = []
    rest = deque(words)
    while rest:
        word = rest.popleft()
        name, (_flag, equals, value) = name_of(word), word.partition("=")
        if not name:
            found.append(word)
        elif equals:
            quoted = name in kinds and re.fullmatch("'.*'", value, re.DOTALL)
            found.append(f"--{name}={value[1:-1] if quoted else value}")
        elif (kinds | aliases)[name] is bool:
            found.append(f"--{name}={rest.popleft() if rest and is_bool(rest[0]) else True}")
        elif rest and not name_of(rest[0]):
            found.append(f"--{name}={rest.popleft()}")
        else:
            found.append(f"--{name}")  # argparse says that its value is missing
    return found


def is_bool(word: str) -> bool:
    """Return whether a word says yes or no, or leaves it open."""
    return word.lower() in (*BOOLEANS, "auto", "none")


def words_of(source: Sequence[str], flags: Mapping[str, Any]) -> list[str]:
    """Return the words that a command was given, to be printed in another one."""
    words = list(source)
    for name, value in flags.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name}"] if one is True else [f"--{name}={one}"]
    return words


def is_flag(field: dataclasses.Field[Any]) -> bool:
    """Return whether a setting can be given as a flag; a table can only come from a checkpoint."""
    return "dict" not in str(field.type)


def default_words(field: dataclasses.Field[Any]) -> str:
    if field.default is None:
        return "auto" if "auto:" in field.metadata["help"] else "none"
    if isinstance(field.default, tuple):
        return " ".join(field.default) or "none"
    return str(field.default)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(_("{message}; see {prog} --help", message=message, prog=self.prog))


class Help(argparse.RawDescriptionHelpFormatter):
    """Wrap by columns, since a Chinese character takes two, and leave out empty groups."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26, width=width())

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, _("usage: "))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(text, width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join("\n".join(wrap(line, width)) for line in text.splitlines())
