"""llm.c's tokenizer files: the bytes of every token, which is all that it needs to print text.

    write_tokenizer(Path("gpt2_tokenizer.bin"), tokenizer)
    tokenizer = read_tokenizer_file(Path("gpt2_tokenizer.bin"))

The file has neither the merges of a BPE, which are reconstructed, nor the rule that cuts a text into words, which is
assumed to be GPT-2's.
"""

import itertools
from pathlib import Path

from tokenizers import models

from sampan.data.nanogpt import fetch_gpt2_tokenizer
from sampan.errors import UserError
from sampan.exchange.llmc.header import HEADER, TOKENIZER, has_magic, read_header, write_header
from sampan.files import replacing
from sampan.messages import _
from sampan.tokens.byte_level import ByteLevel, byte_level
from sampan.tokens.bytes import token_bytes
from sampan.tokens.characters import from_symbols
from sampan.tokens.fast import byte_alphabet
from sampan.tokens.kinds import read_tokenizer
from sampan.tokens.tokenizer import END_OF_TEXT, Tokenizer

END = END_OF_TEXT.encode()
GPT2_END = 50256  # version 1 has GPT-2's tokens only


def find_tokenizer(wanted: str, beside: Path) -> Tokenizer:
    """Return the tokenizer of a file: `wanted`, or for "auto" a gpt2_tokenizer.bin beside it, else GPT-2's.

    `wanted` is gpt2, a tokenizer.json or its folder, or a tokenizer file of llm.c. Raises UserError.
    """
    path = beside.with_name("gpt2_tokenizer.bin") if wanted == "auto" else Path(wanted)
    if has_magic(path):
        return read_tokenizer_file(path)
    if wanted in ("auto", "gpt2"):
        return fetch_gpt2_tokenizer()
    return read_tokenizer(path)


def read_tokenizer_file(path: Path) -> Tokenizer:
    """Return the tokenizer of a file: a byte-level BPE, or one of characters. Raises UserError for any other."""
    _magic, version, count, end = read_header(path, TOKENIZER)[:4]
    raw = path.read_bytes()[4 * HEADER :]
    if version not in (1, 2) or not 0 < count <= len(raw) // 2:
        raise UserError(
            _(
                "{path}: not a tokenizer (version {version} with {count} tokens in {count_2} bytes)",
                path=path,
                version=version,
                count=count,
                count_2=len(raw),
            )
        )
    tokens, at = [], 0
    while at < len(raw) and raw[at]:
        tokens.append(raw[at + 1 : at + 1 + raw[at]])
        at += 1 + raw[at]
    end = GPT2_END if version == 1 else end
    if at != len(raw) or len(tokens) != count or len(set(tokens)) != count or not 0 <= end < count:
        raise UserError(
            _("{path}: its header promises {count} different tokens, which it does not contain", path=path, count=count)
        )
    try:
        tokenizer = build_tokenizer(tokens, tokens[end] == END)
    except ValueError as error:
        raise UserError(
            _("{path}: cannot reconstruct its tokenizer ({error}); give a tokenizer.json", path=path, error=error)
        ) from None
    if token_bytes(tokenizer, tokenizer.vocab_size) != tokens:
        raise UserError(
            _("{path}: cannot reconstruct its tokenizer (other ids come out); give a tokenizer.json", path=path)
        )
    return tokenizer


def build_tokenizer(tokens: list[bytes], has_end: bool) -> Tokenizer:
    """Return the tokenizer with these tokens. Raises ValueError if they are neither a byte-level BPE nor characters."""
    words = [token for token in tokens if not (has_end and token == END)]
    if {bytes([b]) for b in range(256)} <= set(words):
        character = {byte: c for c, byte in byte_alphabet().items()}
        names = {token: "".join(map(character.__getitem__, token)) for token in words}
        rank = {token: i for i, token in enumerate(words)}
        merges = [(names[left], names[right]) for left, right in (halves(t, rank) for t in words if len(t) > 1)]
        return ByteLevel(byte_level(models.BPE({names.get(t, END_OF_TEXT): i for i, t in enumerate(tokens)}, merges)))
    symbols = [word.decode() for word in words]
    if any(len(symbol) != 1 for symbol in symbols):
        raise ValueError("its tokens are neither bytes and their merges nor characters")
    return from_symbols(symbols, has_end)


def halves(token: bytes, rank: dict[bytes, int]) -> list[bytes]:
    """Return the two tokens that were merged into this one: apply all merges of lower rank to its bytes.

    >>> halves(b"the", {b"th": 0, b"the": 1})
    [b'th', b'e']
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        lowest, i = min((rank.get(a + b, len(rank)), i) for i, (a, b) in enumerate(itertools.pairwise(parts)))
        if lowest >= rank[token]:
            raise ValueError(f"token {token!r} is not a merge of two earlier ones")
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def write_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer file. Raises UserError if its tokens have no bytes, or too many, and OSError."""
    tokens = token_bytes(tokenizer, tokenizer.vocab_size)
    if tokens is None:
        raise UserError(
            _("{path}: llm.c's tokenizer file needs the bytes of each token, which this tokenizer lacks", path=path)
        )
    for i, token in enumerate(tokens):
        if not 0 < len(token) < 256:
            raise UserError(
                _(
                    "{path}: token {i} has {count} bytes; llm.c's tokenizer file supports 1 to 255",
                    path=path,
                    i=i,
                    count=len(token),
                )
            )
    begin = tokenizer.end_of_text
    if begin is None:  # llm.c's samples begin with this token
        begin = tokens.index(b"\n") if b"\n" in tokens else 0
    with replacing(path) as file:
        write_header(file, TOKENIZER, 2, len(tokens), begin)
        for token in tokens:
            file.write(bytes([len(token)]) + token)
