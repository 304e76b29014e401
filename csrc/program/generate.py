"""Write the tables of sampan-c: families.inc (names, keys, parts), settings.inc (defaults, ranges), unicode.inc.

    python csrc/program/generate.py            # with the package installed, or PYTHONPATH=src

sampan-c has no Python, so the tables of src/sampan/model/families and the settings of src/sampan/config.py are written
out as C. The files are committed; tests/test_c_sources.py fails if they are not what the package says.
"""

import itertools
import json
import sys
import unicodedata
from dataclasses import Field
from pathlib import Path

from sampan.config import FAMILIES, SampleConfig, TrainConfig
from sampan.model.family import Family, Key, find_family

TRAIN = (
    *("out_dir", "init_from", "data_dir", "dtype", "threads", "seed", "optimizer", "batch_size", "block_size"),
    *(
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "max_iters",
        "learning_rate",
        "decay_lr",
        "warmup_iters",
    ),
    *(
        "lr_decay_iters",
        "min_lr",
        "weight_decay",
        "beta1",
        "beta2",
        "momentum",
        "adamw_lr_ratio",
        "grad_clip",
        "dropout",
    ),
    *("eval_interval", "eval_iters", "eval_only", "log_interval"),
)
SAMPLE = (
    *("weights", "start", "num_samples", "max_new_tokens", "temperature", "top_k", "top_p", "min_p"),
    *("repetition_penalty", "no_repeat_ngram_size"),
)
ELSEWHERE = {"init_from": "", "block_size": 0, "start": "\n"}  # a model is never new here and has its block_size
MOST = 1e9  # where the package has no limit


def text(value: str | None) -> str:
    """Return a C string."""
    return "NULL" if value is None else json.dumps(value)


def number(value: bool | int | None) -> int:
    """Return the number that stands for a fixed value in C: -1 for null."""
    return -1 if value is None else int(value)


def key_row(key: Key) -> str:
    """Return a family_key: theirs, ours, required, read, has_default, number, string, alias."""
    default = key.default
    amount = 0 if default is None or isinstance(default, str) else default
    if isinstance(amount, bool):
        amount = int(amount)
    string = default if isinstance(default, str) else None
    alias = [text(word) for pair in key.aliases.items() for word in pair] or ["NULL", "NULL"]
    flags = f"{int(key.required)}, {int(key.read)}, {int(default is not None)}"
    return f"{{{text(key.theirs)}, {text(key.ours)}, {flags}, {amount!r}, {text(string)}, {{{', '.join(alias)}}}}}"


def tables(name: str, family: Family) -> str:
    """Return the C tables of one family."""
    keys = [key_row(key) for key in family.keys]
    fixed = [f"{{{text(f.theirs)}, {number(f.value)}, {number(f.default)}}}" for f in family.fixed]
    modules = [f"{{{text(ours)}, {{{', '.join(map(text, theirs))}}}}}" for ours, theirs in family.tensors.items()]
    rows = {"family_key": ("keys", keys), "family_fixed": ("fixed", fixed), "family_module": ("modules", modules)}
    parts = []
    for kind, (title, lines) in rows.items():
        body = "".join(f"    {line},\n" for line in [*lines, "{0}"])
        parts.append(f"static const {kind} {name}_{title}[] = {{\n{body}}};\n")
    return "".join(parts)


def family_row(name: str, family: Family) -> str:
    """Return a family: its parts, and pointers to its tables."""
    biases = {bias: int(bias in family.biases) for bias in ("qkv_bias", "attn_proj_bias", "mlp_bias", "norm_bias")}
    fields = {
        "model_type": text(name),
        "architecture": text(family.architecture),
        "norm": text(family.norm),
        "positions": text(family.positions),
        "activation": text(family.activation),
        "gated": int(family.gated),
        "qk_norm": int(family.qk_norm),
        **biases,
        "bias": int(family.bias[0]),
        "transposed": int(family.transposed),
        "zero_biases": int(family.zero_biases),
        "optional_prefix": text(family.optional_prefix),
        "keys": f"{name}_keys",
        "fixed": f"{name}_fixed",
        "modules": f"{name}_modules",
    }
    return "    {\n" + "".join(f"        .{field} = {value},\n" for field, value in fields.items()) + "    },\n"


def generate_families() -> str:
    """Return families.inc."""
    families = {name: find_family(name) for name in FAMILIES}
    rows = "".join(family_row(name, family) for name, family in families.items())
    return (
        "/* families.inc: the package's families of models. Written by generate.py; do not edit. */\n\n"
        "// clang-format off\n\n"
        + "\n".join(tables(name, family) for name, family in families.items())
        + f"\nstatic const family FAMILIES[] = {{\n{rows}}};\n\n// clang-format on\n"
    )


def setting_row(field: Field) -> str:
    """Return X(kind, name, default, low, high). "auto" (None) is 0, or an empty text."""
    default = ELSEWHERE.get(field.name, field.default)
    words = str(field.type)
    kind = "FLAG" if "bool" in words else "WHOLE" if "int" in words else "REAL" if "float" in words else "TEXT"
    if kind == "TEXT":
        return f"X(TEXT, {field.name}, {text(default or '')}, 0, 0)"
    low, high = field.metadata["low"] or 0, field.metadata["high"] or MOST
    if "None" in words or field.name in ELSEWHERE:
        low = 0
    if kind == "FLAG":
        low, high = 0, 1
    return f"X({kind}, {field.name}, {float(default or 0):.9g}, {low:.9g}, {high:.17g})"


def generate_settings() -> str:
    """Return settings.inc."""
    rows = [
        setting_row(kind.__dataclass_fields__[n])
        for kind, names in ((TrainConfig, TRAIN), (SampleConfig, SAMPLE))
        for n in names
    ]
    return (
        "/* settings.inc: the package's settings that sampan-c has. Written by generate.py; do not edit.\n"
        "   X(kind, name, default, low, high) */\n\n"
        "// clang-format off\n#define PACKAGE_SETTINGS(X) \\\n    " + " \\\n    ".join(rows) + "\n// clang-format on\n"
    )


def ranges(name: str, members: list[bool]) -> str:
    """Return a C table of the ranges of true members, first and last."""
    runs, at = [], 0
    for is_member, run in itertools.groupby(members):
        length = len(list(run))
        if is_member:
            runs.append(f"{{{at:#x}, {at + length - 1:#x}}}")
        at += length
    rows = [", ".join(row) for row in (runs[i : i + 6] for i in range(0, len(runs), 6))]
    return f"static const uint32_t {name}[][2] = {{\n" + "".join(f"    {row},\n" for row in rows) + "};\n"


def generate_unicode() -> str:
    """Return unicode.inc: what regular expressions call \\p{L}, \\p{N} and \\s."""
    characters = [chr(i) for i in range(sys.maxunicode + 1)]
    categories = [unicodedata.category(c)[0] for c in characters]
    information = {0x1C, 0x1D, 0x1E, 0x1F}  # separators that Python alone counts as spaces
    return (
        f"/* unicode.inc: letters, numbers and spaces of Unicode {unicodedata.unidata_version}. Written by generate.py; "
        "do not edit. */\n\n#include <stdint.h>\n\n// clang-format off\n"
        + ranges("LETTERS", [c == "L" for c in categories])
        + ranges("NUMBERS", [c == "N" for c in categories])
        + ranges("SPACES", [c.isspace() and ord(c) not in information for c in characters])
        + "// clang-format on\n"
    )


FILES = {"families.inc": generate_families, "settings.inc": generate_settings, "unicode.inc": generate_unicode}

if __name__ == "__main__":
    for name, generate in FILES.items():
        Path(__file__).with_name(name).write_text(generate(), encoding="utf-8")
