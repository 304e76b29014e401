"""A GPT for programs and notebooks: made, trained on any integers, sampled, saved and loaded, with no files needed.

    gpt = GPT(vocab_size=10, block_size=16, n_layer=2)
    for record in gpt.train(data, max_iters=1000):            # data: see batches.Data
        print(record.step, record.loss)
    ids = gpt.generate([1, 2, 3], max_new_tokens=5, temperature=0)
    gpt.save("folder"); gpt = GPT.load("folder")

Settings are keywords, with the names and ranges of config.py. What nobody names is chosen as the command chooses it
(recipe.py), except for the sizes of model and training, which the command takes from a text and a number of minutes.
The same calls with the same seed give the same bits. It knows no text: tokens come from a tokenizer (tokenizer.py) or
from anywhere else. Runs in a folder that can be resumed are `make_plan` and `train`.
"""

from collections.abc import Generator
from dataclasses import asdict, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from sampan.checkpoint.folder import find_model, load_model, load_tokenizer, save_model
from sampan.config import (
    SIZES,
    DataConfig,
    MachineConfig,
    ModelSettings,
    SampleConfig,
    TrainConfig,
    build,
    change,
    check_keys,
)
from sampan.data.examples import (
    Data,
    Stream,
    as_batch,
    as_integers,
    check_range,
    fixed_batches,
    open_data,
    training_steps,
)
from sampan.engine.open import has_gpu, open_engine
from sampan.engine.protocol import Engine
from sampan.errors import UserError
from sampan.messages import _
from sampan.model.count import count_parameters, flops_per_token
from sampan.model.parameters import initialize, parameters
from sampan.model.shape import ModelShape, resolve, settings_of
from sampan.sampling.draw import generate
from sampan.text.sources import find_source
from sampan.tokens.tokenizer import Tokenizer
from sampan.training.loop import Evaluation, Step, learn
from sampan.training.recipe import (
    ADAMW,
    BATCH,
    EVALUATIONS,
    FAMILY,
    MUON,
    SCHEDULE,
    STEPS_UNMEASURED,
    fine_tuning_rates,
    shape_of_size,
)

MACHINE = frozenset(f.name for f in fields(MachineConfig))
SHAPE_NAMES = frozenset(f.name for f in fields(ModelSettings))
SAMPLING = frozenset(("num_samples", "max_new_tokens", "temperature", "top_k", "top_p", "seed"))
# Of TrainConfig, what is about texts, folders and the terminal; the rest are the settings of `GPT.train`.
OF_THE_COMMAND = frozenset(f.name for f in fields(DataConfig)) | frozenset(
    ("dataset", "out_dir", "init_from", "minutes", "size", "fit", "eval_only", "log_interval", "always_save_checkpoint",
     "backend", "wandb_log", "wandb_project", "wandb_run_name", "tensorboard")
)  # fmt: skip
TRAINING = frozenset(f.name for f in fields(TrainConfig)) - SHAPE_NAMES - MACHINE - OF_THE_COMMAND | {"seed"}


class GPT:
    """A model and what computes it.

    `model` is its shape (ModelShape), `machine` what it runs on (MachineConfig), `tokenizer` the one of the folder that
    it was loaded from, or None.
    """

    def __init__(
        self,
        config: ModelSettings | ModelShape | None = None,
        *,
        weights: dict[str, np.ndarray] | None = None,
        **settings: Any,
    ):
        """A model of settings or a shape, or of keywords of ModelSettings, over them or over the defaults; vocab_size is needed.

        The default model is of the family that learns fastest, 4 layers, 32 channels a layer. Keywords of MachineConfig
        (engine, device, dtype, compile, threads, seed) say what computes it. `weights` are {name: float32 array}, as the
        property `weights` gives them; without them it is initialised from the seed. Raises UserError for a setting that
        does not exist or does not fit, and for weights of another model.
        """
        check_names(settings, SHAPE_NAMES | MACHINE, "GPT", TrainConfig)
        self.machine = build(MachineConfig, {k: v for k, v in settings.items() if k in MACHINE})
        shape = {k: v for k, v in settings.items() if k in SHAPE_NAMES}
        if isinstance(config, ModelShape):
            config = settings_of(config)
        self.model = resolve(change(config or default_model(shape, self.machine), shape))
        self.tokenizer: Tokenizer | None = None
        self.pretrained = weights is not None
        if weights is None:
            weights = initialize(self.model, self.machine.seed)
        else:
            check_weights(weights, self.model)
        self._weights: dict[str, np.ndarray] | None = weights  # None: a training's engine has newer ones
        self._engine: Engine | None = None  # opened when it is needed
        self._records: Generator[Step | Evaluation, None, None] | None = None  # of the last training
        self._trainings = 0

    def __repr__(self) -> str:
        m = self.model
        size = (
            f"{m.n_layer} layers, {m.n_head} heads, {m.n_embd} wide, block {m.block_size}, vocabulary {m.vocab_size:,}"
        )
        return f"GPT({m.family}, {count_parameters(m):,} parameters: {size})"

    @classmethod
    def load(cls, folder: str | Path, *, block_size: int | None = None, dropout: float = 0.0, **machine: Any) -> "GPT":
        """The model of a folder: what `save` or a run wrote, any Hugging Face folder of the three families, or a hub name.

        `block_size` crops the context. Raises UserError where there is no such model.
        """
        check_names(machine, MACHINE, "GPT.load", TrainConfig)
        path = find_model(str(folder))
        model, weights = load_model(path, block_size)
        gpt = cls(change(settings_of(model), {"dropout": dropout}), weights=weights, **machine)
        if (path / "tokenizer.json").is_file():
            gpt.tokenizer = load_tokenizer(path)
        return gpt

    def save(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Write a Hugging Face folder that `load`, `sampan sample` (with a tokenizer) and transformers read.

        It may be called between the records of a training. The optimizer is not saved. Raises UserError where the folder
        cannot be written, or the tokenizer has more tokens than the model.
        """
        tokenizer = tokenizer or self.tokenizer
        if tokenizer is not None and tokenizer.vocab_size > self.model.vocab_size:
            raise UserError(
                _("tokenizer has {vocab_size:,} tokens, and the model's vocab_size is {vocab_size_2:,}").format(
                    vocab_size=tokenizer.vocab_size, vocab_size_2=self.model.vocab_size
                )
            )
        save_model(folder, self.model, self.weights, tokenizer)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the weights now, {name: float32 array}, under the names and shapes of `model.parameters`."""
        if self._weights is None:
            return self._opened().params()
        return {name: w.copy() for name, w in self._weights.items()}

    # ---- training ----

    @overload
    def train(self, data: Data, val: None = None, **settings: Any) -> Generator[Step, None, None]: ...

    @overload
    def train(self, data: Data, val: Data, **settings: Any) -> Generator[Step | Evaluation, None, None]: ...

    def train(self, data, val=None, **settings):
        """Train, a step for each record that is asked for: a generator of Step and, where `val` is given, Evaluation.

        `data` and `val` (batches.Data) may be integers (n,), of which windows of block_size are cut; rows (N, T + 1); a
        tuple of arrays x, y (N, T) each; a torch Dataset or a list of pairs (x, y); an iterable of pairs, examples (T,)
        or whole batches (B, T); a function that returns such a pair. T is at most block_size. A target of -1 is ignored.
        What can be indexed is visited in an order that follows from the seed, each example once per epoch. What is
        iterated comes in its own order, is read when it is needed, and is begun again at its end; an iterator, which
        cannot be, ends the training.

        `settings` are keywords of TrainConfig: max_iters, batch_size, learning_rate, optimizer, eval_interval and so on,
        and seed. The defaults are the command's: Muon, a cosine to 0, and as many examples a step as make the command's
        number of tokens; for weights that were loaded, a constant rate for fine-tuning.

        Between two records the model may be sampled, saved and looked at. To pause, ask for no more records; to go on,
        ask again. A new call ends the one before; it begins with the weights as they are, with a new optimizer and
        schedule, and in another order (its seed is the model's plus the number of trainings before). Raises UserError
        for settings and data that cannot be, at the call where it can be seen then.
        """
        check_names(settings, TRAINING, "GPT.train", TrainConfig)
        config = self._training_config(settings)
        source = open_data(data, self.model, config.seed, "data")
        splits = {}
        if val is not None:
            if not isinstance(source, Stream):
                splits["train"] = fixed_batches(source, config, "data")
            splits["val"] = fixed_batches(open_data(val, self.model, config.seed, "val"), config, "val")
        if self._records is not None:
            self._records.close()
        self._weights, self._engine = self.weights, None  # one engine's memory is free before the other's is taken
        engine = open_engine(self.model, config, config)
        engine.load(self._weights)
        self._weights, self._engine = None, engine
        self._trainings += 1
        self._records = learn(engine, config, training_steps(source, config), splits, flops_per_token(self.model))
        return self._records

    def _training_config(self, settings: dict[str, Any]) -> TrainConfig:
        """What was named, over the recipe, over the settings of model and machine."""
        rates = (ADAMW if settings.get("optimizer") == "adamw" else MUON) | SCHEDULE
        batch = BATCH["gpu" if has_gpu(self.machine.device) else "cpu"]
        examples = -(-batch["batch_size"] * batch["block_size"] // self.model.block_size)
        chosen = dict(max_iters=STEPS_UNMEASURED, batch_size=examples, gradient_accumulation_steps=1, eval_iters=20)
        chosen |= fine_tuning_rates(self.model) if self.pretrained else rates
        chosen |= dict(seed=(self.machine.seed + self._trainings) % 2**63)
        config = change(TrainConfig(**asdict(self.machine) | asdict(settings_of(self.model))), chosen | settings)
        interval = settings.get("eval_interval", max(1, -(-config.max_iters // EVALUATIONS)))
        return change(config, {"eval_interval": interval})

    # ---- using ----

    def _opened(self) -> Engine:
        if self._engine is None:
            self._engine = open_engine(self.model, self.machine)
            self._engine.load(self._weights)
        return self._engine

    def generate(self, prompt: npt.ArrayLike, max_new_tokens: int = 100, **settings: Any) -> np.ndarray:
        """Prompts and what follows them, int32 (B, T + max_new_tokens), of a prompt (T,) or several of equal length (B, T).

        Keywords of SampleConfig: temperature (0: the likeliest token always), top_k, top_p, seed, and num_samples, which
        repeats each prompt. Beyond block_size the context goes on from its newer half. Raises UserError for a prompt
        that is empty or not of the vocabulary.
        """
        check_names(settings, SAMPLING, "GPT.generate", SampleConfig)
        config = build(SampleConfig, {"seed": self.machine.seed, "max_new_tokens": max_new_tokens} | settings)
        ids = np.repeat(self._ids(prompt, "prompt"), config.num_samples, axis=0)
        tokens = generate(self._opened(), self.model, ids, replace(config, num_samples=len(ids)))
        return np.stack([*ids.T, *islice(tokens, config.max_new_tokens)], axis=1)

    def logits(self, ids: npt.ArrayLike) -> np.ndarray:
        """The logits of the token that follows `ids`, (T,) or (B, T): float32 (B, vocab_size). T is at most block_size."""
        ids = self._ids(ids, "ids")
        if ids.shape[1] > self.model.block_size:
            raise UserError(
                _("ids has {shape} tokens, and the model's block_size is {block_size}").format(
                    shape=ids.shape[1], block_size=self.model.block_size
                )
            )
        return self._opened().session(len(ids)).feed(ids)

    def loss(self, x: npt.ArrayLike, y: npt.ArrayLike) -> float:
        """Mean loss over the targets, nats per token, without dropout; x and y (T,) or (B, T), a target of -1 ignored."""
        x, y = as_batch(np.atleast_2d(x), np.atleast_2d(y), self.model, "loss")
        if not (y != -1).any():
            raise UserError(_("loss: every target is -1"))
        return self._opened().loss(x, y)

    def _ids(self, ids: npt.ArrayLike, name: str) -> np.ndarray:
        """Tokens (T,) or (B, T) as int32 (B, T)."""
        array = np.atleast_2d(as_integers(ids, name))
        if array.ndim != 2 or array.size == 0:
            raise UserError(
                _("{name} has shape {shape}: expected tokens (T,) or (B, T), at least one").format(
                    name=name, shape=array.shape
                )
            )
        check_range(array, 0, self.model.vocab_size, name)
        return np.ascontiguousarray(array, np.int32)


def documents(*names: str) -> list[str]:
    """The texts of a corpus that Sampan knows, of files or of folders, read as `sampan prepare` reads them.

    A plain text file is one document, a line of a .jsonl is one. Raises UserError for what is missing or is no text.
    """
    return [text for text in map("".join, find_source(names, DataConfig()).documents()) if text]


def default_model(shape: dict[str, Any], machine: MachineConfig) -> ModelSettings:
    """The recipe's family and widths, where `shape` names no others."""
    block_size = BATCH["gpu" if has_gpu(machine.device) else "cpu"]["block_size"]
    base = change(TrainConfig(**FAMILY | {"block_size": block_size}), shape)
    widths = shape_of_size(SIZES["small"], base, shape)
    return change(ModelSettings(**FAMILY | {"block_size": block_size}), shape | widths)


def check_names(settings: dict[str, Any], known: frozenset[str], where: str, cls: type) -> None:
    check_keys(cls, settings, where)
    for name in settings:
        if name not in known:
            raise UserError(
                _("{where}: {name} is no setting of it; those are {known}").format(
                    where=where, name=name, known=", ".join(sorted(known))
                )
            )


def check_weights(weights: dict[str, np.ndarray], model: ModelShape) -> None:
    """Raises UserError where they are not those of the model, in float32."""
    table = {p.name: p.shape for p in parameters(model)}
    if missing := sorted(table.keys() ^ weights.keys()):
        raise UserError(
            _("weights: {missing} is {value}").format(
                missing=missing[0], value="missing" if missing[0] in table else _("no parameter of this model")
            )
        )
    for name, shape in table.items():
        array = weights[name]
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.float32:
            given = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
            raise UserError(
                _("weights: {name} is {given}: expected float32 {shape}").format(name=name, given=given, shape=shape)
            )
