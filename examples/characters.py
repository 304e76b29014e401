"""Train a character model of a text, save it in a folder, load it again, and sample from it.

    python examples/characters.py                          # nine plays of Shakespeare, downloaded once
    python examples/characters.py my-novel.txt --max_iters 3000

`sampan train my-novel.txt` does this and more from the command line; this is how to do it in a program. The model is
saved without optimizer state, so the training cannot be resumed.
"""

import argparse

import sampan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "text", nargs="?", default="tinyshakespeare", help="a text file, or the name of a built-in text"
    )
    parser.add_argument("--max_iters", type=int, default=1000)
    parser.add_argument("--folder", default="out/characters", help="where to save the model")
    parser.add_argument("--prompt", default="\n")
    options = parser.parse_args()

    text = "\n\n".join(sampan.documents(options.text))
    tokenizer = sampan.characters(text)
    ids = tokenizer.encode(text)
    train, val = ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]

    gpt = sampan.GPT(vocab_size=tokenizer.vocab_size, block_size=64)
    print(gpt)
    for record in gpt.train(train, val, max_iters=options.max_iters):
        if isinstance(record, sampan.Evaluation):
            print(f"step {record.step}: train loss {record.train_loss:.4f}, val loss {record.val_loss:.4f}")
            if record.best:
                gpt.save(options.folder, tokenizer)

    best = sampan.GPT.load(options.folder)
    prompt = tokenizer.encode(options.prompt)
    for sample in best.generate(prompt, max_new_tokens=300, num_samples=2):
        print("-" * 40)
        print(tokenizer.decode(sample))
    print(f"For more samples: sampan sample {options.folder}")


if __name__ == "__main__":
    main()
