"""Say in plain words how a run went, and give its losses in units that can be compared.

    print("\n".join(verdict(plan, evaluations, val_loss, seen)))

It reads the evaluations of a run and the baselines of its data, and concludes nothing beyond them. It trains nothing
and prints nothing.
"""

from collections.abc import Sequence

from sampan.messages import _, pad, wrap
from sampan.model.count import count_parameters
from sampan.report.baselines import Baselines, percent
from sampan.training.loop import Evaluation
from sampan.training.plan import Plan

RISE = 0.01  # relative change of the val loss; smaller ones are chance
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


def verdict(plan: Plan, evaluations: Sequence[Evaluation], val_loss: float, seen: Baselines) -> list[str]:
    """Return sentences about a run, wrapped to 80 columns. `val_loss` is of the saved weights, in nats per token."""
    sentences = [
        *compare_with_guessing(val_loss, seen),
        *explain_early_stop(plan, evaluations),
        *judge_losses(plan, evaluations),
        *judge_val(seen),
    ]
    return [line for sentence in sentences for line in wrap(f"- {sentence}", 80, "  ")]


def compare_with_guessing(val_loss: float, seen: Baselines) -> list[str]:
    """Return a sentence if the val loss is above that of a model without context."""
    bits = seen.bits_per_character(val_loss)
    if bits > seen.uniform:
        return [_("Worse than guessing: predicting all tokens as equally likely would have a lower val loss.")]
    if bits > seen.unigram:
        return [
            _("No better than counting: always predicting the token frequencies of train would have a lower val loss.")
        ]
    return []


def explain_early_stop(plan: Plan, evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a sentence if `patience` ended the run; a resume would end at once for the same reason."""
    steps, patience = plan.config.max_iters, plan.config.patience
    if not evaluations or evaluations[-1].step >= steps or patience is None:
        return []
    return [
        _(
            "Stopped at step {step:,} of {steps:,}: the val loss did not improve in {patience} evaluations. "
            "To continue anyway: --resume --patience none.",
            step=evaluations[-1].step,
            steps=steps,
            patience=patience,
        )
    ]


def judge_losses(plan: Plan, evaluations: Sequence[Evaluation]) -> list[str]:
    """Return sentences that say whether the run diverged, overfitted, converged or should go on."""
    if len(evaluations) < 2:
        return []
    first, best, last = evaluations[0], min(evaluations, key=lambda e: e.val_loss), evaluations[-1]
    if last.val_loss > best.val_loss * (1 + RISE):
        return judge_rise(plan, best, last)
    if last.val_loss < NOTHING:
        return [
            _("There is nothing left to learn in this text: the val loss is {val_loss:.2f}.", val_loss=last.val_loss)
        ]
    if last.val_loss > first.val_loss * (1 - RISE):
        return [
            _(
                "The val loss has hardly moved, from {val_loss:.2f} to {val_loss_2:.2f}. Train longer, or try "
                "another --learning_rate.",
                val_loss=first.val_loss,
                val_loss_2=last.val_loss,
            )
        ]
    if last.train_loss * (1 + CLOSE) > last.val_loss:
        if plan.config.minutes:
            return [
                _(
                    "The train and val losses were still falling. Train longer: --minutes {value:g}.",
                    value=2 * plan.config.minutes,
                )
            ]
        return [_("The train and val losses were still falling. Train longer, with a larger --max_iters.")]
    if best is last:
        lowest = _("The val loss was lowest at the end.")
    else:
        lowest = _("The val loss was lowest at step {step:,} and has hardly changed since.", step=best.step)
    return [
        lowest,
        _(
            "The train loss ({train_loss:.2f}) is far below the val loss ({val_loss:.2f}): more text would "
            "help more than more steps. Or try --dropout 0.1.",
            train_loss=last.train_loss,
            val_loss=last.val_loss,
        ),
    ]


def judge_rise(plan: Plan, best: Evaluation, last: Evaluation) -> list[str]:
    """Return sentences about a val loss that rose: the run diverged if the train loss rose too, else it overfitted."""
    losses = dict(
        val_loss=best.val_loss, val_loss_2=last.val_loss, train_loss=best.train_loss, train_loss_2=last.train_loss
    )
    if last.train_loss > best.train_loss:
        return [
            _(
                "Diverged: since step {step:,} the val loss rose from {val_loss:.2f} to {val_loss_2:.2f} and the "
                "train loss from {train_loss:.2f} to {train_loss_2:.2f}. The best weights are kept. Try a lower "
                "--learning_rate.",
                step=best.step,
                **losses,
            )
        ]
    found = [
        _(
            "Overfitted since step {step:,}: the val loss rose from {val_loss:.2f} to {val_loss_2:.2f} while "
            "the train loss fell from {train_loss:.2f} to {train_loss_2:.2f}. The best weights are kept.",
            step=best.step,
            **losses,
        )
    ]
    tokens, parameters = plan.data.meta.train_tokens, count_parameters(plan.model)
    if tokens < TOKENS_TO_MEMORIZE * parameters:
        times = TOKENS_TO_MEMORIZE * parameters / tokens
        found.append(
            _(
                "The text is too small for this model: {tokens:,} tokens for {parameters:,} parameters. Use "
                "about {times:,.0f} times as much text, a smaller --size, or --dropout 0.2.",
                tokens=tokens,
                parameters=parameters,
                times=times,
            )
        )
    return found


def judge_val(seen: Baselines) -> list[str]:
    """Return a sentence if the val split tells little about new text."""
    if seen.overlap > REPEATED:
        return [
            _(
                "{percent} of val is copied verbatim from train, so the val loss mostly measures memorization "
                "and says little about new text.",
                percent=percent(seen.overlap),
            )
        ]
    if seen.unseen < UNSEEN:
        return []
    return [
        _(
            "{percent} of the val characters are symbols that do not occur in train, so no model can predict "
            "them. More text would make the val loss meaningful.",
            percent=percent(seen.unseen),
        )
    ]
