"""GGUF: one file with model and tokenizer, as llama.cpp and all that stands on it run it.

    sampan export out/shakespeare --to gguf                    # out/shakespeare/shakespeare.gguf, float32
    sampan export out/novel --to gguf --dtype q8_0 --out novel.gguf

The `gguf` package writes; llama-cpp-python, where it is installed, loads the file again, and its tokens and its
logits are compared with ours. What llama.cpp cannot represent is refused: tokenizers other than characters and
byte-level BPE of a kind that it knows, and parts that its version of the family lacks (the Gguf of model/families).

Matrices take the type that was asked for; norms, biases and learned positions stay float32, as llama.cpp has them.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sampan.checkpoint.huggingface import to_hf_weights
from sampan.config import ExportConfig
from sampan.errors import UserError
from sampan.exchange.check import Reference, check_ids, compare_logits
from sampan.exchange.staging import find_library, need_library
from sampan.messages import _
from sampan.model.family import Gguf, find_family
from sampan.model.rotary import rotary_frequencies
from sampan.model.shape import ModelShape
from sampan.tokens.characters import Characters
from sampan.tokens.tokenizer import Tokenizer

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How a tokenizer.json cuts text into words -> what llama.cpp calls it. Of a step: (type, its pattern or use_regex)
WORD_CUTS = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", WORDS % "{1,3}"), ("ByteLevel", False)): "llama-bpe",
    (("Split", WORDS % ""), ("ByteLevel", False)): "qwen2",
}
# By which logits may differ from ours, as a share of the largest. llama.cpp's own arithmetic rounds too: GELU from a
# table in float16, and products of a quantized matrix with quantized activations
ALLOWED = {"f32": 5e-3, "f16": 2e-2, "bf16": 1e-1, "q8_0": 2e-1}


def suffix(config: ExportConfig) -> str:
    return ".gguf" if config.dtype == "f32" else f"-{config.dtype}.gguf"


def write(path: Path, model: ModelShape, weights: dict, tokenizer: Tokenizer | None, config: ExportConfig) -> list[str]:
    gguf = need_library("gguf", "gguf")
    c, kind = model, config.dtype
    if tokenizer is None:
        raise UserError(_("a GGUF has its tokenizer inside, and this model has no tokenizer.json"))
    refuse(model, weights, kind)
    writer = gguf.GGUFWriter(path, llama_cpp_family(model).architecture)
    writer.add_name(path.stem)
    writer.add_context_length(c.block_size)
    writer.add_embedding_length(c.n_embd)
    writer.add_block_count(c.n_layer)
    writer.add_feed_forward_length(c.n_inner)
    writer.add_head_count(c.n_head)
    writer.add_vocab_size(c.vocab_size)
    if c.norm == "layernorm":
        writer.add_layer_norm_eps(c.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(c.norm_eps)
    if c.positions == "rotary":
        writer.add_head_count_kv(c.n_kv_head)
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
        writer.add_rope_dimension_count(c.head_dim)
        writer.add_rope_freq_base(c.rope_theta)
        if c.rope_scaling and rope_type(c) == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(c.rope_scaling["factor"])
    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(getattr(gguf.LlamaFileType, types[kind]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(gguf, writer, model, tokenizer)
    for name, tensor in tensors(gguf, model, weights):
        if tensor.ndim == 1 or name == "position_embd.weight" or kind == "f32":
            writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
        else:
            packed = gguf.GGMLQuantizationType[kind.upper()]
            writer.add_tensor(name, gguf.quants.quantize(tensor, packed), raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if (
        isinstance(tokenizer, Characters)
        and tokenizer.byte_ids is None
        and not tokenizer.decode(range(tokenizer.vocab_size)).isascii()
    ):
        return [
            _(
                "give llama.cpp only characters that this vocabulary has: one that begins with the same byte as "
                "one of them and is none sends its tokenizer round for ever"
            )
        ]
    return []


def llama_cpp_family(c: ModelShape) -> Gguf:
    """Return what llama.cpp has of the model's family. Raises UserError where it has none."""
    known = find_family(c.family).gguf
    if known is None:
        raise UserError(_("llama.cpp has no family that computes what {family} does", family=c.family))
    return known


def rope_type(c: ModelShape) -> str:
    scaling = c.rope_scaling or {}
    return scaling.get("rope_type", scaling.get("type", "default"))


def refuse(model: ModelShape, weights: dict, kind: str) -> None:
    """Raises UserError for what llama.cpp or the type cannot carry."""
    c = model
    known = llama_cpp_family(c)
    for name in ("qkv_bias", "attn_proj_bias", "mlp_bias", "norm_bias"):
        if getattr(c, name) and name not in known.biases:
            raise UserError(
                _(
                    "llama.cpp's {architecture} lacks a part of this model: {name}",
                    architecture=known.architecture,
                    name=name,
                )
            )
    if c.activation != find_family(c.family).activation:
        raise UserError(
            _(
                "llama.cpp's {architecture} does not compute {activation}, and this model does",
                architecture=known.architecture,
                activation=c.activation,
            )
        )
    if c.positions == "rotary" and rope_type(c) not in known.stretches:
        raise UserError(
            _(
                "llama.cpp's {architecture} cannot scale positions by the {rope_type} rule",
                architecture=known.architecture,
                rope_type=rope_type(c),
            )
        )
    matrices = {name: w for name, w in weights.items() if w.ndim == 2 and name != "wpe.weight"}
    if kind == "q8_0":
        for name, matrix in matrices.items():
            if matrix.shape[1] % 32:
                raise UserError(
                    _(
                        "q8_0 packs 32 numbers of a row, and a row of {name} has {shape}; take f16",
                        name=name,
                        shape=matrix.shape[1],
                    )
                )
    if kind == "f16":
        for name, matrix in matrices.items():
            if np.abs(matrix).max() > 65504:
                raise UserError(_("{name} has numbers beyond float16's 65504; take bf16", name=name))


# ---- tensors ----


def tensors(gguf: ModuleType, c: ModelShape, weights: dict) -> Iterator[tuple[str, np.ndarray]]:
    """Pairs (llama.cpp's name, float32 array) of Hugging Face's tensors; a matrix is (out, in)."""
    family, known = find_family(c.family), llama_cpp_family(c)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[known.architecture.upper()], c.n_layer)
    for name, value in to_hf_weights(c, weights).items():
        if family.transposed and value.ndim == 2 and ".h." in name:
            value = value.T
        if known.rotates_neighbours and (".q_proj." in name or ".k_proj." in name):
            value = interleave(value, c.head_dim)  # (2i, 2i + 1), where we have (i, i + head_dim / 2)
        yield names.get_name(name, (".weight", ".bias")), value
    if rope_type(c) == "llama3":  # llama.cpp divides each frequency by this
        plain = c.rope_theta ** -(np.arange(0, c.head_dim, 2) / c.head_dim)
        yield "rope_freqs.weight", plain / rotary_frequencies(c)


def interleave(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows (heads * head_dim, ...) with the two halves of each head's rows taken in turns."""
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


# ---- tokenizers ----


def add_tokenizer(gguf: ModuleType, writer: Any, model: ModelShape, tokenizer: Tokenizer) -> None:
    described = json.loads(tokenizer.to_json())
    if isinstance(tokenizer, Characters):
        names = add_characters(writer, described, tokenizer)
    else:
        names = add_byte_level(writer, described, tokenizer)
    kinds = [gguf.TokenType.NORMAL] * len(names)
    for added in described["added_tokens"]:
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    for i in range(model.vocab_size):
        if i >= len(names) or names[i] is None:  # rows of the embedding that no token has
            names[i:] = [f"\\xffunused{i}", *names[i + 1 :]]
            kinds[i:] = [gguf.TokenType.UNUSED, *kinds[i + 1 :]]
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    add_special_tokens(writer, tokenizer)


def add_special_tokens(writer: Any, tokenizer: Tokenizer) -> None:
    """Say which tokens begin, end and pad a text, whether a prompt gets a BOS, and how a chat is written."""
    bos = tokenizer.begin[0] if tokenizer.begin else tokenizer.config_ids()["bos_token_id"]
    roles = {"bos": bos, "eos": tokenizer.end_of_text, "pad": tokenizer.role("pad"), "unk": tokenizer.role("unk")}
    others = [i for i in tokenizer.ends if i != tokenizer.end_of_text]  # such as a chat's end of a turn
    roles |= dict(zip(("eot", "eom"), others, strict=False))
    for role, i in roles.items():
        if i is not None:
            getattr(writer, f"add_{role}_token_id")(i)
    writer.add_add_bos_token(bool(tokenizer.begin))
    if tokenizer.beside.chat_template is not None:
        writer.add_chat_template(tokenizer.beside.chat_template)


def add_characters(writer: Any, described: dict, tokenizer: Characters) -> list[str | None]:
    """A vocabulary of characters as one of RWKV's, which takes the longest token that fits and knows no merges.

    Of llama.cpp's kinds of vocabulary this alone needs neither bytes nor an end-of-text token. An end of text is
    written as the byte 0xFF, which no text has: its letters in a text are letters, as for our own tokenizer.
    """
    writer.add_tokenizer_model("rwkv")
    names: list[str | None] = [None] * tokenizer.vocab_size
    for symbol, i in described["model"]["vocab"].items():
        names[i] = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}.get(symbol, symbol)
    if tokenizer.byte_ids is not None:
        # of a character that is also one byte, the later name, the character's, is taken
        for byte, i in enumerate(tokenizer.byte_ids):
            names[i] = f"\\x{byte:02x}"
    for added in described["added_tokens"]:
        names[added["id"]] = f"\\xff{added['content']}"
    return names


def add_byte_level(writer: Any, described: dict, tokenizer: Tokenizer) -> list[str | None]:
    """A byte-level BPE. Raises UserError for another tokenizer, and where llama.cpp would cut words elsewhere."""
    kind, normalizer = described["model"]["type"], described["normalizer"]
    steps = described["pre_tokenizer"] or {}
    steps = tuple(map(word_cut, steps.get("pretokenizers", [steps])))
    if kind != "BPE" or steps not in WORD_CUTS or (normalizer or {"type": "NFC"})["type"] != "NFC":
        raise UserError(
            _(
                "its tokenizer ({kind}, words cut by {value}) is none that llama.cpp has exactly: those are "
                "characters, and the byte-level BPE of GPT-2, SmolLM, Llama 3 and Qwen, lower case left alone "
                "and no space put before the first word",
                kind=kind,
                value=", ".join((str(name) for name, _ in steps)),
            )
        )
    if tokenizer.end_of_text is None:
        raise UserError(
            _("llama.cpp takes token 11 of a BPE as the end of a text where there is none; this one has none")
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(WORD_CUTS[steps])
    merges = described["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    names: list[str | None] = [None] * tokenizer.vocab_size
    for token, i in described["model"]["vocab"].items():
        names[i] = token
    for added in described["added_tokens"]:
        names[added["id"]] = added["content"]
    return names


def word_cut(step: dict) -> tuple:
    kind = step.get("type")
    if kind == "ByteLevel":
        return kind, step.get("use_regex") if not step.get("add_prefix_space") else "add_prefix_space"
    if kind == "Digits":
        return kind, step.get("individual_digits")
    return kind, (step.get("pattern") or {}).get("Regex")


# ---- checking ----


@functools.cache
def silence(llama_cpp: ModuleType) -> Any:
    """A C function that logs nothing; the library calls it as long as the process lives."""
    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def check(path: Path, model: ModelShape, tokenizer: Tokenizer, reference: Reference, config: ExportConfig) -> str:
    llama_cpp = find_library("llama_cpp")
    if llama_cpp is None:
        return _("not checked: pip install llama-cpp-python, and export again, to compare its logits with ours")
    ids = check_ids(model)
    options = dict(n_ctx=ids.shape[1], n_batch=ids.shape[1], n_threads=1, n_threads_batch=1)
    llama_cpp.llama_log_set(silence(llama_cpp), None)  # it has much to say of a small context
    try:  # its cache is float16 unless it is told
        llama = llama_cpp.Llama(str(path), logits_all=True, verbose=False, type_k=0, type_v=0, **options)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(
            _("llama.cpp cannot load what was written ({error}); nothing was written", error=error)
        ) from None
    added = {token["id"] for token in json.loads(tokenizer.to_json())["added_tokens"]}
    text = tokenizer.decode([i for i in ids.flatten() if i < tokenizer.vocab_size and i not in added])
    text = text.replace("\ufffd", "")  # of bytes that are no whole character
    theirs = llama.tokenize(text.encode(), add_bos=False, special=False)
    if theirs != tokenizer.encode(text).tolist():
        raise UserError(_("llama.cpp makes other tokens of a text than this tokenizer; nothing was written"))
    logits = []
    for row in ids.tolist():
        llama.reset()
        llama.eval(row)
        logits.append(np.array(llama.scores[: len(row)]))
    llama.close()
    return compare_logits(
        np.array(logits), reference(ids), ALLOWED[config.dtype], f"llama-cpp-python {llama_cpp.__version__}"
    )
