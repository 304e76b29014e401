"""sampan export: write a model in another format."""

from sampan.cli.flags import print_lines
from sampan.config import ExportConfig, build
from sampan.errors import UserError
from sampan.exchange.convert import export_model
from sampan.messages import _


def run(source: list[str], flags: dict) -> int:
    if len(source) != 1:
        raise UserError(_("sampan export takes one folder, such as: sampan export out/shakespeare --to gguf"))
    print_lines(export_model(source[0], build(ExportConfig, flags)))
    return 0
