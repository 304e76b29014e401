"""Memory that is promised is what a process takes; a measurement changes nothing."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import tiny_config

import sampan
from sampan.config import FAMILIES, ModelSettings, TrainConfig
from sampan.engine.open import open_engine
from sampan.model.count import count_parameters
from sampan.model.parameters import initialize
from sampan.model.shape import resolve
from sampan.training.cost import Costs, memory_parts, run_seconds, save_seconds, time_step
from sampan.units import bytes_of

GROWTH = """
import json, sys
import numpy as np
from sampan.config import ModelSettings, TrainConfig
from sampan.engine.open import open_engine
from sampan.model.shape import resolve
from sampan.training.cost import memory_parts, program_memory, resident_memory
model = resolve(ModelSettings(family=sys.argv[1], n_layer=6, n_head=4, n_embd=192, block_size=128, vocab_size=3000))
config = TrainConfig(engine="c", device="cpu", batch_size=24, gradient_accumulation_steps=1, block_size=128, optimizer="muon",
                     gradient_checkpointing=sys.argv[2] == "again", threads=2)
before = program_memory(config)
engine = open_engine(model, config, config)
x = np.zeros((24, 128), np.int32)
for _ in range(2):
    engine.accumulate(x, x)
    engine.update(1e-3)
print(json.dumps([resident_memory() - before, memory_parts(model, config, "c")]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("again", ["once", "again"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_are_what_the_c_engine_takes(family, again):
    env = os.environ | {"PYTHONPATH": str(Path(sampan.__file__).parents[1])}
    command = [sys.executable, "-c", GROWTH, family, again]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    growth, parts = json.loads(done.stdout)
    assert growth > 50e6
    assert sum(parts.values()) == pytest.approx(growth, rel=0.1)


def test_a_measurement_leaves_the_engine_as_it_was(engine_name):
    model = tiny_config("qwen3")
    config = TrainConfig(
        engine=engine_name, device="cpu", batch_size=2, gradient_accumulation_steps=2, block_size=16, optimizer="muon"
    )
    engines = [open_engine(model, config, config) for _ in range(2)]
    costs = time_step(engines[0], model, config, seconds=0.0)
    assert costs.step > 0 and costs.window > 0
    x = np.arange(32, dtype=np.int32).reshape(2, 16) % 65
    for engine in engines:
        engine.load(initialize(model, 0))
        engine.accumulate(x, x)
        engine.update(1e-2)
    for ours, theirs in zip(engines[0].params().values(), engines[1].params().values(), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_part_is_what_it_is_made_of(family):
    """A parameter has four bytes, AdamW two more floats for each; a layer that is computed again keeps what enters it."""

    def parts(layers, **settings):
        model = resolve(ModelSettings(family=family, n_layer=layers, n_head=2, n_embd=32, block_size=16, vocab_size=50))
        config = TrainConfig(engine="c", device="cpu", batch_size=3, block_size=16, dtype="float32", **settings)
        return memory_parts(model, config, "c"), count_parameters(model)

    adamw, count = parts(2, optimizer="adamw")
    angles = 0 if family == "gpt2" else 2 * 4 * 16 * 8  # cosines and sines of 16 positions
    assert adamw["weights"] == 4 * count + angles
    assert adamw["gradients"] == 4 * count and adamw["optimizer"] == 8 * count
    assert 4 * count < parts(2, optimizer="muon")[0]["optimizer"] < 8 * count
    again, more = (parts(n, gradient_checkpointing=True)[0]["activations"] for n in (2, 7))
    assert 0 <= more - again - 5 * 4 * 3 * 16 * 32 < 1000  # and a table of pointers
    assert adamw["activations"] > again


def test_seconds_are_those_of_steps_evaluations_and_saves():
    model = resolve(ModelSettings(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=50))
    data = SimpleNamespace(meta=SimpleNamespace(tokens={"train": 10_000, "val": 320}.get, val_tokens=320))
    costs = Costs(step=0.5, window=0.01)

    def seconds(**settings):
        config = TrainConfig(batch_size=4, block_size=16, eval_iters=10, max_iters=100, eval_interval=10, **settings)
        return run_seconds(config, model, data, costs)

    evaluation = (40 + 20) * 0.01 + save_seconds(model)  # val has but 20 windows
    final = 20 * 0.01
    assert seconds() == pytest.approx(100 * 0.5 + 11 * evaluation + final)
    assert seconds(eval_only=True) == pytest.approx((40 + 20) * 0.01), "one evaluation, and nothing is saved"
    config = TrainConfig(batch_size=4, block_size=16, eval_iters=10, max_iters=100, eval_interval=10)
    assert run_seconds(config, model, data, costs, 70) == pytest.approx(30 * 0.5 + 4 * evaluation + final)
    odd = replace(config, max_iters=95)  # the last evaluation is at the last step
    assert run_seconds(odd, model, data, costs) == pytest.approx(95 * 0.5 + 11 * evaluation + final)


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "much", "1 parsec", "nan"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError):
        bytes_of(text)
