"""nanoGPT's checkpoints and data folders, and minGPT's models: read, and made into folders of ours.

    sampan import out-shakespeare-char/ckpt.pt --data_dir data/shakespeare_char
    sampan import data/shakespeare_char                  # only the data: train.bin, val.bin, meta.pkl
    sampan import out/chargpt/model.pt --tokenizer input.txt

A checkpoint with its data becomes a run with optimizer and step, which --resume continues. The data folder stays
where it is and gains two files, tokenizer.json and meta.json; nanoGPT reads it as before. Nothing is executed (see
pickles.py), and PyTorch is not needed.

minGPT saves neither optimizer nor vocabulary, so its model becomes a model's folder, to be sampled or fine-tuned.
nanoGPT's order of batches is not ours: a resumed run meets other windows of the same data.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from sampan.checkpoint.folder import save_model
from sampan.checkpoint.run import Progress
from sampan.checkpoint.save import WritableRun
from sampan.config import DataConfig, ImportConfig, ModelSettings, TrainConfig, build
from sampan.data.meta import FORMAT, Data, Meta, open_folder, read_meta
from sampan.data.prepare import fetch_gpt2_tokenizer
from sampan.errors import UserError
from sampan.exchange.pickles import read_checkpoint, read_pickle
from sampan.exchange.staging import new_folder
from sampan.files import read_json, write_json, write_text
from sampan.model.parameters import parameters
from sampan.model.shape import ModelShape, resolve
from sampan.text.sources import find_source
from sampan.tokens.characters import Characters, characters, from_symbols
from sampan.tokens.kinds import read_tokenizer
from sampan.tokens.tokenizer import Tokenizer
from sampan.training.plan import with_shape

GPT2_TOKENS = 50257
GPT2_SIZES = (GPT2_TOKENS, 50304)  # nanoGPT rounds up to a multiple of 64
HEADS = {  # of minGPT's named models, whose config.json gives the name alone
    "openai-gpt": 12, "gpt2": 12, "gpt2-medium": 16, "gpt2-large": 20, "gpt2-xl": 25, "gopher-44m": 16, "gpt-mini": 6,
    "gpt-micro": 4, "gpt-nano": 3,
}  # fmt: skip
OF_THE_MACHINE = ("device", "dtype", "compile", "backend", "eval_only", "init_from", "out_dir", "dataset")


def claims(path: Path) -> bool:
    """Whether this is a checkpoint of PyTorch, a pickled vocabulary or a data folder with one."""
    return path.suffix in (".pt", ".pth", ".pkl") or (path / "train.bin").is_file()


def import_path(path: Path, config: ImportConfig) -> list[str]:
    """Make folders of ours; what was made, in lines. Raises UserError for whatever cannot be carried faithfully."""
    if path.suffix == ".pkl":
        path = path.parent
    if path.is_dir():
        return [*import_data(path).summary(), f"train on it with: sampan train {path}"]
    saved = read_checkpoint(path)
    if isinstance(saved, dict) and isinstance(saved.get("model"), dict):
        return import_nanogpt(path, saved, config)
    return import_mingpt(path, saved, config)


# ---- nanoGPT ----


def import_nanogpt(path: Path, saved: dict, config: ImportConfig) -> list[str]:
    arguments, settings = (saved.get(key) or {} for key in ("model_args", "config"))
    for part in (arguments, settings):
        if not isinstance(part, dict):
            raise UserError(f"{path}: not a checkpoint of nanoGPT's train.py")
    tensors = named(path, saved["model"])
    dropout = arguments.get("dropout", settings.get("dropout", 0.0))
    model = shape_of_tensors(path, tensors, arguments.get("n_head") or config.n_head, dropout)
    for name in ("n_layer", "n_embd", "block_size", "vocab_size", "bias"):
        if arguments.get(name, getattr(model, name)) != getattr(model, name):
            raise UserError(f"{path}: model_args has {name}={arguments[name]!r}, its tensors {getattr(model, name)}")
    weights = weights_of(path, model, tensors)
    dataset = Path(str(settings.get("dataset") or path.resolve().parent)).name
    folder = Path(config.out_dir or Path("out") / f"nanogpt-{dataset}")
    data = find_data(config.data_dir, dataset)
    tokenizer = data.tokenizer if data else find_tokenizer(config.tokenizer, model)
    check_vocabulary(path, model, tokenizer)
    note = "nanoGPT's GELU is the exact one and ours its tanh form, as GPT-2 has it: logits differ very slightly"
    if data is None:
        with new_folder(folder) as staged:
            save_model(staged, model, weights, tokenizer)
        return [
            describe(folder, model, tokenizer),
            note,
            "without its data it can be sampled or fine-tuned; to resume it, import it with --data_dir DATA",
        ]
    progress = progress_of(path, saved)
    state = optimizer_state(path, model, tensors, saved.get("optimizer"))
    train = with_shape(settings_of(path, settings), model)
    train = replace(train, dataset=(str(data.folder),), out_dir=str(folder))
    with new_folder(folder) as staged, WritableRun(staged).begin(train, model, tokenizer, data.record()) as run:
        run.save_best(model, weights, progress)
        run.save_last(model, weights, state, progress)
    return [
        describe(folder, model, tokenizer),
        f"step {progress.step:,}, val loss {progress.val_loss:.4f}, with the optimizer; data in {data.folder}",
        note,
        f"continue with: sampan train --resume --out_dir {folder} (it ends at step {train.max_iters:,})",
    ]


def settings_of(path: Path, settings: dict) -> TrainConfig:
    """The settings of nanoGPT's train.py that are ours too; device, precision and compiling are this machine's."""
    known = {k: v for k, v in settings.items() if k in TrainConfig.__dataclass_fields__ and k not in OF_THE_MACHINE}
    return build(TrainConfig, known | {"optimizer": "adamw"}, str(path))


def progress_of(path: Path, saved: dict) -> Progress:
    """nanoGPT's best_val_loss is always that of the weights beside it."""
    try:
        step, loss = int(saved["iter_num"]), float(saved["best_val_loss"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: no iter_num and best_val_loss, as nanoGPT's train.py writes") from None
    return Progress(step=step, val_loss=loss, best_step=step, best_val_loss=loss)


def optimizer_state(path: Path, model: ModelShape, tensors: dict, optimizer) -> dict[str, np.ndarray]:
    """AdamW's moments by name. Torch numbers the parameters: nanoGPT's matrices in order, then its vectors.

    Its step is the optimizer's own, which is less than iter_num where float16 overflowed and steps were skipped.
    """
    names = [name for name in tensors if name in {p.name for p in parameters(model)}]
    names.sort(key=lambda name: tensors[name].ndim < 2)  # stable
    matrices = sum(tensors[name].ndim >= 2 for name in names)
    try:
        moments, groups = optimizer["state"], [len(group["params"]) for group in optimizer["param_groups"]]
        if groups != [matrices, len(names) - matrices]:
            raise UserError(
                f"{path}: its optimizer has groups of {groups} parameters, and nanoGPT's of this model "
                f"{matrices} matrices and {len(names) - matrices} vectors"
            )
        steps = {float(moments[i]["step"]) for i in range(len(names))} if moments else {0.0}
        state = dict.fromkeys(("step", "applied_steps"), np.array(int(steps.pop()), dtype=np.int64))
        for i, name in enumerate(names):
            for key in ("exp_avg", "exp_avg_sq"):
                value = moments[i][key] if moments else np.zeros(tensors[name].shape, np.float32)
                if value.shape != tensors[name].shape:
                    raise UserError(f"{path}: {key} of {name} has shape {value.shape}, not {tensors[name].shape}")
                state[f"{key}.{name}"] = np.ascontiguousarray(value, dtype=np.float32)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{path}: its optimizer is not the AdamW of nanoGPT's train.py") from None
    if steps:
        raise UserError(f"{path}: its optimizer has taken different numbers of steps for different parameters")
    return state


# ---- minGPT ----


def import_mingpt(path: Path, saved, config: ImportConfig) -> list[str]:
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


# ---- what both have ----


def named(path: Path, tensors) -> dict[str, np.ndarray]:
    """A state dict under our names, which are theirs without prefixes; without the buffers of the causal mask."""
    if not isinstance(tensors, dict) or not all(isinstance(v, np.ndarray) for v in tensors.values()):
        raise UserError(f"{path}: neither a checkpoint of nanoGPT nor a model of minGPT")
    found = {}
    for name, tensor in tensors.items():
        name = str(name).removeprefix("_orig_mod.").removeprefix("module.").removeprefix("transformer.")
        if not (name.endswith(".attn.bias") and tensor.ndim == 4):
            found[name] = tensor
    return found


def shape_of_tensors(path: Path, tensors: dict[str, np.ndarray], n_head, dropout) -> ModelShape:
    """The model that a state dict is of; heads alone cannot be seen in it."""
    try:
        (vocab_size, n_embd), block_size = tensors["wte.weight"].shape, len(tensors["wpe.weight"])
        n_inner = len(tensors["h.0.mlp.c_fc.weight"])
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{path}: no tensors of a GPT of nanoGPT or minGPT in it") from None
    if n_head is None:
        raise UserError(f"{path} does not say how many attention heads it has; give --n_head")
    head = tensors.get("lm_head.weight")
    tied = head is None or np.array_equal(head, tensors["wte.weight"])
    shape = dict(n_layer=len({name.split(".")[1] for name in tensors if name.startswith("h.")}), n_head=n_head)
    shape |= dict(n_embd=n_embd, n_inner=n_inner, block_size=block_size, vocab_size=vocab_size)
    shape |= dict(bias="ln_f.bias" in tensors, tie_word_embeddings=tied, dropout=dropout)
    return resolve(build(ModelSettings, shape, str(path)))


def weights_of(path: Path, model: ModelShape, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our weights, float32. Raises UserError for a tensor too few, too many or of another shape."""
    table = parameters(model)
    left = set(tensors) - {p.name for p in table} - {"lm_head.weight"}
    if left:
        raise UserError(f"{path}: tensor {sorted(left)[0]} has no place in a GPT of nanoGPT or minGPT")
    weights = {}
    for p in table:
        found = tensors.get(p.name)
        if found is None or found.shape != p.shape or found.dtype.kind != "f":
            what = "missing" if found is None else f"{found.dtype} of shape {found.shape}"
            raise UserError(f"{path}: tensor {p.name} is {what}; expected floats of shape {p.shape}")
        weights[p.name] = np.ascontiguousarray(found, dtype=np.float32)
    return weights


def describe(folder: Path, model: ModelShape, tokenizer: Tokenizer | None) -> str:
    line = (
        f"{folder}: gpt2, {model.n_layer} layers, {model.n_head} heads, {model.n_embd} wide, block {model.block_size}"
    )
    if tokenizer is None:
        return f"{line}; without a vocabulary: --tokenizer can give it one"
    return f"{line}; sampan sample {folder}"


# ---- vocabularies and data ----


def find_data(given: str | None, dataset: str) -> Data | None:
    """The data that a checkpoint was trained on: the folder that was named, else nanoGPT's, where it is here."""
    folder = Path(given) if given else Path("data") / dataset
    if given is None and not (folder / "train.bin").is_file():
        return None
    return import_data(folder)


def import_data(folder: Path) -> Data:
    """nanoGPT's data folder, with what makes it ours beside: tokenizer.json and meta.json."""
    if read_meta(folder):
        return open_folder(folder)
    counts, digest, highest = {}, hashlib.sha256(), 0
    try:
        for split in ("train", "val"):
            size = (folder / f"{split}.bin").stat().st_size
            ids = np.memmap(folder / f"{split}.bin", "<u2", "r") if size else np.empty(0, "<u2")
            counts[split] = len(ids)
            for start in range(0, len(ids), 1 << 24):
                digest.update(ids[start : start + (1 << 24)].tobytes())
                highest = max(highest, int(ids[start : start + (1 << 24)].max()))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a data folder of nanoGPT ({error})") from None
    pickled = folder / "meta.pkl"
    tokenizer = from_meta(pickled) if pickled.is_file() else fetch_gpt2_tokenizer()  # nanoGPT's rule
    if highest >= tokenizer.vocab_size:
        raise UserError(f"{folder}: has token {highest}, and its vocabulary {tokenizer.vocab_size}")
    digest.update(tokenizer.to_json().encode())
    total = counts["train"] + counts["val"]
    meta = Meta(
        name=folder.resolve().name,
        origin=f"nanoGPT's {folder}",
        format=FORMAT,
        sha256=digest.hexdigest(),
        tokenizer="char" if isinstance(tokenizer, Characters) else "gpt2",
        reason="nanoGPT's",
        val_fraction=counts["val"] / max(1, total),
        characters=total if isinstance(tokenizer, Characters) else 0,
        symbols=tokenizer.vocab_size if isinstance(tokenizer, Characters) else 0,
        documents=1,
        vocab_size=tokenizer.vocab_size,
        dtype="uint16",
        train_tokens=counts["train"],
        val_tokens=counts["val"],
    )
    try:
        write_text(folder / "tokenizer.json", tokenizer.to_json())
        write_json(folder / "meta.json", meta.to_json())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    return Data(folder, meta)


def from_meta(path: Path) -> Tokenizer:
    """The vocabulary of nanoGPT's meta.pkl. Raises UserError where its tokens are not single characters."""
    meta = read_pickle(path)
    names = meta.get("itos") if isinstance(meta, dict) else None
    if not isinstance(names, dict) or sorted(names) != list(range(len(names))) or not names:
        raise UserError(f"{path}: no itos in it that numbers the tokens from 0")
    symbols = [names[i] for i in range(len(names))]
    if not all(isinstance(s, str) and len(s) == 1 for s in symbols) or len(set(symbols)) < len(symbols):
        raise UserError(f"{path}: its tokens are not distinct single characters, which alone can be carried")
    return from_symbols(symbols)


def find_tokenizer(wanted: str, model: ModelShape) -> Tokenizer | None:
    """What --tokenizer names; GPT-2's where the vocabulary has its size; else none."""
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
    if tokenizer is None:
        return
    is_padded_gpt2 = not isinstance(tokenizer, Characters) and tokenizer.vocab_size <= model.vocab_size
    if tokenizer.vocab_size != model.vocab_size and not is_padded_gpt2:
        raise UserError(
            f"{path}: the model has {model.vocab_size:,} tokens and the vocabulary given {tokenizer.vocab_size:,}; "
            "give the one that it was trained with"
        )
