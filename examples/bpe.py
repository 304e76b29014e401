"""Train a BPE tokenizer and a model of whole documents, fed by a generator of batches.

    python examples/bpe.py                                 # speeches of Shakespeare, downloaded once
    python examples/bpe.py my-notes.txt --vocab_size 2048

Blank lines separate documents. Each document is one row of a batch, between two end-of-text tokens, so the model learns
where a document begins and ends. Rows are padded with targets of -1, which the loss ignores. A document longer than the
context is cut. The script saves no model.
"""

import argparse
from collections.abc import Iterator

import numpy as np

import sampan


def batches(
    documents: list[np.ndarray], size: int, block_size: int, end: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches of `size` random documents, forever: x and y, each int (size, block_size)."""
    draw = np.random.default_rng(0)
    while True:
        x = np.full((size, block_size), end)
        y = np.full((size, block_size), -1)
        for row, i in enumerate(draw.integers(0, len(documents), size)):
            ids = np.concatenate([[end], documents[i], [end]])[: block_size + 1]
            x[row, : len(ids) - 1] = ids[:-1]
            y[row, : len(ids) - 1] = ids[1:]
        yield x, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "text", nargs="?", default="tinyshakespeare", help="a text file, or the name of a built-in text"
    )
    parser.add_argument("--vocab_size", type=int, default=1024)
    parser.add_argument("--max_iters", type=int, default=600)
    options = parser.parse_args()

    text = "\n\n".join(sampan.documents(options.text))
    documents = [d for d in text.split("\n\n") if d.strip()]
    cut = len(documents) * 9 // 10
    tokenizer = sampan.train_bpe(documents[:cut], options.vocab_size)
    encoded = [tokenizer.encode(d) for d in documents]
    tokens = sum(map(len, encoded))
    print(f"{len(documents):,} documents, {len(text):,} characters, {tokens:,} tokens")
    print(f"{len(text) / tokens:.2f} characters per token")

    gpt = sampan.GPT(vocab_size=tokenizer.vocab_size, block_size=64)
    print(gpt)
    train, val = (batches(part, 24, 64, tokenizer.end_of_text) for part in (encoded[:cut], encoded[cut:]))
    for record in gpt.train(train, val, max_iters=options.max_iters):
        if isinstance(record, sampan.Evaluation):
            bits = record.val_loss / np.log(2) * tokens / len(text)
            print(f"step {record.step}: val loss {record.val_loss:.4f}, {bits:.3f} bits per character")

    for sample in gpt.generate([tokenizer.end_of_text], max_new_tokens=64, num_samples=4):
        ids = sample[1:].tolist()
        ids = ids[: ids.index(tokenizer.end_of_text)] if tokenizer.end_of_text in ids else ids
        print("-" * 40)
        print(tokenizer.decode(ids))


if __name__ == "__main__":
    main()
