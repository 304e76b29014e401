"""llm.c's weights files: a GPT-2 model in float32 (version 3) or bfloat16 (version 5).

    model, weights = read_weights(Path("gpt2_124M.bin"))     # {name: float32}, without the padding
    write_weights(Path("gpt2_124M_bf16.bin"), model, weights, "bf16")

Tensors are ordered by kind, each for all blocks. The token embedding is padded with rows of zeros to a multiple of 128.
The weights of llm.c's Llama 3 are not read.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sampan.config import ModelSettings
from sampan.errors import UserError
from sampan.exchange.llmc.header import HEADER, MODEL, check_size, read_header, write_header
from sampan.files import replacing
from sampan.messages import _
from sampan.model.parameters import Param, parameters
from sampan.model.shape import ModelShape, resolve, settings_of

DTYPES: dict[str, tuple[int, np.dtype[Any], str]] = {  # version, number type, end of the file's name
    "f32": (3, np.dtype("<f4"), ""),
    "bf16": (5, np.dtype("<u2"), "_bf16"),
}
PADDED_TO = 128  # rows of the token embedding
OF_A_BLOCK = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias",
    "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip


def in_order(config: ModelShape) -> list[Param]:
    """Return the parameters in llm.c's order."""
    rows = {p.name: p for p in parameters(config)}
    blocks = (f"h.{i}.{name}" for name in OF_A_BLOCK for i in range(config.n_layer))
    return [rows[name] for name in ("wte.weight", "wpe.weight", *blocks, "ln_f.weight", "ln_f.bias")]


def read_weights(path: Path) -> tuple[ModelShape, dict[str, np.ndarray]]:
    """Return a weights file's model and parameters: {name: float32}, a matrix (out, in).

    Raises UserError if the file is incomplete or damaged.
    """
    config, dtype, padded = read_config(path)
    return config, read_tensors(np.memmap(path, dtype, "c", 4 * HEADER), config, padded, path)


def read_config(path: Path) -> tuple[ModelShape, np.dtype, int]:
    """Return (model, number type, padded rows of the token embedding) of a weights file after checking its length."""
    _magic, version, block_size, vocab_size, n_layer, n_head, n_embd, padded = read_header(path, MODEL)[:8]
    dtype = next((number for known, number, _ in DTYPES.values() if known == version), None)
    if dtype is None:
        raise UserError(
            _(
                "{path}: unsupported version {version} of llm.c's weights; expected 3 (float32) or 5 (bfloat16)",
                path=path,
                version=version,
            )
        )
    if not all(0 < n < 1 << 28 for n in (block_size, vocab_size, n_layer, n_head, n_embd)) or padded < vocab_size:
        raise UserError(_("{path}: its header has an impossible size", path=path))
    config = ModelSettings(family="gpt2", bias=True, norm_eps=1e-5, block_size=block_size, vocab_size=vocab_size,
                         n_layer=n_layer, n_head=n_head, n_embd=n_embd)  # fmt: skip
    check_size(path, 4 * HEADER + dtype.itemsize * count_numbers(config, padded))
    try:
        return resolve(config), dtype, padded
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def count_numbers(config: ModelSettings | ModelShape, padded: int) -> int:
    """Return how many numbers the tensors of a model have; in closed form, since a header may ask for 2^28 layers."""
    C = config.n_embd
    return (padded + config.block_size + 2) * C + config.n_layer * (12 * C * C + 13 * C)


def read_tensors(numbers: np.ndarray, config: ModelShape, padded: int, path: Path) -> dict[str, np.ndarray]:
    """Return {name: float32} from the numbers of a file, float32 or bfloat16 as uint16.

    Raises UserError if the padding is not zero.
    """
    tensors, start = {}, 0
    for p in in_order(config):
        tensors[p.name] = to_float32(numbers[start : start + p.size]).reshape(p.shape)
        start += p.size
        if p.name == "wte.weight":
            padding = numbers[start : start + (padded - config.vocab_size) * config.n_embd]
            if padding.any():
                raise UserError(
                    _(
                        "{path}: the rows beyond its vocabulary of {vocab_size:,} are not zero",
                        path=path,
                        vocab_size=config.vocab_size,
                    )
                )
            start += len(padding)
    return tensors


def write_weights(path: Path, config: ModelShape, weights: Mapping[str, np.ndarray], dtype: str) -> None:
    """Write a weights file, `dtype` f32 or bf16. Raises OSError."""
    shape = (config.block_size, config.vocab_size, config.n_layer, config.n_head, config.n_embd)
    with replacing(path) as file:
        write_header(file, MODEL, DTYPES[dtype][0], *shape, padded_vocabulary(config))
        write_tensors(file, config, weights, dtype)


def write_tensors(file: BinaryIO, config: ModelShape, tensors: Mapping[str, np.ndarray], dtype: str) -> None:
    """Write all tensors in llm.c's order, the token embedding with its padding."""
    for p in in_order(config):
        numbers = to_bfloat16(tensors[p.name]) if dtype == "bf16" else tensors[p.name].astype("<f4", copy=False)
        file.write(np.ascontiguousarray(numbers).data)
        if p.name == "wte.weight":
            file.write(bytes((padded_vocabulary(config) - config.vocab_size) * config.n_embd * numbers.itemsize))


def padded_vocabulary(config: ModelShape) -> int:
    """Return how many rows the token embedding has in a file."""
    return -(-config.vocab_size // PADDED_TO) * PADDED_TO


def to_float32(numbers: np.ndarray) -> np.ndarray:
    """Return float32 numbers as they are, and bfloat16 ones, given as uint16, as float32."""
    return (numbers.astype(np.uint32) << 16).view(np.float32) if numbers.itemsize == 2 else numbers


def to_bfloat16(numbers: np.ndarray) -> np.ndarray:
    """Return the nearest bfloat16 of each float32, ties to even, as uint16.

    >>> [hex(v) for v in to_bfloat16(np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, np.nan], np.float32))]
    ['0x3f80', '0x3f80', '0x3f82', '0x7fc0']
    """
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return np.where(np.isnan(numbers), 0x7FC0, rounded).astype("<u2")


def as_llmc(c: ModelShape, weights: Mapping[str, np.ndarray], source: str) -> tuple[ModelShape, dict[str, np.ndarray]]:
    """Return the same function as a model that llm.c supports, with zeros as missing biases.

    Raises UserError if there is none.
    """
    reasons = {
        _("it was trained with an edited engine/torch/model.py"): c.edited,
        _("it is a {family} model, and llm.c supports only gpt2", family=c.family): c.norm != "layernorm"
        or c.positions != "learned"
        or c.gated,
        _("its activation function is {activation}, and llm.c's is gelu_new", activation=c.activation): c.activation
        != "gelu_new",
        _("its head does not share the token embedding, as llm.c's does"): not c.tie_word_embeddings,
        _("its MLP is {n_inner} wide, and llm.c's is 4 x {n_embd}", n_inner=c.n_inner, n_embd=c.n_embd): c.n_inner
        != 4 * c.n_embd,
        _("its norm_eps is {norm_eps:g}, and llm.c's is 1e-05", norm_eps=c.norm_eps): np.float32(c.norm_eps or 0)
        != np.float32(1e-5),
    }
    for reason, applies in reasons.items():
        if applies:
            raise UserError(_("{source} cannot be written for llm.c: {reason}", source=source, reason=reason))
    full = resolve(replace(settings_of(c), bias=True, dropout=0.0))
    return full, {p.name: weights.get(p.name, np.zeros(p.shape, np.float32)) for p in parameters(full)}
