"""Discourage and forbid repetition, by transformers' definitions of repetition_penalty and no_repeat_ngram_size.

    history = History(prompts, vocab_size, SampleConfig(repetition_penalty=1.2, no_repeat_ngram_size=3))
    logits = history.penalize(logits); banned = history.banned()      # then draw from what is left
    history.add(tokens)

Both count the whole text of a sample: its prompt, and also what has left the model's context. This file draws nothing.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from sampan.config import SampleConfig


class History:
    """Remember what each of B samples has written. `prompts` are int32 (n,) each."""

    def __init__(self, prompts: Sequence[np.ndarray], vocab_size: int, config: SampleConfig):
        self.penalty, self.size = config.repetition_penalty, config.no_repeat_ngram_size
        B = len(prompts)
        self.shape = (B, vocab_size)
        self.seen = np.zeros(self.shape if self.penalty != 1.0 else (B, 0), bool)  # tokens that the sample has
        self.tail: list[tuple[int, ...]] = [()] * B  # its last size - 1 tokens
        self.followers: list[defaultdict[tuple[int, ...], set[int]]] = [defaultdict(set) for _ in range(B)]
        if self.penalty != 1.0 or self.size:
            for row, prompt in enumerate(prompts):
                for token in prompt.tolist():
                    self.add_one(row, token)

    def add(self, tokens: np.ndarray) -> None:
        """Append one token to each sample, int32 (B,)."""
        if self.penalty != 1.0 or self.size:
            for row, token in enumerate(tokens.tolist()):
                self.add_one(row, token)

    def add_one(self, row: int, token: int) -> None:
        if self.penalty != 1.0:
            self.seen[row, token] = True
        if self.size:
            if len(self.tail[row]) == self.size - 1:
                self.followers[row][self.tail[row]].add(token)
            self.tail[row] = (*self.tail[row], token)[-self.size + 1 :] if self.size > 1 else ()

    def penalize(self, logits: np.ndarray) -> np.ndarray:
        """Return logits (B, V) in which those of tokens that were written are lower (Keskar et al. 2019)."""
        if self.penalty == 1.0:
            return logits
        return np.where(self.seen, np.where(logits < 0, logits * self.penalty, logits / self.penalty), logits)

    def banned(self) -> np.ndarray | None:
        """Return which tokens would write an n-gram again, bool (B, V), or None if n-grams may be repeated."""
        if not self.size:
            return None
        found = np.zeros(self.shape, bool)
        for row, tail in enumerate(self.tail):
            found[row, list(self.followers[row].get(tail, ()))] = True
        return found
