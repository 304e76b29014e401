"""Files with the structure that nanoGPT's and minGPT's programs give them, and the same module trained by torch's AdamW."""

import pickle
from pathlib import Path

import numpy as np
import torch

from sampan.config import ModelSettings
from sampan.engine.torch.model import GPT
from sampan.model.parameters import initialize
from sampan.model.shape import ModelShape, resolve, settings_of

BETAS, DECAY, RATE = (0.9, 0.99), 0.1, 1e-2


class Theirs(torch.nn.Module):
    """Module names as nanoGPT and minGPT have them: transformer.* and lm_head, whose weight may be the embedding's."""

    def __init__(self, config: ModelShape):
        super().__init__()
        self.transformer = GPT(config)
        weights = initialize(config, 3)
        draw = np.random.default_rng(3)
        for name, parameter in self.transformer.named_parameters():
            noise = draw.normal(0, 0.1, parameter.shape).astype(np.float32)
            parameter.data = torch.from_numpy(weights[name] + noise)
        self.lm_head = self.transformer.__dict__["_modules"].pop("lm_head", torch.nn.Linear(1, 1, bias=False))
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def optimizer(self):
        """Two groups: all matrices, then all vectors, in the order of the modules."""
        parameters = list(self.parameters())
        matrices, vectors = ([p for p in parameters if (p.dim() >= 2) == side] for side in (True, False))
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=RATE, betas=BETAS)


def learn(model: Theirs, optimizer, batches) -> list[float]:
    losses = []
    for x, y in batches:
        loss = model.transformer(torch.from_numpy(x).long(), torch.from_numpy(y).long()) / y.size
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def batches(config: ModelShape, seed: int, count: int = 4):
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (count, 4, config.block_size + 1), dtype=np.int32)
    return [(x[:, :-1].copy(), x[:, 1:].copy()) for x in ids]


TEXT = "".join(chr(ord("a") + i % 11) for i in range(400)) + "\n 世界!"
SYMBOLS = sorted(set(TEXT))


def shape(**settings) -> ModelShape:
    sizes = dict(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=len(SYMBOLS))
    return resolve(ModelSettings(**sizes | settings))


def data_folder(folder: Path, text: str = TEXT) -> Path:
    """As nanoGPT's data/shakespeare_char/prepare.py leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    stoi = {s: i for i, s in enumerate(SYMBOLS)}
    ids = np.array([stoi[s] for s in text], dtype=np.uint16)
    ids[:300].tofile(folder / "train.bin")
    ids[300:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(SYMBOLS), "itos": dict(enumerate(SYMBOLS)), "stoi": stoi}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


def checkpoint(folder: Path, config: ModelShape, model: Theirs, optimizer, steps: int, prefix="", **changes) -> Path:
    """As nanoGPT's train.py saves it."""
    asked = settings_of(config)
    arguments = {
        name: getattr(asked, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "bias", "dropout")
    }
    settings = dict(
        dataset="letters", batch_size=4, gradient_accumulation_steps=1, beta1=0.9, beta2=0.99, grad_clip=1.0
    )
    settings |= dict(max_iters=6, learning_rate=RATE, decay_lr=False, weight_decay=DECAY, device="cuda", compile=True)
    settings |= dict(block_size=8, eval_interval=2, eval_iters=2, dtype="float16", out_dir="somewhere", my_own=7)
    saved = {
        "model": {prefix + name: tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": arguments | {"vocab_size": config.vocab_size},
        "iter_num": steps,
        "best_val_loss": torch.tensor(2.5),
        "config": settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(saved | changes, folder / "ckpt.pt")
    return folder / "ckpt.pt"
