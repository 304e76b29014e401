"""Read pickles and PyTorch checkpoints as plain data, with an interpreter that cannot execute anything.

    checkpoint = read_checkpoint(Path("ckpt.pt"))    # dicts, lists, numbers, strings and NumPy arrays
    meta = read_pickle(Path("meta.pkl"))

Python's own unpickler calls any function that a file names. Here `pickletools` splits the file into opcodes and a table
says what each does to plain data: a name is looked up in a short table, is never imported, and any other is refused. A
small file cannot ask for much memory either: a tensor is a view of bytes that the file contains, and keys are plain.

It reads what torch.save writes: the ZIP archive of PyTorch 1.6 and newer, and the row of pickles of older versions. It
refuses files of TorchScript and of a sharded trainer. PyTorch is not needed.
"""

import contextlib
import math
import pickletools
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sampan.errors import UserError
from sampan.messages import _

STORAGES = {  # the number types of torch's storages
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1",
    "BoolStorage": "?",
}  # fmt: skip
LEGACY = 0x1950A86A20F9469CFC6C, 1001  # what files of PyTorch before 1.6 begin with: a magic number and a version
DEEPEST, LARGEST = (
    100,
    1 << 24,
)  # containers inside each other, and values in all; a trainer's file has some 10 and 10,000
PLAIN_KEYS = (str, int, float, bool, type(None))  # hashed in constant time, which nested tuples are not
HARMLESS = (  # what damaged bytes make pickletools, zipfile, NumPy and the code below raise
    ValueError, TypeError, KeyError, IndexError, StopIteration, AttributeError, RuntimeError, EOFError, OverflowError,
    MemoryError, zipfile.BadZipFile,
)  # fmt: skip


class Damaged(Exception):
    """The pickle is truncated or makes no sense."""


class Refused(Exception):
    """The pickle asks for something that only executing it could give."""


class Global:
    """A name that a pickle mentions; `call` replaces the function of that name, None if it may not be called."""

    def __init__(self, name: str, call: Callable[..., Any] | None = None):
        self.name, self.call = name, call


def find_global(module: str, name: str) -> Global:
    """Return the replacement of a name. Raises Refused for every name that a checkpoint of plain tensors lacks."""
    known: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": ordered_dict,
        "torch._utils._rebuild_tensor": rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": rebuild_tensor,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    }
    full = f"{module}.{name}"
    if full in known:
        return Global(full, known[full])
    if module == "torch" and name in STORAGES:
        return Global(full)
    raise Refused(_("it asks for {full}", full=full[:80]))


def ordered_dict(pairs: Iterable[Any] = ()) -> dict[Any, Any]:
    """Return a dict of (key, value) pairs. Raises Damaged for a key that is not plain."""
    result: dict[Any, Any] = {}
    for key, value in pairs:
        if not isinstance(key, PLAIN_KEYS):
            raise Damaged(_("a key of type {name}", name=type(key).__name__))
        result[key] = value
    return result


def rebuild_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_rest: Any) -> np.ndarray:
    """Return a view of a storage. Raises Damaged if it has more elements than the storage, as strides of zero allow."""
    counts = (offset, *size, *stride)
    if not isinstance(storage, np.ndarray) or not all(type(n) is int and 0 <= n < 1 << 48 for n in counts):
        raise Damaged(_("a tensor without a place in its storage"))
    count, last = math.prod(size), offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if len(size) > 8 or count > len(storage) or (count and last >= len(storage)):
        raise Damaged(
            _("a tensor of shape {size} is larger than its storage of {count} numbers", size=size, count=len(storage))
        )
    strides = [s * storage.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


# ---- the interpreter ----

MARK = object()


class Machine:
    """The state of the interpreter. `load_storage` returns the array of a persistent id; None refuses such ids."""

    def __init__(self, load_storage: Callable[..., np.ndarray] | None = None):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.load_storage = load_storage

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        items = self.stack[len(self.stack) - count :]
        if len(items) < count or any(item is MARK for item in items):
            raise Damaged(_("a value is missing"))
        del self.stack[len(self.stack) - count :]
        return items

    def pop_to_mark(self) -> list[Any]:
        start = len(self.stack) - 1 - next(i for i, item in enumerate(reversed(self.stack)) if item is MARK)
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def extend(self, items: list[Any]) -> None:
        expect(self.stack[-1], list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        expect(self.stack[-1], dict).update(pairs_to_dict(items))

    def push_global(self, words: list[Any]) -> None:
        module, name = (expect(word, str) for word in words)
        self.push(find_global(module, name))

    def reduce(self) -> None:
        function, arguments = self.pop(2)
        if expect(function, Global).call is None:
            raise Refused(_("it calls {name}", name=function.name))
        self.push(function.call(*expect(arguments, tuple)))

    def ignore_state(self) -> None:
        """Drop an object's attributes: a state dict has its modules' versions there, which are not weights."""
        expect(self.pop(1)[0], dict)
        expect(self.stack[-1], dict)

    def push_storage(self) -> None:
        if self.load_storage is None:
            raise Refused(_("it uses the operation BINPERSID, which plain data does not need"))
        self.push(self.load_storage(*expect(self.pop(1)[0], tuple)))


def pairs_to_dict(items: list[Any]) -> dict[Any, Any]:
    return ordered_dict(zip(items[::2], items[1::2], strict=True))


# What each opcode does, given the machine and its argument.
OPCODES: dict[str, Callable[[Machine, Any], object]] = {
    **dict.fromkeys((
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
        "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
        "BINBYTES8",
    ), Machine.push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, key: m.memo.update({key: m.stack[-1]})),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, key: m.push(m.memo[key])),
    "MEMOIZE": lambda m, _: m.memo.update({len(m.memo): m.stack[-1]}),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "MARK": lambda m, _: m.push(MARK),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_to_mark())),
    "TUPLE1": lambda m, _: m.push(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.pop(3))),
    "LIST": lambda m, _: m.push(m.pop_to_mark()),
    "DICT": lambda m, _: m.push(pairs_to_dict(m.pop_to_mark())),
    "APPEND": lambda m, _: m.extend(m.pop(1)),
    "APPENDS": lambda m, _: m.extend(m.pop_to_mark()),
    "SETITEM": lambda m, _: m.set_items(m.pop(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_to_mark()),
    "GLOBAL": lambda m, words: m.push_global(words.split(" ")),
    "STACK_GLOBAL": lambda m, _: m.push_global(m.pop(2)),
    "REDUCE": lambda m, _: m.reduce(),
    "BUILD": lambda m, _: m.ignore_state(),
    "BINPERSID": lambda m, _: m.push_storage(),
}  # fmt: skip


def interpret(data: bytes | BinaryIO, load_storage: Callable[..., np.ndarray] | None = None) -> Any:
    """Return the plain data that a pickle of any protocol describes, and leave a file at its end.

    `load_storage` returns the array of a persistent id, by which torch.save names the numbers of a tensor. Raises
    Refused or Damaged.
    """
    machine = Machine(load_storage)
    for opcode, argument, _place in pickletools.genops(data):
        if opcode.name == "STOP":
            value = machine.pop(1)[0]
            measure(value, {})
            return value
        if opcode.name not in OPCODES:
            raise Refused(_("it uses the operation {name}, which plain data does not need", name=opcode.name))
        OPCODES[opcode.name](machine, argument)
    raise Damaged(_("it has no end"))


def measure(value: Any, known: dict[int, tuple[int, int]], depth: int = 0) -> tuple[int, int]:
    """Return how deep a value is nested and how many values it has when written out.

    A pickle can refer to a list again and again, or to itself. Raises Damaged if printing or comparing the value would
    exhaust the stack or the memory.
    """
    if not isinstance(value, (dict, list, tuple)):
        return 0, 1
    if id(value) not in known:
        if depth > DEEPEST:
            raise Damaged(_("its values are nested too deep"))
        inside = value.values() if isinstance(value, dict) else value
        measured = [measure(item, known, depth + 1) for item in inside]
        known[id(value)] = 1 + max((d for d, _n in measured), default=0), 1 + sum(n for _d, n in measured)
    height, count = known[id(value)]
    if height > DEEPEST or count > LARGEST:
        raise Damaged(_("its values are nested too deep"))
    return height, count


def expect(value: Any, kind: type) -> Any:
    """Return `value`. Raises Damaged if it is not of that type."""
    if not isinstance(value, kind):
        raise Damaged(_("{name} where {name_2} is expected", name=type(value).__name__, name_2=kind.__name__))
    return value


# ---- files ----


def read_pickle(path: Path) -> Any:
    """Return the plain data of a pickle file. Raises UserError if it is damaged or asks to execute anything."""
    with errors_of(path):
        return interpret(path.read_bytes())


def read_checkpoint(path: Path) -> Any:
    """Return what torch.save wrote, with tensors as NumPy arrays (bfloat16 as float32).

    Raises UserError if it is damaged or asks to execute anything.
    """
    with errors_of(path), path.open("rb") as file:
        size = path.stat().st_size
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return interpret_legacy(file, size)
        with zipfile.ZipFile(file) as archive:
            return interpret_archive(archive, size)


def interpret_legacy(file: BinaryIO, file_size: int) -> Any:
    """Return the data of a file as PyTorch before 1.6 wrote it: pickles, then the numbers of one storage after another.

    Raises Refused or Damaged.
    """
    if (interpret(file), interpret(file)) != LEGACY:
        raise Damaged(_("it does not contain a checkpoint of torch.save"))
    check_byte_order(bool(expect(interpret(file), dict).get("little_endian")))
    storages: dict[str, tuple[np.ndarray, str, int]] = {}  # the numbers, which come last; their type and bytes there

    def load_storage(*identity: Any) -> np.ndarray:
        key, dtype, count = storage_of(*identity)
        if key not in storages:
            size = count * (2 if dtype == "bfloat16" else np.dtype(dtype).itemsize)
            if size + sum(other for _array, _dtype, other in storages.values()) > file_size:
                raise Damaged(_("its entries are larger than the file"))
            storages[key] = np.zeros(count, "<f4" if dtype == "bfloat16" else dtype), dtype, size
        return storages[key][0]

    value = interpret(file, load_storage)
    for key in expect(interpret(file), list):
        array, dtype, size = storages.pop(key)
        count = int.from_bytes(file.read(8), "little")
        numbers = from_bytes(file.read(size), dtype)
        if not count == len(numbers) == len(array):
            raise Damaged(_("storage {key} is shorter than the checkpoint says", key=key))
        array[:] = numbers
    if storages:
        raise Damaged(_("storage {key} is shorter than the checkpoint says", key=next(iter(storages))))
    return value


def interpret_archive(archive: zipfile.ZipFile, file_size: int) -> Any:
    """Return the data of an opened archive; its entries must fit into `file_size` bytes. Raises Refused or Damaged."""
    entries = {info.filename: info for info in archive.infolist()}
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries.values()):
        raise Damaged(_("an entry is compressed, which torch.save never does"))
    if sum(e.file_size for e in entries.values()) > file_size:
        raise Damaged(_("its entries are larger than the file"))
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Damaged(_("it does not contain a checkpoint of torch.save"))
    prefix = pickles[0].removesuffix("data.pkl")
    check_byte_order(f"{prefix}byteorder" not in entries or archive.read(f"{prefix}byteorder") == b"little")
    storages: dict[str, np.ndarray] = {}  # tied weights share one

    def load_storage(*identity: Any) -> np.ndarray:
        key, dtype, count = storage_of(*identity)
        if key not in storages:
            storages[key] = from_bytes(archive.read(f"{prefix}data/{key}"), dtype)
            if len(storages[key]) < count:
                raise Damaged(_("storage {key} is shorter than the checkpoint says", key=key))
        return storages[key]

    return interpret(archive.read(pickles[0]), load_storage)


def check_byte_order(is_little: bool) -> None:
    if not is_little:
        raise Damaged(_("its numbers are big-endian, which is not supported"))


def storage_of(
    kind: str, storage_type: Global, key: str, location: str, count: int, view: None = None
) -> tuple[str, str, int]:
    """Return (name, number type, count) of a storage, as its persistent id says. Raises Damaged."""
    if (kind, type(key), type(count), view) != ("storage", str, int, None) or count < 0:
        raise Damaged(_("a storage without a name or size"))
    return key, STORAGES[expect(storage_type, Global).name.removeprefix("torch.")], count


def from_bytes(raw: bytes, dtype: str) -> np.ndarray:
    """Return the numbers in little-endian bytes; bfloat16 as float32."""
    if dtype == "bfloat16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, dtype)


@contextlib.contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Raise UserError in place of whatever reading this file raises."""
    try:
        yield
    except Refused as error:
        raise UserError(_("{path}: refused, and nothing in it was executed: {error}", path=path, error=error)) from None
    except Damaged as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(_("{path}: cannot be read ({reason})", path=path, reason=error.strerror or error)) from None
    except HARMLESS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(_("{path}: damaged, or of another format ({reason})", path=path, reason=reason)) from None
