"""sampan prepare: make train.bin and val.bin of a text."""

from sampan.config import DataConfig, build
from sampan.data.compare import compare_tokenizers, table
from sampan.data.prepare import prepare
from sampan.errors import UserError
from sampan.messages import _
from sampan.report.baselines import baseline_lines, measure_baselines
from sampan.report.progress_bar import progress_bar

# ---- commands ----


def run(source: list[str], flags: dict) -> int:
    if not source:
        raise UserError(_("sampan prepare takes a source, such as: sampan prepare shakespeare"))
    if flags.pop("compare", False):
        print(table(compare_tokenizers(source, build(DataConfig, flags), progress_bar)))
        return 0
    data = prepare(source, build(DataConfig, flags), progress_bar)
    print("\n".join(data.summary()), flush=True)
    try:
        print("\n".join(baseline_lines(data, measure_baselines(data))))
    except UserError as error:  # the files are made all the same
        print(_("not looked at: {error}", error=error))
    return 0
