"""sampan train: train or fine-tune, then show a sample and a verdict."""

import contextlib
import io
from typing import Any

from sampan.checkpoint.folder import load_model
from sampan.checkpoint.run import Run, read_note
from sampan.checkpoint.tensors import WEIGHTS
from sampan.cli.flags import file_settings, words_of
from sampan.cli.plan import plan_of
from sampan.cli.signals import StopSignal
from sampan.config import MachineConfig, SampleConfig, TrainConfig, build
from sampan.engine.open import open_engine, pick_engine
from sampan.engine.protocol import Engine
from sampan.errors import UserError, command
from sampan.evaluation.losses import whole_loss
from sampan.machine import world
from sampan.messages import _, fill
from sampan.report.baselines import measure_baselines
from sampan.report.consumers import consumers
from sampan.report.metrics import evaluations_of
from sampan.report.plan_lines import start_lines
from sampan.report.verdict import loss_table, verdict
from sampan.sampling.write import write
from sampan.training.cost import time_step
from sampan.training.job import make_plan_first, train_until
from sampan.training.plan import Plan

EARLY = {*MachineConfig.__dataclass_fields__, "backend", "process_timeout"}  # settings that processes meet by


def run(source: list[str], flags: dict[str, Any]) -> int:
    early = {name: value for name, value in (file_settings(source) | flags).items() if name in EARLY}
    settings = build(TrainConfig, early)
    pick_engine(settings)  # a missing one is an error before the text is prepared
    is_first = world()[0] == 0
    with contextlib.nullcontext() if is_first else contextlib.redirect_stdout(io.StringIO()):
        plan = make_plan_first(lambda: plan_of(source, flags), settings)
        print("\n".join(plan.data.summary()), end="\n\n", flush=True)
        engine = open_engine(plan.model, plan.config, plan.config)
        costs = time_step(engine, plan.model, plan.config)
        more = command("plan", *words_of(source, {k: v for k, v in flags.items() if k != "overwrite"}))
        print("\n".join(start_lines(plan, engine, costs, more)), end="\n\n", flush=True)
        with consumers(plan) as show, StopSignal() as stop:
            for record in train_until(plan, engine, lambda: stop.received is not None):
                show(record)
        if stop.received is not None:
            print(
                "\n"
                + _(
                    "stopped; continue with: {command}",
                    command=command("train", "--resume", "--out_dir", plan.config.out_dir),
                )
            )
            return 128 + stop.received
        if is_first and not plan.config.eval_only:
            print_sample(plan, engine)
            loss, tokens = whole_loss(engine, plan.data, plan.config)
            del engine  # its memory, before the next step needs some
            print_results(plan, loss, tokens)
    return 0


def print_sample(plan: Plan, engine: Engine) -> None:
    """Load a run's best weights into the engine and print a sample of them."""
    folder = plan.config.out_dir
    model, weights = load_model(folder)
    engine.load(weights)
    line = _("{folder}: {weights}. A sample:", folder=folder, weights=Run(folder).describe("best"))
    print("\n" + fill(line) + "\n")
    settings = SampleConfig(max_new_tokens=min(300, 4 * model.block_size), seed=plan.config.seed)
    begun = False
    for _number, piece in write(engine, model, plan.data.tokenizer, None, settings):
        piece = piece if begun else piece.lstrip("\n")  # the prompt is a line feed
        begun = begun or bool(piece)
        print(piece, end="", flush=True)
    print("\n")


def print_results(plan: Plan, loss: float, tokens: int) -> None:
    """Print how good a run's best weights are, beside simple guesses, and how the run went."""
    folder, run = plan.config.out_dir, Run(plan.config.out_dir)
    try:
        seen = measure_baselines(plan.data)
    except UserError as error:  # the run itself is complete
        about = _("Val loss of the best weights ({tokens:,} tokens): {loss:.4f} nats per token.")
        print(about.format(tokens=tokens, loss=loss))
        print(_("no comparison: {reason}", reason=error))
        return
    windows = plan.config.eval_iters * plan.config.batch_size * plan.config.block_size
    if windows < tokens:
        about = _("The best weights on the val split ({tokens:,} tokens; evaluations above used {windows:,}):")
    else:
        about = _("The best weights on the val split ({tokens:,} tokens):")
    print(fill(about.format(tokens=tokens, windows=windows)) + "\n")
    print("\n".join(loss_table(loss, seen)), end="\n\n")
    print("\n".join(verdict(plan, evaluations_of(folder), loss, seen)))
    print("\n" + _("More samples: {command}", command=command("sample", folder)))
    if read_note(run.folder / WEIGHTS)["step"] != read_note(run.last / WEIGHTS)["step"]:
        last = command("sample", folder, "--weights", "last")
        print(_("With the last weights instead of the best: {command}", command=last))
