"""sampan runs: the runs in a folder side by side."""

import shutil
from pathlib import Path

from sampan.config import RunsConfig, build
from sampan.errors import UserError
from sampan.messages import _
from sampan.report.runs import find_runs, run_lines, to_json


def run(source: list[str], flags: dict) -> int:
    if len(source) > 1:
        raise UserError(_("sampan runs takes one folder, such as: sampan runs out"))
    config = build(RunsConfig, flags | ({"out_dir": source[0]} if source else {}))
    runs = find_runs(Path(config.out_dir), config.sort)
    print(to_json(runs) if config.json else "\n".join(run_lines(runs, shutil.get_terminal_size().columns)))
    return 0
