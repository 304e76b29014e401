"""Make tokenizers: one token per character, GPT-2's, or a byte-level BPE learnt from a text.

tokenizer = characters("to be or not")            # any Unicode
tokenizer = characters("to be", byte_tokens=True) # and 256 for the bytes of all others
tokenizer = gpt2_tokenizer()                      # GPT-2's byte-level BPE, fetched once
tokenizer = train_bpe(texts, vocab_size=4096)
"""

import json
from collections.abc import Iterable

from sampan.errors import UserError
from sampan.fetch import GPT2_MERGES, GPT2_VOCAB, fetch
from sampan.text.characters import END
from sampan.tokens.tokenizer import EACH, END_OF_TEXT, MAX_IDS, Tokenizer, byte_token, split_pieces


def characters(symbols: Iterable[str], end_of_text: bool = False, byte_tokens: bool = False) -> Tokenizer:
    """One token for each distinct character of `symbols`, in code-point order, as nanoGPT's shakespeare_char.

    With `byte_tokens` the first 256 ids stand for bytes, in which every other character is spelt in UTF-8.

    >>> characters("hello").encode("hole").tolist()
    [1, 3, 2, 0]
    >>> characters("hello", byte_tokens=True).encode("hé").tolist()
    [257, 195, 169]
    """
    return from_symbols(sorted(set(symbols)), end_of_text, byte_tokens)


def from_symbols(symbols: list[str], end_of_text: bool = False, byte_tokens: bool = False) -> Tokenizer:
    """One token for each of `symbols`, which are distinct characters, in their order."""
    from tokenizers import Regex, Tokenizer as Inner, decoders, models, pre_tokenizers

    names = [byte_token(b) for b in range(256)] if byte_tokens else []
    vocab = {name: i for i, name in enumerate([*names, *symbols])}
    if byte_tokens:
        inner = Inner(models.BPE(vocab, [], byte_fallback=True))
        inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    else:
        inner = Inner(models.WordLevel(vocab))
        inner.decoder = decoders.Fuse()
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(EACH), "isolated")
    if end_of_text:
        inner.add_special_tokens([END_OF_TEXT])
    return Tokenizer(inner)


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's tokenizer, 50,257 ids, made from OpenAI's two files (fetched once, checked). Raises UserError."""
    from tokenizers import models

    vocab = json.loads(fetch(GPT2_VOCAB).read_text(encoding="utf-8"))
    lines = fetch(GPT2_MERGES).read_text(encoding="utf-8").split("\n")[1:]  # the first says its version
    merges = [tuple(line.split(" ")) for line in lines if line]
    return Tokenizer(byte_level(models.BPE(vocab, merges)))


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of `vocab_size` ids, learnt from `texts`."""
    from tokenizers import models, pre_tokenizers, trainers

    check_size(vocab_size)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=[END_OF_TEXT], show_progress=False,
        min_frequency=2,  # a merge that is met once is no rule
    )  # fmt: skip
    inner.train_from_iterator((p for text in texts for d in text.split(END) for p in split_pieces(d)), trainer)
    return Tokenizer(inner)


def check_size(vocab_size: int) -> None:
    """Raises UserError where no byte-level BPE has that size: 256 bytes and the end of text are the least."""
    if not 256 < vocab_size <= MAX_IDS:
        raise UserError(f"bpe:{vocab_size}: a byte-level vocabulary has at least 257 entries, and at most {MAX_IDS:,}")


def first_merges(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """What `train_bpe` would have given for a smaller vocabulary: it learns merges one by one."""
    from tokenizers import Tokenizer as Inner

    config = json.loads(tokenizer.to_json())
    model = config["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < vocab_size}
    model["merges"] = model["merges"][: len(model["merges"]) - (tokenizer.vocab_size - len(model["vocab"]))]
    return Tokenizer(Inner.from_str(json.dumps(config)))


def byte_level(model):
    """A library tokenizer around a BPE model, with GPT-2's way of cutting text into words and words into bytes."""
    from tokenizers import Tokenizer as Inner, decoders, pre_tokenizers

    inner = Inner(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([END_OF_TEXT])
    return inner
