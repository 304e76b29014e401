"""A byte-level BPE of the `tokenizers` library as one of `tiktoken`, where both give the same ids for every text.

encoding = fast_encoding(inner, json.loads(inner.to_str()))    # a tiktoken.Encoding, or None
"""

from typing import Any

from sampan.messages import _
from sampan.tokens.tokenizer import library_errors

WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's
ODD_MODEL = (
    "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"
)  # fmt: skip
ODD_TOKEN = ("single_word", "lstrip", "rstrip", "normalized")


def fast_encoding(inner: Any, description: dict[str, Any]) -> Any:
    """Return a library tokenizer as a `tiktoken.Encoding`, or None where that would not be exactly the same.

    tiktoken knows no list of merges: it joins the two neighbours that make the token of the lowest rank. That is
    the same where ids rise in the order of merges and every token's own bytes give that token, for then a span that
    no merge crosses goes through the same joins as the token does by itself.
    """
    model, cut, decoder = description["model"], description["pre_tokenizer"] or {}, description["decoder"] or {}
    is_gpt2s = cut.get("type") == decoder.get("type") == "ByteLevel" and cut["use_regex"]
    if not is_gpt2s or cut["add_prefix_space"] or description["normalizer"] or model["type"] != "BPE":
        return None
    added = {token["content"]: token["id"] for token in description["added_tokens"]}
    if any(token[how] for token in description["added_tokens"] for how in ODD_TOKEN):
        return None
    tokens = {token: i for token, i in model["vocab"].items() if token not in added}
    alphabet = byte_alphabet()
    joined = ["".join(pair) for pair in model["merges"]]
    made = [tokens.get(token, -1) for token in joined]
    if any(model[name] for name in ODD_MODEL) or made != sorted(set(made)) or -1 in made:
        return None
    if set(tokens) != {*alphabet, *joined}:
        return None
    with library_errors(_("the tokenizer cannot encode its own tokens")):
        if any(len(inner.model.tokenize(token)) != 1 for token in tokens):
            return None
    import tiktoken

    ranks = {bytes(alphabet[c] for c in token): i for token, i in tokens.items()}
    return tiktoken.Encoding("sampan", pat_str=WORDS, mergeable_ranks=ranks, special_tokens=added)


def byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of GPT-2's byte-level vocabularies stands for.

    The printable characters of Latin-1 stand for themselves, the other bytes in turn for U+0100 and on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}
