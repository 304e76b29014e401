"""The files beside a tokenizer.json: which tokens begin and end a text, the chat template, how a model is sampled.

    beside = read_beside(Path("SmolLM2"))
    beside.token("eos")                      # "<|endoftext|>"; None where no file names one
    write_beside(Path("out/x"), beside)

They are tokenizer_config.json, special_tokens_map.json, generation_config.json, chat_template.jinja, and the ids in
config.json. Nothing else in Sampan reads them for special tokens. Ids become tokens in tokenizer.py.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sampan.errors import UserError
from sampan.files import read_json, write_json, write_text
from sampan.messages import _

CONFIG, MAP, GENERATION = "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"
TEMPLATE = "chat_template.jinja"
BESIDE = (CONFIG, MAP, GENERATION, TEMPLATE)  # config.json is the model's
ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
# What the writer of tokenizer.json decides anew: it is read as it is, and not built from other files.
OWN = ("tokenizer_class", "auto_map", "name_or_path", "tokenizer_file", "add_bos_token", "add_eos_token", "backend")


@dataclass(frozen=True)
class Beside:
    """What the files beside a tokenizer.json say."""

    config: dict[str, Any] = field(default_factory=dict)  # tokenizer_config.json over special_tokens_map.json
    generation: dict[str, Any] = field(default_factory=dict)  # generation_config.json
    model: dict[str, Any] = field(default_factory=dict)  # what config.json says of the tokenizer
    template: str | None = None  # chat_template.jinja

    def token(self, role: str) -> str | None:
        """Return the token that has a role, such as "eos"; None where no file names it."""
        value = self.config.get(f"{role}_token")
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else None

    def ids(self, role: str) -> list[int]:
        """Return the ids that generation_config.json, then config.json, give for a role."""
        found: list[Any] = []
        for source in (self.generation, self.model):
            value = source.get(f"{role}_token_id")
            found += value if isinstance(value, list) else [value]
        return [i for i in found if type(i) is int and 0 <= i < 1 << 32]  # what the library can look up

    @property
    def chat_template(self) -> str | None:
        """The chat template; of several, the one that is named default."""
        value = self.config.get("chat_template") if self.template is None else self.template
        if isinstance(value, list):
            named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
            value = named.get("default")
        return value if isinstance(value, str) else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_beside(folder: Path) -> Beside:
    """Return what the files of a folder say; those that are missing say nothing. Raises UserError for a damaged one."""
    parts = {name: read_json(folder / name) if (folder / name).is_file() else {} for name in (CONFIG, MAP, GENERATION)}
    model = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    template = None
    if (folder / TEMPLATE).is_file():
        try:
            template = (folder / TEMPLATE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(_("{path}: cannot be read ({error})", path=folder / TEMPLATE, error=error)) from None
    keys = ("tokenizer_class", *(f"{role}_token_id" for role in ROLES))
    ids = {key: model[key] for key in keys if model.get(key) is not None}
    return Beside(parts[MAP] | parts[CONFIG], parts[GENERATION], ids, template)


def write_beside(folder: Path, beside: Beside) -> None:
    """Write the files beside a tokenizer.json, and remove those of another tokenizer. Raises OSError."""
    config = {key: value for key, value in beside.config.items() if key not in OWN}
    if config:  # transformers takes tokenizer.json as it is
        write_json(folder / CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast"} | config)
    if beside.generation:
        write_json(folder / GENERATION, beside.generation)
    if beside.template is not None:
        write_text(folder / TEMPLATE, beside.template)
    kept = {CONFIG: config, GENERATION: beside.generation, TEMPLATE: beside.template}
    for name in BESIDE:
        if not kept.get(name):
            (folder / name).unlink(missing_ok=True)
