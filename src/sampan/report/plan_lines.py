"""Describe a plan in words, to be read before the first step.

    print("\\n".join(plan_lines(plan, engine, time_step(engine, plan.model, plan.config))))

It decides nothing (training/plan.py) and measures nothing (training/cost.py).
"""

from sampan.engine.open import pick_engine
from sampan.engine.protocol import Engine
from sampan.errors import install
from sampan.messages import N_, _, pad, wrap
from sampan.model.count import count_parameters, flops_per_token
from sampan.training.cost import Costs, memory_parts, peak_memory, program_memory, run_seconds, total_memory
from sampan.training.plan import Plan
from sampan.training.schedule import decay_end
from sampan.units import duration, size_of

OPTIMIZER_NAMES = {"adamw": "AdamW", "muon": N_("Muon and AdamW")}


def plan_lines(plan: Plan, engine: Engine | None = None, costs: Costs | None = None) -> list[str]:
    """Return the plan in lines of at most 80 columns; with an engine its memory, with its costs the time too."""
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
    if engine is None:
        rows.append((_("engine"), _("none installed: {command}", command=install("torch"))))
    else:
        parts = memory_parts(m, c, pick_engine(c)) | {"program": program_memory(c)}
        most = max(total_memory(m, c), peak_memory())  # measuring for the plan may have taken more
        about = _("about {size} at the peak: {parts}")
        by_part = ", ".join(f"{_(name)} {size_of(count)}" for name, count in parts.items())
        rows += [(_("engine"), engine.description), (_("memory"), about.format(size=size_of(most), parts=by_part))]
    if costs:
        seconds = run_seconds(c, m, plan.data, costs, plan.start_step)
        rows.append((_("time"), _("about {duration}", duration=duration(seconds))))
    rows.append((_("folder"), c.out_dir))
    names_of: dict[str, list[str]] = {}
    for name, reason in plan.reasons.items():
        names_of.setdefault(reason, []).append(name)
    rows += [(_("chosen"), f"{', '.join(names)}: {reason}") for reason, names in names_of.items() if reason]
    return [f"{pad('' if i else name, 9)} {line}" for name, text in rows for i, line in enumerate(wrap(text, 80 - 10))]


def model_line(plan: Plan) -> str:
    m = plan.model
    start = _("scratch")
    if plan.pretrained or plan.resume:
        start = str(plan.pretrained) if plan.pretrained else _("last/ of {folder}", folder=plan.config.out_dir)
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
    left = max(0, c.max_iters - plan.start_step)
    epochs = c.max_iters * c.tokens_per_step / max(1, plan.data.meta.train_tokens)
    steps = [
        _("{count:,} steps", count=c.max_iters),
        _("{count} epochs", count=f"{epochs:,.{0 if epochs >= 100 else 2}f}"),
    ]
    if plan.resume and left:
        steps.append(_("from step {step:,}", step=plan.start_step))
    elif plan.resume:
        steps.append(_("from step {step:,} (all steps are done: raise --max_iters to continue)", step=plan.start_step))
    rates = [_(OPTIMIZER_NAMES[c.optimizer]), _("learning rate {rate:g}", rate=c.learning_rate)]
    if c.decay_lr and c.warmup_iters:
        rates.append(_("{count} steps of warm-up", count=c.warmup_iters))
    if c.decay_lr:
        rates.append(_("cosine to {rate:g} at step {step:,}", rate=c.min_lr, step=decay_end(c)))
    clauses = [", ".join(steps), ", ".join(rates)]
    if c.patience is not None:
        clauses.append(_("stops after {count} evaluations without a better val loss", count=c.patience))
    tokens = left * c.tokens_per_step
    total = _("{tokens:,} tokens, {flops:,.2f} TFLOP", tokens=tokens, flops=tokens * flops_per_token(plan.model) / 1e12)
    return f"{total}: {'; '.join(clauses)}"
