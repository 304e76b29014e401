"""sampan train: train or fine-tune, then show a sample and a verdict."""

import contextlib
import shlex
import textwrap

from sampan.checkpoint.folder import load_model
from sampan.checkpoint.run import Run, read_note
from sampan.checkpoint.tensors import WEIGHTS
from sampan.cli.flags import file_settings
from sampan.cli.plan import plan_of
from sampan.cli.signals import StopSignal
from sampan.config import MachineConfig, SampleConfig, TrainConfig, build
from sampan.engine.open import open_engine, pick_engine
from sampan.engine.processes import any_process, first_process_first, leave_processes
from sampan.errors import UserError
from sampan.evaluation.losses import whole_loss
from sampan.machine import world
from sampan.report.baselines import measure_baselines
from sampan.report.consumers import consumers
from sampan.report.metrics import evaluations_of
from sampan.report.verdict import loss_table, verdict
from sampan.sampling.write import write
from sampan.training.cost import time_step
from sampan.training.loop import train


def run(source: list[str], flags: dict) -> int:
    pick_engine(build(MachineConfig, {k: v for k, v in flags.items() if k in MachineConfig.__dataclass_fields__}))
    early = {k: v for k, v in (file_settings(source) | flags).items() if k in ("device", "backend", "process_timeout")}
    with first_process_first(build(TrainConfig, early)):
        made = plan_of(source, flags)
    talks = world()[0] == 0  # under torchrun only the first process writes
    if talks:
        print("\n".join(made.data.summary()), end="\n\n", flush=True)
    engine = open_engine(made.model, made.config)
    costs = time_step(engine, made.model, made.config)
    if talks:
        print("\n".join(made.lines(engine, costs)), end="\n\n", flush=True)
    stop = StopSignal()
    records = train(made, engine)
    with consumers(made) if talks else contextlib.nullcontext(lambda record: None) as show, stop:
        for record in records:
            show(record)
            if any_process(stop.received is not None):
                records.close()
                break
    leave_processes()
    if stop.received is not None:
        if talks:
            print(f"\nstopped; continue with: sampan train --resume --out_dir {shlex.quote(made.config.out_dir)}")
        return 128 + stop.received
    if talks and not made.config.eval_only:
        loss, tokens = show_best(made, engine)
        del engine, records  # their memory, before that of what follows
        conclude(made, loss, tokens)
    return 0


def show_best(made, engine) -> tuple[float, int]:
    """Print a sample of a run's best weights. (Their loss over the val split, the tokens of it that were read.)"""
    folder = made.config.out_dir
    model, weights = load_model(folder)
    engine.load(weights)
    print("\n" + textwrap.fill(f"{folder}: {Run(folder).describe('best')}. A sample:", 80) + "\n")
    settings = SampleConfig(max_new_tokens=min(300, 4 * model.block_size), seed=made.config.seed)
    begun = False
    for _, piece in write(engine, model, made.data.tokenizer, None, settings):
        piece = piece if begun else piece.lstrip("\n")  # the prompt is a line end
        begun = begun or bool(piece)
        print(piece, end="", flush=True)
    return whole_loss(engine, made.data, made.config)


def conclude(made, loss: float, tokens: int) -> None:
    """What a run ends with: how good its best weights are, and how it went."""
    folder, run = made.config.out_dir, Run(made.config.out_dir)
    try:
        seen = measure_baselines(made.data)
    except UserError as error:  # the run is whole all the same
        print(f"\n\nThe best weights' val loss ({tokens:,} tokens): {loss:.4f} nats per token.\nnot looked at: {error}")
        return
    windows = made.config.eval_iters * made.config.batch_size * made.config.block_size
    above = f"; above on {windows:,}" if windows < tokens else ""
    print(f"\n\nThe best weights on the val split ({tokens:,} tokens{above}):\n")
    print("\n".join(loss_table(loss, seen)), end="\n\n")
    print("\n".join(verdict(made, evaluations_of(folder), loss, seen)))
    print(f"\nMore of it: sampan sample {folder}")
    if read_note(run.folder / WEIGHTS)["step"] != read_note(run.last / WEIGHTS)["step"]:
        print(f"The last weights instead of the best: sampan sample {folder} --weights last")
