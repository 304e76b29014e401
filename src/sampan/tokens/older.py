"""Tokenizers of model folders without a tokenizer.json: made from the files that such a folder has instead.

    inner = build_older(Path("uer-gpt2/vocab.txt"), read_beside(Path("uer-gpt2")))      # a tokenizers.Tokenizer

    vocab.json, merges.txt         GPT-2's byte-level BPE (OpenAI's names: encoder.json, vocab.bpe)
    vocab.txt                      BERT's WordPiece, which most Chinese GPT-2s have
    tokenizer.model, spiece.model  SentencePiece, unigram or BPE

The result gives the ids of the class in transformers or of SentencePiece. A folder that names another class, which may
cut words its own way, is refused, with the command by which transformers writes a tokenizer.json.
"""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sampan.errors import UserError
from sampan.files import read_json
from sampan.messages import _
from sampan.tokens.beside import ROLES, Beside
from sampan.tokens.byte_level import byte_level, read_merges
from sampan.tokens.tokenizer import END_OF_TEXT

ADDED = "added_tokens.json"
MERGES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
MORE = (ADDED, *MERGES.values())  # files that a tokenizer has besides its main one
SPACE = "▁"  # SentencePiece's


def build_older(path: Path, beside: Beside) -> Any:
    """Return the tokenizer of an older file as one of the `tokenizers` library. Raises UserError."""
    build, classes = OLDER[path.name]
    named = beside.config.get("tokenizer_class") or beside.model.get("tokenizer_class")
    if named is not None and str(named).removesuffix("Fast") not in (*classes, "PreTrainedTokenizer"):
        raise UserError(
            _(
                "its tokenizer is a {named}, which is not made from {file} here. Write a tokenizer.json with "
                "transformers: {command}",
                named=named,
                file=path.name,
                command=f"python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{path.parent}')."
                f"save_pretrained('{path.parent}')\"",
            )
        )
    inner = build(path, beside)
    add_tokens(inner, path.parent, beside)
    return inner


def add_tokens(inner: Any, folder: Path, beside: Beside) -> None:
    """Add the tokens that the files beside add to a vocabulary. Raises UserError where they would get other ids."""
    from tokenizers import AddedToken

    added = {i: token for token, i in (read_json(folder / ADDED) if (folder / ADDED).is_file() else {}).items()}
    for number, token in (beside.config.get("added_tokens_decoder") or {}).items():
        added[int(number)] = token["content"]
    named = {inner.token_to_id(token): token for token in map(beside.token, ROLES) if token}
    added |= {i: token for i, token in named.items() if i is not None}
    for i, token in sorted(added.items()):
        inner.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        if inner.token_to_id(token) != i:
            raise UserError(_("the added token {token} should have id {id}", token=token, id=i))


# ---- GPT-2's and BERT's ----


def build_byte_level(path: Path, beside: Beside) -> Any:
    from tokenizers import models

    merges = path.with_name(MERGES[path.name])
    if not merges.is_file():
        raise UserError(_("{path} is missing", path=merges))
    unknown = beside.token("unk")
    vocab = read_json(path)
    model = models.BPE(vocab, read_merges(merges), unk_token=unknown if unknown in vocab else None)
    ends = [END_OF_TEXT] if END_OF_TEXT in vocab else []
    inner = byte_level(model, ends, beside.config.get("add_prefix_space") is True)
    return with_template(inner, beside)


def build_word_piece(path: Path, beside: Beside) -> Any:
    from tokenizers import Tokenizer as Inner, decoders, models, normalizers, pre_tokenizers, processors

    vocab = {token.rstrip("\n"): i for i, token in enumerate(path.open(encoding="utf-8"))}
    marks = [beside.token(role) or f"[{role.upper()}]" for role in ("unk", "cls", "sep", "pad", "mask")]
    unknown, begin, end, *_rest = marks
    option = beside.config.get
    inner = Inner(models.WordPiece(vocab, unk_token=unknown))
    inner.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=option("tokenize_chinese_chars", True),
        strip_accents=option("strip_accents"),
        lowercase=option("do_lower_case", True),
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens([mark for mark in marks if mark in vocab])
    if begin in vocab and end in vocab:
        inner.post_processor = processors.BertProcessing((end, vocab[end]), (begin, vocab[begin]))
    return inner


def with_template(inner: Any, beside: Beside) -> Any:
    """Return a tokenizer that begins each text with the BOS token, where the files beside say so."""
    from tokenizers import processors

    token = beside.token("bos")
    if beside.config.get("add_bos_token") is True and token is not None and inner.token_to_id(token) is not None:
        special = [(token, inner.token_to_id(token))]
        inner.post_processor = processors.TemplateProcessing(single=f"{token} $A", special_tokens=special)
    return inner


# ---- SentencePiece's ----

NORMAL, UNKNOWN, CONTROL, USER = 1, 2, 3, 4  # kinds of piece
UNIGRAM, BPE = 1, 2  # kinds of model
LONGEST_PIECE = 1 << 10  # characters; SentencePiece makes none of more than 16 unless it is told


def build_sentence_piece(path: Path, beside: Beside) -> Any:
    from tokenizers import Regex, Tokenizer as Inner, decoders, models, normalizers, pre_tokenizers

    try:
        model = read_message(path.read_bytes())
        parts = [read_message(piece) for piece in model.get(1, [])]
        trainer, rules = ({n: v[-1] for n, v in read_message(model[i][-1]).items()} for i in (2, 3))
        names = [piece[1][0].decode() for piece in parts]
        scores = [struct.unpack("<f", piece.get(2, [bytes(4)])[0])[0] for piece in parts]
        kinds = [piece.get(3, [NORMAL])[0] for piece in parts]
        unknown = kinds.index(UNKNOWN)
        if max(map(len, names)) > LONGEST_PIECE:
            raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError, struct.error):
        raise UserError(_("not a model of SentencePiece")) from None
    user = [name for name, k in zip(names, kinds, strict=True) if k == USER]
    has_bytes, kind = bool(trainer.get(35, 0)), trainer.get(3, UNIGRAM)
    if kind == UNIGRAM:
        inner = Inner(models.Unigram(list(zip(names, scores, strict=True)), unknown, has_bytes))
    elif kind == BPE:
        normal = {name: (-scores[i], i) for i, name in enumerate(names) if kinds[i] == NORMAL}
        merges = sorted(
            (*normal[name], name[:cut], name[cut:])
            for name in normal
            for cut in range(1, len(name))
            if name[:cut] in normal and name[cut:] in normal
        )
        vocab = {name: i for i, name in enumerate(names)}
        pairs = [(left, right) for _score, _i, left, right in merges]
        options: dict[str, Any] = dict(fuse_unk=True, byte_fallback=has_bytes, ignore_merges=bool(user))
        inner = Inner(models.BPE(vocab, pairs, unk_token=names[unknown], **options))
    else:
        raise UserError(_("a SentencePiece model of words or characters is not supported"))
    has_prefix = bool(rules.get(3, 1))
    steps: list[Any] = [normalizers.Precompiled(rules[2])] if rules.get(2) else []
    if rules.get(4, 1):
        steps += [normalizers.Replace(Regex(pattern), new) for pattern, new in ((r"\A +| +\z", ""), (" {2,}", " "))]
    steps += [normalizers.Prepend(SPACE)] if has_prefix else []
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    if user:  # these are tokens wherever they are
        pattern = "|".join(map(re.escape, sorted(user, key=len, reverse=True)))
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    end = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    inner.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *end])
    inner.add_special_tokens([names[i] for i, k in enumerate(kinds) if k in (CONTROL, UNKNOWN)])
    return with_template(inner, beside)


def read_message(data: bytes) -> dict[int, list[Any]]:
    """Return the fields of a protobuf message: numbers as they are, what has a length or is a float as bytes.

    Raises ValueError or IndexError.

    >>> read_message(bytes([0x08, 0x96, 0x01, 0x12, 2, 104, 105]))
    {1: [150], 2: [b'hi']}
    """
    found: dict[int, list[Any]] = {}
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("not a protobuf message")

    while place < len(data):
        key = number()
        value: Any = number() if key & 7 in (0, 2) else None
        if key & 7:
            size = {1: 8, 2: value, 5: 4}.get(key & 7)
            if size is None or place + size > len(data):
                raise ValueError("not a protobuf message")
            value = data[place : place + size]
            place += size
        found.setdefault(key >> 3, []).append(value)
    return found


# file: how it is made, and the classes of transformers that read it so
OLDER: dict[str, tuple[Callable[[Path, Beside], Any], tuple[str, ...]]] = {
    "vocab.json": (build_byte_level, ("GPT2Tokenizer",)),
    "encoder.json": (build_byte_level, ("GPT2Tokenizer",)),
    "vocab.txt": (build_word_piece, ("BertTokenizer",)),
    "tokenizer.model": (build_sentence_piece, ("LlamaTokenizer",)),
    "spiece.model": (build_sentence_piece, ("T5Tokenizer",)),
}
