"""Time a training step (forward, backward, clip, AdamW) of both engines, and of nanoGPT's own code.

    python bench/step.py --threads 2                          # both engines
    python bench/step.py --threads 2 --nanogpt ../nanoGPT     # also the model.py of a clone of nanoGPT
    python bench/step.py --work gpt2_4x64 --device cuda       # one shape, on a GPU

It prints the medians of alternating steps, their ratios, and the share of the machine's peak measured in the same run.
Weights and tokens are random, because the time does not depend on them. Losses are not compared.
"""

import argparse
from pathlib import Path

from contest import contest, load_nanogpt, machine, random_batch

from sampan.config import TrainConfig, change
from sampan.engine.open import engines_here, open_engine
from sampan.errors import UserError
from sampan.model.count import flops_per_token
from sampan.model.parameters import initialize
from sampan.model.shape import resolve

SHAPES = {
    "shakespeare": dict(n_layer=4, n_head=4, n_embd=128, vocab_size=65, batch_size=12, block_size=64),
    "gpt2_4x64": dict(n_layer=12, n_head=12, n_embd=768, vocab_size=50257, batch_size=4, block_size=64),
    "gpt2_1x1024": dict(n_layer=12, n_head=12, n_embd=768, vocab_size=50257, batch_size=1, block_size=1024),
    "gpt2_12x1024": dict(n_layer=12, n_head=12, n_embd=768, vocab_size=50304, batch_size=12, block_size=1024),
}


def our_step(shape: dict, engine: str, dtype: str, args):
    settings = dict(shape, bias=True, engine=engine, dtype=dtype, gradient_accumulation_steps=1)
    settings |= dict(device=args.device, threads=args.threads, compile=args.compile)
    config = change(TrainConfig(), settings)
    model = resolve(config)
    opened = open_engine(model, config, config)
    opened.load(initialize(model, seed=1))
    x, y = random_batch(model.vocab_size, config.batch_size, config.block_size)

    def step():
        opened.accumulate(x, y)
        return opened.update(1e-4)

    return step, flops_per_token(model) * x.size, opened


def nanogpt_step(shape: dict, folder: Path, device: str, compiled: bool):
    """Return a function that takes one step of nanoGPT's model and optimizer, as its train.py does."""
    import contextlib

    import torch

    module = load_nanogpt(folder)
    names = ("n_layer", "n_head", "n_embd", "vocab_size", "block_size")
    model = module.GPT(module.GPTConfig(**{n: shape[n] for n in names}, bias=True, dropout=0.0)).to(device)
    optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), "cuda" if "cuda" in device else "cpu")
    run = torch.compile(model) if compiled else model
    batch = random_batch(shape["vocab_size"], shape["batch_size"], shape["block_size"])
    x, y = (torch.from_numpy(ids).long().to(device) for ids in batch)
    context = torch.autocast("cuda", dtype=torch.bfloat16) if "cuda" in device else contextlib.nullcontext()

    def step():
        with context:
            _, loss = run(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=SHAPES, action="append", help="a shape (default: all but the last)")
    parser.add_argument("--engine", action="append", help="c or torch (default: every installed engine)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile for the torch engine and for nanoGPT")
    parser.add_argument("--nanogpt", type=Path, help="clone of nanoGPT")
    parser.add_argument("--dtype", action="append", help="float32 or bfloat16 (default: both)")
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    print(machine())
    for work in args.work or list(SHAPES)[:-1]:
        shape = SHAPES[work]
        contestants, peaks = {}, {}
        for engine in args.engine or engines_here():
            for dtype in args.dtype or ["float32", "bfloat16"]:
                try:
                    step, flops, opened = our_step(shape, engine, dtype, args)
                except UserError as error:
                    print(f"  {engine} {dtype}: {error}")
                    continue
                contestants[f"{engine} {dtype}"] = step
                peaks[f"{engine} {dtype}"] = flops, opened
        if args.nanogpt:
            contestants["nanoGPT"] = nanogpt_step(shape, args.nanogpt, args.device, args.compile)
        print(f"{work}: {shape}")
        medians = contest(contestants, args.rounds if "gpt2" not in work else max(3, args.rounds // 2))
        for name, (flops, opened) in peaks.items():
            peak = opened.peak_flops()
            speed = flops / medians[name]
            print(f"  {name:<28} {speed / 1e9:8.1f} GFLOP/s, {speed / peak:.1%} of {peak / 1e9:.0f}")


if __name__ == "__main__":
    main()
