"""sampan train: train or fine-tune, then show a sample and a verdict."""

import contextlib
import io
from typing import Any

from sampan.checkpoint.run import Run
from sampan.cli.flags import file_settings, words_of
from sampan.cli.plan import plan_of
from sampan.cli.signals import StopSignal
from sampan.config import MachineConfig, SampleConfig, TrainConfig, build
from sampan.engine.open import open_engine, pick_engine
from sampan.engine.protocol import Engine
from sampan.errors import UserError, command
from sampan.machine import world
from sampan.messages import _, fill
from sampan.report.baselines import measure_baselines
from sampan.report.consumers import consumers
from sampan.report.metrics import evaluations_of
from sampan.report.plan_lines import start_lines
from sampan.report.progress_bar import progress_bar
from sampan.report.verdict import loss_table, verdict
from sampan.sampling.write import default_prompt, write
from sampan.training.cost import time_step
from sampan.training.final import measure_final
from sampan.training.job import make_plan_first, train_until
from sampan.training.loop import Final
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
        words = words_of(source, {name: value for name, value in flags.items() if name != "overwrite"})
        print("\n".join(start_lines(plan, engine, costs, command("plan", *words))), end="\n\n", flush=True)
        final = None
        with consumers(plan) as show, StopSignal() as stop:
            for record in train_until(plan, engine, stop.is_asked):
                show(record)
            if is_first and not plan.config.eval_only and not stop.is_asked():
                final = measure_final(plan, engine, progress_bar, stop.is_asked)
                show(final)
        if final is not None:
            print_sample(plan, engine)
            del engine  # its memory, before the next step needs some
            print_results(plan, final, words)
        elif stop.received is not None:
            again = command("train", "--resume", "--out_dir", plan.config.out_dir)
            print("\n" + _("stopped; continue with: {command}", command=again))
            return 128 + stop.received
    return 0


def print_sample(plan: Plan, engine: Engine) -> None:
    """Print a sample of a run's best weights, which the engine has."""
    folder, model = plan.config.out_dir, plan.model
    line = _("{folder}: {weights}. A sample:", folder=folder, weights=Run(folder).describe("best"))
    print("\n" + fill(line) + "\n")
    settings = SampleConfig(max_new_tokens=min(300, 4 * model.block_size), seed=plan.config.seed)
    begun = False
    prompt = default_prompt(plan.data.tokenizer, plan.data.meta.documents)
    for _number, piece in write(engine, model, plan.data.tokenizer, prompt, settings):
        piece = piece if begun else piece.lstrip("\n")  # the prompt is a line feed
        begun = begun or bool(piece)
        print(piece, end="", flush=True)
    print("\n")


def print_results(plan: Plan, final: Final, words: list[str]) -> None:
    """Print how good a run's best weights are, beside simple guesses, and how the run went."""
    folder, loss, tokens = plan.config.out_dir, final.final_loss, final.tokens
    try:
        seen = measure_baselines(plan.data)
    except UserError as error:  # the run itself is complete
        about = _("Val loss of the best weights ({tokens:,} tokens): {loss:.4f} nats per token.")
        print(about.format(tokens=tokens, loss=loss))
        print(_("no comparison: {reason}", reason=error))
        return
    about = _("The best weights on {tokens:,} of the {total:,} val tokens (evaluations above used {used:,}):")
    total = plan.data.meta.val_tokens - 1  # the first has none before it
    used = min(total, plan.config.eval_iters * plan.config.batch_size * plan.config.block_size)
    print(fill(about.format(tokens=tokens, total=total, used=used)) + "\n")
    print("\n".join(loss_table(loss, seen)), end="\n\n")
    print("\n".join(verdict(plan, evaluations_of(folder), loss, seen, words)))
    print("\n" + _("More samples: {command}", command=command("sample", folder)))
    if final.best_step != final.step:
        last = command("sample", folder, "--weights", "last")
        print(_("With the last weights instead of the best: {command}", command=last))
