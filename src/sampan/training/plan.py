"""Resolve a run before it starts: the text prepared, sizes chosen, every setting known.

    plan = make_plan("my-novel.txt", {"max_iters": 500})
    print("\\n".join(plan_lines(plan)))                       # report/plan_lines.py

A config file or a setting decides; recipe.py chooses the rest, with its reasons. It trains nothing (loop.py), and a
plan needs no engine.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from sampan.checkpoint.folder import crop, find_model, load_model, load_model_config, load_tokenizer
from sampan.checkpoint.run import Run, read_note
from sampan.checkpoint.save import WritableRun
from sampan.checkpoint.tensors import WEIGHTS
from sampan.config import DataConfig, ModelSettings, TrainConfig, build, change
from sampan.data.given import find_change, is_data, is_given, open_given
from sampan.data.meta import Data
from sampan.data.prepare import prepare
from sampan.data.windows import check_length
from sampan.engine.open import engines_here
from sampan.errors import UserError, command, quoted
from sampan.machine import is_restarted, torchrun_job, world
from sampan.messages import _
from sampan.model.parameters import initialize
from sampan.model.shape import ModelShape, resolve, settings_of
from sampan.progress import Progress, silent
from sampan.text.sources import source_name
from sampan.tokens.kinds import has_tokenizer, tokenizer_file
from sampan.training.cost import fit_memory, program_memory
from sampan.training.recipe import choose, epoch_steps, steps_more

log = logging.getLogger(__name__)
GPT2_SIZES = (50257, 50304)  # as it is, and padded as nanoGPT and llm.c do
Asked = dict[str, Any]  # the settings that somebody gave; what is not in it is open
FITTED = ("batch_size", "gradient_accumulation_steps", "gradient_checkpointing")  # what --fit chooses
NEVER_CHANGED = {f.name for cls in (ModelSettings, DataConfig) for f in fields(cls)} - {"dropout", "data_dir"}
NEVER_CHANGED |= {"seed", "optimizer"}


@dataclass(frozen=True)
class Plan:
    """Hold a run that can start: every setting resolved, the data prepared."""

    config: TrainConfig
    model: ModelShape
    data: Data
    pretrained: Path | None = None  # the folder that the weights come from
    resume: bool = False
    start_step: int = 0  # of a resume
    reasons: dict[str, str] = field(default_factory=dict)  # {setting that was chosen here: why}

    def weights(self) -> dict[str, np.ndarray]:
        """Return the weights at step 0, {name: float32 array}."""
        if self.pretrained is not None:
            return load_model(self.pretrained, self.model.block_size)[1]
        return initialize(self.model, self.config.seed)


def make_plan(
    dataset: str | Iterable[str] | None,
    settings: Asked,
    recipe: bool = True,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Plan:
    """Return a plan with every setting resolved and the data prepared.

    `recipe=False` leaves what a config file left open at nanoGPT's defaults. Raise UserError for anything that would
    end the run before its first step.
    """
    asked = dict(settings) if dataset is None else {**settings, "dataset": dataset}
    if asked.get("init_from") == "resume":
        return plan_resume(asked, progress)
    config = read_settings(asked, recipe)
    pretrained = None if config.init_from == "scratch" else find_model(config.init_from)
    given = None if pretrained is None else load_model_config(pretrained)
    config, data = prepare_data(config, asked, pretrained, recipe, progress)
    if continues_after_restart(config, overwrite):
        return plan_resume(asked | {"out_dir": config.out_dir}, progress)
    check_folder(config, overwrite)
    config = with_documents(config, data)
    block_size = asked_block(config, asked, given, recipe)
    check_lengths(data, block_size)
    if engines_here():
        program_memory(config)  # sampled while no engine has a model
    chosen, reasons = choose(data, asked, config, given) if recipe else ({}, {})
    config = change(config, chosen)
    if given is None:
        model = fresh_model(config, data)
    else:
        model = pretrained_model(given, config, asked, config.block_size if recipe else block_size, data)
    config = with_shape(config, model)
    if not recipe and config.max_epochs is not None:
        config = replace(config, max_iters=min(config.max_iters, epoch_steps(config, data, config.max_epochs)))
    if config.fit is not None:
        config, why = fit_memory(config, model)
        reasons |= dict.fromkeys(FITTED, why)
    check_processes(config)
    return Plan(config, model, data, pretrained, reasons=reasons)


# ---- the steps of a new run ----


def read_settings(asked: Asked, recipe: bool) -> TrainConfig:
    """Return the settings that were given over the defaults. Raise UserError."""
    config = build(TrainConfig, asked)
    if "dataset" not in asked and recipe:
        raise UserError(_("nothing to train on: give the name of a corpus, a text file, a folder or a config file"))
    check_is_folder(config)
    if not recipe and (config.minutes is not None or config.size is not None):
        raise UserError(
            _("--minutes and --size cannot be used with a config file, which already sets steps and model size")
        )
    return config


def check_is_folder(config: TrainConfig) -> None:
    """Raise UserError if a file has the name of the run's folder."""
    for path in (Path(config.out_dir), *Path(config.out_dir).parents):
        if path.exists() and not path.is_dir():
            raise UserError(_("--out_dir {folder}: {path} is a file; choose another", folder=config.out_dir, path=path))


def prepare_data(
    config: TrainConfig, asked: Asked, pretrained: Path | None, recipe: bool, progress: Progress
) -> tuple[TrainConfig, Data]:
    """Prepare the text with the tokenizer of the pretrained model, if there is one. Return it, and what follows from it."""
    if pretrained is not None and config.tokenizer == "auto" and not is_given(config.dataset):
        config = replace(config, tokenizer=tokenizer_of(pretrained))
    data = prepare(config.dataset, config, progress)
    if pretrained is not None:
        check_tokens(data, pretrained)
    if recipe and "out_dir" not in asked:
        config = replace(config, out_dir=str(Path("out") / (data.meta.name if config.data_dir else data.folder.name)))
    return config, data


def tokenizer_of(pretrained: Path) -> str:
    """Return the setting that names a model's tokenizer. Raise UserError where its folder has none that can be guessed."""
    if path := tokenizer_file(pretrained):
        return str(path)
    if load_model_config(pretrained).vocab_size not in GPT2_SIZES:
        message = _("{folder} has no tokenizer: name the one that the model was trained with, with --tokenizer")
        raise UserError(message.format(folder=pretrained))
    log.warning(_("{folder} has no tokenizer; its vocabulary is as large as GPT-2's, which is used", folder=pretrained))
    return "gpt2"


def check_tokens(data: Data, pretrained: Path) -> None:
    """Raise UserError if the text's tokens are not the model's, as far as its folder tells."""
    if not has_tokenizer(pretrained):
        return
    ours, theirs = (tokenizer.inner.get_vocab() for tokenizer in (data.tokenizer, load_tokenizer(pretrained)))
    if any(theirs.get(token) != number for token, number in ours.items()):
        message = _("the tokens of {data} are not those of {model}: leave --tokenizer out to use the model's tokenizer")
        raise UserError(message.format(data=data.folder, model=pretrained))


def asked_block(config: TrainConfig, asked: Asked, given: ModelShape | None, recipe: bool) -> int:
    """Return the block size that the run will have, or 1 where the recipe chooses one that fits the text."""
    if "block_size" in asked:
        return config.block_size
    if recipe:
        return 1
    return config.block_size if given is None else min(config.block_size, given.block_size)


def fresh_model(config: TrainConfig, data: Data) -> ModelShape:
    """Return the shape of a new model. Raise UserError if its vocabulary is too small for the text."""
    vocab_size = config.vocab_size or data.meta.vocab_size
    if vocab_size < data.meta.vocab_size:
        message = _("vocab_size={asked:,} is too small: the text's vocabulary has {count:,} tokens")
        raise UserError(message.format(asked=vocab_size, count=data.meta.vocab_size))
    return resolve(replace(config, vocab_size=vocab_size))


def pretrained_model(given: ModelShape, config: TrainConfig, asked: Asked, block_size: int, data: Data) -> ModelShape:
    """Return the given shape, its context cropped. Raise UserError for a setting or vocabulary that it cannot have."""
    where = config.init_from
    for name, value in vars(settings_of(given)).items():
        if name in asked and name not in ("block_size", "dropout") and getattr(config, name) not in (value, None):
            message = _("cannot change {name} to {asked}: the model in {folder} has {value}")
            raise UserError(message.format(name=name, asked=getattr(config, name), folder=where, value=value))
    if data.meta.vocab_size > given.vocab_size:
        message = _(
            "the text's vocabulary has {count:,} tokens, and the model in {folder} only {limit:,}: leave --tokenizer out "
            "to use the model's tokenizer"
        )
        raise UserError(message.format(count=data.meta.vocab_size, folder=where, limit=given.vocab_size))
    return replace(crop(given, block_size, where), dropout=config.dropout)


def with_shape(config: TrainConfig, model: ModelShape) -> TrainConfig:
    """Return the settings with those of the model as resolved."""
    return replace(config, **vars(settings_of(model)))


def with_documents(config: TrainConfig, data: Data) -> TrainConfig:
    """Return the settings with the token at which documents begin, if there is a mask. Raise UserError without one."""
    if not config.document_mask or config.end_of_text is not None:
        return config
    if data.tokenizer.end_of_text is None or data.meta.documents < 2:
        raise UserError(
            _(
                "--document_mask: {folder} has a single document; several files or .jsonl records are several",
                folder=data.folder,
            )
        )
    return replace(config, end_of_text=data.tokenizer.end_of_text)


def check_lengths(data: Data, block_size: int) -> None:
    """Raise UserError if a split is shorter than a block."""
    for split, message in (("train", _("the train split of {name}")), ("val", _("the val split of {name}"))):
        check_length(data.meta.tokens(split), block_size, message.format(name=data.meta.name))


def check_processes(config: TrainConfig) -> None:
    """Raise UserError if the processes cannot share a step evenly."""
    processes = world()[1]
    if config.windows_per_step % processes:
        message = _(
            "batch_size x gradient_accumulation_steps = {count} is not a multiple of the {processes} processes: use "
            "--batch_size {even}"
        )
        even = -(-config.batch_size // processes) * processes
        raise UserError(message.format(count=config.windows_per_step, processes=processes, even=even))


def continues_after_restart(config: TrainConfig, overwrite: bool) -> bool:
    """Return whether torchrun has restarted this job after a death, and the run in the folder is the job's own."""
    run = Run(config.out_dir)
    if not is_restarted() or config.eval_only or not run.can_resume():
        return False
    return not overwrite or run.job() == torchrun_job()


def check_folder(config: TrainConfig, overwrite: bool) -> None:
    """Raise UserError if the run's folder already holds a run, or cannot be a folder."""
    check_is_folder(config)
    if not config.eval_only and not overwrite and Run(config.out_dir).has_weights():
        message = _(
            "{folder} already holds a run. To go on with it: {resume}; to replace it, add --overwrite; or choose another "
            "--out_dir."
        )
        resume = command("train", "--resume", "--out_dir", config.out_dir, "--minutes", f"{config.minutes or 1:g}")
        raise UserError(message.format(folder=config.out_dir, resume=resume))


# ---- a resume ----


def plan_resume(asked: Asked, progress: Progress = silent) -> Plan:
    """Return the plan of a run's folder, with the changes that a resume allows. Raise UserError."""
    run = find_run(asked)
    before = run.settings()
    check_text(asked, before, run)
    config = changed_settings(asked, before, run)
    data = find_data(config, run, progress)
    model = replace(load_model_config(run.last), dropout=config.dropout)
    config = with_documents(with_shape(config, model), data)
    check_lengths(data, config.block_size)
    check_processes(config)
    if "fit" in asked:
        config, _why = fit_memory(config, model)
    step = read_note(run.last / WEIGHTS).get("step", 0)
    if "max_iters" not in asked:
        config = go_on(config, data, asked, step)
    if config.max_iters < step:
        message = _("{folder} is at step {step:,} already: give more steps with --max_iters, or --minutes")
        raise UserError(message.format(folder=run.folder, step=step))
    if config.max_iters != before.max_iters:  # another plan, whose schedule and patience begin here
        config = replace(config, start_iter=step)
    return Plan(config, model, data, resume=True, start_step=step)


def find_run(asked: Asked) -> Run:
    """Return the run that the settings name, repaired if its process was killed. Raise UserError if there is none."""
    folder = Path("out")
    if "out_dir" in asked:
        folder = Path(asked["out_dir"])
    elif "dataset" in asked:
        folder /= source_name(build(TrainConfig, {"dataset": asked["dataset"]}).dataset)
    run = WritableRun(folder)
    if folder.is_dir() and world()[0] == 0 and not asked.get("eval_only"):
        with run.locked():  # repairs it before anybody reads it
            pass
    if run.can_resume():
        run.check_unchanged()
        return run
    if "out_dir" not in asked:
        raise UserError(_("{folder} holds nothing to resume; name the run with --out_dir", folder=folder))
    if folder.is_dir():
        raise UserError(_("{folder} holds nothing to resume", folder=folder))
    raise UserError(_("{folder}: no such folder", folder=folder))


def check_text(asked: Asked, before: TrainConfig, run: Run) -> None:
    """Raise UserError if a text was given that is not the run's."""
    texts = build(TrainConfig, {"dataset": asked["dataset"]}).dataset if asked.get("dataset") else before.dataset
    if [Path(name).resolve() for name in texts] != [Path(name).resolve() for name in before.dataset]:
        message = _(
            "the run in {folder} learns from {before}, not from {asked}: leave the text out to continue it, or fine-tune "
            "on the new text with --init_from {folder} --out_dir NEW"
        )
        raise UserError(message.format(folder=run.folder, before=" ".join(before.dataset), asked=" ".join(texts)))


def changed_settings(asked: Asked, before: TrainConfig, run: Run) -> TrainConfig:
    """Return the run's settings with those that were given. Raise UserError for one that must stay as it was."""
    if "size" in asked:
        raise UserError(_("--size is for new runs: the model in {folder} stays as it is", folder=run.folder))
    given = {name: value for name, value in asked.items() if name not in ("init_from", "out_dir", "dataset")}
    config = change(replace(before, out_dir=str(run.folder)), given)
    for name in sorted(NEVER_CHANGED):
        value = getattr(before, name)
        if getattr(config, name) != value:
            message = _("cannot change {name} to {asked} at a resume: the run in {folder} has {value}")
            raise UserError(message.format(name=name, asked=getattr(config, name), folder=run.folder, value=value))
    return config


def go_on(config: TrainConfig, data: Data, asked: Asked, step: int) -> TrainConfig:
    """Return the settings with the steps of --minutes, which are added to those done, or of --max_epochs."""
    if "minutes" in asked and config.minutes is not None:
        steps, interval = steps_more(config, data, asked)
        return replace(config, max_iters=step + steps, eval_interval=interval)
    if "max_epochs" in asked and config.max_epochs is not None:
        return replace(config, max_iters=epoch_steps(config, data, config.max_epochs))
    return config


def find_data(config: TrainConfig, run: Run, progress: Progress) -> Data:
    """Return the data that the run was trained on, prepared again if need be. Raise UserError if it has changed."""
    recorded = run.data()
    folder = Path(config.data_dir or str(recorded.get("folder", "")))
    data = open_given(folder) if is_data(folder) else prepare(config.dataset, config, progress)
    if not data.is_recorded(recorded):  # another text of the same name may have taken the folder
        data = prepare(config.dataset, config, progress)
    elif names := find_change(data):
        log.warning(
            _(
                "{text} has changed since the run in {folder} began, which continues on the old text. To learn the new "
                "one: {command}",
                text=" ".join(names),
                folder=run.folder,
                command=command("train", *names, "--init_from", run.folder, "--out_dir", f"{run.folder}-2"),
            )
        )
    if not data.is_recorded(recorded):
        message = _(
            "the text or the tokenizer in {data} has changed since the run in {folder} began: restore the old text and "
            "run sampan prepare {texts}, or start a new run"
        )
        raise UserError(message.format(data=data.folder, folder=run.folder, texts=quoted(*config.dataset)))
    if load_tokenizer(run.last).to_json() != data.tokenizer.to_json():
        message = _("{one} and {other} differ: undo the edit")
        raise UserError(message.format(one=run.last / "tokenizer.json", other=data.folder / "tokenizer.json"))
    return data
