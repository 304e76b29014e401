"""The second reading of a text: from blocks of characters to train.bin and val.bin.

parts = encode_blocks(tokenizer, texts.blocks(), cut, has_documents=True, tick=...)
data = write_folder(folder, tokenizer, describe, parts)
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sampan.data.meta import Data, Meta
from sampan.errors import UserError
from sampan.files import write_json
from sampan.messages import _
from sampan.text.characters import Block
from sampan.tokens.tokenizer import Tokenizer


def split_blocks(blocks: Iterable[Block], cut: int) -> Iterator[tuple[str, Block]]:
    """Yield ("train" or "val", block) in order: the first `cut` characters, then the rest.

    A document over the cut ends there and goes on as one of val's.
    """
    done = 0
    for text, ends in blocks:
        here = min(max(0, cut - done), len(text))
        if here:
            over = [here] if done + here == cut and here not in ends else []
            yield "train", Block(text[:here], [e for e in ends if e <= here] + over)
        if here < len(text):
            yield "val", Block(text[here:], [e - here for e in ends if e > here])
        done += len(text)


def join_words(parts: Iterable[tuple[str, Block]], tokenizer: Tokenizer) -> Iterator[tuple[str, Block]]:
    """Yield the same text in blocks that the tokenizer gives the ids that it would give for whole documents.

    That is, cut where a document ends, or where the tokenizer's `last_cut` says.
    """
    held = ""
    for split, (text, ends) in parts:
        text, ends = held + text, [len(held) + e for e in ends]
        begin = ends[-1] if ends else 0
        end = begin + tokenizer.last_cut(text[begin:])
        if end:
            yield split, Block(text[:end], ends)
        held = text[end:]


def encode_blocks(
    tokenizer: Tokenizer, blocks: Iterable[Block], cut: int, has_documents: bool, tick: Callable[[int], None]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield pairs (split, ids) in order; where there are several documents, the end-of-text token is after each.

    What the tokenizer's template begins a text with, such as BOS, is before each document and each split.
    """
    done, begins, last = 0, True, "train"
    for split, (text, ends) in join_words(split_blocks(blocks, cut), tokenizer):
        if tokenizer.begin and (begins or split != last):
            yield split, np.array(tokenizer.begin, np.int32)
        yield split, tokenizer.encode(text, ends=ends if has_documents else (), before=done)
        begins, last = bool(ends) and has_documents and ends[-1] == len(text), split
        done += len(text)
        tick(len(text))


def count_documents(ids: np.ndarray, tokenizer: Tokenizer, file: Path) -> int:
    """Return how many of another program's ids end a document. Raise UserError for one that the tokenizer lacks."""
    if ids.max(initial=0) >= tokenizer.vocab_size:
        raise UserError(
            _(
                "{file}: token {id} is outside the vocabulary of {vocab_size:,}",
                file=file,
                id=ids.max(),
                vocab_size=tokenizer.vocab_size,
            )
        )
    return 0 if tokenizer.end_of_text is None else int(np.count_nonzero(ids == tokenizer.end_of_text))


def shortcomings(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what meta.json says of that which a tokenizer does not keep of the text that it has encoded."""
    return {
        "unknown": tokenizer.unknowns.total(),
        "unknown_most": tokenizer.most_unknown(),
        "losses": tokenizer.losses(),
    }


def write_folder(
    folder: Path, tokenizer: Tokenizer, describe: Callable[..., Meta], parts: Iterable[tuple[str, np.ndarray]]
) -> Data:
    """Write the ids of `parts`, pairs (split, ids), and all that goes with them; nothing half-made is left.

    `describe` makes the Meta of what only the ids tell: vocab_size, dtype, train_tokens, val_tokens, and what the
    tokenizer could not keep. The old meta.json is marked incomplete before the first file is replaced and the new one
    comes last, so that a reader never meets files that do not belong together.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    counts, outcome = {"train": 0, "val": 0}, _("nothing was changed")
    partial = {split: folder / f"{split}.bin.partial" for split in counts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            files = {split: stack.enter_context(path.open("wb")) for split, path in partial.items()}
            for split, ids in parts:
                files[split].write(ids.astype(dtype).data)
                counts[split] += len(ids)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        sizes: dict[str, Any] = {"train_tokens": counts["train"], "val_tokens": counts["val"]}
        meta = describe(vocab_size=tokenizer.vocab_size, dtype=dtype.name, **sizes, **shortcomings(tokenizer))
        outcome = _("prepare it again")  # the old meta.json may be gone even where the sync behind it fails
        write_json(folder / "meta.json", {"complete": False})
        for split, path in partial.items():
            os.replace(path, folder / f"{split}.bin")
        tokenizer.save(folder)
        write_json(folder / "meta.json", meta.to_json())
    except OSError as error:
        raise UserError(
            _(
                "{folder}: cannot be written ({reason}); {outcome}",
                folder=folder,
                reason=error.strerror,
                outcome=outcome,
            )
        ) from None
    finally:
        for path in partial.values():
            with contextlib.suppress(OSError):  # the folder may be a file
                path.unlink(missing_ok=True)
    return Data(folder, meta)
