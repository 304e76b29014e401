"""sampan-c, the stand-alone program: the package's batches, schedule and losses, its files, and what it refuses.

make -C csrc && pytest tests/test_c_program.py
"""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sampan.checkpoint.folder import load_model, save_model
from sampan.config import FAMILIES, ModelSettings, SampleConfig, TrainConfig
from sampan.data.windows import EvaluationBatches, Windows
from sampan.errors import UserError
from sampan.evaluation.losses import evaluate
from sampan.model.parameters import initialize
from sampan.model.shape import resolve
from sampan.sampling.draw import generate
from sampan.tokens.characters import characters
from sampan.training.schedule import learning_rate

try:
    from sampan.engine.c import CEngine, load_library

    load_library()
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)

PROGRAM = Path(__file__).parents[1] / "csrc" / "build" / "sampan-c"
if not PROGRAM.exists():
    pytest.skip("sampan-c was not built (make -C csrc)", allow_module_level=True)

SETTINGS = dict(batch_size=3, gradient_accumulation_steps=2, max_iters=7, learning_rate=3e-3, min_lr=1e-4, warmup_iters=2,
                lr_decay_iters=6, eval_interval=3, eval_iters=2, dtype="float32", dropout=0.1)  # fmt: skip


def program(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.fixture(params=FAMILIES)
def run(request, tmp_path):
    """(data folder, model folder, config, tokenizer)"""
    text = "to be or not to be, that is the question: " * 20
    tokenizer = characters(text)
    ids = tokenizer.encode(text).astype(np.uint16)
    data = tmp_path / "data"
    data.mkdir()
    for split, part in (("train", ids[:700]), ("val", ids[700:])):
        part.tofile(data / f"{split}.bin")
    (data / "meta.json").write_text(json.dumps({"vocab_size": tokenizer.vocab_size, "dtype": "uint16"}))
    shape = dict(
        n_layer=2, n_head=4, n_embd=32, n_kv_head=4 if request.param == "gpt2" else 2, block_size=16, dropout=0.1
    )
    config = resolve(ModelSettings(family=request.param, vocab_size=tokenizer.vocab_size, **shape))
    save_model(tmp_path / "model", config, initialize(config, 1), tokenizer)
    return data, tmp_path / "model", config, tokenizer


def test_it_trains_as_the_package(run):
    data, model, config, _ = run
    recipe = SETTINGS | dict(optimizer="muon" if config.family == "qwen3" else "adamw")
    settings = TrainConfig(**recipe, threads=2)
    engine = CEngine(config, settings, settings)
    engine.load(load_model(model)[1])
    splits = [np.fromfile(data / f"{s}.bin", np.uint16) for s in ("train", "val")]
    windows = Windows(splits[0], 16, settings.seed)
    evaluations = [EvaluationBatches(tokens, 16, 3, 2) for tokens in splits]
    expected = []
    for step in range(8):
        if step % 3 == 0 or step == 7:
            expected.append(
                f"step {step}: train loss {evaluate(engine, evaluations[0]):.4f}, val loss {evaluate(engine, evaluations[1]):.4f}"
            )
        if step < 7:
            for micro in range(2):
                engine.accumulate(*windows.batch(step * 6 + micro * 3, 3))
            expected.append(f"iter {step}: loss {engine.update(learning_rate(settings, step)).loss:.4f}")
    flags = [f"--{key}={value}" for key, value in recipe.items()]
    done = program("train", "--out_dir", model, "--data_dir", data, *flags)
    assert done.returncode == 0, done.stderr
    assert [line.split(", time")[0] for line in done.stdout.splitlines()] == expected
    saved = load_model(model)[1]  # best, which is the last here
    assert all(np.allclose(saved[name], w, rtol=0, atol=1e-6) for name, w in engine.params().items())


def test_what_is_not_finite_is_named_and_not_saved(run):
    data, model, config, tokenizer = run
    weights = load_model(model)[1]
    weights["h.1.mlp.c_fc.weight"][2, 3] = np.inf
    save_model(model, config, weights, tokenizer)
    before = (model / "model.safetensors").read_bytes()
    done = program("train", "--out_dir", model, "--data_dir", data, *[f"--{k}={v}" for k, v in SETTINGS.items()])
    assert done.returncode == 2, done.stderr
    assert "step 0: the weights of h.1.mlp.c_fc.weight are not finite" in done.stderr, done.stderr
    assert (model / "model.safetensors").read_bytes() == before


def test_it_writes_as_the_package(run):
    _, model, config, tokenizer = run
    settings = SampleConfig(dtype="float32", temperature=0.0, threads=2)
    engine = CEngine(config, settings, None)
    engine.load(load_model(model)[1])
    tokens = generate(engine, config, tokenizer.encode("to be").astype(np.int32), settings)
    expected = "to be" + tokenizer.decode(np.array([next(tokens)[0] for _ in range(40)]))
    done = program(
        "sample",
        "--out_dir",
        model,
        "--prompt",
        "to be",
        "--max_new_tokens",
        40,
        "--temperature=0",
        "--dtype",
        "float32",
    )
    assert done.returncode == 0 and done.stdout == expected + "\n"
    drawn = [
        program("sample", "--out_dir", model, "--start=to", "--max_new_tokens=30", "--seed", seed).stdout
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_it_refuses_in_one_sentence(run, tmp_path):
    data, model, _, _ = run

    def refused(*arguments) -> str:
        done = program(*arguments)
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("sampan-c: ")
        return done.stderr

    assert "usage" in refused("serve")
    assert "unknown setting n_layr" in refused("train", "--n_layr=3")
    assert "needs a value" in refused("train", "--out_dir")
    assert "expected a number" in refused("train", "--out_dir", model, "--batch_size", "many")
    assert "config.json" in refused("sample", "--out_dir", tmp_path / "none")
    assert "lacks" in refused("sample", "--out_dir", model, "--start", "ß")
    assert "a block needs" in refused(
        "train", "--out_dir", model, "--data_dir", data, "--block_size", 16, *short_of(data)
    )

    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-100])
    assert "not whole" in refused("sample", "--out_dir", model)
    (model / "model.safetensors").write_bytes(weights)
    described = json.loads((model / "config.json").read_text())
    size = "n_embd" if "n_embd" in described else "hidden_size"
    for wrong, said in (
        ({size: 64}, "shape"),
        ({size: 1 << 40}, "size"),
        ({"model_type": "bert"}, "model_type"),
        ({"vocab_size": 1 << 28}, "refuses|shape"),
    ):
        (model / "config.json").write_text(json.dumps(described | wrong))
        assert any(word in refused("sample", "--out_dir", model) for word in said.split("|"))
    (model / "config.json").write_text("{")
    assert "line 1" in refused("sample", "--out_dir", model)


def short_of(data: Path) -> list[str]:
    """Flags for a copy of the data that is too short."""
    shorter = data.with_name("shorter")
    shutil.copytree(data, shorter)
    (shorter / "train.bin").write_bytes(bytes(20))
    return ["--data_dir", str(shorter)]


def test_it_writes_beside_a_run_and_never_over_it(run, tmp_path):
    data, model, config, tokenizer = run
    new = tmp_path / "new"
    few = ("--data_dir", data, "--max_iters", 1, "--batch_size", 2, "--gradient_accumulation_steps", 1)
    done = program("train", "--init_from", model, "--out_dir", new, *few)
    assert done.returncode == 0, done.stderr
    assert load_model(new)[0] == load_model(model)[0]
    again = program("train", "--init_from", model, "--out_dir", new, *few)
    assert again.returncode == 2 and "already holds a model" in again.stderr
    (model / "run.json").write_text("{}")
    over = program("train", "--out_dir", model, *few)
    assert over.returncode == 2 and "--init_from" in over.stderr
    (data / "tokenizer.json").write_text(characters("another").to_json())
    other = program("train", "--init_from", model, "--out_dir", tmp_path / "third", *few)
    assert other.returncode == 2 and "another tokenizer" in other.stderr
