"""Describe a plan in words, to be read before the first step.

    print("\\n".join(plan_lines(plan, engine, time_step(engine, plan.model, plan.config))))
    print("\\n".join(start_lines(plan, engine, costs, "sampan plan my-novel.txt")))          # five of them, for a run

It decides nothing (training/plan.py) and measures nothing (training/cost.py).
"""

from sampan.config import OPTIMIZERS, TrainConfig
from sampan.engine.open import engines_here, peak_memory, pick_engine, unused_gpu
from sampan.engine.protocol import Engine
from sampan.errors import install
from sampan.messages import _, pad, width, wrap
from sampan.model.count import count_parameters, flops_per_token
from sampan.training.cost import Costs, memory_parts, program_memory, run_seconds, total_memory
from sampan.training.plan import Plan
from sampan.training.schedule import decay_end, learning_rate, restart_rate, restarts
from sampan.units import duration, size_of


def start_lines(plan: Plan, engine: Engine, costs: Costs, more: str) -> list[str]:
    """Return the plan in a few lines, for the start of a run. `more` is the command that shows the rest of it."""
    rows = [
        (_("model"), short_model_line(plan)),
        (_("training"), short_training_line(plan)),
        (_("engine"), f"{engine_line(plan, engine)}; {size_of(peak_bytes(plan))}"),
        (_("time"), f"{time_line(plan, costs)}; {plan.config.out_dir}"),
    ]
    return [*in_columns(rows), *([f"{pad(_('reasons'), 9)} {more}"] if plan.reasons else []), *gpu_lines(plan)]


def plan_lines(plan: Plan, engine: Engine | None = None, costs: Costs | None = None) -> list[str]:
    """Return the plan in lines of at most 80 columns; with an open engine its description, with its costs the time too."""
    c, m, d = plan.config, plan.model, plan.data.meta
    data = _(
        "{name}, {train:,} train and {val:,} val tokens, vocabulary {vocabulary:,}",
        name=d.name,
        train=d.train_tokens,
        val=d.val_tokens,
        vocabulary=m.vocab_size,
    )
    rows = [(_("model"), model_line(plan)), (_("data"), data), (_("step"), step_line(plan, costs))]
    rows.append((_("training"), training_line(plan)))
    if not engines_here():
        rows.append((_("engine"), _("none installed: {command}", command=install("torch"))))
    else:
        parts = memory_parts(m, c, pick_engine(c)) | {"program": program_memory(c)}
        about = _("about {size} at the peak: {parts}")
        by_part = ", ".join(f"{_(name)} {size_of(count)}" for name, count in parts.items())
        memory = about.format(size=size_of(peak_bytes(plan)), parts=by_part)
        rows += [(_("engine"), engine_line(plan, engine)), (_("memory"), memory)]
    if costs:
        rows.append((_("time"), time_line(plan, costs)))
    rows.append((_("folder"), c.out_dir))
    names_of: dict[str, list[str]] = {}
    for name, reason in plan.reasons.items():
        names_of.setdefault(reason, []).append(name)
    rows += [(_("chosen"), f"{', '.join(names)}: {reason}") for reason, names in names_of.items() if reason]
    return [*in_columns(rows), *gpu_lines(plan)]


def in_columns(rows: list[tuple[str, str]]) -> list[str]:
    """Return rows of a name and a text, each text wrapped beside its name."""
    wrapped = ((name, i, line) for name, text in rows for i, line in enumerate(wrap(text, width() - 10)))
    return [f"{pad('' if i else name, 9)} {line}" for name, i, line in wrapped]


# ---- the rows ----


def start_of(plan: Plan) -> str:
    """Return where the weights come from."""
    if plan.resume:
        return _("last/ of {folder}", folder=plan.config.out_dir)
    return str(plan.pretrained) if plan.pretrained else _("scratch")


def short_model_line(plan: Plan) -> str:
    m = plan.model
    line = _("{count:,} parameters: {family}, {layers} layers, {width} wide, block {block}", count=count_parameters(m),
             family=m.family, layers=m.n_layer, width=m.n_embd, block=m.block_size)  # fmt: skip
    return f"{line}; {start_of(plan)}" if plan.pretrained or plan.resume else line


def short_training_line(plan: Plan) -> str:
    c = plan.config
    rate = _("learning rate {rate:g}", rate=c.learning_rate)
    if c.decay_lr:
        first = learning_rate(c, plan.start_step) if plan.resume else c.learning_rate
        rate = _("learning rate {rate:.2g} to {end:g}", rate=first, end=c.min_lr)
    return ", ".join([*step_words(plan), _("{tokens:,} tokens each", tokens=c.tokens_per_step), rate])


def engine_line(plan: Plan, engine: Engine | None) -> str:
    """Return what runs the arithmetic; where PyTorch is there but unused, how an edit of its model would be seen."""
    name = pick_engine(plan.config)
    about = name if engine is None else engine.description
    if name == "c" and "torch" in engines_here():
        return about + _(" (for changes in torch/model.py: --engine torch)")
    return about


def gpu_lines(plan: Plan) -> list[str]:
    """Return what to do about a GPU that is here and not used; the command is whole, however long."""
    command = unused_gpu(plan.config)
    return [
        *wrap(_("An NVIDIA GPU is here, but PyTorch cannot use it. To install one that can:")),
        f"  {command}",
    ] * bool(command)


def time_line(plan: Plan, costs: Costs) -> str:
    seconds = run_seconds(plan.config, plan.model, plan.data, costs, plan.start_step)
    return _("about {duration}", duration=duration(seconds))


def peak_bytes(plan: Plan) -> int:
    return max(
        total_memory(plan.model, plan.config), peak_memory(plan.config)
    )  # measuring for the plan may have taken more


def model_line(plan: Plan) -> str:
    m, start = plan.model, start_of(plan)
    if m.n_kv_head == m.n_head:
        heads = _("{count} heads", count=m.n_head)
    else:
        heads = _("{count} heads ({shared} of keys)", count=m.n_head, shared=m.n_kv_head)
    about = _("{family} from {start}, {count:,} parameters: {layers} layers, {heads}, {width} wide, block {block}")
    return about.format(
        family=m.family, start=start, count=count_parameters(m), layers=m.n_layer, heads=heads, width=m.n_embd,
        block=m.block_size,
    )  # fmt: skip


def step_line(plan: Plan, costs: Costs | None) -> str:
    c = plan.config
    flops = flops_per_token(plan.model) * c.tokens_per_step
    line = (
        f"{c.gradient_accumulation_steps} x {c.batch_size} x {c.block_size} = "
        + _("{count:,} tokens", count=c.tokens_per_step)
        + f", {flops / 1e9:,.2f} GFLOP"
    )
    return f"{line}, {costs.step * 1000:,.1f} ms" if costs else line


def training_line(plan: Plan) -> str:
    c = plan.config
    clauses = [", ".join(step_words(plan)), f"{_(OPTIMIZERS[c.optimizer].title)}, {rate_words(c)}"]
    if c.patience is not None:
        clauses.append(_("stops after {count} evaluations without a better val loss", count=c.patience))
    tokens = max(0, c.max_iters - plan.start_step) * c.tokens_per_step
    total = _("{tokens:,} tokens, {flops:,.2f} TFLOP", tokens=tokens, flops=tokens * flops_per_token(plan.model) / 1e12)
    return f"{total}: {'; '.join(clauses)}"


def step_words(plan: Plan) -> list[str]:
    c = plan.config
    epochs = c.max_iters * c.tokens_per_step / max(1, plan.data.meta.train_tokens)
    words = [
        _("{count:,} steps", count=c.max_iters),
        _("{count} epochs", count=f"{epochs:,.{0 if epochs >= 100 else 2}f}"),
    ]
    if plan.resume and c.max_iters > plan.start_step:
        words.append(_("from step {step:,}", step=plan.start_step))
    elif plan.resume:
        words.append(_("from step {step:,} (all steps are done: raise --max_iters to continue)", step=plan.start_step))
    return words


def rate_words(config: TrainConfig) -> str:
    if restarts(config):
        about = _(
            "learning rate raised to {rate:.2g} at step {start:,} to go on, in a line to {end:g} at step {step:,}"
        )
        rates = dict(rate=restart_rate(config), end=config.min_lr)
        return about.format(start=config.start_iter, step=decay_end(config), **rates)
    words = [_("learning rate {rate:g}", rate=config.learning_rate)]
    if config.decay_lr and config.warmup_iters:
        words.append(_("{count} steps of warm-up", count=config.warmup_iters))
    if config.decay_lr:
        words.append(_("cosine to {rate:g} at step {step:,}", rate=config.min_lr, step=decay_end(config)))
    return ", ".join(words)
