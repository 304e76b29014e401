"""Pickles and PyTorch checkpoints as plain data, read by a machine that can execute nothing.

    checkpoint = read_checkpoint(Path("ckpt.pt"))    # dicts, lists, numbers, strings and NumPy arrays
    meta = read_pickle(Path("meta.pkl"))

Python's own unpickler calls whatever a file names. Here the opcodes are taken apart by `pickletools` and carried out
on plain data: a name is looked up in the short table below, is never imported, and any other is refused. A small
file cannot ask for much memory either: a tensor is a view of bytes that the file has, and keys are plain.

It reads what torch.save has written since PyTorch 1.6, which is a ZIP archive; older files, and those that
TorchScript or a sharded trainer wrote, it refuses. PyTorch is not needed.
"""

import contextlib
import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sampan.errors import UserError

STORAGES = {  # of torch: the type of the numbers in a storage
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1",
    "BoolStorage": "?",
}  # fmt: skip
PLAIN_KEYS = (str, int, float, bool, type(None))  # hashed in no time, which nested tuples are not
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
}  # fmt: skip
MARK = object()
HARMLESS = (  # what damaged bytes make pickletools, zipfile, NumPy and the lines below raise
    ValueError, TypeError, KeyError, IndexError, StopIteration, AttributeError, RuntimeError, EOFError, OverflowError,
    MemoryError, zipfile.BadZipFile,
)  # fmt: skip


class Damaged(Exception):
    """The pickle is cut or makes no sense."""


class Refused(Exception):
    """The pickle asks for something that only executing it could give."""


class Global:
    """A name that a pickle mentions; `call` is what stands for it here, if it may be called."""

    def __init__(self, name: str, call: Callable | None = None):
        self.name, self.call = name, call


def find_global(module: str, name: str) -> Global:
    """Raises Refused for every name that is not in a checkpoint of plain tensors."""
    known = {
        "collections.OrderedDict": ordered_dict,
        "torch._utils._rebuild_tensor_v2": rebuild_tensor,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    }
    full = f"{module}.{name}"
    if full in known:
        return Global(full, known[full])
    if module == "torch" and name in STORAGES:
        return Global(full)
    raise Refused(f"it asks for {full[:80]}")


def ordered_dict(pairs: list = ()) -> dict:
    result = {}
    for key, value in pairs:
        put(result, key, value)
    return result


def rebuild_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_) -> np.ndarray:
    """A view of a storage. It may not have more elements than the storage: strides of zero would make many of one."""
    counts = (offset, *size, *stride)
    if not isinstance(storage, np.ndarray) or not all(type(n) is int and 0 <= n < 1 << 48 for n in counts):
        raise Damaged("a tensor without a place")
    count, last = math.prod(size), offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if len(size) > 8 or count > len(storage) or (count and last >= len(storage)):
        raise Damaged(f"a tensor of shape {size} is larger than its storage of {len(storage)} numbers")
    strides = [s * storage.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def put(target: dict, key, value) -> None:
    if not isinstance(key, PLAIN_KEYS):
        raise Damaged(f"a key of type {type(key).__name__}")
    target[key] = value


def interpret(data: bytes, load_storage: Callable | None = None):
    """The plain data that a pickle of any protocol describes. Raises Refused or Damaged.

    `load_storage` gives the array of a persistent id, which is how torch.save names the numbers of a tensor.
    """
    stack, memo = [], {}

    def pop_to_mark() -> list:
        start = len(stack) - 1 - next(i for i, item in enumerate(reversed(stack)) if item is MARK)
        items = stack[start + 1 :]
        del stack[start:]
        return items

    def pop(count: int) -> list:
        items = stack[len(stack) - count :]
        if len(items) < count or any(item is MARK for item in items):
            raise Damaged("a value is missing")
        del stack[len(stack) - count :]
        return items

    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            stack.append(MARK)
        elif name in ("PROTO", "FRAME"):
            pass
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(pop(int(name[-1]))))
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name == "LIST":
            stack.append(pop_to_mark())
        elif name == "DICT":
            items = pop_to_mark()
            stack.append(ordered_dict(list(zip(items[::2], items[1::2], strict=True))))
        elif name in ("APPEND", "APPENDS"):
            items = pop(1) if name == "APPEND" else pop_to_mark()
            expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = pop(2) if name == "SETITEM" else pop_to_mark()
            for key, value in zip(items[::2], items[1::2], strict=True):
                put(expect(stack[-1], dict), key, value)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = argument.split(" ") if name == "GLOBAL" else pop(2)
            stack.append(find_global(*(expect(word, str) for word in words)))
        elif name == "REDUCE":
            function, arguments = pop(2)
            if expect(function, Global).call is None:
                raise Refused(f"it calls {function.name}")
            stack.append(function.call(*expect(arguments, tuple)))
        elif name == "BUILD":  # a state dict has its modules' versions as an attribute, which are no weights
            expect(pop(1)[0], dict), expect(stack[-1], dict)
        elif name == "BINPERSID" and load_storage is not None:
            stack.append(load_storage(*expect(pop(1)[0], tuple)))
        elif name == "STOP":
            return pop(1)[0]
        else:
            raise Refused(f"it uses the operation {name}, which plain data does not need")
    raise Damaged("it has no end")


def expect(value, kind: type):
    if not isinstance(value, kind):
        raise Damaged(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def read_pickle(path: Path):
    """The plain data of a pickle file. Raises UserError for one that cannot be read or that wants to be executed."""
    with sentences(path):
        return interpret(path.read_bytes())


def read_checkpoint(path: Path):
    """What torch.save wrote, its tensors as NumPy arrays (bfloat16 as float32). Raises UserError as `read_pickle`."""
    with sentences(path):
        size = path.stat().st_size
        if not zipfile.is_zipfile(path):
            raise Damaged("not a ZIP archive, as torch.save writes since PyTorch 1.6; save it again with a newer one")
        with zipfile.ZipFile(path) as archive:
            return interpret_archive(archive, size)


def interpret_archive(archive: zipfile.ZipFile, file_size: int):
    entries = {info.filename: info for info in archive.infolist()}
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries.values()):
        raise Damaged("an entry is compressed, which torch.save never does")
    if sum(e.file_size for e in entries.values()) > file_size:
        raise Damaged("its entries are larger than the file")
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Damaged("no checkpoint of torch.save is in it")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in entries and archive.read(f"{prefix}byteorder") != b"little":
        raise Damaged("its numbers are big-endian, which is not supported")
    storages = {}  # tied weights share one

    def load_storage(kind: str, storage_type: Global, key: str, location: str, count: int) -> np.ndarray:
        if (kind, type(key), type(count)) != ("storage", str, int):
            raise Damaged("a storage without a place")
        if key not in storages:
            raw = archive.read(f"{prefix}data/{key}")
            dtype = STORAGES[expect(storage_type, Global).name.removeprefix("torch.")]
            array = from_bfloat16(raw) if dtype == "bfloat16" else np.frombuffer(raw, dtype)
            if len(array) < count:
                raise Damaged(f"storage {key} is shorter than it should be")
            storages[key] = array
        return storages[key]

    return interpret(archive.read(pickles[0]), load_storage)


def from_bfloat16(raw: bytes) -> np.ndarray:
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)


@contextlib.contextmanager
def sentences(path: Path):
    """Turns what is wrong with a file into one sentence."""
    try:
        yield
    except Refused as error:
        raise UserError(f"{path}: refused, and nothing of it was run: {error}") from None
    except Damaged as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except HARMLESS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(f"{path}: damaged, or not what it should be ({reason})") from None
