"""The Engine protocol over the C library: ctypes for csrc/include/sampan.h, and no arithmetic.

    engine = CEngine(shape, MachineConfig(threads=2, dtype="float32"), OptimizerSettings())

It needs no PyTorch. It runs on one machine's CPU in one process; cuda, mps, float16 and torchrun are the other engine's.
"""

import ctypes
import os
import sys
import weakref
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path

import numpy as np

from sampan.config import MachineConfig, OptimizerSettings
from sampan.engine.protocol import Update, check_room
from sampan.errors import UserError
from sampan.machine import count_threads, world
from sampan.messages import _
from sampan.model.parameters import parameters
from sampan.model.rotary import rotary_frequencies
from sampan.model.shape import ModelShape

SIZES = ("n_layer", "n_head", "n_kv_head", "n_embd", "n_inner", "head_dim", "block_size", "vocab_size")
NAMES = ("norm", "positions", "activation")
FLAGS = ("gated", "qk_norm", "qkv_bias", "attn_proj_bias", "mlp_bias", "norm_bias", "tie_word_embeddings")
RECIPE = ("beta1", "beta2", "weight_decay", "grad_clip", "momentum", "adamw_lr_ratio")


def fields(names: tuple[str, ...], kind: type) -> list[tuple[str, type]]:
    return [(name, kind) for name in names]


class Config(ctypes.Structure):
    """sampan_config of sampan.h, field by field."""

    _fields_ = [
        ("struct_size", c_int64),
        *fields(SIZES, c_int32),
        *fields(NAMES, c_char_p),
        *fields(FLAGS, c_int32),
        *fields(("dropout", "norm_eps"), c_float),
        ("rotary_frequencies", POINTER(c_double)),
        ("dtype", c_char_p),
        ("threads", c_int32),
        ("optimizer", c_char_p),
        *fields(RECIPE, c_double),
        *fields(("gradient_checkpointing", "document_mask", "end_of_text"), c_int32),
        ("seed", c_uint64),
    ]


class MemorySizes(ctypes.Structure):
    """sampan_memory_sizes: bytes."""

    _fields_ = fields(("weights", "gradients", "optimizer", "activations", "cache"), c_int64)


class Parameter(ctypes.Structure):
    """sampan_parameter: columns 0 means a vector."""

    _fields_ = [("name", c_char_p), ("rows", c_int64), ("columns", c_int64)]


SIGNATURES = {  # of sampan.h: name -> (result, arguments); an int32 result is an error code; arrays as their `address`
    "create": (c_int32, [POINTER(c_void_p), POINTER(Config), c_char_p, c_int64]),
    "destroy": (None, [c_void_p]),
    "error": (c_char_p, [c_void_p]),
    "description": (c_char_p, [c_void_p]),
    "memory": (c_int32, [POINTER(Config), c_int64, c_int64, POINTER(MemorySizes), c_char_p, c_int64]),
    "count_parameters": (c_int64, [c_void_p]),
    "get_parameter": (c_int32, [c_void_p, c_int64, POINTER(Parameter)]),
    "read": (c_int32, [c_void_p, c_char_p, c_int64, c_void_p]),
    "write": (c_int32, [c_void_p, c_char_p, c_int64, c_void_p]),
    "accumulate": (c_int32, [c_void_p, c_void_p, c_void_p, c_int64, c_int64]),
    "update": (c_int32, [c_void_p, c_double, POINTER(c_double), POINTER(c_double), POINTER(c_char_p)]),
    "loss": (c_int32, [c_void_p, c_void_p, c_void_p, c_int64, c_int64, POINTER(c_double), c_void_p]),
    "get_step": (c_int64, [c_void_p]),
    "get_applied": (c_int64, [c_void_p]),
    "set_step": (c_int32, [c_void_p, c_int64, c_int64]),
    "session_create": (c_int32, [POINTER(c_void_p), c_void_p, c_int64]),
    "session_destroy": (None, [c_void_p]),
    "session_feed": (c_int32, [c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_void_p]),
    "session_clear": (c_int32, [c_void_p, c_int64]),
    "measure_peak": (c_int32, [c_void_p, POINTER(c_double)]),
}


def library_path() -> Path:
    """Return where the C library is, or where it belongs if it was not built.

    In an editable install the sources are in the checkout and the library is in site-packages: both are folders of this package.
    """
    name = "libsampan" + {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    places = [Path(folder, name) for folder in sys.modules[__package__].__path__]
    return next((place for place in places if place.is_file()), places[0])


def load_library() -> ctypes.CDLL:
    """The C library beside this file. Raises UserError where it was not built or cannot be loaded."""
    try:
        library = ctypes.CDLL(os.fspath(library_path()))
    except OSError as error:
        raise UserError(
            _("the C engine is not here ({error}); install with a C compiler, or use --engine torch", error=error)
        ) from None
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, f"sampan_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def destroy(library: ctypes.CDLL, pointer: c_void_p, process: int) -> None:
    """Free an engine, except in a forked child, which lacks the threads that the library would wait for."""
    if os.getpid() == process:
        library.sampan_destroy(pointer)


def c_config(shape: ModelShape, machine: MachineConfig, optimizer: OptimizerSettings | None) -> Config:
    """Return the library's configuration of a model, which trains if there is an optimizer."""
    c = shape
    threads = machine.threads or count_threads()
    config = Config(ctypes.sizeof(Config), threads=threads, seed=optimizer.seed if optimizer else 0)
    config.dtype = machine.dtype.encode()
    for name in NAMES:
        setattr(config, name, getattr(c, name).encode())
    for name in (*SIZES, *FLAGS, "dropout", "norm_eps"):
        setattr(config, name, getattr(c, name))
    if config.positions == b"rotary":
        config.rotary_frequencies = (c_double * (c.head_dim // 2))(*rotary_frequencies(c))
    if optimizer is not None:
        config.optimizer = optimizer.optimizer.encode()
        for name in (*RECIPE, "gradient_checkpointing", "document_mask"):
            setattr(config, name, getattr(optimizer, name))
        config.end_of_text = -1 if optimizer.end_of_text is None else optimizer.end_of_text
    return config


def memory(
    shape: ModelShape, machine: MachineConfig, optimizer: OptimizerSettings | None, batch: int, tokens: int
) -> dict[str, int]:
    """Return the bytes that an engine would allocate, by purpose: weights, gradients, optimizer, activations, cache.

    `activations` are those of passes over `batch` sequences of `tokens` tokens; `cache` is that of a session of `batch`
    sequences. Raises UserError for a model that the engine refuses.
    """
    sizes, message = MemorySizes(), ctypes.create_string_buffer(256)
    config = c_config(shape, machine, optimizer)
    if load_library().sampan_memory(byref(config), batch, tokens, byref(sizes), message, len(message)):
        raise UserError(_("the C engine cannot run this model: {value}", value=message.value.decode()))
    return {name: getattr(sizes, name) for name, _ in MemorySizes._fields_}


class CEngine:
    def __init__(self, config: ModelShape, machine: MachineConfig, optimizer: OptimizerSettings | None = None):
        self.config, self.optimizer = config, optimizer
        self.lib = load_library()
        if machine.device not in ("auto", "cpu"):
            raise UserError(_("device={device}: the C engine runs on cpu; use --engine torch", device=machine.device))
        if world()[1] > 1:
            raise UserError(_("the C engine is one process; under torchrun use --engine torch"))
        self.pointer, self.process = c_void_p(), os.getpid()
        message = ctypes.create_string_buffer(256)
        if self.lib.sampan_create(
            byref(self.pointer), byref(c_config(config, machine, optimizer)), message, len(message)
        ):
            raise UserError(_("the C engine cannot run this model: {value}", value=message.value.decode()))
        self.close = weakref.finalize(self, destroy, self.lib, self.pointer, self.process)
        self.table = parameters(config)
        self.check_table()

    @property
    def handle(self) -> c_void_p:
        if not self.close.alive or os.getpid() != self.process:
            raise UserError(_("this C engine was closed, or belongs to the process that this one was forked from"))
        return self.pointer

    def check_table(self) -> None:
        """Raise AssertionError unless the C table of parameters is the package's: names, shapes and order."""
        row, found = Parameter(), []
        for i in range(self.lib.sampan_count_parameters(self.handle)):
            self.check(self.lib.sampan_get_parameter(self.handle, i, byref(row)))
            found.append((row.name.decode(), (row.rows, row.columns) if row.columns else (row.rows,)))
        if found != [(p.name, p.shape) for p in self.table]:
            raise AssertionError("csrc/engine/parameters.h and model.parameters list different parameters")

    def check(self, code: int) -> None:
        if code:
            raise UserError(self.lib.sampan_error(self.handle).decode())

    @property
    def description(self) -> str:
        return self.lib.sampan_description(self.handle).decode()

    # ---- tensors ----

    def read(self, kind: bytes, i: int) -> np.ndarray:
        array = np.empty(self.table[i].shape, np.float32)
        self.check(self.lib.sampan_read(self.handle, kind, i, address(array)))
        return array

    def write(self, kind: bytes, i: int, array: np.ndarray, name: str) -> None:
        array = np.ascontiguousarray(array, dtype=np.float32)
        if array.shape != self.table[i].shape:
            raise ValueError(f"{name} has shape {array.shape}, the model's is {self.table[i].shape}")
        self.check(self.lib.sampan_write(self.handle, kind, i, address(array)))

    def load(self, weights: dict[str, np.ndarray]) -> None:
        for i, p in enumerate(self.table):
            self.write(b"weight", i, weights[p.name], p.name)

    def params(self) -> dict[str, np.ndarray]:
        return {p.name: self.read(b"weight", i) for i, p in enumerate(self.table)}

    def gradients(self) -> dict[str, np.ndarray]:
        return {p.name: self.read(b"gradient", i) for i, p in enumerate(self.table)}

    # ---- training ----

    def accumulate(self, x: np.ndarray, y: np.ndarray, more: bool = False) -> None:
        x, y = as_batch(x, y)
        self.check(self.lib.sampan_accumulate(self.handle, address(x), address(y), *x.shape))

    def update(self, lr: float) -> Update:
        loss, norm, refused = c_double(), c_double(), c_char_p()
        self.check(self.lib.sampan_update(self.handle, lr, byref(loss), byref(norm), byref(refused)))
        return Update(loss.value, norm.value, (refused.value or b"").decode())

    def loss(self, x: np.ndarray, y: np.ndarray) -> float:
        loss = c_double()
        x, y = as_batch(x, y)
        self.check(self.lib.sampan_loss(self.handle, address(x), address(y), *x.shape, byref(loss), None))
        return loss.value

    def losses(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = as_batch(x, y)
        losses = np.empty(x.shape, np.float32)
        self.check(
            self.lib.sampan_loss(self.handle, address(x), address(y), *x.shape, byref(c_double()), address(losses))
        )
        return losses

    # ---- decoding ----

    def session(self, slots: int) -> "CSession":
        return CSession(self, slots)

    # ---- the optimizer's state ----

    def state(self) -> dict[str, np.ndarray]:
        counts = {"step": self.lib.sampan_get_step, "applied_steps": self.lib.sampan_get_applied}
        arrays = {name: np.array(count(self.handle), dtype=np.int64) for name, count in counts.items()}
        return arrays | {name: self.read(kind, i) for name, kind, i in self.moments()}

    def moments(self) -> list[tuple[str, bytes, int]]:
        """Return (name in `state`, the tensor's kind in the library, the parameter's place in the table) of each."""
        if self.optimizer is None:
            raise UserError(_("this engine was opened without an optimizer: it cannot train"))
        keys = [(i, p, key) for i, p in enumerate(self.table) for key in p.moments(self.optimizer.optimizer)]
        return [(f"{key}.{p.name}", key.encode(), i) for i, p, key in keys]

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        self.check(self.lib.sampan_set_step(self.handle, int(state["step"]), int(state["applied_steps"])))
        for name, kind, i in self.moments():
            self.write(kind, i, state[name], name)

    # ---- speed ----

    def peak_flops(self) -> float:
        flops = c_double()
        self.check(self.lib.sampan_measure_peak(self.handle, byref(flops)))
        return flops.value


class CSession:
    def __init__(self, engine: CEngine, slots: int):
        self.engine = engine  # it outlives its sessions
        self.positions = np.zeros(slots, np.int64)
        self.handle = c_void_p()
        engine.check(engine.lib.sampan_session_create(byref(self.handle), engine.handle, slots))
        self.close = weakref.finalize(self, engine.lib.sampan_session_destroy, self.handle)

    def feed(self, ids: np.ndarray, slots: Sequence[int] | None = None) -> np.ndarray:
        engine = self.engine
        engine.handle  # noqa: B018  raises if it is gone
        ids = as_ids(ids)
        if ids.ndim != 2 or (slots is not None and len(slots) != len(ids)):
            raise ValueError(f"ids of shape {ids.shape} for the slots {slots}")
        count, tokens = ids.shape
        places = np.arange(count, dtype=np.int32) if slots is None else np.array(slots, np.int32)
        check_room(self.positions, places, tokens, engine.config.block_size)
        logits = np.empty((count, engine.config.vocab_size), np.float32)
        addresses = address(places), count, address(ids), tokens, address(logits)
        engine.check(engine.lib.sampan_session_feed(self.handle, *addresses))
        self.positions[places] += tokens
        return logits

    def clear(self, slot: int) -> None:
        self.engine.check(self.engine.lib.sampan_session_clear(self.handle, slot))
        self.positions[slot] = 0


def address(array: np.ndarray) -> int:
    """Of a contiguous array's first element. numpy's ndpointer takes 5 microseconds, of the 20 in which a token of a small
    model is decoded, and turns a Ctrl-C that comes just then into an error of its own.
    """
    return array.ctypes.data  # `__array_interface__` is no faster, and a long run's memory grew by some MB with it


def as_batch(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as the C functions read them, int32 (B, T), not copied if they are that already."""
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"x and y of shapes {x.shape} and {y.shape}")
    return as_ids(x), as_ids(y)


def as_ids(ids: np.ndarray) -> np.ndarray:
    """int32; an id that int32 cannot hold becomes -2, which the library refuses, and not another token."""
    if ids.dtype != np.int32 and ids.dtype != np.uint16:
        ids = np.where((ids >= -1) & (ids < 2**31), ids, -2)
    return np.ascontiguousarray(ids, dtype=np.int32)
