"""Import nanoGPT's checkpoints and data folders, and minGPT's models.

    sampan import out-shakespeare-char/ckpt.pt --data_dir data/shakespeare_char
    sampan import data/shakespeare_char                  # only the data: train.bin, val.bin, meta.pkl
    sampan import out/chargpt/model.pt --tokenizer input.txt

A checkpoint with its data becomes a run with optimizer and step, which --resume continues; a resumed run sees other
batches than nanoGPT would. The data folder stays where it is and gains two files, tokenizer.json and meta.json; nanoGPT
reads it as before. minGPT saves neither optimizer nor vocabulary, so its model becomes a model's folder, to be sampled
or fine-tuned. Nothing in a file is executed (pickles.py), and PyTorch is not needed.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sampan.checkpoint.folder import save_model
from sampan.checkpoint.run import Progress
from sampan.checkpoint.save import WritableRun
from sampan.config import DataConfig, ImportConfig, ModelSettings, TrainConfig, build
from sampan.data.given import open_given
from sampan.data.meta import Data
from sampan.data.nanogpt import fetch_gpt2_tokenizer, from_meta
from sampan.errors import UserError, command, quoted
from sampan.exchange.staging import new_folder
from sampan.files import read_json
from sampan.messages import _
from sampan.model.parameters import parameters
from sampan.model.shape import ModelShape, resolve, settings_of
from sampan.pickles import read_checkpoint
from sampan.text.sources import find_source
from sampan.tokens.characters import Characters, characters
from sampan.tokens.kinds import read_tokenizer
from sampan.tokens.tokenizer import Tokenizer
from sampan.training.plan import with_shape

GPT2_TOKENS = 50257
GPT2_SIZES = (GPT2_TOKENS, 50304)  # nanoGPT pads to a multiple of 64
HEADS = {  # attention heads of minGPT's named models, whose config.json gives only the name
    "openai-gpt": 12, "gpt2": 12, "gpt2-medium": 16, "gpt2-large": 20, "gpt2-xl": 25, "gopher-44m": 16, "gpt-mini": 6,
    "gpt-micro": 4, "gpt-nano": 3,
}  # fmt: skip
OF_THE_MACHINE = (  # settings that are not carried over
    "device",
    "dtype",
    "compile",
    "backend",
    "eval_only",
    "init_from",
    "out_dir",
    "dataset",
)


def claims(path: Path) -> bool:
    """Return whether this is a checkpoint of PyTorch, a pickled vocabulary or a data folder."""
    return path.suffix in (".pt", ".pth", ".pkl") or (path / "train.bin").is_file()


def import_path(path: Path, config: ImportConfig) -> list[str]:
    """Make a run, a model's folder or a data folder, and return lines to print.

    Raises UserError if the file is damaged or cannot be carried over faithfully.
    """
    if path.suffix == ".pkl":
        path = path.parent
    if path.is_dir():
        return [*open_given(path).summary(), _("train on it with: sampan train {path}", path=quoted(path))]
    saved = read_checkpoint(path)
    if isinstance(saved, dict) and isinstance(saved.get("model"), dict):
        return import_nanogpt(path, saved, config)
    return import_mingpt(path, saved, config)


# ---- nanoGPT ----


def import_nanogpt(path: Path, saved: dict, config: ImportConfig) -> list[str]:
    """Make a run of a checkpoint and its data, or a model's folder if the data are missing; return lines to print."""
    arguments, settings = (saved.get(key) or {} for key in ("model_args", "config"))
    if not isinstance(arguments, dict) or not isinstance(settings, dict):
        raise UserError(_("{path}: not a checkpoint of nanoGPT's train.py", path=path))
    tensors = named(path, saved["model"])
    dropout = arguments.get("dropout", settings.get("dropout", 0.0))
    model = shape_of_tensors(path, tensors, arguments.get("n_head") or config.n_head, dropout)
    shown = settings_of(model)
    for name in ("n_layer", "n_embd", "block_size", "vocab_size", "bias"):
        if arguments.get(name, getattr(shown, name)) != getattr(shown, name):
            raise UserError(
                _(
                    "{path}: model_args has {name}={arguments!r}, but its tensors have {expected}",
                    path=path,
                    name=name,
                    arguments=arguments[name],
                    expected=getattr(shown, name),
                )
            )
    weights = weights_of(path, model, tensors)
    dataset = Path(str(settings.get("dataset") or path.resolve().parent)).name
    folder = Path(config.out_dir or Path("out") / f"nanogpt-{dataset}")
    data = find_data(config.data_dir, dataset)
    tokenizer = data.tokenizer if data else find_tokenizer(config.tokenizer, model)
    check_vocabulary(path, model, tokenizer)
    note = _("logits differ very slightly: nanoGPT uses the exact GELU, and Sampan its tanh form, as GPT-2 does")
    if data is None:
        with new_folder(folder) as staged:
            save_model(staged, model, weights, tokenizer)
        return [
            describe(folder, model, tokenizer),
            note,
            _("its data were not found: it can be sampled or fine-tuned; to resume it, import it with --data_dir DATA"),
        ]
    progress = progress_of(path, saved)
    state = optimizer_state(path, model, tensors, saved.get("optimizer"))
    train = with_shape(training_settings(path, settings), model)
    train = replace(train, dataset=(str(data.folder),), out_dir=str(folder))
    with new_folder(folder) as staged, WritableRun(staged).begin(train, model, tokenizer, data.record()) as run:
        run.save_best(model, weights, progress)
        run.save_last(model, weights, state, progress)
    return [
        describe(folder, model, tokenizer),
        _(
            "step {step:,}, val loss {val_loss:.4f}, with the optimizer; data in {folder}",
            step=progress.step,
            val_loss=progress.val_loss,
            folder=data.folder,
        ),
        note,
        _(
            "continue with: sampan train --resume --out_dir {folder} (it ends at step {max_iters:,})",
            folder=quoted(folder),
            max_iters=train.max_iters,
        ),
    ]


def training_settings(path: Path, settings: dict) -> TrainConfig:
    """Return the settings of nanoGPT's train.py that Sampan shares, other than device, precision and compilation."""
    known = {k: v for k, v in settings.items() if k in TrainConfig.__dataclass_fields__ and k not in OF_THE_MACHINE}
    return build(TrainConfig, known | {"optimizer": "adamw"}, str(path))


def progress_of(path: Path, saved: dict) -> Progress:
    """Return the progress of a checkpoint, whose best_val_loss is that of its own weights. Raises UserError."""
    try:
        step, loss = int(saved["iter_num"]), float(saved["best_val_loss"])
    except (KeyError, TypeError, ValueError):
        raise UserError(_("{path}: iter_num or best_val_loss is missing or not a number", path=path)) from None
    return Progress(step=step, val_loss=loss, best_step=step, best_val_loss=loss)


def optimizer_state(path: Path, model: ModelShape, tensors: dict, optimizer: Any) -> dict[str, np.ndarray]:
    """Return AdamW's moments by name. Torch numbers the parameters: all matrices in order, then all vectors.

    The step is the optimizer's own, which is smaller than iter_num if float16 overflowed and steps were skipped.
    Raises UserError if it is not the optimizer of this model.
    """
    names = [name for name in tensors if name in {p.name for p in parameters(model)}]
    names.sort(key=lambda name: tensors[name].ndim < 2)  # stable
    matrices = sum(tensors[name].ndim >= 2 for name in names)
    try:
        moments, groups = optimizer["state"], [len(group["params"]) for group in optimizer["param_groups"]]
        if groups != [matrices, len(names) - matrices]:
            raise UserError(
                _(
                    "{path}: its optimizer has groups of {groups} parameters, but this model has {matrices} matrices "
                    "and {count} vectors",
                    path=path,
                    groups=groups,
                    matrices=matrices,
                    count=len(names) - matrices,
                )
            )
        steps = {float(moments[i]["step"]) for i in range(len(names))} if moments else {0.0}
        state = dict.fromkeys(("step", "applied_steps"), np.array(int(steps.pop()), dtype=np.int64))
        for i, name in enumerate(names):
            for key in ("exp_avg", "exp_avg_sq"):
                value = moments[i][key] if moments else np.zeros(tensors[name].shape, np.float32)
                if value.shape != tensors[name].shape:
                    raise UserError(
                        _(
                            "{path}: {key} of {name} has shape {shape}, not {shape_2}",
                            path=path,
                            key=key,
                            name=name,
                            shape=value.shape,
                            shape_2=tensors[name].shape,
                        )
                    )
                state[f"{key}.{name}"] = np.ascontiguousarray(value, dtype=np.float32)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(_("{path}: its optimizer is not the AdamW of nanoGPT's train.py", path=path)) from None
    if steps:
        raise UserError(_("{path}: its optimizer's parameters are at different steps", path=path))
    return state


# ---- minGPT ----


def import_mingpt(path: Path, saved: Any, config: ImportConfig) -> list[str]:
    """Make a model's folder of minGPT's model.pt and the config.json beside it; return lines to print."""
    tensors = named(path, saved)
    beside = path.with_name("config.json")
    given = read_json(beside).get("model") if beside.is_file() else None
    given = given if isinstance(given, dict) else {}
    n_head = given.get("n_head") or config.n_head or HEADS.get(str(given.get("model_type")))
    model = shape_of_tensors(path, tensors, n_head, dropout=0.0)
    tokenizer = find_tokenizer(config.tokenizer, model)
    check_vocabulary(path, model, tokenizer)
    folder = Path(config.out_dir or Path("out") / f"mingpt-{path.resolve().parent.name}")
    with new_folder(folder) as staged:
        save_model(staged, model, weights_of(path, model, tensors), tokenizer)
    return [describe(folder, model, tokenizer)]


# ---- tensors of both ----


def named(path: Path, tensors: Any) -> dict[str, np.ndarray]:
    """Return a state dict under our names, which are theirs without prefixes, and without the causal masks."""
    if not isinstance(tensors, dict) or not all(isinstance(v, np.ndarray) for v in tensors.values()):
        raise UserError(_("{path}: neither a checkpoint of nanoGPT nor a model of minGPT", path=path))
    found = {}
    for name, tensor in tensors.items():
        name = str(name).removeprefix("_orig_mod.").removeprefix("module.").removeprefix("transformer.")
        if not (name.endswith(".attn.bias") and tensor.ndim == 4):
            found[name] = tensor
    return found


def shape_of_tensors(path: Path, tensors: dict[str, np.ndarray], n_head: Any, dropout: Any) -> ModelShape:
    """Return the model of a state dict, which shows everything but the heads. Raises UserError."""
    try:
        (vocab_size, n_embd), block_size = tensors["wte.weight"].shape, len(tensors["wpe.weight"])
        n_inner = len(tensors["h.0.mlp.c_fc.weight"])
    except (KeyError, ValueError, TypeError):
        raise UserError(_("{path}: does not contain the tensors of a nanoGPT or minGPT model", path=path)) from None
    if n_head is None:
        raise UserError(_("{path} does not record the number of attention heads; give --n_head", path=path))
    head = tensors.get("lm_head.weight")
    tied = head is None or np.array_equal(head, tensors["wte.weight"])
    shape = dict(n_layer=len({name.split(".")[1] for name in tensors if name.startswith("h.")}), n_head=n_head)
    shape |= dict(n_embd=n_embd, n_inner=n_inner, block_size=block_size, vocab_size=vocab_size)
    shape |= dict(bias="ln_f.bias" in tensors, tie_word_embeddings=tied, dropout=dropout)
    return resolve(build(ModelSettings, shape, str(path)))


def weights_of(path: Path, model: ModelShape, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights, float32. Raises UserError if a tensor is missing, unexpected or of another shape."""
    table = parameters(model)
    left = set(tensors) - {p.name for p in table} - {"lm_head.weight"}
    if left:
        raise UserError(
            _("{path}: tensor {left} is unexpected in a nanoGPT or minGPT model", path=path, left=sorted(left)[0])
        )
    weights = {}
    for p in table:
        found = tensors.get(p.name)
        if found is None:
            raise UserError(_("{where}: tensor {name} is missing", where=path, name=p.name))
        if found.shape != p.shape or found.dtype.kind != "f":
            message = _("{path}: tensor {name} is {dtype} of shape {found}; expected floats of shape {shape}")
            about = dict(path=path, name=p.name, dtype=found.dtype, found=found.shape, shape=p.shape)
            raise UserError(message.format(**about))
        weights[p.name] = np.ascontiguousarray(found, dtype=np.float32)
    return weights


def describe(folder: Path, model: ModelShape, tokenizer: Tokenizer | None) -> str:
    """Return a line about a new model's folder."""
    line = _(
        "{folder}: gpt2, {n_layer} layers, {n_head} heads, width {n_embd}, block {block_size}",
        folder=folder,
        n_layer=model.n_layer,
        n_head=model.n_head,
        n_embd=model.n_embd,
        block_size=model.block_size,
    )
    if tokenizer is None:
        return f"{line}; " + _("it has no vocabulary: import it with --tokenizer to add one")
    return f"{line}; {command('sample', folder)}"


# ---- vocabularies and data ----


def find_data(given: str | None, dataset: str) -> Data | None:
    """Return the data of a checkpoint: the given folder, else nanoGPT's own if it exists. Raises UserError."""
    folder = Path(given) if given else Path("data") / dataset
    if given is None and not (folder / "train.bin").is_file():
        return None
    return open_given(folder)


def find_tokenizer(wanted: str, model: ModelShape) -> Tokenizer | None:
    """Return the tokenizer that --tokenizer names; for "auto" GPT-2's if the vocabulary has its size, else None."""
    if wanted == "gpt2" or (wanted == "auto" and model.vocab_size in GPT2_SIZES):
        return fetch_gpt2_tokenizer()
    if wanted == "auto":
        return None
    path = Path(wanted)
    if path.suffix == ".pkl":
        return from_meta(path)
    if path.suffix == ".json":
        return read_tokenizer(path)
    return characters("".join(text for text, _ in find_source([wanted], DataConfig()).blocks()))


def check_vocabulary(path: Path, model: ModelShape, tokenizer: Tokenizer | None) -> None:
    """Raise UserError if the tokenizer is not of this model: GPT-2's may be smaller, since its vocabulary is padded."""
    if tokenizer is None:
        return
    is_padded_gpt2 = not isinstance(tokenizer, Characters) and tokenizer.vocab_size <= model.vocab_size
    if tokenizer.vocab_size != model.vocab_size and not is_padded_gpt2:
        raise UserError(
            _(
                "{path}: the model has {vocab_size:,} tokens, but the vocabulary has {vocab_size_2:,}. Give the "
                "one that the model was trained with.",
                path=path,
                vocab_size=model.vocab_size,
                vocab_size_2=tokenizer.vocab_size,
            )
        )
