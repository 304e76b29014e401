"""Logits to tokens to text, once for both engines.

    for number, piece in write(engine, tokenizer, prompt="ROMEO:", config=SampleConfig()):
        print(piece, end="")                       # sample `number` grows by `piece`

An engine gives logits; what is drawn from them, and how text is streamed and stopped, is here. A sample's tokens
follow from (seed, its number) and do not depend on how many are drawn beside it. How tokens become characters, and
which of them keep the text whole characters, is in utf8.py.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from .checkpoint import Run, find_model, load_model, load_tokenizer
from .config import ModelConfig, SampleConfig
from .engine import Engine
from .errors import UserError
from .tokenizer import Tokenizer
from .utf8 import BROKEN, WHOLE, stream, token_bytes, transitions

WIDE = 2048  # tokens; in a vocabulary of more, those that cannot be drawn are left out before the arithmetic


def draw(logits: np.ndarray, uniform: np.ndarray, temperature=1.0, top_k: int | None = None, top_p=1.0) -> np.ndarray:
    """A token for each row of `logits`, float32 (B, V); `uniform` is (B,) in [0, 1). Returns int32 (B,).

    The logits are divided by `temperature` (0: the likeliest token); only the `top_k` likeliest stay (None or 0: all),
    with all that equal the last of them; of those only the fewest that hold `top_p` of the probability (Holtzman et
    al. 2020). Raises UserError for a row with NaN or +inf, or with no finite logit.
    """
    top = logits.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        raise UserError("the model's output is not finite; its weights are damaged, or its training diverged")
    if temperature == 0:
        return logits.argmax(axis=1).astype(np.int32)
    ids = None  # of the columns that are left, where some have gone
    if top_k and top_k < logits.shape[1]:
        least = np.partition(logits, -top_k, axis=1)[:, -top_k, None]
        if logits.shape[1] > WIDE:
            ids = np.flatnonzero((logits >= least).any(axis=0))
            logits = logits[:, ids]
        logits = np.where(logits >= least, logits, -np.inf)
    scores = np.subtract(logits, top, dtype=np.float64)  # before the division, which then cannot overflow
    scores /= max(temperature, 1e-250)
    p = np.exp(scores, out=scores)
    if top_p < 1.0:
        p /= p.sum(axis=1, keepdims=True)
        if (
            p.shape[1] > WIDE
        ):  # tokens below this hold less than 1 - top_p together, after all that are kept: not sorted
            likely = np.flatnonzero((p >= (1 - top_p) / p.shape[1]).any(axis=0))
            ids, p = likely if ids is None else ids[likely], p[:, likely]
        order = np.argsort(-p, axis=1, kind="stable")
        ranked = np.take_along_axis(p, order, axis=1)
        before = np.cumsum(ranked, axis=1) - ranked  # what the likelier tokens hold already
        keep = before < top_p
        keep[:, 0] = True
        np.put_along_axis(p, order, np.where(keep, ranked, 0.0), axis=1)
    cumulative = p.cumsum(axis=1)
    column = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(axis=1, dtype=np.int32)
    return column if ids is None else ids[column].astype(np.int32)


def generate(
    engine: Engine, model: ModelConfig, ids: np.ndarray, config: SampleConfig, after: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Tokens that follow `ids`, int32 (n,) or a prompt for each sample (num_samples, n): endlessly, int32 (num_samples,)
    at a time.

    With `after`, the `transitions` of the vocabulary, only tokens are drawn that keep the bytes UTF-8; the options of
    `draw` see no others.

    Beyond block_size the context starts again from its newer half, which costs one pass every block_size / 2
    tokens; moving it along token by token, as nanoGPT does, would cost one for each.
    """
    B, block = config.num_samples, model.block_size
    uniforms = [np.random.default_rng([config.seed, i]).random for i in range(B)]
    allowed, state = None if after is None else after != BROKEN, np.full(B, WHOLE)
    context = np.empty((B, block), np.int32)  # of which `length` tokens are in use
    length = min(ids.shape[-1], block)
    context[:, :length] = ids[..., -block:]
    session = engine.session(B)
    logits = session.feed(context[:, :length])
    while True:
        uniform = np.array([draw_one() for draw_one in uniforms])
        if allowed is not None:
            logits = np.where(allowed[state], logits, -np.inf)
        tokens = draw(logits, uniform, config.temperature, config.top_k, config.top_p)
        if after is not None:
            state = after[state, tokens]
        yield tokens
        if length < block:
            context[:, length] = tokens
            length += 1
            logits = session.feed(tokens[:, None])
            continue
        length = max(1, block // 2)
        context[:, : length - 1] = context[:, block - length + 1 :]
        context[:, length - 1] = tokens
        session = engine.session(B)
        logits = session.feed(context[:, :length])


class Writer:
    """Turns the tokens of one sample into pieces of text: whole characters, nothing from a stop string on.

    Of several stop strings the one that is complete first counts, so that it does not matter how the text is cut into
    tokens. A character that is still incomplete at the end is not shown.
    """

    def __init__(self, next_text: Callable[[int], str | None], end_of_text: int | None, stop: tuple[str, ...]):
        self.next_text = next_text
        self.end_of_text = end_of_text
        self.stop = [s for s in stop if s]
        self.held = ""  # text that could be the beginning of a stop string
        self.done = False

    def add(self, token: int) -> str:
        if self.done:
            return ""
        if token == self.end_of_text:
            return self.finish()
        text = self.next_text(token) or ""
        if not self.stop:
            return text
        self.held += text
        found = [(at + len(s), at) for s in self.stop if (at := self.held.find(s)) >= 0]
        if found:
            self.held = self.held[: min(found)[1]]
            return self.finish()
        shown = len(self.held) - max(beginning(s, self.held) for s in self.stop)
        piece, self.held = self.held[:shown], self.held[shown:]
        return piece

    def finish(self) -> str:
        self.done = True
        piece, self.held = self.held, ""
        return piece


def beginning(stop: str, text: str) -> int:
    """How much of a stop string, short of the whole, `text` ends with.

    >>> beginning("\\n\\nROMEO", "Exit.\\n\\n")
    2
    """
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def write(
    engine: Engine, model: ModelConfig, tokenizer: Tokenizer, prompt: str | None, config: SampleConfig
) -> Iterator[tuple[int, str]]:
    """Pairs (number of the sample, text that it grows by), the prompt of each first.

    Raises UserError for a prompt with an unknown character, and for a model and a tokenizer that do not fit.
    """
    prompt = default_prompt(tokenizer) if prompt is None else prompt
    if half := re.search("[\ud800-\udfff]", prompt):  # how Python keeps bytes of a command line that it cannot read
        raise UserError(f"character {half.start() + 1} of the prompt is not Unicode; give it as FILE:PATH, in UTF-8")
    ids = tokenizer.encode(prompt, config.oov)
    if len(ids) == 0 and prompt:
        raise UserError("nothing is left of the prompt: the vocabulary has none of its characters")
    if len(ids) == 0:
        ids = beginning_of_text(tokenizer)
    if ids.max() >= model.vocab_size:
        raise UserError(
            f"the tokenizer has token {ids.max()} and the model only {model.vocab_size}; they do not belong together"
        )
    shown = tokenizer.decode(ids) if prompt and config.oov == "skip" else prompt
    table = token_bytes(tokenizer, model.vocab_size)
    after = None if config.valid_utf8 is False else keep_valid(table, bool(config.valid_utf8))
    writers = [
        Writer(tokenizer.stream() if table is None else stream(table), tokenizer.end_of_text, config.stop)
        for _ in range(config.num_samples)
    ]
    for number in range(config.num_samples):
        yield number, shown
    if config.max_new_tokens:
        for count, tokens in enumerate(generate(engine, model, ids.astype(np.int32), config, after), 1):
            for number, writer in enumerate(writers):
                yield number, writer.add(int(tokens[number]))
            if count == config.max_new_tokens or all(w.done for w in writers):
                break
    for number, writer in enumerate(writers):
        yield number, writer.finish()


def keep_valid(table: list[bytes] | None, asked: bool) -> np.ndarray | None:
    """What `generate` needs to write UTF-8 only; None where every token is whole characters, so that it cannot fail."""
    if table is None:
        if asked:
            raise UserError("valid_utf8: this tokenizer's tokens have no bytes of their own; leave it at auto")
        return None
    after = transitions(table)
    return after if (after[WHOLE] != WHOLE).any() else None


def beginning_of_text(tokenizer: Tokenizer) -> np.ndarray:
    """What an empty prompt begins with, for the model has to be given something: int32 (n,), n > 0."""
    if tokenizer.end_of_text is not None:
        return np.array([tokenizer.end_of_text], np.int32)
    ids = tokenizer.encode(default_prompt(tokenizer), "skip")
    return ids if len(ids) else np.zeros(1, np.int32)


def default_prompt(tokenizer: Tokenizer) -> str:
    """A line end, as nanoGPT; the first token where the vocabulary has no line end."""
    return "\n" if len(tokenizer.encode("\n", "skip")) else tokenizer.decode([0])


def read_prompt(start: str, standard_input) -> str:
    """The prompt of a `start` setting: itself, FILE:PATH, or - for standard input."""
    if start == "-":
        try:
            return standard_input.read()
        except UnicodeDecodeError as error:
            raise UserError(f"standard input cannot be read as a prompt ({error})") from None
    if not start.startswith("FILE:"):
        return start
    path = Path(start.removeprefix("FILE:"))
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a prompt ({getattr(error, 'strerror', None) or error})") from None


def open_weights(config: SampleConfig) -> tuple[ModelConfig, dict[str, np.ndarray], Tokenizer, str]:
    """(model, weights, tokenizer, a line that says which weights they are). Raises UserError."""
    if config.init_from != "resume":
        folder, line = find_model(config.init_from), config.init_from
    else:
        folder = find_model(config.out_dir)
        run, line = Run(folder), config.out_dir
        if run.exists():
            which = config.weights if (folder / "model.safetensors").exists() else "last"
            line = f"{config.out_dir}: {run.describe(which)}"
            folder = run.last if which == "last" else folder
    model, weights = load_model(folder)
    return model, weights, load_tokenizer(folder), line
