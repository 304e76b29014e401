"""The Engine protocol over model.py: devices, autocast, compile, and data parallelism under torchrun.

    engine = TorchEngine(shape, MachineConfig(device="cpu"), OptimizerSettings(batch_size=12))

It knows no files, batches or schedule. Between processes it averages gradients (DistributedDataParallel); every
process holds the whole model.
"""

import contextlib
import math
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sampan.config import MachineConfig, OptimizerSettings
from sampan.engine.protocol import Update, check_room
from sampan.engine.torch.device import pick_device, pick_dtype
from sampan.engine.torch.edited import is_edited
from sampan.engine.torch.model import GPT, Cache
from sampan.engine.torch.optimizers import open_optimizers
from sampan.engine.torch.processes import before_leaving, join_processes, naming_dead_processes
from sampan.errors import UserError
from sampan.machine import count_threads, world
from sampan.messages import _
from sampan.model.parameters import parameters
from sampan.model.shape import ModelShape

TOGETHER = 8  # sequences that get a token each in one pass on a GPU, where a lone sequence takes no more time for it
LEAST_SCALE = 1.0  # of float16's loss: a gradient that overflows without being scaled up at all is no matter of scale


class TorchEngine:
    def __init__(self, config: ModelShape, machine: MachineConfig, optimizer: OptimizerSettings | None = None):
        self.config, self.machine, self.optimizer = mark_edited(config), machine, optimizer
        self.rank, self.world_size = world()
        self.device = pick_device(machine.device)
        self.dtype = pick_dtype(machine.dtype, self.device)
        self.threads = machine.threads or count_threads()
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision("high")  # TF32 on CUDA, as nanoGPT; no effect on a CPU
        try:
            self.model = GPT(config).to(self.device)
        except (RuntimeError, MemoryError) as error:
            raise UserError(
                _(
                    "the model does not fit into the memory of {device}: {first_line}",
                    device=self.device,
                    first_line=first_line(error),
                )
            ) from None
        self.names = [p.name for p in parameters(config)]
        by_name = dict(self.model.named_parameters())
        if sorted(by_name) != sorted(self.names):
            raise AssertionError("torch_model.py and model.parameters name different parameters")
        self.weights = [by_name[name] for name in self.names]
        self.step = 0  # updates so far, and micro-batches since: what dropout is keyed by
        self.micro = 0
        self.applied = 0  # of the updates so far, those that changed the weights
        self.loss_sum: float | Tensor = 0.0  # of these micro-batches, in nats; a tensor after the first: no GPU sync
        self.targets = 0.0  # that these micro-batches have
        self.forward: nn.Module = self.model
        self.compiled: nn.Module | None = None
        if optimizer is not None:
            self.begin_training(optimizer)

    @property
    def recipe(self) -> OptimizerSettings:
        """What training needs. Raises UserError in an engine that was opened without it."""
        if self.optimizer is None:
            raise UserError(_("this engine was opened without an optimizer: it cannot train"))
        return self.optimizer

    @property
    def description(self) -> str:
        where = str(self.device)
        if self.device.type == "cuda":
            where += f" ({torch.cuda.get_device_name(self.device)})"
        elif self.device.type == "cpu":
            where += f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        processes = f", {self.world_size} processes" if self.world_size > 1 else ""
        kind = str(self.dtype).removeprefix("torch.")
        return f"torch {torch.__version__} on {where}, {kind}{', compiled' if self.compiled is not None else ''}{processes}"

    # ---- setting up ----

    def begin_training(self, s: OptimizerSettings) -> None:
        pairs = list(zip(self.weights, parameters(self.config), strict=True))
        self.optimizers = open_optimizers(s, pairs, self.dtype, fused=self.device.type in ("cuda", "cpu"))
        self.owner = {
            w: optimizer for optimizer in self.optimizers for g in optimizer.param_groups for w in g["params"]
        }
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        # The loss is divided by the targets that a full global batch has, so that gradients stay at the size of a
        # mean while they add up; `update` corrects for targets that were ignored.
        self.full_batch = s.windows_per_step * self.config.block_size
        self.model.gradient_checkpointing = s.gradient_checkpointing
        self.model.document_start = s.end_of_text if s.document_mask else None
        if self.machine.compile or (self.machine.compile is None and self.device.type == "cuda"):
            self.try_compile(s.batch_size)
        if self.world_size > 1:
            join_processes(self.machine.device, s.backend, s.process_timeout)
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.forward = DistributedDataParallel(self.forward, device_ids=ids)
            before_leaving(self.leave_group)

    def leave_group(self) -> None:
        """Train no more together with others; drops what holds the process group."""
        self.forward = self.model if self.compiled is None else self.compiled

    def try_compile(self, batch_size: int) -> None:
        """Compile, and prove it on one batch; where that fails, one line says so and the model runs as it is."""
        ids = torch.zeros(batch_size, self.config.block_size, dtype=torch.long, device=self.device)
        compiled = cast(nn.Module, torch.compile(self.model))  # declared as a function, but a module of a module
        try:
            with warnings.catch_warnings(), self.autocast():
                warnings.simplefilter("ignore")
                compiled(ids, ids).backward()
        except Exception as error:  # a compiler can fail in any way, and none of them need stop a run
            warnings.warn(
                _("torch.compile cannot run here ({first_line}); continuing without it", first_line=first_line(error)),
                stacklevel=2,
            )
        else:
            self.forward = self.compiled = compiled
        self.model.zero_grad(set_to_none=True)

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def put(self, ids: np.ndarray, least: int = 0) -> Tensor:
        """Return ids on the device, or targets with `least` -1. Raises UserError for those that the model lacks."""
        vocab_size, block_size = self.config.vocab_size, self.config.block_size
        if ids.shape[-1] > block_size:
            raise UserError(_("{count} tokens: the block_size is {limit}", count=ids.shape[-1], limit=block_size))
        if ids.size and not least <= ids.min() <= ids.max() < vocab_size:
            wrong = ids.min() if ids.min() < least else ids.max()
            kind = _("target") if least else _("token")
            message = _("{kind} {id} is not among the {count} of the vocabulary")
            raise UserError(message.format(kind=kind, id=wrong, count=vocab_size))
        tensor = torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    # ---- weights ----

    def load(self, weights: dict[str, np.ndarray]) -> None:
        with torch.no_grad():
            for name, weight in zip(self.names, self.weights, strict=True):
                if tuple(weights[name].shape) != tuple(weight.shape):
                    raise ValueError(f"{name} has shape {weights[name].shape}, the model's is {tuple(weight.shape)}")
                weight.copy_(torch.from_numpy(np.ascontiguousarray(weights[name], dtype=np.float32)))
        if self.optimizer is None and self.dtype != torch.float32:
            for weight in self.weights:  # decoding is bound by memory: keep the weights themselves in half the bytes
                weight.data = weight.data.to(self.dtype)

    def params(self) -> dict[str, np.ndarray]:
        return {name: to_numpy(weight) for name, weight in zip(self.names, self.weights, strict=True)}

    # ---- training ----

    def accumulate(self, x: np.ndarray, y: np.ndarray, more: bool = False) -> None:
        self.model.train()
        if self.config.dropout:
            key = np.random.SeedSequence([self.recipe.seed, self.step, self.micro, self.rank])
            torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
        sync: AbstractContextManager[object] = contextlib.nullcontext()
        if more and isinstance(self.forward, DistributedDataParallel):
            sync = self.forward.no_sync()  # gradients need to meet only once a step
        with sync:
            with self.autocast():
                loss = self.forward(self.put(x), self.put(y, least=-1))
            with naming_dead_processes():
                self.scaler.scale(loss * (self.world_size / self.full_batch)).backward()
        self.loss_sum += loss.detach()
        self.targets += float((y != -1).sum())
        self.micro += 1

    def total(self, value: float | Tensor) -> float:
        """The sum of a number over all processes. A CPU-GPU sync point for what is still being computed."""
        if self.world_size == 1:
            return float(value)
        total = torch.tensor(float(value), dtype=torch.float64, device=self.device)
        with naming_dead_processes():
            dist.all_reduce(total)
            return total.item()

    def gradients(self) -> dict[str, np.ndarray]:
        factor = self.full_batch / max(self.total(self.targets), 1.0) / self.scaler.get_scale()
        grads = (torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights)
        return {name: to_numpy(grad) * np.float32(factor) for name, grad in zip(self.names, grads, strict=True)}

    def update(self, lr: float) -> Update:
        s = self.recipe
        if not self.micro:
            raise UserError(_("nothing was accumulated for an update"))
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        targets = max(self.total(self.targets), 1.0)
        grads = [gradient(w) for w in self.weights]
        if targets != self.full_batch:
            torch._foreach_mul_(grads, self.full_batch / targets)
        norm = torch.nn.utils.get_total_norm(grads)
        loss = self.total(self.loss_sum) / targets
        update = Update(loss, norm.item())  # a CPU-GPU sync point; every process has the same numbers
        if math.isfinite(update.loss) and math.isfinite(update.grad_norm):
            if s.grad_clip:
                torch.nn.utils.clip_grads_with_norm_(self.weights, s.grad_clip, norm)
            for i, optimizer in enumerate(self.optimizers):
                rate = lr * s.adamw_lr_ratio if i == 0 and len(self.optimizers) > 1 else lr
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
            self.applied += 1
        elif not (math.isfinite(loss) and self.scaler.is_enabled() and self.scaler.get_scale() > LEAST_SCALE):
            update = update._replace(refused=self.complaint(loss))
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        self.step, self.micro = self.step + 1, 0
        self.loss_sum = self.targets = 0.0
        return update

    def complaint(self, loss: float) -> str:
        """What kept an update from being applied. Where a weight is not finite, every gradient is a consequence."""
        pairs = list(zip(self.names, self.weights, strict=True))
        for name, weight in pairs:
            if not weight.isfinite().all():
                return _("the weights of {name} are not finite", name=name)
        for name, weight in pairs:
            if not gradient(weight).isfinite().all():
                return _("the gradient of {name} is not finite", name=name)
        return _("the norm of the gradient is not finite") if math.isfinite(loss) else _("the loss is not finite")

    @torch.no_grad()
    def loss(self, x: np.ndarray, y: np.ndarray) -> float:
        self.model.eval()
        # another shape than training's would be compiled for itself, which costs more than it saves
        model = self.compiled
        if model is None or x.shape != (self.recipe.batch_size, self.config.block_size):
            model = self.model
        with self.autocast():
            total = model(self.put(x), self.put(y, least=-1))
        return float(total) / max(int((y != -1).sum()), 1)

    @torch.no_grad()
    def losses(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        self.model.eval()
        with self.autocast():
            logits = self.model(self.put(x))
            losses = F.cross_entropy(
                logits.flatten(0, 1), self.put(y, least=-1).flatten(), ignore_index=-1, reduction="none"
            )
        return to_numpy(losses).reshape(x.shape)

    # ---- decoding ----

    def session(self, slots: int) -> "TorchSession":
        return TorchSession(self, slots)

    # ---- the optimizer's state ----

    def state(self) -> dict[str, np.ndarray]:
        arrays = {"step": np.array(self.step, np.int64), "applied_steps": np.array(self.applied, np.int64)}
        if self.scaler.is_enabled():
            arrays["loss_scale"] = np.array(self.scaler.get_scale(), dtype=np.float64)
            arrays["loss_scale_growth"] = np.array(self.scaler.state_dict()["_growth_tracker"], dtype=np.int64)
        for p, weight in zip(parameters(self.config), self.weights, strict=True):
            for key in p.moments(self.recipe.optimizer):
                moment = self.owner[weight].state[weight].get(key)
                arrays[f"{key}.{p.name}"] = to_numpy(torch.zeros_like(weight) if moment is None else moment)
        return arrays

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        self.step = int(state["step"])
        if self.scaler.is_enabled() and "loss_scale" in state:
            known = self.scaler.state_dict()
            known.update(scale=float(state["loss_scale"]), _growth_tracker=int(state["loss_scale_growth"]))
            self.scaler.load_state_dict(known)
        self.applied = int(state["applied_steps"])
        for p, weight in zip(parameters(self.config), self.weights, strict=True):
            moments = {
                key: torch.from_numpy(np.array(state[f"{key}.{p.name}"])).to(weight.device)
                for key in p.moments(self.recipe.optimizer)
            }
            # a fused optimizer keeps its step counter on the weights' device
            self.owner[weight].state[weight] = {
                "step": torch.tensor(float(self.applied), device=weight.device),
                **moments,
            }

    # ---- speed ----

    def peak_flops(self) -> float:
        n = 1024 if self.device.type == "cpu" else 8192
        a, b = torch.randn(2, n, n, device=self.device).to(self.dtype)
        best = float("inf")
        for _run in range(6):
            start = time.perf_counter()
            a @ b
            if self.device.type != "cpu":
                getattr(torch, self.device.type).synchronize()
            best = min(best, time.perf_counter() - start)
        return 2.0 * n**3 / best * self.world_size


def mark_edited(config: ModelShape) -> ModelShape:
    """Return the shape, marked if model.py has been edited. Raises UserError if its model needs an edit that is gone."""
    if is_edited(config):
        if not config.edited:
            message = _(
                "engine/torch/model.py has been edited: it computes a model that no config.json describes, and what it "
                "trains runs with this file and --engine torch only"
            )
            warnings.warn(message, stacklevel=3)
        return replace(config, edited=True)
    if config.edited:
        raise UserError(
            _("the model was trained with an edited engine/torch/model.py, and the one here is not: edit it again")
        )
    return config


class TorchSession:
    def __init__(self, engine: TorchEngine, slots: int):
        self.engine = engine
        self.positions = np.zeros(slots, np.int64)
        self.cache = Cache(engine.config, slots, engine.device, engine.dtype)
        # On a CPU the order in which a product adds up can depend on the row: there each sequence has a pass of its own.
        self.together = 1 if engine.device.type == "cpu" else TOGETHER

    def clear(self, slot: int) -> None:
        self.positions[slot] = 0

    def feed(self, ids: np.ndarray, slots: Sequence[int] | None = None) -> np.ndarray:
        count, tokens = ids.shape
        places = np.arange(count) if slots is None else np.asarray(slots)
        check_room(self.positions, places, tokens, self.engine.config.block_size)
        together = self.together if tokens == 1 else 1
        return np.concatenate(
            [self.feed_rows(ids[i : i + together], places[i : i + together]) for i in range(0, count, together)]
        )

    @torch.inference_mode()
    def feed_rows(self, ids: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Feed one prompt, or one token to each of some sequences, always in as many rows: the others are of no sequence."""
        engine, count = self.engine, len(ids)
        engine.model.eval()
        rows = self.together if ids.shape[1] == 1 else 1
        lengths = self.positions[slots]
        self.cache.slots, self.cache.lengths = slots.tolist(), lengths.tolist()
        self.cache.starts = torch.tensor([*lengths.tolist(), *[0] * (rows - count)], device=engine.device)
        with engine.autocast() if engine.optimizer is not None else contextlib.nullcontext():
            logits = engine.model(engine.put(np.pad(ids, ((0, rows - count), (0, 0)))), cache=self.cache)
        self.positions[slots] += ids.shape[1]
        return logits[:count, -1].float().cpu().numpy()


def gradient(weight: Tensor) -> Tensor:
    """Return the gradient of a weight, which exists after `accumulate`."""
    assert weight.grad is not None, "update without accumulate"
    return weight.grad


def to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy().copy()


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
