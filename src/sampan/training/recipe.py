"""Choose the settings that nobody gave: the model's size, the steps and the learning rates, each with its reason.

    chosen, reasons = choose(data, {"minutes": 5.0}, config, pretrained=None)

The minutes are the one dial. The widths and the number of steps follow from them, from the engine's speed, measured on
a few steps, and from the length of the text. The model is the largest that can read TOKENS_PER_PARAMETER tokens for
each of its parameters in that time. The constants below were measured on several texts; docs/LOG.md has the
measurements, also of what did not help. This file neither prints a plan nor runs it (plan.py, loop.py).
"""

import math
from dataclasses import replace
from typing import Any

from sampan.config import SIZES, TrainConfig, change
from sampan.data.meta import Data
from sampan.engine.open import engines_here, has_gpu, open_engine
from sampan.errors import UserError
from sampan.machine import world
from sampan.messages import _
from sampan.model.count import count_parameters, flops_per_token
from sampan.model.shape import ModelShape, resolve, settings_of
from sampan.training.cost import Costs, fit_memory, run_seconds, time_step
from sampan.units import duration

Choice = tuple[dict[str, Any], str]  # {setting: value}, and the reason

CHANNELS_PER_LAYER = 32  # so that one number, the layers, is a model's size
HEAD_DIM = 32  # 64 from 384 channels on

FAMILY: dict[str, Any] = dict(family="qwen3", norm_eps=1e-6)
MUON: dict[str, Any] = dict(
    optimizer="muon", learning_rate=0.02, momentum=0.85, adamw_lr_ratio=0.2, beta2=0.99, weight_decay=0.1
)  # fmt: skip
ADAMW: dict[str, Any] = dict(optimizer="adamw", learning_rate=3e-3, beta2=0.99, weight_decay=0.1)
RATES = {"adamw": ADAMW, "muon": MUON}  # another optimizer begins with AdamW's
SCHEDULE: dict[str, Any] = dict(decay_lr=True, warmup_iters=0, lr_decay_iters=None, min_lr=0.0)

MINUTES = {"cpu": 1.0, "gpu": 3.0}
BATCH = {"cpu": dict(batch_size=12, block_size=128), "gpu": dict(batch_size=64, block_size=256)}
SHARE_PER_STEP = 0.1  # of a text, at most, in one step: shorter blocks first, then fewer of them
LEAST_BLOCK = 32
MEASURED = ("small", "mini", "tiny")  # the first that fits shows the machine's speed, from which the size follows
TOKENS_PER_PARAMETER = 3.0
EPOCHS = 60  # at most: a text that was read so often is known by heart
TRAINING_SHARE = 0.92  # of the minutes; evaluations and files take the rest
EVALUATIONS = 20  # at most
EVALUATION_SHARE = 0.05  # of the arithmetic
PATIENCE = 6  # evaluations
STEPS_UNMEASURED = 2000


def choose(
    data: Data, settings: dict, config: TrainConfig, pretrained: ModelShape | None
) -> tuple[dict, dict[str, str]]:
    """Return ({name: value}, {name: reason}) for the settings that `settings` leave open.

    The given settings take precedence, and the choices build on them; `config` holds their values. `pretrained` is the
    shape of the model to fine-tune, or None to train from scratch. Raise UserError if no engine can measure the speed.
    """
    groups = fine_tuning(data, settings, config, pretrained) if pretrained else from_scratch(data, settings, config)
    chosen: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for values, reason in groups:
        open_ones = {name: value for name, value in values.items() if name not in settings}
        chosen |= open_ones
        reasons |= dict.fromkeys(open_ones, reason)
    return chosen, reasons


def from_scratch(data: Data, settings: dict, config: TrainConfig) -> list[Choice]:
    """Return the choices for a new model, in the order in which they build on each other."""
    machine = "gpu" if has_gpu(config.device) else "cpu"
    rates = RATES.get(settings.get("optimizer", "muon"), ADAMW)
    groups: list[Choice] = [
        (
            FAMILY if settings.get("family") != "gpt2" else {},  # which has an epsilon of its own
            _("rotary positions and normed queries and keys learn fastest"),
        ),
        (
            rates,
            _("for AdamW") if rates is ADAMW else _("Muon needs half as many steps as AdamW; one rate fits all widths"),
        ),
        (SCHEDULE, _("the rate falls to 0 with the last step")),
    ]
    groups.append(pick_batch(BATCH[machine], machine, data, settings, config))
    base = replace_open(config, settings, *(values for values, _ in groups))

    minutes = config.minutes
    if minutes is None and not ({"max_iters", "max_epochs", "size"} & settings.keys()):
        minutes = MINUTES[machine]
        groups.append(({"minutes": minutes}, _("default for a {machine}", machine=machine.upper())))
    speed = Speed(data) if engines_here() and world()[1] == 1 else None
    size, why = pick_size(base, data, settings, minutes, speed)
    groups.append((shape_of_size(size, base, settings), why))
    base = replace_open(base, settings, groups[-1][0])

    costs = speed.of(base) if speed else None
    steps, why = pick_steps(base, data, settings, minutes, costs)
    groups.append(({"max_iters": steps}, why))
    last = evaluations(replace(base, max_iters=steps))
    return [*groups, (last, _("evaluations take a twentieth of the time"))]


def fine_tuning(data: Data, settings: dict, config: TrainConfig, given: ModelShape) -> list[Choice]:
    """Return the choices for fine-tuning the model `given`: nanoGPT's recipe, a small constant rate and few steps."""
    block = min(given.block_size, 1024 if has_gpu(config.device) else 256, fitting_block(data))
    batch = shared(dict(block_size=block, batch_size=4, gradient_accumulation_steps=4), settings, config)
    base = replace_open(config, settings, vars(settings_of(given)), batch)
    steps = min(200, max(20, 3 * data.meta.train_tokens // base.tokens_per_step))
    why, costs = _("fine-tuning: three epochs, but 20 to 200 steps"), None
    if config.minutes is not None and "max_iters" not in settings and engines_here() and world()[1] == 1:
        costs = Speed(data).of(base)
    if costs or {"max_iters", "max_epochs"} & settings.keys():
        steps, why = pick_steps(base, data, settings, config.minutes, costs)
    rates = fine_tuning_rates(given)
    return [
        (rates, _("fine-tuning: a constant rate; nanoGPT's for GPT-2, higher for narrower models")),
        (batch | evaluations(replace(base, max_iters=steps)), _("fine-tuning")),
        ({"max_iters": steps}, why),
    ]


def fine_tuning_rates(model: ModelShape) -> dict:
    """Return the settings of the learning rate: 3e-5 from GPT-2's width on, more for narrower models, at most 1e-3.

    Below GPT-2's 768 channels the rate grows with the inverse square of the width.
    """
    return dict(learning_rate=float(f"{min(1e-3, 3e-5 * max(1, 768 / model.n_embd) ** 2):.1g}"), decay_lr=False)


def replace_open(config: TrainConfig, settings: dict, *chosen: dict) -> TrainConfig:
    """Return `config` with the chosen values, except for the names that `settings` give. Raise UserError if one is invalid."""
    for values in chosen:
        config = change(config, {name: value for name, value in values.items() if name not in settings})
    return config


def fitting_block(data: Data) -> int:
    """Return the longest block, in tokens, that fits each split at least once."""
    return max(1, min(data.meta.train_tokens, data.meta.val_tokens) - 1)


def pick_batch(usual: dict, machine: str, data: Data, settings: dict, config: TrainConfig) -> Choice:
    """Return the machine's usual batch, or for a short text a smaller one, so that an epoch has enough steps."""
    batch_size, block_size = usual["batch_size"], usual["block_size"]
    most = int(SHARE_PER_STEP * data.meta.train_tokens)
    block_size = min(block_size, max(LEAST_BLOCK, most // batch_size), fitting_block(data))
    if "block_size" in settings:
        block_size = config.block_size
    batch_size = max(1, min(batch_size, most // block_size))
    chosen = dict(batch_size=batch_size, block_size=block_size, gradient_accumulation_steps=1)
    if (even := shared(chosen, settings, config)) != chosen:
        return even, _("the {processes} processes share a step evenly", processes=world()[1])
    if chosen.items() >= usual.items():
        return chosen, _("default for a {machine}", machine=machine.upper())
    if most >= block_size:
        return chosen, _("a step reads at most a tenth of the text")
    return chosen, _("a step reads at most a tenth of the text, or one window")


def shared(batch: dict, settings: dict, config: TrainConfig) -> dict:
    """Return the batch with as many more windows as the processes of torchrun need to share a step evenly."""
    name = "gradient_accumulation_steps" if "batch_size" in settings else "batch_size"
    if name in settings:
        return batch
    while replace_open(config, settings, batch).windows_per_step % world()[1]:
        batch = batch | {name: batch[name] + 1}
    return batch


# ---- the model ----


def shape_of_size(layers: int, config: TrainConfig, settings: dict) -> dict:
    """Return n_layer, n_embd and n_head of a model with `layers` layers; if `settings` give n_layer or n_embd, that one stays.

    The number of heads divides the channels. Channels per head are an even number, except where there is one head.
    """
    n_layer = config.n_layer if "n_layer" in settings else layers
    n_embd = config.n_embd if "n_embd" in settings else CHANNELS_PER_LAYER * layers
    heads = max(1, n_embd // (HEAD_DIM if n_embd < 384 else 2 * HEAD_DIM))
    n_head = next(h for h in range(heads, 0, -1) if n_embd % h == 0 and (n_embd // h % 2 == 0 or h == 1))
    return dict(n_layer=n_layer, n_embd=n_embd, n_head=n_head)


def model_of(config: TrainConfig, data: Data, layers: int, settings: dict) -> ModelShape:
    """Return the shape of a model with `layers` layers for this data. Raise UserError if the settings do not fit."""
    return resolved(replace_open(config, settings, shape_of_size(layers, config, settings)), data)


def resolved(config: TrainConfig, data: Data) -> ModelShape:
    """Return the shape of the configured model; the default vocab_size is the data's. Raise UserError if it is invalid."""
    return resolve(replace(config, vocab_size=config.vocab_size or data.meta.vocab_size))


class Speed:
    """Measure the seconds per step for some shapes on this machine, and estimate them for others."""

    def __init__(self, data: Data):
        """Keep the data, whose vocabulary the models have; measure nothing yet."""
        self.data = data
        self.measured: dict[ModelShape, Costs] = {}

    def of(self, config: TrainConfig) -> Costs:
        """Return the costs of a configuration, in seconds, measured once per shape. Raise UserError if no engine can run."""
        model = resolved(config, self.data)
        if model not in self.measured:
            config = replace(config, compile=False)  # compiling takes longer than what is measured here
            if config.fit is not None:
                config, _ = fit_memory(config, model)
            self.measured[model] = time_step(open_engine(model, config, config), model, config, seconds=0.15)
        return self.measured[model]

    def estimate(self, model: ModelShape) -> float:
        """Return the estimated seconds per step: those of the first measured shape, scaled by the FLOPs per token."""
        known, costs = next(iter(self.measured.items()))
        return costs.step * flops_per_token(model) / flops_per_token(known)


def pick_size(
    config: TrainConfig, data: Data, settings: dict, minutes: float | None, speed: Speed | None
) -> tuple[int, str]:
    """Return (layers, reason): the size asked for, else the largest that `minutes` allow, else small.

    The search scales one measured shape by FLOPs.
    """
    if config.size is not None:
        return SIZES[config.size], _("size {size}, as asked", size=config.size)
    if minutes is None or speed is None:
        return SIZES["small"], _("size small: no training time is given")
    fitting = (n for n in (SIZES[name] for name in MEASURED) if fits(config, model_of(config, data, n, settings)))
    measured = next(fitting, SIZES[MEASURED[-1]])
    speed.of(replace_open(config, settings, shape_of_size(measured, config, settings)))
    seconds = 60 * minutes * TRAINING_SHARE
    name, layers = "tiny", SIZES["tiny"]
    for larger, count in SIZES.items():
        model = model_of(config, data, count, settings)
        tokens = min(seconds / speed.estimate(model) * config.tokens_per_step, EPOCHS * data.meta.train_tokens)
        if tokens >= TOKENS_PER_PARAMETER * count_parameters(model) and fits(config, model):
            name, layers = larger, count
    return layers, (
        _(
            "size {name}: the largest that reads {tokens_per_parameter:g} tokens for each parameter in "
            "{duration} and {epochs} epochs",
            name=name,
            tokens_per_parameter=TOKENS_PER_PARAMETER,
            duration=duration(60 * minutes),
            epochs=EPOCHS,
        )
    )


def fits(config: TrainConfig, model: ModelShape) -> bool:
    """Return whether the model can be trained in the memory that --fit allows; without --fit it always can."""
    if config.fit is None:
        return True
    try:
        fit_memory(config, model)
    except UserError:
        return False
    return True


# ---- the steps ----


def pick_steps(
    config: TrainConfig, data: Data, settings: dict, minutes: float | None, costs: Costs | None
) -> tuple[int, str]:
    """Return (steps, reason): the fewest of those given, those that fit into `minutes`, and those of EPOCHS epochs."""
    limits = []
    if "max_iters" in settings:
        limits.append((config.max_iters, _("as asked")))
    elif minutes is not None and costs is not None:
        why = _("{duration} at {step:.1f} ms a step", duration=duration(60 * minutes), step=costs.step * 1000)
        limits.append((steps_in(60 * minutes, config, data, settings, costs), why))
    if config.max_epochs is not None:
        limits.append((epoch_steps(config, data, config.max_epochs), _("as asked")))
    elif "max_iters" not in settings:
        why = _("{epochs} epochs: more would only memorize the text", epochs=EPOCHS)
        limits.append((epoch_steps(config, data, EPOCHS), why))
        if config.size is not None and minutes is None:
            steps = int(TOKENS_PER_PARAMETER * count_parameters(resolved(config, data)) / config.tokens_per_step)
            why = _("{tokens_per_parameter:g} tokens for each parameter", tokens_per_parameter=TOKENS_PER_PARAMETER)
            limits.append((max(1, steps), why))
        elif costs is None or minutes is None:
            limits.append((STEPS_UNMEASURED, _("no training time is given")))
    return min(limits, key=lambda limit: limit[0])


def epoch_steps(config: TrainConfig, data: Data, epochs: float) -> int:
    """Return the steps in so many epochs, at least 1."""
    return max(1, int(epochs * data.meta.train_tokens / config.tokens_per_step))


def steps_in(seconds: float, config: TrainConfig, data: Data, settings: dict, costs: Costs) -> int:
    """Return the steps of a run that takes so many seconds with its evaluations and files, at least 1."""
    steps = max(1, int(TRAINING_SHARE * seconds / costs.step))
    config = replace(config, max_iters=steps)
    config = replace_open(config, settings, evaluations(config))
    return max(1, int(steps * min(1.0, seconds / run_seconds(config, resolved(config, data), data, costs))))


def steps_more(config: TrainConfig, data: Data, settings: dict) -> tuple[int, int]:
    """Return (steps, steps between evaluations) with which a run goes on for config.minutes. Raise UserError."""
    if config.minutes is None or world()[1] > 1:
        raise UserError(_("--minutes cannot be measured by several processes: give --max_iters"))
    steps = steps_in(60 * config.minutes, config, data, settings, Speed(data).of(config))
    interval = evaluations(replace(config, max_iters=steps))["eval_interval"]
    return steps, config.eval_interval if "eval_interval" in settings else interval


def evaluations(config: TrainConfig) -> dict:
    """Return the settings of evaluation: the interval in steps, the batches per split, and the patience in evaluations.

    They follow from the number of steps alone, so that a run has the same on any machine and under any load.
    """
    scratch = config.init_from == "scratch"
    interval = max(10 if scratch else 5, math.ceil(config.max_iters / (EVALUATIONS if scratch else 10)))
    share = (
        EVALUATION_SHARE * 3 / 2 * interval * config.gradient_accumulation_steps
    )  # a third of the work, in two splits
    batches = math.ceil(share) if scratch else 10
    return dict(
        eval_interval=interval, eval_iters=batches, sample_interval=5 * interval, log_interval=10,
        always_save_checkpoint=True, patience=PATIENCE,
    )  # fmt: skip
