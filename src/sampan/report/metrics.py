"""metrics.jsonl: a run's records, one per line, with exactly the fields of loop.py's records.

show = Metrics(Path("out/shakespeare")); show(record); show.close()
evaluations_of("out/shakespeare")

It draws nothing (picture.py). The first record of a new run empties the file of an older one.
"""

import contextlib
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from sampan.errors import UserError
from sampan.messages import _
from sampan.training.loop import Evaluation, Record, Step

NOT_JSON = (math.inf, -math.inf)
RECORD = re.compile(rb'\{"step": (\d{1,18}), .*\}\n')  # a complete line of metrics.jsonl


def evaluations_of(folder: str | Path) -> list[Evaluation]:
    """Return the evaluations of a run, in order. Raise OSError if it has no metrics.jsonl."""
    found = []
    with (Path(folder) / "metrics.jsonl").open("rb") as file:
        for line in file:
            if b'"val_loss"' in line and (record := read_record(line)):
                found.append(Evaluation(**{name: record[name] for name in Evaluation.__dataclass_fields__}))
    return found


class Metrics:
    """Append records to metrics.jsonl. A resumed run first removes the records that it makes again.

    Each record is flushed at once, so that a killed run loses none from before its last save. NaN and infinity, which
    JSON lacks, are written as null.
    """

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"
        self.file: BinaryIO | None = None

    def open(self, first_step: int) -> BinaryIO:
        """Cut the file before the first record of `first_step` and before a line that a killed process left unfinished."""
        file = self.path.open("a+b")
        file.seek(0)
        at = whole = 0
        for line in file:  # there may be millions; none is kept
            step = RECORD.match(line)
            if step and int(step[1]) >= first_step:
                break
            at += len(line)
            if step:
                whole = at
        file.truncate(whole)
        return file

    def __call__(self, record: Record) -> None:
        values = {
            name: None if value in NOT_JSON or value != value else value for name, value in asdict(record).items()
        }
        try:
            if self.file is None:
                self.file = self.open(record.step)
            self.file.write(json.dumps(values).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            message = _("{path}: cannot write ({reason})", path=self.path, reason=error.strerror)
            raise UserError(message) from None

    def close(self) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):  # a full disk has been reported already
                self.file.close()


def read_record(line: bytes) -> dict[str, Any] | None:
    """Return a line of metrics.jsonl, or None if it is unfinished, another program's, or has NaN or infinity."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    kind = Evaluation if "val_loss" in record else Step
    is_number = (isinstance(v, float) or (isinstance(v, int) and 0 <= v < 1 << 53) for v in record.values())
    return record if kind.__dataclass_fields__.keys() <= record.keys() and all(is_number) else None
