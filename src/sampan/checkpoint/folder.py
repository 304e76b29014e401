"""Read and write model folders in Hugging Face's format; files from strangers cannot do harm.

    model, weights = load_model("out/shakespeare")          # or any folder of a known family
    save_model("copy", model, weights, tokenizer)

Nothing in a folder is executed, and no pickle is written. Runs that can be resumed are in run.py.
"""

import contextlib
import errno
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from sampan.checkpoint.huggingface import (
    from_hf_config,
    from_hf_weights,
    to_hf_config,
    to_hf_weights,
    with_stored_head,
)
from sampan.checkpoint.tensors import WEIGHTS, Tensors, commit, stage_safetensors
from sampan.config import SampleConfig
from sampan.errors import UserError
from sampan.fetch import is_offline, mirror_folder
from sampan.files import read_json, write_json
from sampan.messages import _
from sampan.model.shape import ModelShape
from sampan.tokens.kinds import has_tokenizer, read_tokenizer
from sampan.tokens.tokenizer import Tokenizer

# What is fetched of a model on the hub, and pytorch_model.bin where there are no safetensors
DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "*.model"]

# ---- model folders ----


def find_model(name: str) -> Path:
    """Return a model's folder: a local path, the run of that name, SAMPAN_MIRROR/NAME, or a download from the hub.

    A run is in out/NAME or, as nanoGPT's, in out-NAME. A download is kept for reuse. Raise UserError if there is no such
    folder or the download fails.
    """
    here = [folder for folder in (Path(name), Path("out", name), Path(f"out-{name}")) if folder.is_dir()]
    for folder in here:
        if (folder / "config.json").is_file():
            return folder
    if Path(name).is_dir():
        return Path(name)
    mirrored = mirror_folder(name)
    if mirrored is not None and (mirrored / "config.json").is_file():
        return mirrored
    if Path(name).is_file():
        raise UserError(_("{name} is a file; give a run's folder, a Hugging Face folder or a hub name", name=name))
    if name.startswith((".", "/", "~", "out/")) or name.count("/") > 1 or ("/" in name and Path(name).parent.is_dir()):
        raise UserError(_("{name}: no such folder{runs_near}", name=name, runs_near=runs_near(Path(name).parent)))
    import huggingface_hub
    from huggingface_hub.utils import HFValidationError

    try:
        download = partial(huggingface_hub.snapshot_download, name, etag_timeout=5, local_files_only=is_offline())
        folder = Path(download(allow_patterns=DOWNLOADED))
        if not any(folder.glob("*.safetensors")):
            download(allow_patterns=["pytorch_model*.bin"])
        return folder
    except HFValidationError:
        raise UserError(_("{name}: no such folder, and not a name on the Hugging Face hub", name=name)) from None
    except Exception as error:  # the hub's client and what it stands on raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            _(
                "{name}: no such folder, and it cannot be fetched from the Hugging Face hub ({reason}); give the "
                "path of a downloaded folder, or set SAMPAN_MIRROR to a folder that contains it, or HF_ENDPOINT "
                "to a mirror of the hub{runs_near}",
                name=name,
                reason=reason,
                runs_near=runs_near(Path("out")),
            )
        ) from None


def asked_model(config: SampleConfig) -> tuple[Path, str]:
    """Return the folder of the model to sample from, and its name. Raise UserError if there is none.

    Without a name it is the run that was saved last, of out/NAME and nanoGPT's out-NAME.
    """
    if config.init_from != "resume":
        return find_model(config.init_from), config.init_from
    if config.out_dir != SampleConfig.out_dir or (Path(config.out_dir) / "config.json").is_file():
        folder = find_model(config.out_dir)
        return folder, config.out_dir if folder.is_absolute() else str(folder)
    saved = [path for pattern in ("out/*/", "out-*/") for path in Path().glob(f"{pattern}run.json")]
    if not saved:
        return find_model(config.out_dir), config.out_dir
    folder = max((path.parent for path in saved), key=time_saved)
    return folder, _("{folder} (the newest run)", folder=folder)


def time_saved(folder: Path) -> float:
    """Return when a run was saved last, in seconds."""
    return max((path.stat().st_mtime for path in folder.rglob(WEIGHTS)), default=0.0)


def runs_near(folder: Path) -> str:
    """Return the end of a sentence that names the runs in a folder; "" if there are none."""
    names = sorted(str(path.parent) for path in folder.glob("*/run.json"))
    return _("; the runs here are {names}", names=", ".join(names[:8])) if names else ""


def load_model_config(folder: str | Path) -> ModelShape:
    """Return the shape of a folder's model. Raise UserError if it is missing or not of a known family."""
    return with_stored_head(read_shape(folder), Tensors(Path(folder)))


def read_shape(folder: str | Path) -> ModelShape:
    """Return the shape that a folder's config.json describes. Raise UserError if it is missing or not of a known family."""
    path = Path(folder) / "config.json"
    if not path.is_file() and (Path(folder) / "adapter_config.json").is_file():
        raise UserError(
            _("{folder} has an adapter (LoRA) and no model: merge it with peft's merge_and_unload", folder=folder)
        )
    if not path.is_file():
        raise UserError(
            _(
                "{folder} is not a model's folder: it has no config.json{runs_near}",
                folder=folder,
                runs_near=runs_near(Path(folder)),
            )
        )
    return from_hf_config(read_json(path), str(path))


def load_model(folder: str | Path, block_size: int | None = None) -> tuple[ModelShape, dict[str, np.ndarray]]:
    """Return a folder's model and its weights, {name: float32 array}, with the names and shapes of `model.parameters`.

    `block_size`, in tokens, crops the context. Raise UserError if the folder is not a model's, its files are damaged, or
    `block_size` is more than the model's.
    """
    shape, tensors = read_shape(folder), Tensors(Path(folder))
    shape = crop(with_stored_head(shape, tensors), block_size, str(folder))
    return shape, from_hf_weights(shape, tensors, str(folder))


def crop(config: ModelShape, block_size: int | None, where: str) -> ModelShape:
    """Return the shape with a context of `block_size` tokens; None keeps it. Raise UserError if the model has fewer."""
    if block_size is None:
        return config
    if block_size > config.block_size:
        raise UserError(
            _(
                "block_size={block_size}: {where} has {block_size_2}, which can be cropped but not extended",
                block_size=block_size,
                where=where,
                block_size_2=config.block_size,
            )
        )
    return replace(config, block_size=block_size)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Return the tokenizer in a folder. Raise UserError if it has none, or one that cannot be read."""
    if not has_tokenizer(folder):
        raise UserError(_("{folder} has no tokenizer", folder=folder))
    return read_tokenizer(folder)


def save_model(
    folder: str | Path,
    config: ModelShape,
    weights: Mapping[str, np.ndarray],
    tokenizer: Tokenizer | None,
    note: dict[str, Any] | None = None,
) -> None:
    """Write a folder that transformers can load; the weights come last.

    `weights` are {name: float32 array} with the names and shapes of `model.parameters`. `note` goes into the header of
    the weights file as JSON. Raise UserError if the folder cannot be written.
    """
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_description(folder, config, tokenizer)
        commit(stage_safetensors(folder / WEIGHTS, to_hf_weights(config, weights), note or {}))


def save_description(folder: Path, config: ModelShape, tokenizer: Tokenizer | None) -> None:
    """Write everything but the weights: config.json and, with a tokenizer, its files. Raise OSError if that fails."""
    ids = tokenizer.config_ids() if tokenizer else {"bos_token_id": None, "eos_token_id": None}
    write_json(folder / "config.json", to_hf_config(config, ids))
    if tokenizer:
        tokenizer.save(folder, config.block_size)


# ---- writing ----


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn file-system errors of the `with` block into a UserError that names `folder`."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        reason = _("disk full") if full else getattr(error, "strerror", None) or str(error)
        if folder.exists():
            message = _("{folder}: cannot write ({reason}); the previous checkpoint is intact")
        else:
            message = _("{folder}: cannot create the folder ({reason})")
        raise UserError(message.format(folder=folder, reason=reason)) from None
