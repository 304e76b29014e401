"""Addition, learnt digit by digit from examples alone, and tried on sums that were never seen.

    python examples/adder.py                     # two digits
    python examples/adder.py --digits 3

85 + 50 = 135 is the sequence 8 5 5 0 5 3 1: both numbers with their zeros, then the sum from its last digit to its
first, which is the order in which carries arise. Of all sums of so many digits a fifth, but 500 at most, are kept for
the test; the loss is on the sum's digits alone. The task is that of minGPT's adder (Karpathy 2020).
"""

import argparse
import time

import numpy as np

import sampan


def digits_of(numbers: np.ndarray, count: int) -> np.ndarray:
    """Decimal digits, the first one first: (N,) to (N, count)."""
    return numbers[:, None] // 10 ** np.arange(count - 1, -1, -1) % 10


def problems(digits: int) -> np.ndarray:
    """All sums a + b, each a row of 3 * digits + 1 digits."""
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
    y[:, : 2 * n - 1] = -1  # nothing is to be learnt from the problem itself

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
