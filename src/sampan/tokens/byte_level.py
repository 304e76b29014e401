"""Byte-level BPE: GPT-2's vocabulary, or one learnt from a text. Any text can be encoded.

    tokenizer = train_bpe(texts, vocab_size=4096)
    tokenizer = gpt2_tokenizer(vocab_file, merges_file)   # GPT-2's 50,257 ids, of OpenAI's two files

Words are cut as GPT-2 cuts them, and encoded by `tiktoken` where that gives the same ids (fast.py), several times faster
than by the library.
"""

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sampan.errors import UserError
from sampan.fetch import GPT2_MERGES, GPT2_VOCAB
from sampan.machine import count_cores
from sampan.messages import _
from sampan.text.characters import split_at
from sampan.tokens.fast import byte_alphabet, fast_encoding
from sampan.tokens.tokenizer import (
    END_OF_TEXT,
    MAX_IDS,
    Kind,
    Material,
    Tokenizer,
    describe,
    library_errors,
    unknown_character,
)  # fmt: skip

PIECE_CHARACTERS = 1 << 14  # characters that a thread is given at a time
LONG_RUN = re.compile(r"[^\W\d_]{64,}|\d{64,}|\s{64,}|(?:[^\w\s]|_){64,}")  # no word of GPT-2's reaches beyond
RUN_PIECE = 32  # characters of a run that a BPE is learnt from at a time
RUN_CHARACTERS = 1 << 19  # of such runs that a BPE is learnt from
LONGEST = 1 << 18  # characters without a place to cut, after which a text is cut all the same
# After a letter, every byte-level pre-tokenizer known here (GPT-2's, Llama 3's, Qwen's, GPT-4o's) cuts before these.
SEPARATORS = frozenset(" \t\n\r\v\f\u3000,.;:!?，。；：！？、")


class ByteLevel(Tokenizer):
    """Tokens of bytes, in words that are cut before any separator that follows a letter."""

    @cached_property
    def lacking(self) -> frozenset[int]:
        """The bytes that the vocabulary lacks; without an unknown token, the library would drop them."""
        known = self.inner.get_vocab(with_added_tokens=False) if self.unknown is None else byte_alphabet()
        return frozenset(byte for c, byte in byte_alphabet().items() if c not in known)

    @classmethod
    def fits(cls, description: dict[str, Any]) -> bool:
        cut = json.dumps(description["pre_tokenizer"])
        cuts_words = '"use_regex": true' in cut or '"Split"' in cut  # else a token may reach across spaces
        has_prefix = '"add_prefix_space": true' in cut
        return "ByteLevel" in cut and cuts_words and not has_prefix and description["normalizer"] is None

    def last_cut(self, text: str) -> int:
        found = next((i for i in range(len(text) - 1, 0, -1) if may_cut(text, i)), 0)
        return found if found or len(text) < LONGEST else len(text)

    def pieces(self, text: str) -> Iterator[str]:
        return split_pieces(text)

    @cached_property
    def fast(self) -> Any:
        """This tokenizer as a `tiktoken.Encoding`, or None; made for the first long text, of a description parsed anew,
        for a vocabulary of 50,000 that is kept parsed takes 20 MB.
        """
        return fast_encoding(self.inner, describe(self.inner).parts)

    def encode(self, text: str, oov: str = "error", ends: Sequence[int] = (), before: int = 0) -> np.ndarray:
        if self.lacking and (lost := [c for c in set(text) if self.lacking.intersection(c.encode(errors="replace"))]):
            first = min(map(text.index, lost))
            if oov == "error":
                raise unknown_character(text[first], before + first, self.vocab_size)
            gone = str.maketrans(dict.fromkeys(lost))
            text, ends = text.translate(gone), [len(text[:end].translate(gone)) for end in ends]
        if len(text) < PIECE_CHARACTERS or self.fast is None:
            return super().encode(text, oov, ends, before)
        names = [self.inner.id_to_token(i) for i in self.between]
        if ends and not (names and self.fast.special_tokens_set.issuperset(names)):
            return super().encode(text, oov, ends, before)
        ids = self.encode_fast("".join(names).join(split_at(text, ends)))  # it takes a token's name for the token
        return self.without_next(ids, text, ends)

    def encode_fast(self, text: str) -> np.ndarray:
        """Return the ids of `text` by `tiktoken`, in threads."""
        from concurrent.futures import ThreadPoolExecutor

        def encode(piece: str) -> np.ndarray:
            try:
                return self.fast.encode_to_numpy(piece, allowed_special="all")
            except ValueError:  # its regular expressions give up on a million spaces in a row
                return np.array(self.inner.encode(piece, add_special_tokens=False).ids, dtype=np.uint32)

        with (
            library_errors(_("the tokenizer cannot encode this text")),
            ThreadPoolExecutor(count_cores()) as pool,
        ):  # the library leaves Python's lock to others while it works
            text.encode()  # tiktoken would replace a lone surrogate
            parts = list(pool.map(encode, split_pieces(text)))
        return np.concatenate([np.empty(0, np.uint32), *parts]).astype(np.int32)


# ---- making ----


def gpt2_tokenizer(vocab_file: Path, merges_file: Path) -> ByteLevel:
    """Return GPT-2's tokenizer, 50,257 ids, made from OpenAI's encoder.json and vocab.bpe."""
    from tokenizers import models

    vocab = json.loads(vocab_file.read_text(encoding="utf-8"))
    return ByteLevel(byte_level(models.BPE(vocab, read_merges(merges_file))))


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Return the pairs of a merges.txt, whose first line says its version. Raises UserError."""
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(_("{path}: expected two tokens in each line", path=path))
    return [(left, right) for left, right in pairs]


def train_bpe(texts: Iterable[str], vocab_size: int) -> ByteLevel:
    """Return a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of `vocab_size` ids, learnt from documents."""
    from tokenizers import models, pre_tokenizers, trainers

    check_size(vocab_size)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=[END_OF_TEXT], show_progress=False,
        min_frequency=2,  # a merge that is met once is no rule
    )  # fmt: skip
    interruptible(lambda pieces: inner.train_from_iterator(pieces, trainer), training_pieces(list(texts)))
    return ByteLevel(inner)


def training_pieces(texts: list[str]) -> Iterator[str]:
    """Yield texts in the pieces that a BPE is learnt from.

    Learning takes time with the square of a word. A long run without a break, of digits or of Chinese characters, is cut
    into short pieces, of which evenly spread ones add up to RUN_CHARACTERS at most: few of them are equal, and equal
    words are what makes learning fast.
    """
    total = sum(len(run[0]) for text in texts for run in LONG_RUN.finditer(text))
    share, number = min(1.0, RUN_CHARACTERS / max(total, 1)), 0
    for text in texts:
        done = 0
        for run in LONG_RUN.finditer(text):
            yield from split_pieces(text[done : run.start()])
            for start in range(run.start(), run.end(), RUN_PIECE):
                number += 1
                if int(number * share) > int((number - 1) * share):
                    yield text[start : min(start + RUN_PIECE, run.end())]
            done = run.end()
        yield from split_pieces(text[done:])


def interruptible(learn: Callable[[Iterator[str]], None], pieces: Iterator[str]) -> None:
    """Call `learn(pieces)`, which may be long in a library, so that Ctrl-C ends it at once."""
    from concurrent.futures import Future

    future: Future[None] = Future()
    is_wanted = True

    def work() -> None:
        try:
            learn(itertools.takewhile(lambda _piece: is_wanted, pieces))
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)  # without a time, Windows would not notice Ctrl-C
    finally:
        is_wanted = False
    future.result()


def check_size(vocab_size: int) -> None:
    """Raise UserError where no byte-level BPE has that size: 256 bytes and the end of text are the least."""
    if not 256 < vocab_size <= MAX_IDS:
        raise UserError(
            _(
                "bpe:{vocab_size}: a byte-level vocabulary has at least 257 entries, and at most {max_ids:,}",
                vocab_size=vocab_size,
                max_ids=MAX_IDS,
            )
        )


def first_merges(tokenizer: ByteLevel, vocab_size: int) -> ByteLevel:
    """Return what `train_bpe` would have given for a smaller vocabulary: it learns merges one by one."""
    from tokenizers import Tokenizer as Inner

    description = describe(tokenizer.inner).parts
    model = description["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < vocab_size}
    model["merges"] = model["merges"][: len(model["merges"]) - (tokenizer.vocab_size - len(model["vocab"]))]
    return ByteLevel(Inner.from_str(json.dumps(description)))


def byte_level(model: Any, special: Sequence[str] = (END_OF_TEXT,), add_prefix_space: bool = False) -> Any:
    """Return a library tokenizer around a BPE model, with GPT-2's way of cutting text into words and words into bytes."""
    from tokenizers import Tokenizer as Inner, decoders, pre_tokenizers

    inner = Inner(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([*special])
    return inner


def make_bpe(material: Material) -> ByteLevel:
    return train_bpe(material.sample(), material.size or 0)


def make_gpt2(material: Material) -> ByteLevel:
    return gpt2_tokenizer(*material.files)


BPE = Kind("bpe:SIZE", make_bpe, ByteLevel, check_size)
GPT2 = Kind("gpt2", make_gpt2, ByteLevel, files=(GPT2_VOCAB, GPT2_MERGES))


# ---- pieces ----


def may_cut(text: str, position: int) -> bool:
    """Return whether byte-level tokens never reach across `position` of the text."""
    return text[position] in SEPARATORS and text[position - 1].isalpha()


def split_pieces(text: str) -> Iterator[str]:
    """Yield `text` in pieces of about PIECE_CHARACTERS characters, cut where `may_cut`.

    The libraries encode pieces in parallel, and their cost per character grows with the length of one. A text
    without such a place is one piece; an empty one is none.
    """
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = start + PIECE_CHARACTERS
        while end < len(text) and not may_cut(text, end):
            end += 1
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]
