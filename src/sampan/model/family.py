"""What makes a family of models: its parts, and how Hugging Face stores it. Each file of families/ describes one.

    family = find_family("qwen3"); family.norm, family.tensors["attn.c_proj"]

A new family of known parts is a new file in families/ and nothing else; docs/en/hacking.md shows one being added.
Engines and exports read parts from a ModelShape and never ask for the family.
"""

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Key:
    """A key of config.json and the model setting that it holds; reading and writing both follow from it."""

    theirs: str
    ours: str
    default: Any = (
        None  # what transformers takes where config.json lacks the key; None: what follows from other settings
    )
    required: bool = False
    aliases: Mapping[Any, Any] = field(default_factory=dict)  # other values that mean one of ours
    read: bool = True  # False: written, and ignored where it is read
    synonym: str | None = None  # another name, of transformers' attribute_map, which wins there if both are given


@dataclass(frozen=True)
class Fixed:
    """A key of config.json that must have one value, because the model is another one otherwise."""

    theirs: str
    value: Any
    default: Any  # what transformers takes where config.json lacks the key
    written: bool = False
    window: str | None = None  # another value means attention to so many tokens: the same model up to that length


@dataclass(frozen=True)
class Gguf:
    """How llama.cpp knows a family, and which parts its implementation has."""

    architecture: str
    biases: tuple[str, ...]
    rotates_neighbours: bool = False  # channels (2i, 2i + 1); ours are (i, i + head_dim / 2)
    stretches: tuple[str, ...] = ("default", "linear")  # types of rope_scaling


@dataclass(frozen=True)
class Family:
    """The parts of a family's models, and their names and layout in Hugging Face's folders."""

    architecture: str  # the class in transformers
    norm: str  # "layernorm" or "rmsnorm"
    positions: str  # "learned" or "rotary"
    activation: str  # the default; the setting `activation` can name another
    gated: bool  # the MLP multiplies activation(gate) by a second product, as SwiGLU does
    keys: tuple[Key, ...]  # of config.json
    tensors: Mapping[str, tuple[str, ...]]  # our module -> theirs, which lie in it one above the other; {} is the block
    biases: tuple[str, ...] = ()  # the biases that the setting `bias` means
    bias: tuple[bool, ...] = (False, True)  # the values that `bias` can have, its default first
    qk_norm: bool = False  # RMSNorm over each head of queries and keys
    whole_heads: bool = (
        False  # n_embd is a multiple of n_head even where head_dim is given; transformers refuses others
    )
    fixed: tuple[Fixed, ...] = ()
    transposed: bool = False  # the blocks' matrices are stored as (in, out)
    zero_biases: bool = False  # biases that a model lacks are stored as zeros
    optional_prefix: str = ""  # what the names lack in folders without a head, and in older ones
    ignored: tuple[str, ...] = ()  # ends of the names of buffers, which hold nothing learned
    gguf: Gguf | None = None  # None: llama.cpp has no such family

    @property
    def fused(self) -> bool:
        """Whether queries, keys and values are one stored matrix, so that all three are as wide as n_embd."""
        return len(self.tensors["attn.c_attn"]) == 1


@functools.cache
def find_family(name: str) -> Family:
    """Return the family of that name, which is one of config.FAMILIES."""
    return importlib.import_module(f"sampan.model.families.{name}").FAMILY
