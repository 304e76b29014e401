"""sampan plan: print what a run would be, and train nothing."""

from sampan.cli.flags import file_settings, is_configuration
from sampan.engine.open import engines_here, open_engine
from sampan.errors import UserError
from sampan.training.cost import time_step
from sampan.training.plan import make_plan


def run(source: list[str], flags: dict) -> int:
    resumes = flags.get("resume") or flags.get("init_from") == "resume"
    made = plan_of(source, flags | {"overwrite": not resumes})
    if not engines_here():
        print("\n".join(made.lines()))
        return 0
    engine = open_engine(made.model, made.config)
    print("\n".join(made.lines(engine, time_step(engine, made.model, made.config))))
    return 0


def plan_of(source: list[str], flags: dict):
    """The plan of `train` and `plan`: configuration files first, then flags over them."""
    overwrite = flags.pop("overwrite", False)
    if flags.pop("resume", False):
        if overwrite:
            raise UserError("--resume continues a run and --overwrite replaces it: give one of them")
        flags["init_from"] = "resume"
    files = [s for s in source if is_configuration(s)]
    texts = [s for s in source if s not in files]
    settings = file_settings(source) | flags
    return make_plan(texts or None, settings, recipe=not files, overwrite=overwrite)
