"""The C engine against the PyTorch engine: logits, loss, gradients by name, optimizer steps, a run that changes engine, text.

    pytest tests/test_c_engine.py

Configurations are drawn at random from all three families. Errors are relative, over a whole tensor; a reference is asserted
not to be zero. Single ops are tested in csrc/tests.
"""

import ctypes
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config

from sampan.config import FAMILIES, OPTIMIZERS, MachineConfig, ModelSettings, SampleConfig, TrainConfig
from sampan.errors import UserError
from sampan.model.count import count_parameters
from sampan.model.family import find_family
from sampan.model.parameters import initialize, parameters
from sampan.model.shape import ModelShape, resolve

try:
    from sampan.engine import c as library
    from sampan.engine.c import CEngine, load_library

    load_library()
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)

torch_engine = pytest.importorskip("sampan.engine.torch.engine")
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch's own RMSNorm under autocast

SEEDS = range(12)


def draw_config(seed: int, family: str | None = None, **changes) -> ModelShape:
    """A small model of odd sizes."""
    r = random.Random(seed)
    family = family or FAMILIES[seed % len(FAMILIES)]
    n_head = r.choice([1, 2, 3, 4, 6])
    head_dim = 2 * r.randint(2, 20)
    free = family == "qwen3"  # its heads need not fill the stream
    n_embd = r.randint(5, 90) if free else n_head * head_dim
    config = ModelSettings(
        family=family, n_layer=r.randint(1, 3), n_head=n_head, n_embd=n_embd, head_dim=head_dim if free else None,
        n_kv_head=n_head if family == "gpt2" else r.choice([k for k in range(1, n_head + 1) if n_head % k == 0]),
        n_inner=r.choice([None, r.randint(3, 99)]), block_size=r.choice([8, 33, 100, 150]), vocab_size=r.randint(10, 300),
        bias=r.choice(find_family(family).bias), tie_word_embeddings=r.random() < 0.5, norm_eps=r.choice([1e-5, 1e-6]),
    )  # fmt: skip
    return resolve(replace(config, **changes))


def draw_weights(config: ModelShape, seed: int) -> dict[str, np.ndarray]:
    """Initial weights with noise on all of them, so that biases and norms matter."""
    draw = np.random.default_rng(seed)
    weights = initialize(config, seed)
    return {name: (w + 0.1 * draw.standard_normal(w.shape)).astype(np.float32) for name, w in weights.items()}


def draw_batch(config: ModelShape, draw, B: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    x = draw.integers(0, config.vocab_size, (B, T), dtype=np.int32)
    y = draw.integers(-1, config.vocab_size, (B, T), dtype=np.int32)  # some are ignored
    y[0, 0] = 1
    return x, y


def settings(**changes) -> TrainConfig:
    base = dict(device="cpu", dtype="float32", threads=2, compile=False, batch_size=4, gradient_accumulation_steps=2)
    return TrainConfig(**base | changes)


def both(config: TrainConfig) -> tuple[TrainConfig, TrainConfig]:
    """The same as an engine's machine and its optimizer."""
    return config, config


def pair(config: ModelShape, weights, **changes):
    engines = CEngine(config, *both(settings(**changes))), torch_engine.TorchEngine(config, *both(settings(**changes)))
    for engine in engines:
        engine.load(weights)
    return engines


def norm(array) -> float:
    return float(np.linalg.norm(np.asarray(array, np.float64)))


def distance(ours, reference) -> float:
    assert norm(reference) > 0
    return norm(np.asarray(ours, np.float64) - reference) / norm(reference)


def gradient_distances(ours: dict, reference: dict) -> dict[str, float]:
    """Distance by name. A tensor whose gradient is next to nothing is measured against a thousandth of the whole.

    (A key's bias has none: softmax does not see it. Nor have queries and keys where a context is one token.)
    """
    whole = norm([norm(g) for g in reference.values()])
    assert whole > 0 and ours.keys() == reference.keys()
    return {n: norm(np.float64(ours[n]) - g) / max(norm(g), 1e-3 * whole) for n, g in reference.items()}


@pytest.mark.parametrize("seed", [*SEEDS[:6], *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[6:])])
def test_ladder_float32(seed):
    config, optimizer = draw_config(seed), [*OPTIMIZERS][seed // 3 % len(OPTIMIZERS)]  # each family with all
    r, draw = random.Random(seed), np.random.default_rng(seed)
    B, T = r.randint(1, 4), r.randint(1, config.block_size)
    ours, theirs = pair(
        config, draw_weights(config, seed), threads=r.randint(1, 4), batch_size=B, weight_decay=0.2, grad_clip=0.5,
        optimizer=optimizer,
    )  # fmt: skip

    ids = draw.integers(0, config.vocab_size, (B, T), dtype=np.int32)
    assert distance(ours.session(B).feed(ids), theirs.session(B).feed(ids)) < 2e-5

    for step in range(4):
        for micro in range(2):
            x, y = draw_batch(config, draw, B, T)
            assert ours.loss(x, y) == pytest.approx(theirs.loss(x, y), rel=1e-5)
            for engine in (ours, theirs):
                engine.accumulate(x, y, more=micro == 0)
        if step == 0:  # later, rounding has moved the weights apart
            worst = gradient_distances(ours.gradients(), theirs.gradients())
            assert max(worst.values()) < 2e-5, max(worst, key=worst.get)
        a, b = ours.update(1e-3 / (step + 1)), theirs.update(1e-3 / (step + 1))
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-3)
        assert b.grad_norm > 0.5 or step  # clipping is on

    before, a, b, moments = draw_weights(config, seed), ours.params(), theirs.params(), theirs.state()
    largest = max(np.sqrt(v).max() for n, v in moments.items() if n.startswith("exp_avg_sq."))
    for name in b:  # AdamW turns a gradient that is all rounding into a whole step: those elements are left out
        second = moments.get(f"exp_avg_sq.{name}")  # a matrix under Muon has none, and is all settled
        settled = np.full(a[name].shape, True) if second is None else np.sqrt(second) > 1e-4 * largest
        if settled.any():
            assert distance((a[name] - before[name])[settled], (b[name] - before[name])[settled]) < 2e-2, name
            assert distance(a[name][settled], b[name][settled]) < 1e-4, name


@pytest.mark.parametrize("seed", [*SEEDS[:3], *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[3:6])])
def test_bfloat16_is_as_near_to_float32_as_torchs(seed):
    """bfloat16 keeps 8 bits, so both engines are off by about 1%; the C engine rounds less (not the activations)."""
    config = draw_config(seed)
    draw = np.random.default_rng(seed)
    weights, (x, y) = draw_weights(config, seed), draw_batch(config, draw, 3, min(40, config.block_size))
    exact = torch_engine.TorchEngine(config, *both(settings()))
    exact.load(weights)
    engines = pair(config, weights, dtype="bfloat16")
    losses, gradients = [], []
    for engine in (exact, *engines):
        losses.append(engine.loss(x, y))
        engine.accumulate(x, y)
        gradients.append(engine.gradients())
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    ours, theirs = (gradient_distances(g, gradients[0]) for g in gradients[1:])
    assert 0 < np.mean(list(ours.values())) < 1.1 * np.mean(list(theirs.values())) + 1e-3
    assert max(ours.values()) < 6e-2, max(ours, key=ours.get)
    a, b = (engine.update(1e-3) for engine in engines)
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=3e-2)
    ids = draw.integers(0, config.vocab_size, (2, config.block_size), dtype=np.int32)
    assert distance(engines[0].session(2).feed(ids), engines[1].session(2).feed(ids)) < 4e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_weights_alone_decode_alike(family):
    config = draw_config(5, family)
    weights = draw_weights(config, 5)
    training, sampling = (
        CEngine(config, *both(settings(dtype="bfloat16"))),
        CEngine(config, SampleConfig(dtype="bfloat16", threads=2)),
    )
    for engine in (training, sampling):
        engine.load(weights)
    ids = np.arange(6, dtype=np.int32)[None] % config.vocab_size
    assert distance(sampling.session(1).feed(ids), training.session(1).feed(ids)) < 6e-2  # the embedding is rounded too
    assert all(distance(w, weights[name]) < 4e-3 for name, w in sampling.params().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_number_of_threads_changes_no_bit(family, dtype):
    config = draw_config(7, family, dropout=0.1)
    results = []
    for threads in (1, 2, 3, 4):
        engine = CEngine(config, *both(settings(threads=threads, dtype=dtype)))
        engine.load(draw_weights(config, 7))
        draw = np.random.default_rng(7)
        for _ in range(2):
            engine.accumulate(*draw_batch(config, draw, 3, config.block_size))
            update = engine.update(1e-3)
        results.append((update, engine.params()))
    for update, params in results[1:]:
        assert update == results[0][0]
        assert all(np.array_equal(params[name], results[0][1][name]) for name in params)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_has_the_gradient_of_its_own_masks(family):
    """Central differences along a random direction; update(0) reports the loss under the masks of step 0."""
    config = draw_config(3, family, dropout=0.3, block_size=100)
    weights, draw = draw_weights(config, 3), np.random.default_rng(3)
    x, y = draw_batch(config, draw, 4, 100)
    engine = CEngine(config, *both(settings(grad_clip=0.0)))
    zero = {n: np.zeros_like(v) for n, v in engine.state().items()}

    def loss(shift: float) -> float:
        engine.load({name: (w + np.float32(shift) * direction[name]).astype(np.float32) for name, w in weights.items()})
        engine.load_state(zero)
        engine.accumulate(x, y)
        return engine.update(0.0).loss

    for only in (None, "attn", "mlp", "wte"):
        direction = {
            n: draw.standard_normal(w.shape).astype(np.float32) * (only is None or only in n)
            for n, w in weights.items()
        }
        engine.load(weights)
        engine.load_state(zero)
        engine.accumulate(x, y)
        slope = sum(float((g.astype(np.float64) * direction[n]).sum()) for n, g in engine.gradients().items())
        h = 1e-3
        measured = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
        assert abs(slope) > 1e-3 and measured == pytest.approx(slope, rel=2e-2)


def test_dropout_is_a_function_of_seed_step_and_micro_batch():
    config = draw_config(0, "gpt2", dropout=0.5)
    x, y = draw_batch(config, np.random.default_rng(0), 4, 8)

    def losses(seed: int, step: int) -> list[float]:
        engine = CEngine(config, *both(settings(seed=seed)))
        engine.load(draw_weights(config, 0))
        engine.load_state(engine.state() | {"step": np.array(step)})
        result = []
        for _ in range(2):
            engine.accumulate(x, y)
            engine.accumulate(x, y)
            result.append(engine.update(0.0).loss)
        return result

    base = losses(1, 0)
    assert losses(1, 0) == base and base[0] != base[1]
    assert losses(1, 1)[0] == base[1] and losses(2, 0)[0] != base[0]
    engine = CEngine(config, *both(settings()))
    engine.load(draw_weights(config, 0))
    assert engine.loss(x, y) == engine.loss(x, y)  # evaluation draws nothing


def train_steps(engine, config, steps: range) -> list:
    result = []
    for step in steps:
        for micro in range(2):
            engine.accumulate(
                *draw_batch(config, np.random.default_rng([step, micro]), 4, config.block_size), more=micro == 0
            )
        result.append(engine.update(3e-3))
    return result


@pytest.mark.parametrize(
    ("family", "optimizer"),
    [  # each family and each optimizer is fast once
        pytest.param(family, optimizer, marks=[] if (i + j) % 2 == 0 else pytest.mark.slow)
        for i, family in enumerate(FAMILIES)
        for j, optimizer in enumerate(OPTIMIZERS)
    ],
)
def test_a_run_can_change_engine_midway(family, optimizer):
    config = draw_config(11, family)
    weights = initialize(config, 11)
    whole, first = pair(config, weights, optimizer=optimizer)[::-1]
    expected = train_steps(whole, config, range(8))
    found = train_steps(first, config, range(3))
    for kind, steps in ((torch_engine.TorchEngine, range(3, 6)), (CEngine, range(6, 8))):
        second = kind(config, *both(settings(optimizer=optimizer)))
        second.load(first.params())
        second.load_state(first.state())
        found += train_steps(second, config, steps)
        first = second
    assert [u.loss for u in found] == pytest.approx([u.loss for u in expected], rel=1e-4)
    assert int(first.state()["step"]) == 8


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resume_is_bit_identical(optimizer):
    config = draw_config(4, "llama", dropout=0.2)
    recipe = settings(optimizer=optimizer)
    one = CEngine(config, *both(recipe))
    one.load(initialize(config, 4))
    expected = train_steps(one, config, range(6))
    two = CEngine(config, *both(recipe))
    two.load(initialize(config, 4))
    found = train_steps(two, config, range(3))
    three = CEngine(config, *both(replace(recipe, threads=1)))
    three.load(two.params())
    three.load_state(two.state())
    found += train_steps(three, config, range(3, 6))
    assert found == expected
    assert all(np.array_equal(w, three.params()[name]) for name, w in one.params().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_changes_nothing(family, dtype):
    """In any pieces, a prompt longer than a piece too; and the batch's sequences do not see each other."""
    config = draw_config(2, family, block_size=300)
    engine = CEngine(config, SampleConfig(dtype=dtype, threads=2))
    engine.load(draw_weights(config, 2))
    ids = np.random.default_rng(2).integers(0, config.vocab_size, (3, 300), dtype=np.int32)
    expected = engine.session(3).feed(ids)
    for pieces in ([1, 299], [100, 100, 100], [290] + [1] * 10):
        session, start = engine.session(3), 0
        for n in pieces:
            logits = session.feed(ids[:, start : start + n])
            start += n
        assert (session.positions == 300).all()
        assert distance(logits, expected) < (1e-5 if dtype == "float32" else 1e-2)
    assert distance(engine.session(1).feed(ids[1:2]), expected[1:2]) < (1e-5 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_engines_write_the_same(family):
    config = draw_config(1, family, block_size=64)
    ours, theirs = pair(config, draw_weights(config, 1))
    texts = []
    for engine in (ours, theirs):
        session, ids = engine.session(2), np.array([[1, 2], [3, 4]], dtype=np.int32)
        written = []
        while session.positions[0] + ids.shape[1] <= 64:
            ids = session.feed(ids).argmax(axis=1).astype(np.int32)[:, None]
            written.append(ids[:, 0].tolist())
        texts.append(written)
    assert texts[0] == texts[1] and len(texts[0]) == 63


def header_structs() -> dict[str, list[tuple[str, str]]]:
    """Return the structs of sampan.h: {"sampan_config": [("struct_size", "int64_t"), ...]}."""
    header = Path(__file__).parents[1] / "csrc" / "include" / "sampan.h"
    text = re.sub(r"/\*.*?\*/", "", header.read_text(encoding="utf-8"), flags=re.DOTALL)
    structs = {}
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\}", text, re.DOTALL):
        declarations = re.findall(r"((?:const )?\w+)\s+([^;]+);", body)
        structs[name] = [
            (field.strip(" *"), kind + " *" * field.strip().startswith("*"))
            for kind, names in declarations
            for field in names.split(",")
        ]
    return structs


def test_the_structs_are_the_headers():
    """Field by field: the names, their order and their types."""
    kinds = {
        ctypes.c_int32: "int32_t",
        ctypes.c_int64: "int64_t",
        ctypes.c_uint64: "uint64_t",
        ctypes.c_float: "float",
        ctypes.c_double: "double",
        ctypes.c_char_p: "const char *",
        ctypes.POINTER(ctypes.c_double): "const double *",
    }
    structs = header_structs()
    ours = {
        "sampan_config": library.Config,
        "sampan_parameter": library.Parameter,
        "sampan_memory_sizes": library.MemorySizes,
    }
    assert structs.keys() == ours.keys()
    for name, struct in ours.items():
        assert [(field, kinds[kind]) for field, kind in struct._fields_] == structs[name]


def test_every_function_of_the_header_is_declared_or_known():
    header = (Path(__file__).parents[1] / "csrc" / "include" / "sampan.h").read_text(encoding="utf-8")
    functions = set(re.findall(r"SAMPAN_API [\w ]+?\*?sampan_(\w+)\(", header))
    assert functions - {"session_position"} == library.SIGNATURES.keys()  # the session counts in Python


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_memory_is_counted_before_an_engine_exists(family, optimizer):
    config = tiny_config(family)
    machine = both(settings(optimizer=optimizer)) if optimizer else (SampleConfig(dtype="float32"), None)
    count = count_parameters(config)
    sizes = library.memory(config, *machine, 2, 8)
    assert 4 * count <= sizes["weights"] < 4 * count * 1.2
    assert sizes["gradients"] == (0 if optimizer is None else pytest.approx(4 * count, rel=0.1))
    assert sizes["optimizer"] > 1.1 * sizes["gradients"] or optimizer is None
    assert library.memory(config, *machine, 4, 8)["activations"] > 1.5 * sizes["activations"]
    assert library.memory(config, *machine, 4, 8)["cache"] > sizes["cache"] > 0
    with pytest.raises(UserError, match="block_size"):
        library.memory(config, *machine, 2, config.block_size + 1)


def test_the_tables_of_parameters_are_one():
    for seed in SEEDS:
        config = draw_config(seed)
        engine = CEngine(config, SampleConfig(threads=1))  # it checks names and shapes
        assert sum(w.size for w in engine.params().values()) == count_parameters(config)
        assert list(engine.params()) == [p.name for p in parameters(config)]


def test_what_cannot_be_done_is_said():
    config = draw_config(0, "gpt2", block_size=8, vocab_size=50)
    engine = CEngine(config, *both(settings()))
    engine.load(initialize(config, 0))
    good = np.zeros((2, 8), np.int32)
    with pytest.raises(UserError, match="token 50 is not among the 50"):
        engine.accumulate(good + 50, good)
    with pytest.raises(UserError, match="target -2"):
        engine.accumulate(good, good - 2)
    with pytest.raises(UserError, match="block_size is 8"):
        engine.loss(np.zeros((1, 9), np.int32), np.zeros((1, 9), np.int32))
    with pytest.raises(UserError, match="nothing was accumulated"):
        engine.update(1e-3)
    session = engine.session(1)
    session.feed(np.zeros((1, 8), np.int32))
    with pytest.raises(ValueError, match="full"):
        session.feed(np.zeros((1, 1), np.int32))
    with pytest.raises(UserError, match="has no optimizer"):
        CEngine(config, SampleConfig()).accumulate(good, good)
    with pytest.raises(UserError, match="float16"):
        CEngine(config, *both(settings(dtype="float16")))
    with pytest.raises(UserError, match="runs on cpu"):
        CEngine(config, *both(settings(device="cuda")))
    huge = resolve(ModelSettings(n_layer=1000, n_head=100, n_embd=200_000, vocab_size=200_000_000, block_size=8))
    with pytest.raises(UserError, match=r"cannot allocate \d+ bytes"):
        CEngine(huge, *both(settings()))
    engine.accumulate(good, good)  # after all of that it still works
    assert engine.update(1e-3).grad_norm > 0


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5,2"}, 5),
        ({"OMP_NUM_THREADS": "all"}, None),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, 4),  # torchrun's own default
        ({"LOCAL_WORLD_SIZE": "3"}, 2),
    ],
)
def test_both_engines_count_threads_by_the_same_rule(monkeypatch, variables, threads):
    """The variable, else the cores within the quota; here there are eight."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("sampan.machine.count_cores", lambda: 8)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = torch_engine.torch.get_num_threads()
    engines = [kind(tiny_config("gpt2"), MachineConfig(device="cpu")) for kind in (CEngine, torch_engine.TorchEngine)]
    assert torch_engine.torch.get_num_threads() == (threads or 8)
    torch_engine.torch.set_num_threads(before)
    for engine in engines:
        assert f" {threads or 8} threads" in engine.description
