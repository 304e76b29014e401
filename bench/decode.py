"""Time the generation of one sequence (logits, sampling, cache), in tokens per second.

    python bench/decode.py --threads 2                          # both engines, GPT-2 124M and a 0.8M character model
    python bench/decode.py --threads 2 --nanogpt ../nanoGPT     # also nanoGPT's own generate
    python bench/decode.py --threads 2 --transformers           # also transformers' generate with its cache

Weights are random, because the time does not depend on them. Nothing is trained, and the text is not looked at.
"""

import argparse
import itertools
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from contest import contest, load_nanogpt, machine
from step import SHAPES

from sampan.checkpoint.folder import save_model
from sampan.config import ModelSettings, SampleConfig, change
from sampan.engine.open import engines_here, open_engine
from sampan.model.parameters import initialize
from sampan.model.shape import ModelShape, resolve
from sampan.sampling.draw import generate

WORKS = {"characters": ("shakespeare", 64, 2000), "gpt2": ("gpt2_1x1024", 1024, 64)}  # shape, block_size, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORKS, action="append")
    parser.add_argument("--engine", action="append", help="c or torch (default: every installed engine)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(machine())
    prompt = np.arange(1, 9, dtype=np.int32)
    for work in args.work or WORKS:
        shape_name, block_size, count = WORKS[work]
        names = ("n_layer", "n_head", "n_embd", "vocab_size")
        model = resolve(ModelSettings(**{n: SHAPES[shape_name][n] for n in names}, block_size=block_size, bias=True))
        weights = initialize(model, seed=1)
        contestants = {}
        for engine, dtype in itertools.product(args.engine or engines_here(), ("float32", "bfloat16")):
            settings = change(
                SampleConfig(), dict(engine=engine, dtype=dtype, device="cpu", threads=args.threads, top_k=40)
            )
            opened = open_engine(model, settings)
            opened.load(weights)

            contestants[f"{engine} {dtype}"] = partial(our_generate, opened, model, settings, prompt, count)
        few = min(count, 200)  # fewer tokens for the slow ones; rates are compared
        slow = {}
        if args.nanogpt or args.transformers:
            import torch

            ids = torch.from_numpy(prompt).long()[None]
        if args.nanogpt:
            slow["nanoGPT"] = nanogpt_generate(args.nanogpt, model, ids, few)
        if args.transformers:
            slow["transformers"] = transformers_generate(model, weights, ids, few)
        print(f"{work}: {model.n_layer} layers, {model.n_embd} wide, block {block_size}, {count} tokens")
        contest(contestants, args.rounds, "tok/s", count)
        if slow:
            contest(slow, args.rounds, "tok/s", few)


def our_generate(engine, model: ModelShape, settings: SampleConfig, prompt, count: int) -> list:
    return list(itertools.islice(generate(engine, model, prompt, settings), count))


def nanogpt_generate(folder: Path, model: ModelShape, ids, count: int):
    import torch

    module = load_nanogpt(folder)
    names = ("n_layer", "n_head", "n_embd", "vocab_size", "block_size")
    theirs = module.GPT(module.GPTConfig(**{n: getattr(model, n) for n in names}, bias=True, dropout=0.0)).eval()

    def call():
        with torch.no_grad():
            return theirs.generate(ids, count, top_k=40)

    return call


def transformers_generate(model: ModelShape, weights, ids, count: int):
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, model, weights, None)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    count = min(count, model.block_size - ids.shape[1])
    return lambda: theirs.generate(
        ids, do_sample=True, top_k=40, max_new_tokens=count, min_new_tokens=count, pad_token_id=0
    )


if __name__ == "__main__":
    main()
