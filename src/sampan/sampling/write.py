"""Tokens to text: whole characters, stop strings, prompts.

    for number, piece in write(engine, model, tokenizer, prompt="ROMEO:", config=SampleConfig()):
        print(piece, end="")                       # sample `number` grows by `piece`

What is drawn from logits is draw.py's; how tokens become characters is tokens/bytes.py's.
"""

import logging
import re
from collections.abc import Callable, Iterator

import numpy as np

from sampan.config import SampleConfig
from sampan.engine.protocol import Engine
from sampan.errors import UserError
from sampan.messages import _
from sampan.model.shape import ModelShape
from sampan.sampling.draw import generate
from sampan.tokens.bytes import BROKEN, WHOLE, stream_text, token_bytes, transitions
from sampan.tokens.tokenizer import Tokenizer, unknown_sentence

log = logging.getLogger(__name__)


class Writer:
    """Turn the tokens of one sample into text, piece by piece: whole characters, up to the first stop string.

    The first of several stop strings is the one that is complete first, however the text is cut into tokens. The stop
    string itself is left out, and so is a character that is incomplete at the end.
    """

    def __init__(self, next_text: Callable[[int], str | None], ends: frozenset[int], stop: tuple[str, ...]):
        self.next_text = next_text
        self.ends = ends
        self.stop = [s for s in stop if s]
        self.held = ""  # text that could be the beginning of a stop string
        self.done = False

    def add(self, token: int) -> str:
        """Append a token and return the text that is new, without an ending that could begin a stop string."""
        if self.done:
            return ""
        if token in self.ends:
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
        """End the sample and return the text that was held back."""
        self.done = True
        piece, self.held = self.held, ""
        return piece


def beginning(stop: str, text: str) -> int:
    """Return how many characters of a stop string, fewer than all, `text` ends with.

    >>> beginning("\\n\\nROMEO", "Exit.\\n\\n")
    2
    """
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def write(
    engine: Engine, model: ModelShape, tokenizer: Tokenizer, prompt: str | None, config: SampleConfig
) -> Iterator[tuple[int, str]]:
    """Yield pairs (number of the sample, text to append to it), beginning with the prompt of each sample.

    `prompt` None means `default_prompt`. A sample ends at the end-of-text token, at a stop string of `config`, or after
    max_new_tokens tokens. Pieces are whole characters, and can be "".

    Raise UserError if the prompt has characters that the vocabulary lacks (unless config.oov allows them) or that are
    not Unicode, if the tokenizer does not match the model, if valid_utf8 is asked for and cannot be guaranteed, or if
    the model's output is NaN or infinite.
    """
    prompt = default_prompt(tokenizer) if prompt is None else prompt
    if half := re.search("[\ud800-\udfff]", prompt):  # how Python keeps bytes of a command line that it cannot read
        raise UserError(
            _("character {start} of the prompt is not Unicode; give it as FILE:PATH, in UTF-8", start=half.start() + 1)
        )
    ids = tokenizer.encode(prompt, config.oov)
    if tokenizer.unknowns and config.oov == "error":
        log.warning(unknown_sentence(tokenizer.unknowns.total(), tokenizer.most_unknown()))
    if len(ids) == 0 and prompt:
        raise UserError(_("none of the prompt's characters are in the vocabulary"))
    shown = tokenizer.decode(ids) if prompt and config.oov == "skip" else prompt
    ids = np.array([*tokenizer.begin, *ids], np.int32)  # as training and transformers do
    if len(ids) == 0:
        ids = beginning_of_text(tokenizer)
    if ids.max() >= model.vocab_size:
        raise UserError(
            _(
                "this tokenizer does not match the model: it has token {id}, but the model has only {vocab_size} tokens",
                id=ids.max(),
                vocab_size=model.vocab_size,
            )
        )
    table = token_bytes(tokenizer, model.vocab_size)
    after = None if config.valid_utf8 is False else keep_valid(table, bool(config.valid_utf8))
    after = keep_known(tokenizer, model.vocab_size, after)
    writers = [
        Writer(tokenizer.stream() if table is None else stream_text(table), tokenizer.stops, config.stop)
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
    """Return the `transitions` that keep a text valid UTF-8, uint8 (states, V), or None if they are not needed or unknown.

    They are not needed if every token is whole characters. `table` is what `token_bytes` returns. Raise UserError if
    valid UTF-8 was `asked` for and the bytes of the tokens are unknown, or if the vocabulary cannot write a character.
    """
    if table is None:
        if asked:
            raise UserError(_("valid_utf8: the bytes of this tokenizer's tokens are unknown; leave it at auto"))
        return None
    after = transitions(table)
    return after if (after[WHOLE] != WHOLE).any() else None


def keep_known(tokenizer: Tokenizer, vocab_size: int, after: np.ndarray | None = None) -> np.ndarray | None:
    """Return `after`, uint8 (states, V), with BROKEN for ids that no token has, since these would write nothing.

    A model's vocabulary is often padded to more ids than its tokenizer's. `after` None allows all tokens; None is also
    returned if there is no such id.
    """
    unknown = ~tokenizer.has_token(vocab_size)
    if not unknown.any():
        return after
    after = np.zeros((1, vocab_size), np.uint8) if after is None else after  # WHOLE after each
    after[:, unknown] = BROKEN
    return after


def beginning_of_text(tokenizer: Tokenizer) -> np.ndarray:
    """Return the tokens to begin with if the prompt is empty, since a model needs at least one: int32 (n,), n > 0."""
    if tokenizer.end_of_text is not None:
        return np.array([tokenizer.end_of_text], np.int32)
    ids = tokenizer.encode("\n", "skip")
    return ids if len(ids) else np.zeros(1, np.int32)


def default_prompt(tokenizer: Tokenizer, documents: int | None = None) -> str:
    """Return "", which begins as a document does, or a line end for a model of one text, as nanoGPT does.

    `documents` is the number of them in the training text; None, where nobody knows it, stands for many if the
    vocabulary has an end-of-text token. A vocabulary with neither gives the text of token 0.
    """
    has_line_end = len(tokenizer.encode("\n", "skip")) > 0
    if tokenizer.between and (documents is None or documents > 1 or not has_line_end):
        return ""
    return "\n" if has_line_end else tokenizer.decode([0])
