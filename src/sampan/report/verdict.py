"""How a run went, in plain words, and its losses in units that can be compared.

    print("\n".join(verdict(plan, evaluations, val_loss, seen)))

It reads the evaluations of a run and a look at its text, and draws no conclusion that they do not carry. It trains
nothing and prints nothing.
"""

import textwrap
from collections.abc import Sequence

from sampan.model.count import count_parameters
from sampan.report.baselines import Baselines, percent
from sampan.training.loop import Evaluation
from sampan.training.plan import Plan

RISE = 0.01  # of the best val loss: less than this is chance
NOTHING = 0.01  # nats: less is rounding
CLOSE = 0.2  # train and val losses that differ by less, relatively, say that more steps help more than more text
REPEATED = 0.2  # share of val characters that train has in long runs, from which on it is no test
UNSEEN = 0.01  # share of val characters from which on they matter
TOKENS_PER_PARAMETER = 1.0  # with fewer in the text, a model that is trained long enough learns it by heart


def loss_table(val_loss: float, seen: Baselines) -> list[str]:
    """The val loss beside what guessers reach: nats per token, bits per character, bits per byte."""
    rows = [("val loss", seen.bits_per_character(val_loss))]
    rows += [("xz, which has read train", seen.xz), ("unigram: how often each token is", seen.unigram)]
    rows += [("uniform: all tokens alike", seen.uniform)]
    table = [f"{'':34}{'nats/token':>12}{'bits/char':>12}{'bits/byte':>12}"]
    for name, bits in rows:
        nats = seen.nats_per_token(bits)
        table.append(f"{name:34}{nats:12.4f}{bits:12.4f}{seen.bits_per_byte(seen.nats_per_token(bits)):12.4f}")
    return table


def verdict(plan: Plan, evaluations: Sequence[Evaluation], val_loss: float, seen: Baselines) -> list[str]:
    """Sentences on a run, each wrapped to 80 columns. `val_loss` is of the weights that are kept, in nats per token."""
    sentences = [
        *guessing(val_loss, seen),
        *stopped(plan, evaluations),
        *course(plan, evaluations),
        *unseen(seen),
    ]
    return [line for sentence in sentences for line in textwrap.wrap(f"- {sentence}", 80, subsequent_indent="  ")]


def guessing(val_loss: float, seen: Baselines) -> list[str]:
    bits = seen.bits_per_character(val_loss)
    if bits > seen.uniform:
        return ["Worse than guessing: all tokens alike would have a lower val loss."]
    if bits > seen.unigram:
        return ["No better than counting: guessing each token as often as train has it would have a lower val loss."]
    return []


def stopped(plan: Plan, evaluations: Sequence[Evaluation]) -> list[str]:
    """Whether `patience` ended the run; a resume would end at once for the same reason."""
    steps = plan.config.max_iters
    if not evaluations or evaluations[-1].step >= steps or plan.config.patience is None:
        return []
    return [
        f"Stopped at step {evaluations[-1].step:,} of {steps:,}: {plan.config.patience} evaluations found no better val "
        "loss. To go on all the same: --resume --patience none."
    ]


def course(plan: Plan, evaluations: Sequence[Evaluation]) -> list[str]:
    """Whether it learnt by heart, could have gone on, or is done."""
    if len(evaluations) < 2:
        return []
    first, best, last = evaluations[0], min(evaluations, key=lambda e: e.val_loss), evaluations[-1]
    if last.val_loss > best.val_loss * (1 + RISE) and last.train_loss > best.train_loss:
        return [
            f"Diverged: since step {best.step:,} the val loss rose from {best.val_loss:.2f} to {last.val_loss:.2f} and the "
            f"train loss from {best.train_loss:.2f} to {last.train_loss:.2f}. The best weights are kept; try a lower "
            "--learning_rate."
        ]
    if last.val_loss > best.val_loss * (1 + RISE):
        found = [
            f"Overfitting since step {best.step:,}: from there on the val loss rose from {best.val_loss:.2f} to "
            f"{last.val_loss:.2f} while the train loss fell from {best.train_loss:.2f} to {last.train_loss:.2f}. "
            "The best weights are kept."
        ]
        tokens, parameters = plan.data.meta.train_tokens, count_parameters(plan.model)
        if tokens < TOKENS_PER_PARAMETER * parameters:
            times = TOKENS_PER_PARAMETER * parameters / tokens
            found.append(
                f"The text is too small for this model: {tokens:,} tokens for {parameters:,} parameters. "
                f"About {times:,.0f} times as much text would be in proportion; or a smaller --size, or --dropout 0.2."
            )
        return found
    if last.val_loss < NOTHING:
        return [f"There is nothing left to learn in this text: its val loss is {last.val_loss:.2f}."]
    if last.val_loss > first.val_loss * (1 - RISE):
        return [
            f"The val loss has hardly moved, from {first.val_loss:.2f} to {last.val_loss:.2f}: try longer, or another "
            "--learning_rate."
        ]
    if last.train_loss * (1 + CLOSE) > last.val_loss:
        how = f"--minutes {2 * plan.config.minutes:g}" if plan.config.minutes else "more --max_iters"
        return [f"Still falling on train and val alike: try longer, with {how}."]
    lowest = "at the end" if best is last else f"at step {best.step:,} and has hardly changed since"
    return [
        f"The val loss was lowest {lowest}. The train loss, {last.train_loss:.2f} to {last.val_loss:.2f}, is far below "
        "it: more text would help more than more steps; or try --dropout 0.1."
    ]


def unseen(seen: Baselines) -> list[str]:
    if seen.overlap > REPEATED:
        return [
            f"{percent(seen.overlap)} of val stands in train word for word, so the val loss is of what was read: it says "
            "little about other texts."
        ]
    if seen.unseen < UNSEEN:
        return []
    return [
        f"{percent(seen.unseen)} of the val characters are symbols that train never has. No model can know them, "
        "so the val loss says little: give more text."
    ]
