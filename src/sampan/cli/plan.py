"""sampan plan: show what a run would be, without training."""

from typing import Any

from sampan.cli.flags import file_settings, is_configuration
from sampan.engine.open import engines_here, open_engine
from sampan.errors import UserError
from sampan.messages import _
from sampan.report.plan_lines import plan_lines
from sampan.report.progress_bar import progress_bar
from sampan.training.cost import time_step
from sampan.training.plan import Plan, make_plan


def run(source: list[str], flags: dict[str, Any]) -> int:
    resumes = flags.get("resume") or flags.get("init_from") == "resume"
    plan = plan_of(source, flags | {"overwrite": not resumes})
    if engines_here():
        engine = open_engine(plan.model, plan.config, plan.config)
        lines = plan_lines(plan, engine, time_step(engine, plan.model, plan.config))
    else:
        lines = plan_lines(plan)
    print("\n".join(lines))
    return 0


def plan_of(source: list[str], flags: dict[str, Any]) -> Plan:
    """Return the plan of `sampan train` and `sampan plan`: config files first, flags override them. Raise UserError."""
    flags = dict(flags)
    overwrite = flags.pop("overwrite", False)
    if flags.pop("resume", False):
        if overwrite:
            raise UserError(_("--resume continues a run and --overwrite replaces it: use one of them"))
        flags["init_from"] = "resume"
    files = [word for word in source if is_configuration(word)]
    texts = [word for word in source if word not in files]
    settings = file_settings(source) | flags
    return make_plan(texts or None, settings, recipe=not files, overwrite=overwrite, progress=progress_bar)
