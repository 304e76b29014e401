"""metrics.jsonl: a run's records, one a line, with exactly the fields of Step and Evaluation.

show = Metrics(Path("out/shakespeare")); show(record); show.close()
evaluations_of("out/shakespeare")
"""

import contextlib
import json
import math
import re
from dataclasses import asdict
from pathlib import Path

from sampan.errors import UserError
from sampan.training.loop import Evaluation, Step

RECORD = re.compile(rb'\{"step": (\d{1,18}), .*\}\n')  # a whole line of metrics.jsonl


def evaluations_of(folder: str | Path) -> list[Evaluation]:
    """Those of a run, in order, out of its metrics.jsonl."""
    found = []
    with (Path(folder) / "metrics.jsonl").open("rb") as file:
        for line in file:
            if b'"val_loss"' in line and (record := read_record(line)):
                found.append(Evaluation(**{name: record[name] for name in Evaluation.__dataclass_fields__}))
    return found


class Metrics:
    """metrics.jsonl. A resumed run's file loses the records that are about to be made again.

    Each record is with the system at once, so that a killed run loses none that its last save has passed. What is not
    finite is null: JSON has no word for it.
    """

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"
        self.file = None

    def open(self, first_step: int) -> None:
        """Cut the file before the first record of `first_step`, and before what a killed process left of a line."""
        self.file = self.path.open("a+b")
        self.file.seek(0)
        at = whole = 0
        for line in self.file:  # there may be millions: none is kept in memory
            step = RECORD.match(line)
            if step and int(step[1]) >= first_step:
                break
            at += len(line)
            if step:
                whole = at
        self.file.truncate(whole)

    def __call__(self, record: Step | Evaluation) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in asdict(record).items()}
        try:
            if self.file is None:
                self.open(record.step)
            self.file.write(json.dumps(values).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None

    def close(self) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):  # a full disk has been reported by then
                self.file.close()


def read_record(line: bytes) -> dict | None:
    """A line of metrics.jsonl; None for half a line, another program's, and one with a number that is not finite."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    kind = Evaluation if "val_loss" in record else Step
    is_number = (isinstance(v, float) or (isinstance(v, int) and 0 <= v < 1 << 53) for v in record.values())
    return record if kind.__dataclass_fields__.keys() <= record.keys() and all(is_number) else None
