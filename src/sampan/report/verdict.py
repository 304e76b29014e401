"""Say in plain words how a run went, and give its losses in units that can be compared.

    print("\\n".join(verdict(plan, evaluations, val_loss, seen, ["my-novel.txt", "--minutes=1"])))

It reads the evaluations of a run and the baselines of its data, and concludes nothing beyond them. It trains nothing
and prints nothing. docs/en/tutorial.md explains each sentence.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sampan.config import SIZES
from sampan.errors import command
from sampan.messages import _, pad, wrap
from sampan.model.count import count_parameters
from sampan.report.baselines import Baselines, percent
from sampan.training.loop import Evaluation
from sampan.training.plan import Plan

RISE = 0.01  # relative change of the val loss; smaller ones are chance
FALL = 0.005  # relative fall of the val loss in the last quarter of the steps; after a smaller one it is level
NOTHING = 0.01  # nats; a smaller val loss is rounding
CLOSE = 0.2  # relative gap between train and val loss; while it is smaller, more steps help more than more text
REPEATED = 0.2  # share of val characters copied from train that makes val useless as a test
UNSEEN = 0.01  # share of val characters with unknown symbols that is worth mentioning
TOKENS_TO_MEMORIZE = 1.0  # tokens per parameter; a long run on a smaller text learns it by heart


def loss_table(val_loss: float, seen: Baselines) -> list[str]:
    """Return a table of the val loss and the baselines in nats per token, bits per character and bits per byte."""
    rows = [
        (_("val loss"), seen.bits_per_character(val_loss)),
        (_("xz, after compressing train"), seen.xz),
        (_("unigram: token frequencies"), seen.unigram),
        (_("uniform: all tokens equally likely"), seen.uniform),
    ]
    table = [f"{'':34}{'nats/token':>12}{'bits/char':>12}{'bits/byte':>12}"]
    for name, bits in rows:
        nats = seen.nats_per_token(bits)
        table.append(f"{pad(name, 34)}{nats:12.4f}{bits:12.4f}{seen.bits_per_byte(nats):12.4f}")
    return table


class Finding(NamedTuple):
    """Hold a sentence about a run, and the commands that it advises."""

    sentence: str
    commands: tuple[str, ...] = ()


def verdict(
    plan: Plan, evaluations: Sequence[Evaluation], val_loss: float, seen: Baselines, words: Sequence[str] = ()
) -> list[str]:
    """Return sentences about a run, wrapped, and below each the commands that it advises, in a line each.

    `val_loss` is of the saved weights, in nats per token; `words` are those of the command that began the run.
    """
    advice = Advice(plan, words)
    findings = [
        *compare_with_guessing(val_loss, seen),
        *explain_early_stop(plan, evaluations, advice),
        *judge_losses(plan, evaluations, advice),
        *judge_val(seen),
    ]
    lines = []
    for finding in findings:
        lines += wrap(f"- {finding.sentence}", indent="  ")
        lines += [f"    {line}" for line in finding.commands]
    return lines


class Advice:
    """Make whole commands, to be pasted, from the settings of a run and the command that began it."""

    def __init__(self, plan: Plan, words: Sequence[str]):
        self.plan, self.words = plan, list(words)
        if plan.resume or not words or "-" in words:  # standard input cannot be read again
            self.words = [str(plan.data.folder)]
            if plan.config.init_from not in ("scratch", "resume"):
                self.words += self.flags(init_from=plan.config.init_from)
        shaped = (".py", ".toml", "--init_from=", "--n_layer=", "--n_embd=", "--n_head=")
        self.is_sized = any(word.startswith(shaped) or word.endswith(shaped) for word in self.words)

    def go_on(self, **changes: object) -> str:
        """Return the command that continues the run with these settings."""
        return command("train", "--resume", *self.flags(out_dir=self.plan.config.out_dir, **changes))

    def longer(self) -> str:
        """Return the command that trains once more as long."""
        minutes, steps = self.plan.config.minutes, self.plan.config.max_iters
        return self.go_on(minutes=f"{minutes:g}") if minutes else self.go_on(max_iters=2 * steps)

    def new_run(self, **changes: object) -> str:
        """Return the command that begins another run, like this one but for these settings, in a folder of its own."""
        name = "-".join(f"{name}{value}" for name, value in changes.items())
        changed = tuple(f"--{name}=" for name in ("out_dir", *changes))
        words = [word for word in self.words if not word.startswith(changed)]
        return command("train", *words, *self.flags(**changes, out_dir=f"{self.plan.config.out_dir}-{name}"))

    def size(self, step: int) -> tuple[str, ...]:
        """Return the command for the next larger (1) or smaller (-1) model; () where there is none, or no choice."""
        layers = self.plan.model.n_layer
        names = [name for name, count in SIZES.items() if (count - layers) * step > 0]
        if not names or self.is_sized:
            return ()
        return (self.new_run(size=names[0] if step > 0 else names[-1]),)

    def dropout(self, value: float) -> tuple[str, ...]:
        return (self.new_run(dropout=value),) if self.plan.config.dropout < value else ()

    def flags(self, **settings: object) -> list[str]:
        return [f"--{name}={value}" for name, value in settings.items()]


def compare_with_guessing(val_loss: float, seen: Baselines) -> list[Finding]:
    """Return a sentence if the val loss is above that of a model without context, or of a compressor."""
    bits = seen.bits_per_character(val_loss)
    if bits > seen.uniform:
        return [Finding(_("Worse than guessing: predicting all tokens as equally likely would have a lower val loss."))]
    if bits > seen.unigram:
        return [
            Finding(
                _(
                    "No better than counting: always predicting the token frequencies of train would have a lower val loss."
                )
            )
        ]
    if bits > seen.xz:
        return [Finding(_("Worse than xz: a compressor that only finds repeated strings would predict val better."))]
    return []


def explain_early_stop(plan: Plan, evaluations: Sequence[Evaluation], advice: Advice) -> list[Finding]:
    """Return a sentence if `patience` ended the run; a resume would end at once for the same reason."""
    steps, patience = plan.config.max_iters, plan.config.patience
    if not evaluations or evaluations[-1].step >= steps or patience is None:
        return []
    sentence = _(
        "Stopped at step {step:,} of {steps:,}: the val loss did not improve in {patience} evaluations. To continue anyway:",
        step=evaluations[-1].step,
        steps=steps,
        patience=patience,
    )
    return [Finding(sentence, (advice.go_on(patience="none"),))]


def judge_losses(plan: Plan, evaluations: Sequence[Evaluation], advice: Advice) -> list[Finding]:
    """Return sentences that say whether the run diverged, overfitted, converged or should go on."""
    if len(evaluations) < 2:
        return []
    first, best, last = evaluations[0], min(evaluations, key=lambda e: e.val_loss), evaluations[-1]
    if last.val_loss > best.val_loss * (1 + RISE):
        return judge_rise(plan, best, last, advice)
    if last.val_loss < NOTHING:
        sentence = _("There is nothing left to learn in this text: the val loss is {val_loss:.2f}.")
        return [Finding(sentence.format(val_loss=last.val_loss))]
    if last.val_loss > first.val_loss * (1 - RISE):
        sentence = _(
            "The val loss has hardly moved, from {val_loss:.2f} to {val_loss_2:.2f}. Train longer:",
            val_loss=first.val_loss,
            val_loss_2=last.val_loss,
        )
        return [Finding(sentence, (advice.longer(),))]
    if last.train_loss * (1 + CLOSE) > last.val_loss:
        return [judge_close(evaluations, advice)]
    if best is last:
        lowest = _("The val loss was lowest at the end.")
    else:
        lowest = _("The val loss was lowest at step {step:,} and has hardly changed since.", step=best.step)
    sentence = _(
        "The train loss ({train_loss:.2f}) is far below the val loss ({val_loss:.2f}): more text would help more than "
        "more steps.",
        train_loss=last.train_loss,
        val_loss=last.val_loss,
    )
    dropout = advice.dropout(0.1)
    return [Finding(lowest), Finding(f"{sentence} {_('Or try dropout:')}" if dropout else sentence, dropout)]


def judge_close(evaluations: Sequence[Evaluation], advice: Advice) -> Finding:
    """Return a sentence for a run whose train and val losses are close: they still fall, or are level."""
    last = evaluations[-1]
    before = [e for e in evaluations if e.step <= max(evaluations[0].step, 0.75 * last.step)][-1]
    if last.val_loss < before.val_loss * (1 - FALL):
        return Finding(_("The train and val losses were still falling. Train longer:"), (advice.longer(),))
    sentence = _(
        "The val loss has hardly changed since step {step:,}, from {val_loss:.2f} to {val_loss_2:.2f}, and the train loss is "
        "close to it: this model has learned what it can.",
        step=before.step,
        val_loss=before.val_loss,
        val_loss_2=last.val_loss,
    )
    larger = advice.size(1)
    return Finding(f"{sentence} {_('A larger one:')}" if larger else sentence, larger)


def judge_rise(plan: Plan, best: Evaluation, last: Evaluation, advice: Advice) -> list[Finding]:
    """Return sentences about a val loss that rose: the run diverged if the train loss rose too, else it overfitted."""
    losses = dict(
        val_loss=best.val_loss, val_loss_2=last.val_loss, train_loss=best.train_loss, train_loss_2=last.train_loss
    )
    if last.train_loss > best.train_loss:
        sentence = _(
            "Diverged: since step {step:,} the val loss rose from {val_loss:.2f} to {val_loss_2:.2f} and the "
            "train loss from {train_loss:.2f} to {train_loss_2:.2f}. The best weights are kept. With a lower rate:",
            step=best.step,
            **losses,
        )
        return [Finding(sentence, (advice.new_run(learning_rate=f"{plan.config.learning_rate / 3:.2g}"),))]
    sentence = _(
        "Overfitted since step {step:,}: the val loss rose from {val_loss:.2f} to {val_loss_2:.2f} while "
        "the train loss fell from {train_loss:.2f} to {train_loss_2:.2f}. The best weights are kept.",
        step=best.step,
        **losses,
    )
    found = [Finding(sentence)]
    tokens, parameters = plan.data.meta.train_tokens, count_parameters(plan.model)
    if tokens < TOKENS_TO_MEMORIZE * parameters:
        sentence = _(
            "The text is too small for this model: {tokens:,} tokens for {parameters:,} parameters. About {times:,.0f} times "
            "as much text would be enough.",
            tokens=tokens,
            parameters=parameters,
            times=TOKENS_TO_MEMORIZE * parameters / tokens,
        )
        ways = (*advice.size(-1), *advice.dropout(0.2))
        found.append(Finding(f"{sentence} {_('Or try:')}" if ways else sentence, ways))
    return found


def judge_val(seen: Baselines) -> list[Finding]:
    """Return a sentence if the val split tells little about new text."""
    if seen.overlap > REPEATED:
        sentence = _(
            "{percent} of val is copied verbatim from train, so the val loss mostly measures memorization "
            "and says little about new text.",
            percent=percent(seen.overlap),
        )
    elif seen.unseen >= UNSEEN:
        sentence = _(
            "{percent} of the val characters are symbols that do not occur in train, so no model can predict "
            "them. More text would make the val loss meaningful.",
            percent=percent(seen.unseen),
        )
    else:
        return []
    return [Finding(sentence)]
