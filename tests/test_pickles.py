"""Pickles read as plain data: equal to what Python and torch.load read, and no file can execute or blow up anything."""

import builtins
import collections
import io
import os
import pickle
import struct
import subprocess
import zipfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from sampan.errors import UserError
from sampan.pickles import read_checkpoint, read_pickle

keys = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.integers(), st.booleans(), st.none())
plain = st.recursive(
    keys | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.lists(inner).map(tuple),
    max_leaves=20,
)


@hypothesis.settings(max_examples=20)
@hypothesis.given(plain, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_is_read_as_python_reads_it(tmp_path_factory, value, protocol):
    path = tmp_path_factory.getbasetemp() / "plain.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_pickle(path) == value


def save(path: Path, value) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("archive", [True, False])
def test_a_checkpoint_is_read_as_torch_reads_it(tmp_path, archive):
    whole = torch.randn(6, 4)
    kinds = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    value = {
        "tied": [whole, whole],
        "views": (whole[2:5], whole.T, whole[:, 1], whole[1:1]),
        "scalar": torch.tensor(3.5),
        "kinds": {k: (torch.randn(5) * 3).to(getattr(torch, k)) for k in kinds},
        "module": torch.nn.Linear(3, 2).state_dict(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    torch.save(value, tmp_path / "c.pt", _use_new_zipfile_serialization=archive)
    ours, theirs = read_checkpoint(tmp_path / "c.pt"), torch.load(tmp_path / "c.pt", weights_only=False)
    assert np.array_equal(ours["tied"][0], whole) and ours["tied"][0].base is ours["tied"][1].base
    for mine, other in zip(ours["views"], theirs["views"], strict=True):
        assert np.array_equal(mine, other) and mine.shape == tuple(other.shape)
    assert ours["scalar"] == 3.5
    for kind, tensor in theirs["kinds"].items():
        assert np.array_equal(ours["kinds"][kind], tensor.float().numpy() if kind == "bfloat16" else tensor.numpy())
    assert np.array_equal(ours["module"]["weight"], theirs["module"]["weight"])
    assert np.array_equal(ours["parameter"], theirs["parameter"].detach())


# ---- what a malicious file tries ----


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def raw(*parts) -> bytes:
    return b"".join(p if isinstance(p, bytes) else p.encode() for p in parts)


GADGETS = {
    "os.system": lambda p: pickle.dumps(Calls(os.system, "touch owned"), p),
    "eval": lambda p: pickle.dumps(Calls(builtins.eval, "open('owned', 'w')"), p),
    "exec, deep inside": lambda p: pickle.dumps({"model": [{"a": (Calls(builtins.exec, "open('owned', 'w')"),)}]}, p),
    "getattr": lambda p: pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system"), p),
    "subprocess": lambda p: pickle.dumps(Calls(subprocess.Popen, ["touch", "owned"]), p),
    "as a key": lambda p: pickle.dumps({1: Calls(os.system, "touch owned")}, p),
}
CRAFTED = {
    "STACK_GLOBAL from the memo": (
        raw(b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x940h\x00h\x01\x93\x8c\x0btouch owned\x85R."),
        "POP",
    ),
    "STACK_GLOBAL": (raw(b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0btouch owned\x85R."), "posix.system"),
    "INST": (raw("(S'touch owned'\nios\nsystem\n."), "INST"),
    "OBJ": (raw("(cos\nsystem\nS'touch owned'\no."), "os.system"),
    "a path through an allowed name": (
        raw(b"\x80\x04\x8c\x0bcollections\x8c\x20OrderedDict.__init__.__globals__\x93."),
        "OrderedDict.__init__",
    ),
    "NEWOBJ": (raw(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "NEWOBJ"),
    "EXT1": (raw(b"\x80\x02\x82\x01."), "EXT1"),
    "a persistent id in a plain pickle": (raw("Pos\n."), "PERSID"),
    "a storage type called": (raw(b"\x80\x02ctorch\nFloatStorage\n)R."), "torch.FloatStorage"),
    "another torch function": (raw(b"\x80\x02ctorch.hub\nload\n)R."), "torch.hub.load"),
}
BOMBS = {
    "a list in 100,000 lists": b"(" * 100_000 + b"l" * 100_000 + b".",
    "a list in itself": b"]q\x00h\x00a.",
    "lists of the list before, flat in one": b"(" + b"]q\x00" + b"]h\x00aq\x00" * 50_000 + b"l.",
    "a billion values": b"](K\x01K\x01eq\x00" + b"](h\x00h\x00eq\x00" * 40 + b".",
    "bytes of an exabyte": raw(b"\x80\x04\x8e", struct.pack("<Q", 1 << 60), b"x."),
    "a bytearray of a terabyte": raw(b"\x80\x05\x96", struct.pack("<Q", 1 << 40), b"x."),
    "a frame of a terabyte": raw(b"\x80\x04\x95", struct.pack("<Q", 1 << 40), b"."),
    "a key that is hashed for ever": raw(b"\x80\x02})", *[b"q\x00h\x00\x86"] * 60, b"K\x01s."),
    "cut": pickle.dumps({"a": [1, 2, 3]})[:-4],
    "empty": b"",
    "text": b"hello",
    "nothing to stop at": b"\x80\x02.",
    "appends to a number": b"K\x01K\x02a.",
    "an unknown memo": b"h\x07.",
    "thousands of digits": b"I" + b"9" * 9999 + b"\n.",
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("gadget", GADGETS)
def test_a_gadget_is_refused_and_does_nothing(gadget, protocol, tmp_path):
    (tmp_path / "meta.pkl").write_bytes(GADGETS[gadget](protocol))
    with pytest.raises(UserError, match=r"refused, and nothing in it was executed: it asks for \w+\.\w+") as refused:
        read_pickle(tmp_path / "meta.pkl")
    assert "\n" not in str(refused.value) and not Path("owned").exists()


@pytest.mark.parametrize("gadget", GADGETS)
def test_a_gadget_in_a_checkpoint_is_refused(gadget, tmp_path):
    """And torch itself would have run it: the gadgets are real."""
    path = repack(save(tmp_path / "c.pt", {"w": torch.zeros(2)}), GADGETS[gadget](2))
    with pytest.raises(UserError, match="it asks for"):
        read_checkpoint(path)
    assert not Path("owned").exists()


def test_the_gadgets_are_real(tmp_path):
    pickle.loads(GADGETS["os.system"](4))
    assert Path("owned").exists()


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_opcodes_are_refused(name, tmp_path):
    data, named = CRAFTED[name]
    (tmp_path / "meta.pkl").write_bytes(data)
    with pytest.raises(UserError, match="refused") as refused:
        read_pickle(tmp_path / "meta.pkl")
    assert named in str(refused.value) and not Path("owned").exists()


@pytest.mark.parametrize("name", BOMBS)
def test_damage_and_bombs_are_one_sentence(name, tmp_path):
    (tmp_path / "meta.pkl").write_bytes(BOMBS[name])
    with pytest.raises(UserError, match=r"meta\.pkl"):
        read_pickle(tmp_path / "meta.pkl")


# ---- archives ----


def repack(path: Path, data: bytes | None = None, compression=zipfile.ZIP_STORED, **entries: bytes) -> Path:
    """The archive with data.pkl, or entries, replaced."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    for name in parts:
        end = name.split("/", 1)[1]
        parts[name] = data if end == "data.pkl" and data is not None else entries.get(end, parts[name])
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in parts.items():
            new.writestr(name, content)
    return path


def tensor_pickle(size, stride=(1,), offset=0, numel=2) -> bytes:
    """data.pkl of one tensor over storage 0, whatever it claims."""

    class Stored:
        def __init__(self, call, *arguments):
            self.call = call, arguments

        def __reduce__(self):
            return self.call

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if value == "the storage" else None

    file = io.BytesIO()
    arguments = ("the storage", offset, size, stride, False, collections.OrderedDict())
    Pickler(file, 2).dump(Stored(torch._utils._rebuild_tensor_v2, *arguments))
    return file.getvalue()


@pytest.mark.parametrize(
    "claims",
    [
        dict(size=(1 << 40,)),
        dict(size=(1 << 40,), stride=(0,)),  # a view of one number, many times
        dict(size=(3,), stride=(0,)),
        dict(size=(1 << 31, 1 << 31, 1 << 31), stride=(0, 0, 0)),
        dict(size=(2,), offset=1),
        dict(size=(2,), stride=(-1,), offset=1),
        dict(size=(1,), offset=-1),
        dict(size=(2,), stride=(1, 1)),
        dict(size=(2,), numel=1 << 40),
        dict(size=("2",)),
        dict(size=2),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(claims, tmp_path):
    path = save(tmp_path / "c.pt", {"w": torch.zeros(2)})
    assert read_checkpoint(repack(path, tensor_pickle((2,)))).shape == (2,)  # an honest one is read
    with pytest.raises(UserError, match=r"c\.pt"):
        read_checkpoint(repack(path, tensor_pickle(**claims)))


def test_archives_that_are_none(tmp_path):
    good = save(tmp_path / "good.pt", {"w": torch.zeros(1000)}).read_bytes()
    cases = {
        "cut": good[:-100],
        "not a ZIP": b"PK" + good[1:99],
        "flipped": good.replace(b"FloatStorage", b"FloatStorag\xff"),
    }
    for name, data in cases.items():
        (tmp_path / "bad.pt").write_bytes(data)
        with pytest.raises(UserError, match=r"bad\.pt"):
            read_checkpoint(tmp_path / "bad.pt")
            pytest.fail(name)
    (tmp_path / "bad.pt").write_bytes(good)
    with pytest.raises(UserError, match="compressed"):
        read_checkpoint(repack(tmp_path / "bad.pt", compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match="No such file"):
        read_checkpoint(tmp_path / "nowhere.pt")


def test_an_older_checkpoint_that_claims_more_than_it_has_is_refused(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"w": torch.ones(1000), "v": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    assert read_checkpoint(path)["w"].sum() == 1000
    for name, data in {
        "cut": whole[:-1],
        "without its numbers": whole[:-4020],
        "of petabytes": whole.replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f"),
        "of another size": whole.replace(struct.pack("<q", 1000), struct.pack("<q", 999)),
        "big-endian": whole.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
    }.items():
        assert data != whole, name
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"old\.pt"):
            read_checkpoint(path)
            pytest.fail(name)


@pytest.mark.parametrize("archive", [True, False])
@hypothesis.settings(max_examples=20)
@hypothesis.given(st.data())
def test_any_change_of_a_byte_is_read_or_refused(tmp_path_factory, archive, data):
    folder = tmp_path_factory.getbasetemp()
    value = {"w": torch.zeros(3), "n": [1, "a", {"b": 2.5}]}
    torch.save(value, folder / "f.pt", _use_new_zipfile_serialization=archive)
    good = bytearray((folder / "f.pt").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    (folder / "f.pt").write_bytes(good)
    try:
        read_checkpoint(folder / "f.pt")
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
