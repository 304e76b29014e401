"""Between our parameters and Hugging Face's names, layouts and config.json, as the files of model/families describe them.

    shape = from_hf_config(json.load(file), "config.json"); weights = from_hf_weights(shape, tensors, "folder")

No file is read or written here (folder.py).
"""

import reprlib
import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sampan.config import FAMILIES, ModelSettings, build
from sampan.errors import UserError
from sampan.messages import _
from sampan.model.family import Family, find_family
from sampan.model.parameters import Param, parameters
from sampan.model.shape import ModelShape, resolve, settings_of

ROTARY_ANGLES = 1 << 25  # block_size x head_dim: a table of that size is made whatever the weights' size is
WINDOW = 4096  # of sliding attention, where config.json does not say
EDITED, ACTIVATION_BEFORE = "as in an edited engine/torch/model.py", "activation_before_the_edit"

# ---- config.json ----


def to_hf_config(shape: ModelShape, ids: dict) -> dict:
    """Return the config.json that transformers reads as the same model; `ids` are those of its tokenizer."""
    family, settings = find_family(shape.family), settings_of(shape)
    edited = {}
    if shape.edited:  # transformers, and every other reader, refuses an activation function of this name
        edited = {activation_key(family): EDITED, ACTIVATION_BEFORE: shape.activation}
    return {
        "architectures": [family.architecture],
        "model_type": shape.family,
        "torch_dtype": "float32",
        **ids,
        **{key.theirs: getattr(settings, key.ours) for key in family.keys},
        **{fixed.theirs: fixed.value for fixed in family.fixed if fixed.written},
        **edited,
    }


def from_hf_config(hf: dict, where: str) -> ModelShape:
    """Return the model that a config.json describes. Raises UserError for one that is not exactly of our families."""
    name = hf.get("model_type")
    if name not in FAMILIES:
        raise UserError(
            _(
                "{where}: model_type {name} is none of {families}",
                where=where,
                name=reprlib.repr(name),
                families=", ".join(FAMILIES),
            )
        )
    family = find_family(name)
    is_edited = hf.get(activation_key(family)) == EDITED
    if is_edited:
        hf = hf | {activation_key(family): hf.get(ACTIVATION_BEFORE)}
    if "quantization_config" in hf:
        raise UserError(_("{where}: the weights are quantized; take the folder of the original model", where=where))
    window = None
    for fixed in family.fixed:
        value = hf.get(fixed.theirs, fixed.default)
        if value != fixed.value:
            window = hf.get(fixed.window, WINDOW)
            if fixed.window and (window is None or (type(window) is int and window > 0)):
                continue
            raise UserError(
                _(
                    "{where}: {theirs} {value} is not supported (only {value_2!r})",
                    where=where,
                    theirs=fixed.theirs,
                    value=reprlib.repr(value),
                    value_2=fixed.value,
                )
            )
    try:
        shape = resolve(build(ModelSettings, {"family": name} | settings_in(family, with_flat_positions(hf))))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if shape.positions == "rotary" and shape.block_size * shape.head_dim > ROTARY_ANGLES:
        raise UserError(
            _(
                "{where}: max_position_embeddings {block_size} with heads {head_dim} wide asks for too large a "
                "table of positions; set it to {rotary_angles} or less",
                where=where,
                block_size=shape.block_size,
                head_dim=shape.head_dim,
                rotary_angles=ROTARY_ANGLES // shape.head_dim,
            )
        )
    if window is not None and window < shape.block_size:
        message = _(
            "{where}: the context is cropped from {block_size} to {window} tokens, the length of the sliding window",
            where=where,
            block_size=shape.block_size,
            window=window,
        )
        warnings.warn(message, stacklevel=2)
        shape = replace(shape, block_size=window)
    return replace(shape, edited=is_edited)


def activation_key(family: Family) -> str:
    """Return the key of config.json that names the activation function."""
    return next(key.theirs for key in family.keys if key.ours == "activation")


def settings_in(family: Family, hf: dict) -> dict:
    """Return the model settings in a config.json, by our names. Raises UserError."""
    settings: dict = {}
    read_from: dict[str, str] = {}
    for key in family.keys:
        if not key.read:
            continue
        value = hf.get(key.synonym, hf.get(key.theirs, key.default))
        if value is None and key.required:
            raise UserError(_("{theirs} is missing", theirs=key.theirs))
        if isinstance(value, str):
            value = key.aliases.get(value, value)
        choices = ModelSettings.__dataclass_fields__[key.ours].metadata["choices"]
        if choices and value not in choices:
            allowed = " or ".join(map(repr, (*choices, *key.aliases)))
            raise UserError(
                _(
                    "{theirs} {value} is not supported (only {allowed})",
                    theirs=key.theirs,
                    value=reprlib.repr(value),
                    allowed=allowed,
                )
            )
        if settings.setdefault(key.ours, value) != value:
            raise UserError(
                _(
                    "{read_from} and {theirs} differ, which is not supported",
                    read_from=read_from[key.ours],
                    theirs=key.theirs,
                )
            )
        read_from[key.ours] = key.theirs
    return {name: value for name, value in settings.items() if value is not None}


def with_flat_positions(hf: dict) -> dict:
    """Return a config.json with rope_theta and rope_scaling apart, which transformers 5 keeps in one table."""
    rope = hf.get("rope_parameters")
    if not isinstance(rope, dict):
        return hf
    hf = hf | {key: rope[key] for key in ("rope_theta",) if key in rope}
    if rope.get("rope_type", "default") != "default":
        hf["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    return hf


# ---- weights ----


def stored_tensors(family: Family, p: Param) -> list[tuple[str, int]]:
    """Return Hugging Face's tensors that a parameter is made of, from top to bottom: (name, rows of ours)."""
    module, _dot, end = p.name.rpartition(".")
    block = ""
    if module.startswith("h."):
        _h, block, module = module.split(".", 2)
    names = [f"{name.format(block)}.{end}" for name in family.tensors[module]]
    return list(zip(names, p.rows if len(names) > 1 else p.shape[:1], strict=True))


def to_hf_weights(shape: ModelShape, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return our parameters under Hugging Face's names and in its layout."""
    family, tensors = find_family(shape.family), {}
    for p in parameters(shape):
        stored = stored_tensors(family, p)
        pieces = np.split(weights[p.name], np.cumsum([rows for _, rows in stored])[:-1])
        for (name, _rows), piece in zip(stored, pieces, strict=True):
            tensors[name] = np.ascontiguousarray(piece.T if family.transposed and p.pieces else piece)
    if family.zero_biases:
        for p in parameters(shape):
            is_embedding = p.decay and not p.pieces
            if p.name.endswith(".weight") and not is_embedding:
                for name, rows in stored_tensors(family, p):
                    tensors.setdefault(name.removesuffix("weight") + "bias", np.zeros(rows, np.float32))
    return tensors


def find_stored(family: Family, name: str, tensors: Mapping[str, np.ndarray]) -> str | None:
    """Return the name that Hugging Face's tensor `name` has in this file, or None if it is missing."""
    return next((n for n in (name, name.removeprefix(family.optional_prefix)) if n in tensors), None)


def with_stored_head(shape: ModelShape, tensors: Mapping[str, np.ndarray]) -> ModelShape:
    """Return the shape with a head of its own if the tensors have one, whatever config.json says (as transformers 5 does)."""
    family = find_family(shape.family)
    stored = [find_stored(family, f"{family.tensors[module][0]}.weight", tensors) for module in ("wte", "lm_head")]
    if not shape.tie_word_embeddings or None in stored:
        return shape
    embedding, head = (tensors[name] for name in stored if name)
    return replace(shape, tie_word_embeddings=np.array_equal(embedding, head))


def from_hf_weights(shape: ModelShape, tensors: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Return our parameters, float32, out of Hugging Face's tensors. Warn of tensors outside of the model, by name.

    Raises UserError for a tensor that is missing, has another shape, or is in the model where ours has none.
    """
    family = find_family(shape.family)
    left = set(tensors)
    weights = {}
    for p in parameters(shape):
        is_transposed = family.transposed and bool(p.pieces)
        pieces = []
        for name, rows in stored_tensors(family, p):
            found = find_stored(family, name, tensors)
            if found is None and p.name == "wte.weight" and shape.tie_word_embeddings:
                found = find_stored(family, f"{family.tensors['lm_head'][0]}.weight", tensors)  # one name of the two
            if found is None:
                raise UserError(_("{where}: tensor {name} is missing", where=where, name=name))
            left.discard(found)
            value = tensors[found].T if is_transposed else tensors[found]
            expected = (rows, *p.shape[1:])
            if p.name == "wpe.weight" and value.ndim == 2 and value.shape[0] > rows:
                value = value[:rows]  # a cropped block_size
            if value.shape != expected:
                raise UserError(
                    _(
                        "{where}: tensor {found} has shape {shape}, expected {expected}",
                        where=where,
                        found=found,
                        shape=tensors[found].shape,
                        expected=expected[::-1] if is_transposed else expected,
                    )
                )
            pieces.append(value)
        weights[p.name] = np.concatenate(pieces).astype(np.float32, copy=False)
    unused = []
    for name in sorted(left):
        is_tied = name == "lm_head.weight" and shape.tie_word_embeddings
        is_zero_bias = name.endswith(".bias") and not shape.qkv_bias and not tensors[name].any()
        if name.endswith(family.ignored) or is_tied or is_zero_bias:
            continue
        if is_inside(shape, name):
            raise UserError(
                _(
                    "{where}: tensor {name} has no place in a {family} model of this configuration",
                    where=where,
                    name=reprlib.repr(name),
                    family=shape.family,
                )
            )
        unused.append(reprlib.repr(name))
    if unused:
        message = _(
            "{where}: left out {count} tensors that are not part of this {family} model: {names}",
            where=where,
            count=len(unused),
            family=shape.family,
            names=", ".join(unused[:4]) + (", ..." if len(unused) > 4 else ""),
        )
        warnings.warn(message, stacklevel=2)
    return weights


def is_inside(shape: ModelShape, name: str) -> bool:
    """Return whether a tensor would be in the model: in one of its blocks, or in another of its modules."""
    family = find_family(shape.family)
    modules = [stored.removeprefix(family.optional_prefix) for names in family.tensors.values() for stored in names]
    name = name.removeprefix(family.optional_prefix)
    blocks = {module.partition("{}")[0] for module in modules if "{}" in module}
    for block in blocks:
        if name.startswith(block):
            number = name.removeprefix(block).partition(".")[0]
            return not number.isdecimal() or int(number) < shape.n_layer
    return name.rpartition(".")[0] in modules
