"""How a run went, in plain words, and its losses in units that can be compared.

    print("\\n".join(verdict(plan, evaluations, val_loss, seen)))

It reads the evaluations of a run and a look at its text, and draws no conclusion that they do not carry. It trains
nothing and prints nothing.
"""

import textwrap
from collections.abc import Sequence

from .look import Look, percent
from .loop import Evaluation
from .model import count_parameters
from .plan import Plan

RISE = 0.01  # of the best val loss: less than this is chance
CLOSE = 0.2  # train and val losses that differ by less, relatively, say that more steps help more than more text
UNSEEN = 0.01  # share of val characters from which on they matter
TOKENS_PER_PARAMETER = 1.0  # with fewer in the text, a model that is trained long enough learns it by heart


def loss_table(val_loss: float, seen: Look) -> list[str]:
    """The val loss beside what guessers reach: nats per token, bits per character, bits per byte."""
    rows = [("val loss", seen.bits_per_character(val_loss))]
    rows += [("xz, which has read train", seen.xz), ("unigram: how often each token is", seen.unigram)]
    rows += [("uniform: all tokens alike", seen.uniform)]
    table = [f"{'':34}{'nats/token':>12}{'bits/char':>12}{'bits/byte':>12}"]
    for name, bits in rows:
        nats = seen.nats_per_token(bits)
        table.append(f"{name:34}{nats:12.4f}{bits:12.4f}{bits * seen.characters / seen.bytes:12.4f}")
    return table


def verdict(plan: Plan, evaluations: Sequence[Evaluation], val_loss: float, seen: Look) -> list[str]:
    """Sentences on a run, each wrapped to 80 columns. `val_loss` is of the weights that are kept, in nats per token."""
    sentences = [
        *guessing(val_loss, seen),
        *course(plan, evaluations),
        *unseen(seen),
    ]
    return [line for sentence in sentences for line in textwrap.wrap(f"- {sentence}", 80, subsequent_indent="  ")]


def guessing(val_loss: float, seen: Look) -> list[str]:
    bits = seen.bits_per_character(val_loss)
    if bits > seen.uniform:
        return ["Worse than guessing: all tokens alike would have a lower val loss."]
    if bits > seen.unigram:
        return ["No better than counting: guessing each token as often as train has it would have a lower val loss."]
    return []


def course(plan: Plan, evaluations: Sequence[Evaluation]) -> list[str]:
    """Whether it learnt by heart, could have gone on, or is done."""
    if len(evaluations) < 2:
        return []
    best, last = min(evaluations, key=lambda e: e.val_loss), evaluations[-1]
    if last.val_loss > best.val_loss * (1 + RISE):
        found = [
            f"Overfitting since step {best.step:,}: from there on the val loss rose from {best.val_loss:.2f} to "
            f"{last.val_loss:.2f} while the train loss fell from {best.train_loss:.2f} to {last.train_loss:.2f}. "
            "The best weights are kept."
        ]
        tokens, parameters = plan.data.meta["train_tokens"], count_parameters(plan.model)
        if tokens < TOKENS_PER_PARAMETER * parameters:
            times = TOKENS_PER_PARAMETER * parameters / tokens
            found.append(
                f"The text is too small for this model: {tokens:,} tokens for {parameters:,} parameters. "
                f"About {times:,.0f} times as much text would be in proportion; or a smaller --size, or --dropout 0.2."
            )
        return found
    if last.train_loss * (1 + CLOSE) > last.val_loss:
        how = f"--minutes {2 * plan.config.minutes:g}" if plan.config.minutes else "more --max_iters"
        return [f"Still falling on train and val alike: try longer, with {how}."]
    return [
        f"The val loss was lowest at the end. The train loss, {last.train_loss:.2f} to {last.val_loss:.2f}, is far below "
        "it: more text would help more than more steps; or try --dropout 0.1."
    ]


def unseen(seen: Look) -> list[str]:
    if seen.unseen < UNSEEN:
        return []
    return [
        f"{percent(seen.unseen)} of the val characters are symbols that train never has. No model can know them, "
        "so the val loss says little: give more text."
    ]
