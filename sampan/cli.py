"""The command line: each command is a few lines that call one function below.

    sampan prepare | plan | train | sample | import | export     (also python -m sampan; sampan COMMAND --help lists its flags)

Flags are made from the dataclasses of config.py. Heavy modules are imported when a command needs them, so that
--help answers at once. Whatever a user can mend is one sentence on standard error and exit status 2.
"""

import argparse
import contextlib
import dataclasses
import shlex
import signal
import sys
import textwrap
import threading
import warnings

from . import __version__, config
from .config import DataConfig, ExportConfig, ImportConfig, MachineConfig, SampleConfig, TrainConfig
from .errors import UserError

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
TEXTS = (
    "a corpus's name, or files (.txt .md .jsonl .txt.gz .jsonl.gz .parquet .zip), folders of them, quoted globs such as "
    "'src/**/*.py', hf:NAME[:CONFIG[:SPLIT]] of the Hugging Face Hub, - for standard input"
)
SOURCE = f"{TEXTS}; or a configuration, .toml or nanoGPT's .py"


def main(argv: list[str] | None = None) -> int:
    """Run a command; its exit status: 0, 2 for an error that the user can mend, 128 + n when stopped by signal n."""
    warnings.showwarning = lambda message, *_: print(f"sampan: {message}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character must not end a run
    try:
        return run(sys.argv[1:] if argv is None else argv)
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


def run(argv: list[str]) -> int:
    parser, commands = make_parser()
    if not argv:
        parser.print_help()
        return 0
    args, unknown = parser.parse_known_args(argv)
    function, cls = commands[args.command]
    flags = {k: v for k, v in vars(args).items() if v is not None}
    flags.pop("command")
    positional = flags.pop("source", [])
    if unknown:
        word = unknown[0]
        if word.startswith("--"):
            config.check_keys(cls, [word[2:].split("=")[0]], "command line")
        raise UserError(
            f"command line: {word!r} is one word too many; sampan {args.command} --help lists what it takes"
        )
    return function(positional, flags)


# ---- commands ----


def prepare(source: list[str], flags: dict) -> int:
    from .data import prepare
    from .look import lines, look

    if not source:
        raise UserError("sampan prepare takes a source, such as: sampan prepare shakespeare")
    if flags.pop("compare", False):
        from .compare import compare, table

        print(table(compare(source, config.build(DataConfig, flags))))
        return 0
    data = prepare(source, config.build(DataConfig, flags))
    print("\n".join(data.summary()), flush=True)
    try:
        print("\n".join(lines(data, look(data))))
    except UserError as error:  # the files are made all the same
        print(f"not looked at: {error}")
    return 0


def plan(source: list[str], flags: dict) -> int:
    from .cost import measure
    from .engine import engines_here, open_engine

    resumes = flags.get("resume") or flags.get("init_from") == "resume"
    made = plan_of(source, flags | {"overwrite": not resumes})
    if not engines_here():
        print("\n".join(made.lines()))
        return 0
    engine = open_engine(made.model, made.config)
    print("\n".join(made.lines(engine, measure(engine, made.model, made.config))))
    return 0


def train(source: list[str], flags: dict) -> int:
    from .cost import measure
    from .engine import any_process, first_process_first, leave_processes, open_engine, pick_engine, world
    from .loop import train
    from .report import consumers

    pick_engine(
        config.build(MachineConfig, {k: v for k, v in flags.items() if k in MachineConfig.__dataclass_fields__})
    )
    early = {k: v for k, v in (file_settings(source) | flags).items() if k in ("device", "backend", "process_timeout")}
    with first_process_first(config.build(TrainConfig, early)):
        made = plan_of(source, flags)
    talks = world()[0] == 0  # under torchrun only the first process writes
    if talks:
        print("\n".join(made.data.summary()), end="\n\n", flush=True)
    engine = open_engine(made.model, made.config)
    costs = measure(engine, made.model, made.config)
    if talks:
        print("\n".join(made.lines(engine, costs)), end="\n\n", flush=True)
    stop = StopSignal()
    records = train(made, engine)
    with consumers(made) if talks else contextlib.nullcontext(lambda record: None) as show, stop:
        for record in records:
            show(record)
            if any_process(stop.received is not None):
                records.close()
                break
    leave_processes()
    if stop.received is not None:
        if talks:
            print(f"\nstopped; continue with: sampan train --resume --out_dir {shlex.quote(made.config.out_dir)}")
        return 128 + stop.received
    if talks and not made.config.eval_only:
        loss, tokens = show_best(made, engine)
        del engine, records  # their memory, before that of what follows
        conclude(made, loss, tokens)
    return 0


def show_best(made, engine) -> tuple[float, int]:
    """Print a sample of a run's best weights. (Their loss over the val split, the tokens of it that were read.)"""
    from .checkpoint import Run, load_model
    from .loop import whole_loss
    from .sample import write

    folder = made.config.out_dir
    model, weights = load_model(folder)
    engine.load(weights)
    print("\n" + textwrap.fill(f"{folder}: {Run(folder).describe('best')}. A sample:", 80) + "\n")
    settings = SampleConfig(max_new_tokens=min(300, 4 * model.block_size), seed=made.config.seed)
    begun = False
    for _, piece in write(engine, model, made.data.tokenizer, None, settings):
        piece = piece if begun else piece.lstrip("\n")  # the prompt is a line end
        begun = begun or bool(piece)
        print(piece, end="", flush=True)
    return whole_loss(engine, made)


def conclude(made, loss: float, tokens: int) -> None:
    """What a run ends with: how good its best weights are, and how it went."""
    from .checkpoint import WEIGHTS, Run, read_note
    from .look import look
    from .report import evaluations_of
    from .verdict import loss_table, verdict

    folder, run = made.config.out_dir, Run(made.config.out_dir)
    try:
        seen = look(made.data)
    except UserError as error:  # the run is whole all the same
        print(f"\n\nThe best weights' val loss ({tokens:,} tokens): {loss:.4f} nats per token.\nnot looked at: {error}")
        return
    windows = made.config.eval_iters * made.config.batch_size * made.config.block_size
    above = f"; above on {windows:,}" if windows < tokens else ""
    print(f"\n\nThe best weights on the val split ({tokens:,} tokens{above}):\n")
    print("\n".join(loss_table(loss, seen)), end="\n\n")
    print("\n".join(verdict(made, evaluations_of(folder), loss, seen)))
    print(f"\nMore of it: sampan sample {folder}")
    if read_note(run.folder / WEIGHTS)["step"] != read_note(run.last / WEIGHTS)["step"]:
        print(f"The last weights instead of the best: sampan sample {folder} --weights last")


def sample(source: list[str], flags: dict) -> int:
    from .engine import open_engine
    from .recite import report, training_data
    from .sample import open_weights, read_prompt, write

    if len(source) > 1:
        raise UserError("sampan sample takes one folder, such as: sampan sample out/shakespeare")
    settings = config.build(SampleConfig, flags | ({"out_dir": source[0]} if source else {}))
    prompt = None if settings.start is None else read_prompt(settings.start, sys.stdin)
    model, weights, tokenizer, line = open_weights(settings)
    data = training_data(settings) if settings.check else None
    engine = open_engine(model, settings)
    engine.load(weights)
    parts, interrupted = [[] for _ in range(settings.num_samples)], False
    try:
        for number, piece in write(engine, model, tokenizer, prompt, settings):
            if line:  # not before the prompt has been accepted
                print(textwrap.fill(line, 80), file=sys.stderr, flush=True)
                line = ""
            parts[number].append(piece)
            if number == 0:  # the first is streamed, the others follow
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        interrupted = True
    for part in parts[1:]:
        print("\n---------------\n" + "".join(part), end="")
    print(flush=True)
    if interrupted:
        print("sampan: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    if data is not None:
        written = ["".join(part[1:]) for part in parts]  # the first part is the prompt
        print("\n" + "\n".join(report(written, data)), file=sys.stderr)
    return 0


def import_(source: list[str], flags: dict) -> int:
    from .exchange import import_path

    if len(source) != 1:
        raise UserError("sampan import takes one path, such as: sampan import out-shakespeare-char/ckpt.pt")
    print_lines(import_path(source[0], config.build(ImportConfig, flags)))
    return 0


def export(source: list[str], flags: dict) -> int:
    from .exchange import export_model

    if len(source) != 1:
        raise UserError("sampan export takes one folder, such as: sampan export out/shakespeare --to gguf")
    print_lines(export_model(source[0], config.build(ExportConfig, flags)))
    return 0


def print_lines(lines: list[str]) -> None:
    for line in lines:
        print(textwrap.fill(line, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


COMMANDS = {
    "prepare": (
        prepare,
        DataConfig,
        "make train.bin and val.bin of a text",
        TEXTS,
    ),
    "plan": (plan, TrainConfig, "print what a run would be, and train nothing", SOURCE),
    "train": (train, TrainConfig, "train or fine-tune", SOURCE),
    "sample": (
        sample,
        SampleConfig,
        "write with a trained model",
        "a run's folder, a Hugging Face folder or a hub name",
    ),
    "import": (
        import_,
        ImportConfig,
        "take over another program's checkpoint or data",
        "nanoGPT's ckpt.pt or data folder, minGPT's model.pt, llm.c's weights or token files",
    ),
    "export": (
        export,
        ExportConfig,
        "write a model in another format",
        "a run's folder or a Hugging Face folder; for llmc also a data folder, a corpus's name or a text file",
    ),
}


# ---- flags ----


def plan_of(source: list[str], flags: dict):
    """The plan of `train` and `plan`: configuration files first, then flags over them."""
    from .plan import make_plan

    overwrite = flags.pop("overwrite", False)
    if flags.pop("resume", False):
        if overwrite:
            raise UserError("--resume continues a run and --overwrite replaces it: give one of them")
        flags["init_from"] = "resume"
    files = [s for s in source if is_configuration(s)]
    texts = [s for s in source if s not in files]
    settings = file_settings(source) | flags
    return make_plan(texts or None, settings, recipe=not files, overwrite=overwrite)


def is_configuration(word: str) -> bool:
    return word.endswith((".toml", ".py")) and "*" not in word


def file_settings(source: list[str]) -> dict:
    """What the configuration files among these words say, later ones over earlier ones."""
    settings = {}
    for file in filter(is_configuration, source):
        settings |= config.read_file(config.find_file(file))
    return settings


def make_parser() -> tuple[argparse.ArgumentParser, dict]:
    parser = Parser(prog="sampan", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"sampan {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, cls, about, source) in COMMANDS.items():
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
    return parser, {name: (function, cls) for name, (function, cls, *_) in COMMANDS.items()}


def add_flags(parser: argparse.ArgumentParser, cls) -> None:
    """A flag for each field of a settings dataclass, in nanoGPT's two spellings: --key value and --key=value."""
    owners = {
        f.name: base
        for base in reversed(cls.__mro__)
        if dataclasses.is_dataclass(base)
        for f in dataclasses.fields(base)
    }
    groups = {base: parser.add_argument_group(base.title) for base in dict.fromkeys(owners.values())}
    kinds = config.types_of(cls)
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


# ---- signals ----


class StopSignal:
    """SIGINT and SIGTERM let the running step finish; a second one stops at once."""

    def __init__(self):
        self.received: int | None = None
        self.previous = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self.handle)
        return self

    def handle(self, number: int, frame) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        # in a thread of its own: this one may be in the midst of printing, and the live display counts its lines
        words = "stopping after this step; once more stops at once\n"
        threading.Thread(target=sys.stderr.write, args=(words,)).start()

    def __exit__(self, *exception) -> None:
        for number, previous in self.previous.items():
            signal.signal(number, previous)
