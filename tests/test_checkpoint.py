"""A run's folder: written whole or not at all, read without trust, recovered after a death at any point of a save.

That transformers reads the folders, and we its, is in test_transformers.py.
"""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from helpers import CONFIG, TOKENIZER, state, step_of, weights

import sampan
from sampan.checkpoint.folder import load_model, load_model_config, save_model, writing
from sampan.checkpoint.run import Progress
from sampan.checkpoint.save import WritableRun
from sampan.config import TrainConfig
from sampan.errors import UserError


@pytest.fixture
def run(tmp_path):
    made = WritableRun(tmp_path / "out")
    made.folder.mkdir()
    with made.begin(TrainConfig(out_dir=str(made.folder)), CONFIG, TOKENIZER, {"name": "text"}) as first:
        first.save_last(CONFIG, weights(1), state(1), Progress(step=1))
    return made


def test_what_is_saved_is_loaded(run):
    assert step_of(run) == 1
    progress = Progress(step=2, val_loss=1.5, best_step=1, best_val_loss=1.25)
    run.save_last(CONFIG, weights(2), state(2), progress)
    assert step_of(run) == 2
    assert run.load_last(CONFIG)[2] == progress
    assert run.settings().out_dir == str(run.folder)


@pytest.mark.parametrize(
    "calls_before_death", [pytest.param(n, marks=pytest.mark.slow if n % 2 else []) for n in range(12)]
)
def test_death_at_any_point_of_a_save_leaves_one_whole_step(run, monkeypatch, calls_before_death):
    """Every system call that a save makes is, in turn, the last one of the process."""
    left = calls_before_death

    class Death(BaseException):
        pass

    def dying(function):
        def call(*args, **kwargs):
            nonlocal left
            if left == 0:
                raise Death
            left -= 1
            return function(*args, **kwargs)

        return call

    for owner, name in ((safetensors.numpy, "save_file"), (os, "fsync"), (os, "replace")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # the dead tidy nothing
    died = False
    try:
        run.save_last(CONFIG, weights(2), state(2), Progress(step=2))
    except Death:
        died = True
    monkeypatch.undo()
    assert died == (calls_before_death < 7), "a save is two files written, synced and renamed, and their folder synced"
    assert step_of(run) == (1 if calls_before_death < 5 else 2)
    run.save_last(CONFIG, weights(3), state(3), Progress(step=3))
    assert step_of(run) == 3


def test_a_full_disk_keeps_what_was_saved(run, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(UserError, match="disk full"):
        run.save_last(CONFIG, weights(2), state(2), Progress(step=2))
    with pytest.raises(UserError, match="disk full"):
        run.save_best(CONFIG, weights(2), Progress(step=2))
    monkeypatch.undo()
    assert step_of(run) == 1
    assert not list(run.folder.rglob("*.partial"))


def test_a_really_full_disk():
    """Linux's /dev/full answers every write as a full disk does."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with (
        pytest.raises(UserError, match="disk full"),
        writing(Path("/dev")),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_best_and_last_are_described(run):
    run.save_best(CONFIG, weights(1), Progress(step=1, val_loss=4.41, val_step=1))
    run.save_last(CONFIG, weights(5), state(5), Progress(step=5, val_loss=5.58, val_step=4))
    assert run.describe("best") == "best, step 1, val 4.4100; last, step 5, val 5.5800 at step 4"
    assert run.describe("last") == "last, step 5, val 5.5800 at step 4; best, step 1, val 4.4100"


def test_a_bias_free_gpt2_stays_so(tmp_path):
    save_model(tmp_path, CONFIG, weights(1), TOKENIZER)
    assert not CONFIG.qkv_bias and load_model_config(tmp_path) == CONFIG
    stored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert "transformer.h.0.attn.c_attn.bias" in stored  # transformers' GPT-2 has them


def test_block_size_is_cropped_but_not_extended(tmp_path):
    save_model(tmp_path, CONFIG, weights(1), TOKENIZER)
    config, loaded = load_model(tmp_path, block_size=5)
    assert config.block_size == 5 and np.array_equal(loaded["wpe.weight"], weights(1)["wpe.weight"][:5])
    with pytest.raises(UserError, match="not extended"):
        load_model(tmp_path, block_size=9)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


DAMAGES = {
    "config.json is missing": (lambda f: (f / "config.json").unlink(), "config.json"),
    "an adapter of peft": (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "merge_and_unload"),
    "config.json is cut": (lambda f: (f / "config.json").write_text("{"), "JSON"),
    "config.json is a list": (lambda f: (f / "config.json").write_text("[]"), "object"),
    "config.json nests too deep": (lambda f: (f / "config.json").write_text("[" * 100_000), "JSON"),
    "another family": (lambda f: edit_config(f, model_type="bert"), "bert"),
    "another activation": (lambda f: edit_config(f, activation_function="relu"), "relu"),
    "absurd sizes": (lambda f: edit_config(f, n_embd=-8), "n_embd"),
    "a size of another type": (lambda f: edit_config(f, n_layer="many"), "n_layer"),
    "sizes of another model": (lambda f: edit_config(f, vocab_size=99), "shape"),
    "more layers than weights": (lambda f: edit_config(f, n_layer=2), "missing"),
    "weights are missing": (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors"),
    "weights are cut": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        "not a whole",
    ),
    "weights are empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a whole"),
    "an absurd header": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "not a whole"),
    "weights are a pointer of Git LFS": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"),
        "git lfs pull",
    ),
    "weights are a pickle": (lambda f: (f / "model.safetensors").write_bytes(pickle.dumps({})), "not a whole"),
    "a tensor too many in a block": (
        lambda f: rewrite_weights(f, lambda t: t.update({"transformer.h.0.gate.weight": np.ones(1, np.float32)})),
        "gate.weight' has no place",
    ),
    "a tensor too many in a module": (
        lambda f: rewrite_weights(f, lambda t: t.update({"lm_head.bias": np.ones(9, np.float32)})),
        "lm_head.bias' has no place",
    ),
    "integers for weights": (
        lambda f: rewrite_weights(f, lambda t: t.update({"transformer.wte.weight": np.ones((9, 8), np.int32)})),
        "float",
    ),
    "an index that leaves the folder": (
        lambda f: (
            (f / "model.safetensors").unlink(),
            (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}'),
        ),
        "in this folder",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_with_one_sentence(damage, tmp_path):
    harm, word = DAMAGES[damage]
    save_model(tmp_path, CONFIG, weights(1), TOKENIZER)
    load_model(tmp_path)
    harm(tmp_path)
    with pytest.raises(UserError, match=word) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_tensors_outside_of_the_model_are_named(tmp_path):
    save_model(tmp_path, CONFIG, weights(1), TOKENIZER)
    blocks_left = {"transformer.h.1.ln_1.weight": np.ones(8, np.float32)}  # config.json has one block
    rewrite_weights(tmp_path, lambda t: t.update(blocks_left | {"v_head.summary.weight": np.ones((1, 8), np.float32)}))
    with pytest.warns(UserWarning, match=r"2 tensors .*'transformer.h.1.ln_1.weight', 'v_head.summary.weight'"):
        _, loaded = load_model(tmp_path)
    assert all(np.array_equal(loaded[name], value) for name, value in weights(1).items())


def test_an_optimizer_of_another_step_is_refused(run):
    (run.last / "optimizer.safetensors").rename(run.last / "kept")
    run.last.joinpath("optimizer.safetensors").touch()
    run.save_last(CONFIG, weights(2), state(2), Progress(step=2))
    (run.last / "kept").replace(run.last / "optimizer.safetensors")
    with pytest.raises(UserError, match="from different steps"):
        run.load_last(CONFIG)


def test_no_pickle_is_ever_loaded():
    """Nothing in the package can: no module imports one, and torch.load is not called."""
    import ast
    from pathlib import Path

    for path in Path(sampan.__file__).parent.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        imported = {a.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import) for a in n.names}
        assert not imported & {"pickle", "dill", "joblib", "shelve", "marshal"}, path
        assert "torch.load(" not in source and "allow_pickle" not in source, path
