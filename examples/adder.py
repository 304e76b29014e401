"""Learn addition digit by digit from examples, and test it on sums that the model has never seen.

    python examples/adder.py                     # two digits
    python examples/adder.py --digits 3

85 + 50 = 135 becomes the sequence 8 5 5 0 5 3 1: both numbers, zero-padded, then the sum from its last digit to its
first, the order in which carries arise. One fifth of all sums, at most 500, is held out for the test. Only the digits of
the sum count in the loss. The task is minGPT's adder (Karpathy 2020). The script saves no model.
"""

import argparse
import time

import numpy as np

import sampan


def digits_of(numbers: np.ndarray, count: int) -> np.ndarray:
    """Return the decimal digits, most significant first: int (N,) to int (N, count)."""
    return numbers[:, None] // 10 ** np.arange(count - 1, -1, -1) % 10


def problems(digits: int) -> np.ndarray:
    """Return all sums a + b, one per row: int (100 ** digits, 3 * digits + 1)."""
    a, b = np.divmod(np.arange(10 ** (2 * digits)), 10**digits)
    return np.hstack([digits_of(a, digits), digits_of(b, digits), digits_of(a + b, digits + 1)[:, ::-1]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=int, default=2, choices=(1, 2, 3))
    parser.add_argument("--max_iters", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1337)
    options = parser.parse_args()
    n, start = options.digits, time.perf_counter()

    rows = np.random.default_rng(options.seed).permutation(problems(n))
    held_out = min(len(rows) // 5, 500)
    test, train = rows[:held_out], rows[held_out:]
    x, y = train[:, :-1], train[:, 1:].copy()
    y[:, : 2 * n - 1] = -1  # no loss on the problem itself

    gpt = sampan.GPT(vocab_size=10, block_size=3 * n, n_layer=3, n_head=3, n_embd=48, seed=options.seed)
    print(gpt)
    for record in gpt.train((x, y), max_iters=options.max_iters):
        if record.step % 100 == 0 or record.step == options.max_iters - 1:
            print(f"step {record.step}: loss {record.loss:.4f}")

    for name, sums in (("train", train[:2000]), ("held-out", test)):
        answers = gpt.generate(sums[:, : 2 * n], n + 1, temperature=0)
        right = (answers == sums).all(axis=1)
        print(f"{right.sum()} of {len(sums)} {name} sums are right ({right.mean():.2%})")
    print(f"{time.perf_counter() - start:.0f} seconds")


if __name__ == "__main__":
    main()
