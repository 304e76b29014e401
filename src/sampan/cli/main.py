"""The command line: each command is a few lines that call one function below.

    sampan prepare | plan | train | sample | import | export     (also python -m sampan; sampan COMMAND --help lists its flags)

Flags are made from the dataclasses of config.py. Heavy modules are imported when a command needs them, so that
--help answers at once. Whatever a user can mend is one sentence on standard error and exit status 2.
"""

import argparse
import contextlib
import importlib
import signal
import sys
import warnings

from sampan import __version__
from sampan.cli.flags import SOURCE, TEXTS, Parser, add_flags
from sampan.config import DataConfig, ExportConfig, ImportConfig, SampleConfig, TrainConfig, check_keys
from sampan.errors import UserError

DESCRIPTION = """\
Train a GPT on your own text, fine-tune one, and write with it.

  sampan train shakespeare                   fetch, prepare, train, sample
  sampan sample out/shakespeare --prompt "ROMEO:"
  sampan train my-novel.txt                  files, folders, globs, hf:NAME, -
  sampan train notes.txt --init_from gpt2    fine-tune
  sampan train config/train_shakespeare_char.py        nanoGPT's commands
  sampan import out-shakespeare-char/ckpt.pt           its checkpoints, minGPT's
  sampan export out/shakespeare --to gguf    for llama.cpp; --to onnx
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command; its exit status: 0, 2 for an error that the user can mend, 128 + n when stopped by signal n."""
    warnings.showwarning = lambda message, *_: print(f"sampan: {message}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character must not end a run
    try:
        return run_command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"sampan: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as in `sampan sample | head`
        sys.stderr.close()
        return 128 + signal.SIGPIPE
    except OSError as error:  # a full disk behind our output, a file that went away
        where = f"{error.filename}: " if error.filename else ""
        print(f"sampan: {where}{error.strerror or error}", file=sys.stderr)
        with contextlib.suppress(OSError):
            sys.stdout.close()  # else Python tries it again at its end, and fails again
        return 2
    except MemoryError:
        print("sampan: not enough memory; choose a smaller model, batch_size or block_size", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nsampan: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def run_command(argv: list[str]) -> int:
    parser = make_parser()
    if not argv:
        parser.print_help()
        return 0
    args, unknown = parser.parse_known_args(argv)
    cls = COMMANDS[args.command][0]
    flags = {k: v for k, v in vars(args).items() if v is not None}
    flags.pop("command")
    positional = flags.pop("source", [])
    if unknown:
        word = unknown[0]
        if word.startswith("--"):
            check_keys(cls, [word[2:].split("=")[0]], "command line")
        raise UserError(
            f"command line: {word!r} is one word too many; sampan {args.command} --help lists what it takes"
        )
    module = "import_" if args.command == "import" else args.command  # `import` is no name of a module
    return importlib.import_module(f"sampan.cli.{module}").run(positional, flags)


COMMANDS = {  # name: (settings, what it does, what it takes); its module of this folder is imported when it runs
    "prepare": (
        DataConfig,
        "make train.bin and val.bin of a text",
        TEXTS,
    ),
    "plan": (TrainConfig, "print what a run would be, and train nothing", SOURCE),
    "train": (TrainConfig, "train or fine-tune", SOURCE),
    "sample": (
        SampleConfig,
        "write with a trained model",
        "a run's folder, a Hugging Face folder or a hub name",
    ),
    "import": (
        ImportConfig,
        "take over another program's checkpoint or data",
        "nanoGPT's ckpt.pt or data folder, minGPT's model.pt, llm.c's weights or token files",
    ),
    "export": (
        ExportConfig,
        "write a model in another format",
        "a run's folder or a Hugging Face folder; for llmc also a data folder, a corpus's name or a text file",
    ),
}


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="sampan", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"sampan {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (cls, about, source) in COMMANDS.items():
        note = ". Values in [ ] stand where a configuration file names no other; a bare text gets smaller ones (sampan plan)"
        if cls is not TrainConfig:
            note = ""
        sub = subparsers.add_parser(name, help=about, description=about + note, allow_abbrev=False)
        sub.add_argument("source", nargs="*", help=source, default=None)
        if cls is TrainConfig:
            sub.add_argument("--resume", action="store_true", default=None, help="continue the run in --out_dir")
            sub.add_argument("--overwrite", action="store_true", default=None, help="replace the run in --out_dir")
        if name == "prepare":
            sub.add_argument(
                "--compare", action="store_true", default=None, help="print what each tokenizer makes of it"
            )
        add_flags(sub, cls)
    return parser
