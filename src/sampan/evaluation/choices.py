"""Multiple-choice questions: which of several endings a model finds likeliest after a context.

    questions = read_questions(Path("hellaswag.jsonl"))
    answers = answer(engine, tokenizer, questions, block_size=1024)      # log-probabilities of every ending
    accuracy(questions, answers, per_character=True)

A line of the file has a context, its endings and the place of the right one: HellaSwag's form, or the names in NAMES.
Log-probabilities and accuracies are those of EleutherAI's lm-evaluation-harness (`acc` and `acc_norm`), whose delimiter
between context and ending is a space.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sampan.engine.protocol import Engine
from sampan.errors import UserError
from sampan.messages import _
from sampan.tokens.tokenizer import Tokenizer

NAMES = {  # what the fields of a question are called, here and elsewhere
    "context": ("context", "ctx", "question", "query", "prompt"),
    "endings": ("endings", "choices", "options"),
    "answer": ("answer", "label", "gold", "answerKey"),
}


@dataclass(frozen=True)
class Question:
    context: str
    endings: tuple[str, ...]
    answer: int  # the place of the right ending, from 0
    where: str  # file and line, for errors


def is_questions(path: Path) -> bool:
    """Return whether a file begins with a multiple-choice question."""
    if path.suffix.lower() not in (".jsonl", ".ndjson") or not path.is_file():
        return False
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = json.loads(next(line for line in file if line.strip()))
    except (OSError, ValueError, StopIteration, RecursionError):
        return False
    return isinstance(first, dict) and any(name in first for name in NAMES["endings"])


def read_questions(path: Path) -> list[Question]:
    """Return the questions of a .jsonl file. Raise UserError for the first line that is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or _("not UTF-8")
        raise UserError(_("{path}: cannot be read ({why})", path=path, why=why)) from None
    numbered = ((f"{path}, " + _("line {number}", number=i), line) for i, line in enumerate(lines, 1) if line.strip())
    return [read_question(line, where) for where, line in numbered]


def read_question(line: str, where: str) -> Question:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise UserError(_("{where}: not a JSON object", where=where))
    context, endings, answer = (field(record, kind, where) for kind in NAMES)
    if isinstance(endings, dict):  # ARC's: {"text": [...], "label": ["A", "B", ...]}
        labels, endings = endings.get("label"), endings.get("text")
        if isinstance(labels, list) and answer in labels:
            answer = labels.index(answer)
    if not isinstance(context, str):
        raise UserError(_("{where}: the context is not a text", where=where))
    is_list = isinstance(endings, list) and len(endings) > 1
    if not is_list or not all(isinstance(ending, str) and ending for ending in endings):
        raise UserError(_("{where}: the endings are not a list of two or more texts, none of them empty", where=where))
    return Question(context, tuple(endings), place_of(answer, endings, where), where)


def field(record: dict[str, Any], kind: str, where: str) -> Any:
    for name in NAMES[kind]:
        if name in record:
            return record[name]
    known = ", ".join(NAMES[kind])
    raise UserError(_("{where}: the {kind} is missing; it can be called {known}", where=where, kind=kind, known=known))


def place_of(answer: Any, endings: Sequence[str], where: str) -> int:
    """Return the place of the right ending, which is said by its number from 0, its letter or its text."""
    if isinstance(answer, str) and answer in endings:
        return endings.index(answer)
    if isinstance(answer, str) and len(answer) == 1 and "A" <= answer <= "Z":
        answer = ord(answer) - ord("A")
    try:
        place = int(answer)
    except (ValueError, TypeError):
        place = -1
    if 0 <= place < len(endings) and not isinstance(answer, (bool, float)):
        return place
    raise UserError(
        _(
            "{where}: the answer {answer!r} is neither a number from 0 to {last}, a letter, nor one of the endings",
            where=where,
            answer=answer,
            last=len(endings) - 1,
        )
    )


def encode_pair(tokenizer: Tokenizer, context: str, ending: str) -> tuple[list[int], list[int]]:
    """Return the ids of a context and of the ending after it, which get spaces at the context's end.

    They are encoded together, since a token may reach across. Before them stands what the tokenizer's template begins
    with; without that, an empty context is an end of text.
    """
    stripped = context.rstrip()
    ending, context = context[len(stripped) :] + ending, stripped
    before = tokenizer.encode(context).tolist()
    whole = tokenizer.encode(context + ending).tolist()
    after = whole[len(before) :]
    before = [*tokenizer.begin, *before] or tokenizer.ends[:1]
    return (before, after) if before else (after[:1], after[1:])


def answer(
    engine: Engine,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    block_size: int,
    delimiter: str = " ",
    batch_size: int = 16,
    tick: Callable[[int], None] = lambda count: None,
) -> list[np.ndarray]:
    """Return for each question the log-probability of each ending, float64 (endings,), in nats.

    The last block_size + 1 tokens of a context and its ending are used. Raise UserError where an ending alone is longer.
    """
    rows = []  # (ids, tokens of the ending, question, ending)
    for number, question in enumerate(questions):
        for place, ending in enumerate(question.endings):
            before, after = encode_pair(tokenizer, question.context, delimiter + ending)
            if len(after) > block_size:
                raise UserError(
                    _(
                        "{where}: an ending has {count:,} tokens, and the model's block_size is {block_size:,}",
                        where=question.where,
                        count=len(after),
                        block_size=block_size,
                    )
                )
            rows.append(((before + after)[-(block_size + 1) :], len(after), number, place))
    found = [np.zeros(len(question.endings)) for question in questions]
    rows.sort(key=lambda row: len(row[0]))  # those of a batch are about equally long
    for i in range(0, len(rows), batch_size):
        batch = rows[i : i + batch_size]
        x = np.zeros((len(batch), len(batch[-1][0]) - 1), np.int32)
        y = np.full_like(x, -1)
        for row, (ids, count, _number, _place) in enumerate(batch):
            x[row, : len(ids) - 1] = ids[:-1]
            y[row, len(ids) - 1 - count : len(ids) - 1] = ids[len(ids) - count :]
        losses = engine.losses(x, y).astype(np.float64).sum(axis=1)
        for loss, (_ids, _count, number, place) in zip(losses, batch, strict=True):
            found[number][place] = -loss
        tick(len(batch))
    return found


def accuracy(questions: Sequence[Question], answers: Sequence[np.ndarray], per_character: bool) -> tuple[float, float]:
    """Return the share of questions whose likeliest ending is the right one, and its standard error (NaN for one).

    `per_character` divides a log-probability by the ending's length first, so that long endings are not at a loss.
    """
    right = []
    for question, values in zip(questions, answers, strict=True):
        lengths = np.array([len(ending) for ending in question.endings]) if per_character else 1
        right.append(int(np.argmax(values / lengths)) == question.answer)
    share = float(np.mean(right))
    error = math.sqrt(share * (1 - share) / (len(right) - 1)) if len(right) > 1 else math.nan
    return share, error
