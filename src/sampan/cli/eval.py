"""sampan eval: measure a model on a text, or on multiple-choice questions."""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sampan.checkpoint.run import Run
from sampan.cli.sample import open_weights
from sampan.config import DataConfig, EvalConfig, SampleConfig, build
from sampan.data.encode import encode_blocks
from sampan.engine.open import open_engine
from sampan.engine.protocol import Engine
from sampan.errors import UserError
from sampan.evaluation.choices import accuracy, answer, is_questions, read_questions
from sampan.evaluation.score import mean_and_error, score
from sampan.files import replacing
from sampan.messages import _
from sampan.model.shape import ModelShape
from sampan.report.baselines import Text, measure_val, text_baselines
from sampan.report.progress_bar import progress_bar
from sampan.report.scores import choice_lines, text_lines
from sampan.report.verbatim import training_data
from sampan.text.sources import find_source
from sampan.tokens.tokenizer import Tokenizer, unknown_sentence

log = logging.getLogger(__name__)


def run(source: list[str], flags: dict[str, Any]) -> int:
    config = build(EvalConfig, flags | ({"out_dir": source[0]} if source else {}))
    names = source[1:]
    questions = [name for name in names if is_questions(Path(name))]
    if questions and (len(questions) < len(names) or config.per_token):
        raise UserError(_("{name} holds questions: give it without other texts and --per_token", name=questions[0]))
    model, weights, tokenizer, found, line = open_weights(SampleConfig(out_dir=config.out_dir, weights=config.weights))
    if config.stride is not None and config.stride > model.block_size:
        raise UserError(
            _(
                "--stride {stride}: the model's block_size is {block_size}, and tokens in between would be left out",
                stride=config.stride,
                block_size=model.block_size,
            )
        )
    text = None if questions else text_of(names, config, found, tokenizer)
    engine = open_engine(model, config)
    engine.load(weights)
    if text is None:
        figures, lines = on_questions(engine, model, tokenizer, questions, config)
    else:
        figures, lines = on_text(engine, model, tokenizer, text, config)
    print(json.dumps({"model": config.out_dir} | figures, indent=2) if config.json else "\n".join([line, *lines]))
    return 0


def text_of(names: Sequence[str], config: EvalConfig, run: Run, tokenizer: Tokenizer) -> Text:
    """Return the text that these names stand for; that of the run's val split if there are none. Raise UserError."""
    if not names:
        return measure_val(training_data(run))
    normalize = run.settings().normalize if run.exists() else "none"
    source = find_source(names, DataConfig(encoding=config.encoding, text_field=config.text_field, normalize=normalize))
    blocks = list(source.blocks())
    text = "".join(block.text for block in blocks)
    if not text:
        raise UserError(_("{origin} is empty: there is nothing to measure", origin=source.origin))
    has_documents = sum(len(block.ends) for block in blocks) > 1
    parts = encode_blocks(tokenizer, blocks, len(text), has_documents, lambda count: None)
    ids = np.concatenate([ids for _split, ids in parts])
    if tokenizer.unknowns:  # which are easier to predict than what they stand for
        log.warning(unknown_sentence(tokenizer.unknowns.total(), tokenizer.most_unknown()))
    return text_baselines(source.origin, text, ids, tokenizer.vocab_size)


def on_text(
    engine: Engine, model: ModelShape, tokenizer: Tokenizer, text: Text, config: EvalConfig
) -> tuple[dict[str, Any], list[str]]:
    """Return the figures of a text and the lines that show them."""
    stride = config.stride or max(1, model.block_size // 2)
    ids, begun = text.ids, len(tokenizer.begin)  # prepared and encoded texts begin as the template does
    if not begun and tokenizer.end_of_text is not None:  # after it, the first token is scored too
        ids, begun = np.concatenate([np.array([tokenizer.end_of_text], ids.dtype), ids]), 1
    if len(ids) < 2:
        raise UserError(_("{origin} has a single token: nothing follows it", origin=text.origin))
    with progress_bar(_("evaluating"), len(ids) - 1) as tick:
        losses = score(engine, ids, model.block_size, stride, config.batch_size, model.vocab_size, tick)
    losses = losses[max(0, begun - 1) :]
    if config.per_token:
        write_losses(Path(config.per_token), ids[-len(losses) :], losses, tokenizer)
    mean, error = mean_and_error(losses, stride)
    figures = {
        "text": text.origin,
        "tokens": len(losses),
        "characters": text.characters,
        "bytes": text.bytes,
        "stride": stride,
        "block_size": model.block_size,
        "nats_per_token": mean,
        "nats_per_token_stderr": None if math.isnan(error) else error,
        "perplexity": math.exp(min(mean, 700.0)),
        "bits_per_character": mean * len(losses) / text.characters / math.log(2),
        "bits_per_byte": mean * len(losses) / text.bytes / math.log(2),
        "baselines_bits_per_character": {"uniform": text.uniform, "unigram": text.unigram, "xz": text.xz},
    }
    return figures, text_lines(figures)


def on_questions(
    engine: Engine, model: ModelShape, tokenizer: Tokenizer, names: Iterable[str], config: EvalConfig
) -> tuple[dict[str, Any], list[str]]:
    """Return the figures of multiple-choice questions and the lines that show them."""
    questions = [question for name in names for question in read_questions(Path(name))]
    total = sum(len(question.endings) for question in questions)
    with progress_bar(_("evaluating"), total) as tick:
        answers = answer(engine, tokenizer, questions, model.block_size, config.delimiter, config.batch_size, tick)
    figures: dict[str, Any] = {
        "questions": len(questions),
        "by_chance": float(np.mean([1 / len(question.endings) for question in questions])),
    }
    for name, per_character in (("accuracy", False), ("accuracy_per_character", True)):
        share, error = accuracy(questions, answers, per_character)
        figures |= {name: share, f"{name}_stderr": None if math.isnan(error) else error}
    return figures, choice_lines(figures)


def write_losses(path: Path, ids: np.ndarray, losses: np.ndarray, tokenizer: Tokenizer) -> None:
    """Write a table with tabs: position from 0, id, loss in nats, and the token as a JSON string. Raise UserError."""
    try:
        with replacing(path) as file:
            file.write(b"position\tid\tnats\ttoken\n")
            file.writelines(row.encode() for row in table_rows(ids, losses, tokenizer))
    except OSError as error:
        raise UserError(_("{path}: cannot be written ({reason})", path=path, reason=error.strerror)) from None


def table_rows(ids: np.ndarray, losses: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    shown: dict[int, str] = {}
    for position, (i, loss) in enumerate(zip(ids.tolist(), losses.tolist(), strict=True)):
        if i not in shown:
            shown[i] = json.dumps(tokenizer.decode([i]), ensure_ascii=False)
        yield f"{position}\t{i}\t{loss:.6f}\t{shown[i]}\n"
