"""sampan sample: write with a trained model."""

import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from sampan.checkpoint.folder import asked_model, load_model, load_tokenizer
from sampan.checkpoint.run import Run
from sampan.config import SampleConfig, build
from sampan.engine.open import open_engine
from sampan.errors import UserError
from sampan.messages import _, fill
from sampan.model.shape import ModelShape
from sampan.report.verbatim import training_data, verbatim_report
from sampan.sampling.draw import new_seed
from sampan.sampling.write import default_prompt, write
from sampan.tokens.tokenizer import Tokenizer


def read_prompt(start: str, standard_input: TextIO) -> str:
    """Return the prompt of a `start` setting: itself, FILE:PATH, or - for standard input; each line ends in a line feed.

    Prepared texts have no carriage returns, and on Linux Python's standard input keeps those that come from Windows.
    """
    if start == "-":
        try:
            return one_line_end(standard_input.read())
        except UnicodeDecodeError as error:
            raise UserError(_("standard input cannot be read as a prompt ({error})", error=error)) from None
    if not start.startswith("FILE:"):
        return one_line_end(start)
    path = Path(start.removeprefix("FILE:"))
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            _(
                "{path}: cannot be read as a prompt ({expected})",
                path=path,
                expected=getattr(error, "strerror", None) or error,
            )
        ) from None


def one_line_end(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


class Opened(NamedTuple):
    model: ModelShape
    weights: dict[str, np.ndarray]
    tokenizer: Tokenizer
    run: Run  # the folder that was asked for, whether a run or not
    line: str  # which weights they are


def open_weights(config: SampleConfig) -> Opened:
    """Return the model that was asked for, whose folder is looked for once. Raises UserError."""
    folder, line = asked_model(config)
    run = Run(folder)
    if config.init_from == "resume" and run.exists():
        which = config.weights if (folder / "model.safetensors").exists() else "last"
        line = f"{line}: {run.describe(which)}"
        folder = run.last if which == "last" else folder
    model, weights = load_model(folder)
    return Opened(model, weights, load_tokenizer(folder), run, line)


def run(source: list[str], flags: dict) -> int:
    if len(source) > 1:
        raise UserError(_("sampan sample takes one folder, such as: sampan sample out/shakespeare"))
    settings = build(SampleConfig, flags | ({"out_dir": source[0]} if source else {}))
    seed = new_seed() if settings.seed is None else settings.seed
    is_new = settings.seed is None and settings.temperature > 0
    settings = replace(settings, seed=seed)
    prompt = None if settings.start is None else read_prompt(settings.start, sys.stdin)
    model, weights, tokenizer, found, line = open_weights(settings)
    if prompt is None:
        prompt = default_prompt(tokenizer, found.documents())
    data = training_data(found) if settings.check else None
    engine = open_engine(model, settings)
    engine.load(weights)
    parts: list[list[str]] = [[] for _ in range(settings.num_samples)]
    interrupted = False
    try:
        for number, piece in write(engine, model, tokenizer, prompt, settings):
            if line:  # not before the prompt has been accepted
                line += "; " + _("seed {seed} (--seed {seed} writes the same text again)", seed=seed) if is_new else ""
                print(fill(line), file=sys.stderr, flush=True)
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
        print(_("sampan: interrupted"), file=sys.stderr)
        return 128 + signal.SIGINT
    if data is not None:
        written = ["".join(part[1:]) for part in parts]  # the first part is the prompt
        print("\n" + "\n".join(verbatim_report(written, data)), file=sys.stderr)
    return 0
