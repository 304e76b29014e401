"""The command line: each command is a few lines in a file of its own that call one function below.

    sampan prepare | plan | train | sample | eval | runs | import | export     (also python -m sampan; sampan COMMAND --help)

A command's modules are imported when it runs, so that --help answers at once. An error that the user can fix is one
sentence on standard error and exit status 2.
"""

import contextlib
import difflib
import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator

from sampan import __version__
from sampan.cli.flags import Command, Parser, make_parser, tidy
from sampan.config import (
    DataConfig,
    EvalConfig,
    ExportConfig,
    ImportConfig,
    RunsConfig,
    SampleConfig,
    TrainConfig,
    check_keys,
)
from sampan.errors import UserError
from sampan.messages import N_, _, pad, set_language

SIGPIPE = 13  # which the signal module lacks on Windows
DESCRIPTION = N_("""\
Train a GPT on your own text, fine-tune one, and write with it.

  sampan train shakespeare                   fetch, prepare, train, sample
  sampan sample out/shakespeare --prompt "ROMEO:"
  sampan train my-novel.txt                  files, folders, globs, hf:NAME, -
  sampan train notes.txt --init_from gpt2    fine-tune
  sampan train config/train_shakespeare_char.py        a nanoGPT config
  sampan import out-shakespeare-char/ckpt.pt           a nanoGPT checkpoint
  sampan export out/shakespeare --to gguf    for llama.cpp; --to onnx
""")
TEXTS = N_(
    "name of a corpus, files (.txt .md .jsonl .txt.gz .jsonl.gz .parquet .zip), folders, quoted globs such as "
    "'src/**/*.py', hf:NAME[:CONFIG[:SPLIT]] for a dataset on the Hugging Face Hub, or - for standard input"
)
CONFIG_FILE = N_("or a config file: .toml, or nanoGPT's .py")
FIRST_IN_TRAINING = (
    "minutes", "size", "init_from", "tokenizer", "out_dir", "max_iters", "learning_rate", "batch_size", "block_size",
    "dropout", "device",
)  # fmt: skip
FIRST_IN_SAMPLING = (
    "start", "num_samples", "max_new_tokens", "temperature", "top_k", "top_p", "stop", "weights", "check", "seed",
)  # fmt: skip
RESUME = {"resume": N_("continue the run in --out_dir"), "overwrite": N_("replace the run in --out_dir")}
COMMANDS = {
    "prepare": Command(
        DataConfig,
        N_("Turn a text into train.bin and val.bin"),
        (TEXTS,),
        switches={"compare": N_("compare all tokenizers on this text")},
    ),
    "plan": Command(TrainConfig, N_("Show what a run would be, without training"), (TEXTS, CONFIG_FILE),
                    FIRST_IN_TRAINING, RESUME),
    "train": Command(TrainConfig, N_("Train or fine-tune a model"), (TEXTS, CONFIG_FILE), FIRST_IN_TRAINING, RESUME),
    "sample": Command(
        SampleConfig,
        N_("Write with a trained model"),
        (N_("a run's folder, a Hugging Face folder or a hub name"),),
        FIRST_IN_SAMPLING,
    ),
    "eval": Command(
        EvalConfig,
        N_("Measure a model on a text, or on multiple-choice questions"),
        (
            N_("a run's folder, a Hugging Face folder or a hub name"),
            N_("then texts; nothing: the run's val split; .jsonl files of context, endings and answer: questions"),
        ),
    ),
    "runs": Command(
        RunsConfig,
        N_("Compare the runs in a folder"),
        (N_("a folder that holds runs; nothing: out"),),
    ),
    "import": Command(
        ImportConfig,
        N_("Convert another program's checkpoint or data"),
        (N_("nanoGPT's ckpt.pt or data folder, minGPT's model.pt, llm.c's weights or token files"),),
    ),
    "export": Command(
        ExportConfig,
        N_("Convert a model to another format"),
        (N_("a run's folder or a Hugging Face folder; for llmc also a data folder, a corpus name or a text file"),),
    ),
}  # fmt: skip


class LogPrinter(logging.Handler):
    """Print log messages to standard error, as warnings are printed."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"sampan: {record.getMessage()}", file=sys.stderr)


@contextlib.contextmanager
def notices_on_stderr() -> Iterator[None]:
    """Print warnings and log messages on standard error while a command runs; of torchrun's processes, the first does."""
    logger = logging.getLogger("sampan")
    printer = LogPrinter() if os.environ.get("RANK", "0") == "0" else logging.NullHandler()
    logger.setLevel(logging.INFO)
    logger.addHandler(printer)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where: print(f"sampan: {message}", file=sys.stderr)
            yield
    finally:
        logger.removeHandler(printer)


def main(argv: list[str] | None = None) -> int:
    """Run a command. Return the exit status: 0, 2 for an error that the user can fix, 128 + n after signal n."""
    with notices_on_stderr():
        return status_of(sys.argv[1:] if argv is None else argv)


def status_of(argv: list[str]) -> int:
    """Run a command and turn what it raises into a sentence and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a character that the terminal cannot show must not end a run
    try:
        return run_command(argv)
    except UserError as error:
        print(f"sampan: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output has closed it, as in `sampan sample | head`
        sys.stderr.close()
        return 128 + SIGPIPE
    except OSError as error:  # a full disk behind the output, or a file that was deleted
        where = f"{error.filename}: " if error.filename else ""
        print(f"sampan: {where}{error.strerror or error}", file=sys.stderr)
        with contextlib.suppress(OSError):
            sys.stdout.close()  # or Python flushes it at exit, and fails again
        return 2
    except MemoryError:
        print("sampan: " + _("not enough memory: choose a smaller model, batch_size or block_size"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nsampan: " + _("interrupted"), file=sys.stderr)
        return 128 + signal.SIGINT


def run_command(argv: list[str]) -> int:
    """Run the command that the words name. Raise UserError for words that it does not take."""
    argv = take_language(argv)
    if argv[:1] == ["help"]:  # sampan help train
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        print(f"sampan {__version__}")
        return 0
    name, words = argv[0], argv[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        if near:
            raise UserError(_("unknown command {name!r}; did you mean {near}?", name=name, near=near[0]))
        raise UserError(_("unknown command {name!r}; the commands are {known}", name=name, known=", ".join(COMMANDS)))
    words = tidy(words, COMMANDS[name].settings)
    if {"-h", "--help"} & set(words):
        print(make_parser(name, COMMANDS[name], everything="all" in words).format_help(), end="")
        return 0
    args, unknown = make_parser(name, COMMANDS[name]).parse_known_args(words)
    check_unknown(name, unknown)
    flags = {key: value for key, value in vars(args).items() if value is not None}
    source = flags.pop("source", [])
    module = "import_" if name == "import" else name  # `import` cannot be the name of a module
    return importlib.import_module(f"sampan.cli.{module}").run(source, flags)


def take_language(argv: list[str]) -> list[str]:
    """Set the language from --lang, before any help text is translated. Return the other words."""
    parser = Parser(prog="sampan", add_help=False, allow_abbrev=False)
    parser.add_argument("--lang")
    args, rest = parser.parse_known_args(argv)
    set_language(args.lang)
    return rest


def check_unknown(name: str, unknown: list[str]) -> None:
    """Raise UserError for the first word that the command does not take, with the nearest setting."""
    if not unknown:
        return
    if unknown[0].startswith("--"):
        check_keys(COMMANDS[name].settings, [unknown[0][2:].split("=")[0]], _("command line"))
    raise UserError(_("unexpected argument {word!r}; see sampan {name} --help", word=unknown[0], name=name))


def overview() -> str:
    """Return the help of the program as a whole."""
    commands = [f"  {pad(name, 9)}{_(command.about)}" for name, command in COMMANDS.items()]
    options = [
        "  --lang en|zh  " + _("language of all messages; default: the locale's"),
        "  --version     " + _("show the version"),
    ]
    usage = _("usage: ") + f"sampan {_('COMMAND')} ..."
    more = _("sampan COMMAND --help shows the flags of a command.")
    return "\n".join([usage, "", _(DESCRIPTION), _("commands:"), *commands, "", _("options:"), *options, "", more])
