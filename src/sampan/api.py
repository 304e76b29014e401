"""Create, train, sample, save and load a GPT from a program or a notebook, on any integers and without files.

    gpt = GPT(vocab_size=10, block_size=16, n_layer=2)
    for record in gpt.train(data, max_iters=1000):            # data: see data.examples.Data
        print(record.step, record.loss)
    ids = gpt.generate([1, 2, 3], max_new_tokens=5, temperature=0)
    gpt.save("folder"); gpt = GPT.load("folder")

Settings are keywords, with the names and ranges of config.py. Their defaults are the command's (training/recipe.py),
except for the sizes of the model and the training, which the command derives from a text and a number of minutes.
The same calls with the same seed give the same bits. Tokens come from a tokenizer (tokens/) or from anywhere else; a
loaded model has its own, and then a prompt can be a text. For runs in a folder that can be resumed, use `make_plan` and
`train`.
"""

from collections.abc import Generator, Iterable
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
    convert,
)
from sampan.data.examples import (
    Batch,
    Data,
    Stream,
    as_batch,
    as_integers,
    check_range,
    fixed_batches,
    open_data,
    steps_per_epoch,
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
from sampan.sampling.write import keep_known, write
from sampan.text.sources import find_source
from sampan.tokens.kinds import has_tokenizer
from sampan.tokens.tokenizer import Tokenizer
from sampan.training.loop import Evaluation, Step, learn
from sampan.training.recipe import (
    ADAMW,
    BATCH,
    EVALUATIONS,
    FAMILY,
    RATES,
    SCHEDULE,
    STEPS_UNMEASURED,
    fine_tuning_rates,
    shape_of_size,
)

MACHINE = frozenset(f.name for f in fields(MachineConfig))
SHAPE_NAMES = frozenset(f.name for f in fields(ModelSettings))
SAMPLING = frozenset(
    ("num_samples", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
     "no_repeat_ngram_size", "seed")
)  # fmt: skip
WRITING = SAMPLING | {"stop", "valid_utf8", "oov"}
# Fields of TrainConfig about texts, folders and the terminal; the others are the settings of `GPT.train`.
OF_THE_COMMAND = frozenset(f.name for f in fields(DataConfig)) | frozenset(
    ("dataset", "out_dir", "init_from", "minutes", "size", "fit", "eval_only", "log_interval", "always_save_checkpoint",
     "backend", "max_epochs", "sample_interval", "wandb_log", "wandb_project", "wandb_run_name", "tensorboard")
)  # fmt: skip
TRAINING = frozenset(f.name for f in fields(TrainConfig)) - SHAPE_NAMES - MACHINE - OF_THE_COMMAND


class GPT:
    """Train, sample, save and load one model.

    `model` is its shape (ModelShape) and `machine` what it runs on (MachineConfig). `tokenizer` is the tokenizer of the
    folder that the model was loaded from, or None.
    """

    def __init__(
        self,
        config: ModelSettings | ModelShape | None = None,
        *,
        weights: dict[str, np.ndarray] | None = None,
        seed: int = TrainConfig.seed,
        **settings: Any,
    ):
        """Create a model from settings, from a shape, or from keywords of ModelSettings.

        Keywords override `config`, or the defaults if there is none; vocab_size is required. The default model is small
        and of the family that learns fastest. Keywords of MachineConfig (engine, device, dtype, compile, threads)
        choose what computes it. `weights` are {name: float32 array}, as the property `weights` returns them; without
        them the weights are initialized from `seed`, which is also the default seed of `train` and `generate`. Raise
        UserError for an unknown or invalid setting, and for weights of another model.
        """
        check_names(settings, SHAPE_NAMES | MACHINE, "GPT", TrainConfig)
        self.seed: int = convert(TrainConfig, "seed", seed)
        self.machine = build(MachineConfig, {k: v for k, v in settings.items() if k in MACHINE})
        shape = {k: v for k, v in settings.items() if k in SHAPE_NAMES}
        if isinstance(config, ModelShape):
            config = settings_of(config)
        self.model = resolve(change(config or default_model(shape, self.machine), shape))
        self.tokenizer: Tokenizer | None = None
        self.pretrained = weights is not None
        if weights is None:
            weights = initialize(self.model, self.seed)
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
    def load(
        cls, folder: str | Path, *, block_size: int | None = None, dropout: float = 0.0, seed: int = TrainConfig.seed,
        **machine: Any,
    ) -> "GPT":  # fmt: skip
        """Load the model in a folder, or under a name on the Hugging Face hub.

        The folder may come from `save`, from a run, or from Hugging Face if its model is of a known family.
        `block_size`, in tokens, crops the context; `dropout` applies to later training; `seed` and `machine`, keywords of
        MachineConfig, are those of `GPT`. Raise UserError if there is no such model.
        """
        check_names(machine, MACHINE, "GPT.load", TrainConfig)
        path = find_model(str(folder))
        model, weights = load_model(path, block_size)
        gpt = cls(change(settings_of(model), {"dropout": dropout}), weights=weights, seed=seed, **machine)
        gpt.model = replace(gpt.model, edited=model.edited)
        if has_tokenizer(path):
            gpt.tokenizer = load_tokenizer(path)
        return gpt

    def save(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Write a Hugging Face folder that `load`, `sampan sample` (with a tokenizer) and transformers can read.

        The default tokenizer is the model's own, if it has one. `save` can be called between the records of a training;
        the optimizer is not saved. Raise UserError if the folder cannot be written or the tokenizer has more tokens than
        the model.
        """
        tokenizer = tokenizer or self.tokenizer
        if tokenizer is not None and tokenizer.vocab_size > self.model.vocab_size:
            raise UserError(
                _(
                    "tokenizer has {vocab_size:,} tokens, and the model's vocab_size is {vocab_size_2:,}",
                    vocab_size=tokenizer.vocab_size,
                    vocab_size_2=self.model.vocab_size,
                )
            )
        save_model(folder, self.model, self.weights, tokenizer)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Return copies of the current weights, {name: float32 array}, with the names and shapes of `model.parameters`."""
        if self._weights is None:
            return self._opened().params()
        return {name: w.copy() for name, w in self._weights.items()}

    # ---- training ----

    @overload
    def train(self, data: Data, val: None = None, **settings: Any) -> Generator[Step, None, None]: ...

    @overload
    def train(self, data: Data, val: Data, **settings: Any) -> Generator[Step | Evaluation, None, None]: ...

    def train(self, data: Data, val: Data | None = None, **settings: Any) -> Generator[Step | Evaluation, None, None]:
        """Return a generator that trains: each record it yields is a finished Step or, if `val` is given, an Evaluation.

        `data` and `val` hold integers (see data.examples.Data), in one of these forms:
        - tokens (n,), from which windows of block_size are cut;
        - rows (N, T + 1), in which each token is predicted from those before it;
        - a tuple of arrays x and y, (N, T) each;
        - a torch Dataset or a list of pairs (x, y), (T,) each;
        - an iterable of pairs, each an example (T,) or a whole batch (B, T);
        - a function that returns such a pair.

        T is at most block_size. A target of -1 is ignored. Indexable data is visited in an order that depends on the
        seed alone, each example once per epoch. Other data comes in its own order and is read when it is needed. An
        iterable starts again at its end; an iterator cannot, so its end ends the training.

        `settings` are keywords of TrainConfig, such as max_iters, batch_size, learning_rate, optimizer, eval_interval
        and seed. The defaults are the command's: Muon, a cosine schedule that ends at 0, and as many examples per step
        as give the command's number of tokens. Loaded weights get a constant learning rate for fine-tuning.

        Between two records the model can be sampled, saved and inspected. To pause, stop reading records; to continue,
        read on. A new call ends the training before it. It starts from the current weights with a new optimizer and
        schedule, and in another order (the default seed is the model's plus the number of earlier trainings).

        Raise UserError for invalid settings and data. Data that is only read during training is checked as it is read.
        """
        check_names(settings, TRAINING, "GPT.train", TrainConfig)
        config = self._training_config(settings)
        source = open_data(data, self.model, config.seed, "data")
        splits: dict[str, Iterable[Batch]] = {}
        if val is not None:
            if not isinstance(source, Stream):
                splits["train"] = fixed_batches(source, config, "data")
            splits["val"] = fixed_batches(open_data(val, self.model, config.seed, "val"), config, "val")
        if self._records is not None:
            self._records.close()
        self._weights, self._engine = self.weights, None  # one engine's memory is free before the other's is taken
        engine = open_engine(self.model, config, config)
        engine.load(self._weights)
        self._weights, self._engine, self.model = None, engine, engine.config
        self._trainings += 1
        steps, epoch = training_steps(source, config), steps_per_epoch(source, config)
        self._records = learn(engine, config, steps, splits, flops_per_token(self.model), epoch)
        return self._records

    def _training_config(self, settings: dict[str, Any]) -> TrainConfig:
        """Return the settings of a training: those given, then the recipe's, then the model's and the machine's."""
        rates = RATES.get(settings.get("optimizer", "muon"), ADAMW) | SCHEDULE
        batch = BATCH["gpu" if has_gpu(self.machine.device) else "cpu"]
        examples = -(-batch["batch_size"] * batch["block_size"] // self.model.block_size)
        chosen: dict[str, Any] = dict(max_iters=STEPS_UNMEASURED, batch_size=examples)
        chosen |= dict(gradient_accumulation_steps=1, eval_iters=20)
        chosen |= fine_tuning_rates(self.model) if self.pretrained else rates
        chosen |= dict(seed=(self.seed + self._trainings) % 2**63)
        config = change(TrainConfig(**asdict(self.machine) | asdict(settings_of(self.model))), chosen | settings)
        interval = settings.get("eval_interval", max(1, -(-config.max_iters // EVALUATIONS)))
        return change(config, {"eval_interval": interval})

    # ---- using ----

    def _opened(self) -> Engine:
        if self._engine is None:
            assert self._weights is not None  # only an open engine has newer ones
            self._engine = open_engine(self.model, self.machine)
            self._engine.load(self._weights)
        return self._engine

    @overload
    def generate(self, prompt: str, max_new_tokens: int = 100, **settings: Any) -> str: ...

    @overload
    def generate(self, prompt: npt.ArrayLike, max_new_tokens: int = 100, **settings: Any) -> Any: ...

    def generate(
        self, prompt: str | npt.ArrayLike, max_new_tokens: int = 100, **settings: Any
    ) -> str | list[str] | np.ndarray | list[np.ndarray]:
        """Return prompts with their continuations, int32 (B, T + max_new_tokens), or a text with its continuation.

        `prompt` holds the tokens of one prompt (T,) or of several (B, T). A list of prompts of different lengths gives a
        list of arrays (T + max_new_tokens,), each of them the same as alone. If the model has a tokenizer,
        it can be a text; then the result is a text, or a list of texts if num_samples is given, and each ends where the
        model ends it. `settings` are keywords of SampleConfig: temperature (0 always takes the most probable token),
        top_k, top_p, min_p, repetition_penalty, no_repeat_ngram_size, seed, and num_samples, which repeats each prompt;
        for a text also stop, valid_utf8 and oov. When the context reaches block_size, generation continues from its newer
        half. Ids that the tokenizer lacks are not drawn. Raise UserError if a prompt is empty, or contains a token
        outside the vocabulary, or is a text and the model has no tokenizer.
        """
        is_text = isinstance(prompt, str)
        check_names(settings, WRITING if is_text else SAMPLING, "GPT.generate", SampleConfig)
        config = build(SampleConfig, {"seed": self.seed, "max_new_tokens": max_new_tokens} | settings)
        if isinstance(prompt, str):
            texts = self._write(prompt, config)
            return texts if "num_samples" in settings else texts[0]
        rows = self._prompts(prompt)
        after = None if self.tokenizer is None else keep_known(self.tokenizer, self.model.vocab_size)
        prompts = [row for row in rows for _ in range(config.num_samples)]
        tokens = generate(self._opened(), self.model, prompts, replace(config, num_samples=len(prompts)), after)
        new = np.array([*islice(tokens, config.max_new_tokens)], np.int32).reshape(-1, len(prompts))
        made = [np.concatenate([row, column]) for row, column in zip(prompts, new.T, strict=True)]
        return made if len({len(row) for row in rows}) > 1 else np.stack(made)

    def _prompts(self, prompt: npt.ArrayLike) -> list[np.ndarray]:
        """Return each prompt, int32 (n,)."""
        if isinstance(prompt, list) and prompt and all(isinstance(row, list | np.ndarray) for row in prompt):
            return [self._ids(row, "prompt")[0] for row in prompt]
        return list(self._ids(prompt, "prompt"))

    def _write(self, prompt: str, config: SampleConfig) -> list[str]:
        """Return num_samples texts that begin with a prompt."""
        if self.tokenizer is None:
            raise UserError(
                _("prompt is a text, and this model has no tokenizer: give tokens, or set the model's tokenizer")
            )
        texts = [""] * config.num_samples
        for number, piece in write(self._opened(), self.model, self.tokenizer, prompt, config):
            texts[number] += piece
        return texts

    def logits(self, ids: npt.ArrayLike) -> np.ndarray:
        """Return the logits of the token after each of `ids`, float32 (B, T, vocab_size).

        `ids` holds tokens, (T,) or (B, T). `logits(ids)[:, -1]` are those of the token after the last. Raise UserError if
        T is 0 or more than block_size, or if a token is outside the vocabulary.
        """
        tokens = self._ids(ids, "ids")
        if tokens.shape[1] > self.model.block_size:
            raise UserError(
                _(
                    "ids has {shape} tokens, and the model's block_size is {block_size}",
                    shape=tokens.shape[1],
                    block_size=self.model.block_size,
                )
            )
        session = self._opened().session(len(tokens))
        return np.stack([session.feed(column[:, None]) for column in tokens.T], axis=1)

    def loss(self, x: npt.ArrayLike, y: npt.ArrayLike) -> float:
        """Return the mean loss over the targets in nats per token, without dropout.

        `x` and `y` hold tokens, (T,) or (B, T) each; a target of -1 is ignored. Raise UserError if they do not fit the
        model or every target is -1.
        """
        x, y = as_batch(np.atleast_2d(x), np.atleast_2d(y), self.model, "loss")
        if not (y != -1).any():
            raise UserError(_("loss: every target is -1"))
        return self._opened().loss(x, y)

    def _ids(self, ids: npt.ArrayLike, name: str) -> np.ndarray:
        """Return tokens (T,) or (B, T) as int32 (B, T). Raise UserError if there are none or one is out of range."""
        array = np.atleast_2d(as_integers(ids, name))
        if array.ndim != 2 or array.size == 0:
            raise UserError(
                _(
                    "{name} has shape {shape}: expected tokens (T,) or (B, T), at least one",
                    name=name,
                    shape=array.shape,
                )
            )
        check_range(array, 0, self.model.vocab_size, name)
        return np.ascontiguousarray(array, np.int32)


def documents(*names: str) -> list[str]:
    """Return the texts of known corpora, files or folders, as `sampan prepare` reads them.

    A plain text file is one document, and so is each line of a .jsonl file. Empty documents are left out. Raise
    UserError if a source is missing or is not text.
    """
    return [text for text in map("".join, find_source(names, DataConfig()).documents()) if text]


def default_model(shape: dict[str, Any], machine: MachineConfig) -> ModelSettings:
    """Return model settings: those in `shape`, and the recipe's family and widths for all others."""
    block_size = BATCH["gpu" if has_gpu(machine.device) else "cpu"]["block_size"]
    base = change(TrainConfig(**FAMILY | {"block_size": block_size}), shape)
    widths = shape_of_size(SIZES["small"], base, shape)
    return change(ModelSettings(**FAMILY | {"block_size": block_size}), shape | widths)


def check_names(settings: dict[str, Any], known: frozenset[str], where: str, cls: type) -> None:
    """Raise UserError for the first setting that is no field of `cls` or is not in `known`."""
    check_keys(cls, settings, where)
    for name in settings:
        if name not in known:
            raise UserError(
                _(
                    "{where}: {name} is no setting of it; those are {known}",
                    where=where,
                    name=name,
                    known=", ".join(sorted(known)),
                )
            )


def check_weights(weights: dict[str, np.ndarray], model: ModelShape) -> None:
    """Raise UserError if names, shapes or dtype (float32) of the weights are not those of the model."""
    table = {p.name: p.shape for p in parameters(model)}
    for name in sorted(table.keys() ^ weights.keys()):
        if name in table:
            raise UserError(_("weights: {name} is missing", name=name))
        raise UserError(_("weights: {name} is no parameter of this model", name=name))
    for name, shape in table.items():
        array = weights[name]
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.float32:
            given = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise UserError(
                _("weights: {name} is {given}: expected float32 {shape}", name=name, given=given, shape=shape)
            )
