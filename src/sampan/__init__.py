"""Sampan (舢板): prepare, train, sample. A small program that trains GPTs on your own text.

    from sampan import GPT, make_plan, train
    for record in train(make_plan("my-novel.txt", {"max_iters": 500})): ...     # a text to a run's folder
    for record in GPT(vocab_size=10).train(integers, max_iters=500): ...        # any integers, no files

A name is imported when it is first used, so that `import sampan` costs nothing; __init__.pyi tells type checkers where
each comes from.
"""

import importlib

__version__ = "0.1.0"

_WHERE = {
    "TrainConfig": "config", "SampleConfig": "config", "ModelSettings": "config", "UserError": "errors",
    "GPT": "api", "documents": "api", "prepare": "data.prepare", "make_plan": "training.plan",
    "train": "training.loop", "Step": "training.loop", "Evaluation": "training.loop", "open_engine": "engine.open",
    "characters": "tokens.characters", "train_bpe": "tokens.byte_level", "write": "sampling.write",
    "load_model": "checkpoint.folder", "save_model": "checkpoint.folder", "load_tokenizer": "checkpoint.folder",
}  # fmt: skip
__all__ = [*_WHERE, "__version__"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'sampan' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
