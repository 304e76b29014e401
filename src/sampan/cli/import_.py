"""sampan import: take over another program's checkpoint or data."""

from sampan.cli.flags import print_lines
from sampan.config import ImportConfig, build
from sampan.errors import UserError
from sampan.exchange.convert import import_path
from sampan.messages import _


def run(source: list[str], flags: dict) -> int:
    if len(source) != 1:
        raise UserError(_("sampan import takes one path, such as: sampan import out-shakespeare-char/ckpt.pt"))
    print_lines(import_path(source[0], build(ImportConfig, flags)))
    return 0
