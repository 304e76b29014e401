"""Show what `sampan eval` measured, in lines for the terminal.

    print("\n".join(text_lines(figures)))       # the figures as cli/eval.py makes them

Nothing is measured here.
"""

from typing import Any

from sampan.messages import _, pad, wrap

COLUMN = 22


def text_lines(figures: dict[str, Any]) -> list[str]:
    """Return the lines of a text's figures."""
    about = _(
        "{text}: {characters:,} characters, {bytes:,} bytes, {tokens:,} tokens; the window of {block_size:,} tokens "
        "moves by {stride:,}",
        **figures,
    )
    mean, error = figures["nats_per_token"], figures["nats_per_token_stderr"]
    per_nat = {name: figures[name] / mean if mean else 0.0 for name in ("bits_per_character", "bits_per_byte")}
    rows = [
        (_("nats per token"), with_error(mean, error)),
        (_("perplexity"), f"{figures['perplexity']:,.2f}"),
        (_("bits per character"), with_error(mean, error, per_nat["bits_per_character"])),
        (_("bits per byte"), with_error(mean, error, per_nat["bits_per_byte"])),
    ]
    base = figures["baselines_bits_per_character"]
    baselines = _("baselines, in bits per character: uniform {uniform:.2f}, unigram {unigram:.2f}, xz {xz:.2f}", **base)
    return [*wrap(about, 80, "  "), *table(rows), *wrap(baselines, 80, "  ")]


def choice_lines(figures: dict[str, Any]) -> list[str]:
    """Return the lines of multiple-choice questions' figures."""
    rows = [
        (_("accuracy"), with_error(figures["accuracy"], figures["accuracy_stderr"])),
        (_("per character"), with_error(figures["accuracy_per_character"], figures["accuracy_per_character_stderr"])),
        (_("by chance"), f"{figures['by_chance']:.4f}"),
    ]
    return [_("{questions:,} questions", **figures), *table(rows)]


def with_error(mean: float, error: float | None, factor: float = 1.0) -> str:
    return f"{mean * factor:.4f}" + ("" if error is None else f" ± {error * factor:.4f}")


def table(rows: list[tuple[str, str]]) -> list[str]:
    return [f"  {pad(name, COLUMN)}{value}" for name, value in rows]
