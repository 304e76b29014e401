"""Learn to sort digits, from a torch Dataset or any class with the same two methods.

    python examples/sorting.py
    python examples/sorting.py --length 10 --digits 10

An example is 0 0 2 1 0 1 followed by the same digits in order, 0 0 0 1 1 2. The model reads the first six and writes the
other six. Targets of -1 exclude the given digits from the loss. The task is minGPT's demo (Karpathy 2022). The script saves
no model.
"""

import argparse

import numpy as np

import sampan


class SortDataset:
    """Random problems, each a function of its index. With torch installed, it could inherit torch.utils.data.Dataset.

    One sequence in ten belongs to the test split; a hash of its digits decides which.
    """

    def __init__(self, split: str, length: int, digits: int, size: int = 10_000):
        self.split, self.length, self.digits, self.size = split, length, digits, size

    def __len__(self) -> int:
        return self.size

    def problem(self, index: int) -> np.ndarray:
        draw = np.random.default_rng([index, self.split == "test"])
        while True:
            digits = draw.integers(0, self.digits, self.length)
            if draw.random() < 0.5:  # repeated digits are hard, and rare by chance
                digits = draw.choice(digits[: 1 + self.length // 2], self.length)
            number = int("".join(map(str, digits)), 10)
            if (number % 97 % 10 == 0) == (self.split == "test"):
                return digits

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        digits = self.problem(index)
        row = np.concatenate([digits, np.sort(digits)])
        x, y = row[:-1], row[1:].copy()
        y[: self.length - 1] = -1
        return x, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=6)
    parser.add_argument("--digits", type=int, default=3, choices=range(2, 11))
    parser.add_argument("--max_iters", type=int, default=1000)
    options = parser.parse_args()

    train, test = (SortDataset(split, options.length, options.digits) for split in ("train", "test"))
    gpt = sampan.GPT(vocab_size=options.digits, block_size=2 * options.length - 1, n_layer=3, n_head=3, n_embd=48)
    print(gpt)
    for record in gpt.train(train, test, max_iters=options.max_iters, batch_size=64, eval_interval=100):
        if isinstance(record, sampan.Evaluation):
            print(f"step {record.step}: train loss {record.train_loss:.4f}, test loss {record.val_loss:.4f}")

    problems = np.stack([test.problem(i) for i in range(1000)])
    answers = gpt.generate(problems, options.length, temperature=0)[:, options.length :]
    right = (answers == np.sort(problems, axis=1)).all(axis=1)
    print(f"{right.sum()} of {len(right)} test sequences are sorted ({right.mean():.2%})")
    for problem, answer in zip(problems[:3], answers[:3], strict=True):
        print(f"{problem.tolist()} -> {answer.tolist()}")


if __name__ == "__main__":
    main()
