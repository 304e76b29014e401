"""What a run will be, before it runs: the text prepared, sizes chosen, settings resolved, costs counted.

    plan = make_plan("my-novel.txt", {"max_iters": 500})
    print("
".join(plan.lines(engine)))

Where a configuration file is given, or a setting, it decides; what nobody decided is chosen by recipe.py, with its
reason. Nothing here trains (loop.py does); without an engine there is a plan too, but no measured time.
"""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from sampan.checkpoint.folder import crop, find_model, load_model, load_model_config, load_tokenizer
from sampan.checkpoint.run import Run, read_note
from sampan.checkpoint.save import WritableRun
from sampan.checkpoint.tensors import WEIGHTS
from sampan.config import ModelSettings, TrainConfig, build, change
from sampan.data.meta import Data, open_folder
from sampan.data.prepare import prepare
from sampan.engine.open import engines_here, pick_engine
from sampan.engine.protocol import Engine
from sampan.errors import UserError, install
from sampan.machine import is_restarted, torchrun_job, world
from sampan.model.count import count_parameters, flops_per_token
from sampan.model.parameters import initialize
from sampan.model.shape import ModelShape, resolve, settings_of
from sampan.progress import Progress, silent
from sampan.text.sources import source_name
from sampan.training.cost import Costs, fit_memory, memory_parts, peak_memory, program_memory, run_seconds, total_memory
from sampan.training.recipe import choose
from sampan.training.schedule import decay_end
from sampan.units import duration, size_of


@dataclass(frozen=True)
class Plan:
    """A run that can start: every setting resolved, the data ready."""

    config: TrainConfig
    model: ModelShape
    data: Data
    pretrained: Path | None = None  # the folder that the weights come from
    resume: bool = False
    start_step: int = 0  # of a resume
    reasons: dict[str, str] = field(default_factory=dict)  # of the settings that were chosen here

    def weights(self) -> dict[str, np.ndarray]:
        """The weights at step 0, {name: float32}."""
        if self.pretrained is not None:
            return load_model(self.pretrained, self.model.block_size)[1]
        return initialize(self.model, self.config.seed)

    def lines(self, engine: Engine | None = None, costs: Costs | None = None) -> list[str]:
        """The plan in words, to be read before the first step; `costs` are `cost.measure`'s."""
        c, m, d = self.config, self.model, self.data.meta
        heads = f"{m.n_head} heads" + (f" ({m.n_kv_head} of keys)" if m.n_kv_head != m.n_head else "")
        size = f"{count_parameters(m):,} parameters: {m.n_layer} layers, {heads}, {m.n_embd} wide, block {m.block_size}"
        start = "from " + (
            str(self.pretrained) if self.pretrained else f"last/ of {c.out_dir}" if self.resume else "scratch"
        )
        rate = f"learning rate {c.learning_rate:g}"
        if c.decay_lr:
            warmup = f", {c.warmup_iters} steps of warm-up" if c.warmup_iters else ""
            rate += f"{warmup}, cosine to {c.min_lr:g} at step {decay_end(c):,}"
        steps_left = max(0, c.max_iters - self.start_step)
        epochs = c.max_iters * c.tokens_per_step / max(1, d.train_tokens)
        steps = f"{c.max_iters:,} steps, {epochs:,.{0 if epochs >= 100 else 2}f} epochs"
        if self.resume:
            steps += f", from step {self.start_step:,}"
            if self.start_step >= c.max_iters:
                steps += " (all are done: to go on, add --max_iters)"
        steps += f"; {({'adamw': 'AdamW', 'muon': 'Muon and AdamW'})[c.optimizer]}, {rate}"
        if c.patience is not None:
            steps += f"; stops after {c.patience} evaluations without a better val loss"
        flops = flops_per_token(m) * c.tokens_per_step
        lines = [
            ("model", f"{m.family} {start}, {size}"),
            (
                "data",
                f"{d.name}, {d.train_tokens:,} train and {d.val_tokens:,} val tokens, vocabulary {m.vocab_size:,}",
            ),
            (
                "step",
                f"{c.gradient_accumulation_steps} x {c.batch_size} x {c.block_size} = {c.tokens_per_step:,} tokens, "
                f"{flops / 1e9:,.2f} GFLOP" + (f", {costs.step * 1000:,.1f} ms" if costs else ""),
            ),
            (
                "training",
                f"{steps_left * c.tokens_per_step:,} tokens, {steps_left * flops / 1e12:,.2f} TFLOP: {steps}",
            ),
            ("engine", engine.description if engine else f"none installed: {install('torch')}"),
        ]
        if engine:
            parts = memory_parts(m, c, pick_engine(c)) | {"program": program_memory(c)}
            by_part = ", ".join(f"{name} {size_of(count)}" for name, count in parts.items())
            most = max(total_memory(m, c), peak_memory())  # measuring for the plan may have taken more
            lines.append(("memory", f"about {size_of(most)} at the peak: {by_part}"))
        if costs:
            lines.append(("time", f"about {duration(run_seconds(c, m, self.data, costs, self.start_step))}"))
        lines.append(("folder", c.out_dir))
        whys = {}
        for name, reason in self.reasons.items():
            whys.setdefault(reason, []).append(name)
        lines += [("chosen", f"{', '.join(names)}: {reason}") for reason, names in whys.items() if reason]
        return [textwrap.fill(f"{name:<9} {text}", 80, subsequent_indent=" " * 10) for name, text in lines]


def make_plan(
    dataset: str | Iterable[str] | None,
    settings: dict,
    recipe: bool = True,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Plan:
    """Resolve everything. `recipe=False` leaves unset what a configuration file left unset: nanoGPT's defaults.

    Raises UserError for whatever stands in the way of the first step.
    """
    settings = dict(settings)
    if dataset is not None:
        settings["dataset"] = dataset
    if settings.get("init_from") == "resume":
        return plan_resume(settings, progress)
    config = build(TrainConfig, settings)
    if "dataset" not in settings and recipe:
        raise UserError(
            "nothing to train on: give a corpus's name, a text file, a folder of texts or a configuration file"
        )

    pretrained = None if config.init_from == "scratch" else find_model(config.init_from)
    given = load_model_config(pretrained) if pretrained is not None else None
    if pretrained is not None and config.tokenizer == "auto":
        path = pretrained / "tokenizer.json"
        config = replace(config, tokenizer=str(path) if path.is_file() else "gpt2")
    data = prepare(config.dataset, config, progress)
    if pretrained is not None:
        check_tokens(data, pretrained)
    if "block_size" in settings:
        check_lengths(config, data)  # before anything of that size is measured
    if "out_dir" not in settings and recipe:
        config = replace(config, out_dir=str(Path("out") / (data.meta.name if config.data_dir else data.folder.name)))

    reasons = {}
    if engines_here():
        program_memory(config)  # while no engine has a model
    if recipe:
        chosen, reasons = choose(data, settings, config, given)
        config = change(config, chosen)
    elif config.minutes is not None or config.size is not None:
        raise UserError("minutes and size choose what a configuration file says already: leave out one or the other")
    if given is not None:
        wanted = config.block_size if "block_size" in settings or recipe else min(config.block_size, given.block_size)
        model = pretrained_model(given, str(pretrained), config, settings, wanted, data)
    else:
        model = fresh_model(config, data)
    config = with_shape(config, model)
    check_lengths(config, data)
    if config.fit is not None:
        config, why = fit_memory(config, model)
        reasons |= dict.fromkeys(("batch_size", "gradient_accumulation_steps", "gradient_checkpointing"), why)
    run = Run(config.out_dir)
    if is_restarted() and not config.eval_only and run.can_resume() and (not overwrite or run.job() == torchrun_job()):
        again = settings | {"out_dir": config.out_dir}  # torchrun starts a job again after a death
        return plan_resume(again, progress)
    if not config.eval_only and not overwrite and run.has_weights():
        raise UserError(
            f"{config.out_dir} already holds a run: continue it with --resume, replace it with --overwrite, "
            "or choose another --out_dir"
        )
    return Plan(config, model, data, pretrained, reasons=reasons)


def check_tokens(data: Data, pretrained: Path) -> None:
    """Raises UserError where the text's ids mean other tokens than the model's, as far as its folder tells."""
    if not (pretrained / "tokenizer.json").is_file():
        return
    ours, theirs = (tokenizer.inner.get_vocab() for tokenizer in (data.tokenizer, load_tokenizer(pretrained)))
    if any(theirs.get(token) != number for token, number in ours.items()):
        raise UserError(
            f"the tokens of {data.folder} are not those that {pretrained} knows: leave --tokenizer out, and the text is "
            "cut by the model's own"
        )


def pretrained_model(
    given: ModelShape, where: str, config: TrainConfig, settings: dict, block_size: int, data: Data
) -> ModelShape:
    """The given model, its context cropped. Raises UserError for a setting or a vocabulary that it cannot have."""
    for name, value in vars(settings_of(given)).items():
        if name in settings and name not in ("block_size", "dropout") and getattr(config, name) not in (value, None):
            raise UserError(f"{name}={getattr(config, name)}: {where} has {value}, which stays as it is")
    if data.meta.vocab_size > given.vocab_size:
        raise UserError(
            f"the text's vocabulary has {data.meta.vocab_size:,} tokens and {where} only {given.vocab_size:,}; "
            "leave --tokenizer out to use the model's own"
        )
    return replace(crop(given, block_size, where), dropout=config.dropout)


def fresh_model(config: TrainConfig, data: Data) -> ModelShape:
    vocab_size = config.vocab_size or data.meta.vocab_size
    if vocab_size < data.meta.vocab_size:
        raise UserError(f"vocab_size={vocab_size}: the text's vocabulary has {data.meta.vocab_size:,} tokens")
    return resolve(replace(config, vocab_size=vocab_size))


def plan_resume(settings: dict, progress: Progress = silent) -> Plan:
    """The plan of a run's folder, with what may change at a resume changed."""
    folder = settings.get("out_dir") or str(
        Path("out") / source_name(build(TrainConfig, {"dataset": settings["dataset"]}).dataset)
        if "dataset" in settings
        else "out"
    )
    run = WritableRun(folder)
    if run.folder.is_dir() and world()[0] == 0 and not settings.get("eval_only"):
        with run.locked():  # what a killed process left is mended before anybody reads it
            pass
    if not run.can_resume():
        if "out_dir" in settings:
            raise UserError(f"{folder} holds nothing to resume" if run.folder.is_dir() else f"{folder}: no such folder")
        raise UserError(f"{folder} holds nothing to resume; name the run with --out_dir")
    run.check_unchanged()
    before = run.settings()
    given = {name: value for name, value in settings.items() if name not in ("init_from", "out_dir", "dataset")}
    asked = settings.get("dataset") and build(TrainConfig, {"dataset": settings["dataset"]}).dataset
    if asked and [Path(name).resolve() for name in asked] != [Path(name).resolve() for name in before.dataset]:
        raise UserError(
            f"the run in {folder} learns from {' '.join(before.dataset)}, not from {' '.join(asked)}: leave the text out to "
            f"continue it, or fine-tune on another with --init_from {folder} --out_dir NEW"
        )
    if {"minutes", "size"} & given.keys():
        raise UserError("minutes and size choose a new run's steps and widths; a resume goes on to --max_iters")
    config = change(replace(before, out_dir=folder), given)
    for name in (*(f.name for f in fields(ModelSettings)), "seed", "tokenizer", "val_fraction", "optimizer"):
        if name != "dropout" and getattr(config, name) != getattr(before, name):
            raise UserError(
                f"{name}={getattr(config, name)}: the run in {folder} has {getattr(before, name)}, and a resume keeps it"
            )
    recorded = run.data()
    data_folder = Path(str(recorded.get("folder", "")))
    data = (
        open_folder(data_folder) if (data_folder / "meta.json").is_file() else prepare(config.dataset, config, progress)
    )
    if not data.is_recorded(recorded):  # another text of the same name may have taken the folder: prepare ours again
        data = prepare(config.dataset, config, progress)
    if not data.is_recorded(recorded):
        raise UserError(
            f"the text or the tokenizer in {data.folder} has changed since the run in {folder} began: "
            f"bring the old text back and run sampan prepare {' '.join(config.dataset)}, or start a new run"
        )
    if load_tokenizer(run.last).to_json() != data.tokenizer.to_json():
        raise UserError(f"{run.last / 'tokenizer.json'} and {data.folder / 'tokenizer.json'} differ: undo the edit")
    model = replace(load_model_config(run.last), dropout=config.dropout)
    config = with_shape(config, model)
    check_lengths(config, data)
    if "fit" in given:
        config, _ = fit_memory(config, model)
    step = read_note(run.last / WEIGHTS).get("step", 0)
    if config.max_iters < step:
        raise UserError(f"{folder} is at step {step:,} already: give a larger --max_iters")
    return Plan(config, model, data, resume=True, start_step=step)


def with_shape(config: TrainConfig, model: ModelShape) -> TrainConfig:
    return replace(config, **vars(settings_of(model)))


def check_lengths(config: TrainConfig, data: Data) -> None:
    """What would fail in the first step or the first evaluation, said now."""
    need = config.block_size + 1
    for split in ("train", "val"):
        count = data.meta.tokens(split)
        if count < need:
            ways = (
                ["give more text"] + ["raise --val_fraction"] * (split == "val") + ["lower --block_size"] * (count > 1)
            )
            raise UserError(
                f"the text is too short: the {split} split of {data.meta.name} has {count:,} tokens, and a block of "
                f"{config.block_size} needs {need:,}; {' or '.join(ways)}"
            )
    processes = world()[1]
    if config.windows_per_step % processes:
        raise UserError(
            f"batch_size x gradient_accumulation_steps = {config.windows_per_step} windows "
            f"cannot be shared among {processes} processes evenly"
        )
