"""Each engine by itself: the optimizer step against torch.optim, accumulation, ignored targets, state, the cache.

test_transformers.py holds its forward and backward; here is what the Engine protocol adds to them.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import random_config, random_weights, relative_error

from sampan.config import OPTIMIZERS, MachineConfig, OptimizerSettings, TrainConfig, change
from sampan.engine.open import open_engine
from sampan.engine.torch.device import DTYPES, pick_dtype
from sampan.errors import UserError
from sampan.machine import count_cores
from sampan.model.forward import forward
from sampan.model.parameters import parameters

SEEDS = range(6)


def make_engine(seed: int, engine_name: str, **settings):
    config = random_config(seed)
    recipe = dict(
        engine=engine_name,
        device="cpu",
        dtype="float32",
        batch_size=4,
        gradient_accumulation_steps=1,
        weight_decay=0.3,
        grad_clip=0.1,
    )
    made = change(TrainConfig(), recipe | {"dropout": config.dropout} | settings)
    engine = open_engine(config, made, made)
    engine.load(random_weights(config, seed))
    return config, engine


def batch(config, seed: int, rows: int = 4):
    ids = np.random.default_rng([seed, 7]).integers(0, config.vocab_size, (rows, config.block_size + 1), dtype=np.int32)
    return ids[:, :-1], ids[:, 1:].copy()


@pytest.mark.parametrize("seed", SEEDS)
def test_updates_equal_a_plain_torch_loop(seed, engine_name):
    """Clipping, decay on matrices only, bias correction, changing rates: against the unfused torch.optim.AdamW."""
    config, engine = make_engine(seed, engine_name)
    _, reference = make_engine(seed, "torch")
    model, table = reference.model, {p.name: p for p in parameters(config)}
    named = dict(model.named_parameters())
    groups = [
        {"params": [w for n, w in named.items() if table[n].decay is decay], "weight_decay": 0.3 * decay}
        for decay in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False)
    for step, lr in enumerate((1e-2, 3e-3, 1e-2)):
        x, y = batch(config, step)
        engine.accumulate(x, y)
        update = engine.update(lr)
        logits = model(torch.from_numpy(x).long())
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(y).long().flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        assert norm > 0.1, "nothing was clipped"
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        assert update.loss == pytest.approx(loss.item(), rel=1e-5)
        assert update.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    started = random_weights(config, seed)
    for name, ours in engine.params().items():
        if name.endswith("c_attn.bias"):
            continue  # a bias on the keys has no true gradient, and AdamW makes whole steps of its rounding
        moved = named[name].detach().numpy() - started[name]
        assert relative_error(ours - started[name], moved) < 1e-3, name


def muon_step(weight, average, gradient, lr, decay, momentum=0.95):
    """Muon by its definition, in float64 and by singular values: U p(p(p(p(p(S))))) V^T of the averaged gradient."""
    average = average + (1 - momentum) * (gradient - average)
    u, s, v = np.linalg.svd(gradient + momentum * (average - gradient), full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert 0.3 < s.max() < 1.3
    scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
    return weight * (1 - lr * decay) - lr * scale * (u * s) @ v, average


@pytest.mark.parametrize("seed", SEEDS)
def test_muon_updates_equal_its_definition(seed, engine_name):
    """Each linear layer of each block by itself; whatever is not one gets AdamW's step at its share of the rate."""
    config, engine = make_engine(seed, engine_name, optimizer="muon", adamw_lr_ratio=0.5)
    _, adamw = make_engine(seed, engine_name)
    expected = {name: w.astype(np.float64) for name, w in random_weights(config, seed).items()}
    averages = dict.fromkeys(expected, 0.0)
    matrices = [p for p in parameters(config) if p.pieces]
    assert {len(p.pieces) for p in matrices} == ({1, 3} if config.family == "gpt2" else {1, 2, 3})
    for step, lr in enumerate((1e-2, 3e-3, 1e-2)):
        before = engine.params()
        for e in (engine, adamw):
            e.load(before)
            e.accumulate(*batch(config, step))
        gradients = engine.gradients()
        update = engine.update(lr)
        adamw.update(lr * 0.5)
        clip = min(1.0, 0.1 / update.grad_norm)
        for p in matrices:
            cuts = np.cumsum(p.pieces)[:-1]
            rows = [
                np.split(a, cuts)
                for a in (
                    expected[p.name],
                    averages[p.name] + 0 * expected[p.name],
                    clip * gradients[p.name].astype(np.float64),
                )
            ]
            steps = [muon_step(*piece, lr, decay=0.3) for piece in zip(*rows, strict=True)]
            expected[p.name] = np.concatenate([w for w, _ in steps])
            averages[p.name] = np.concatenate([a for _, a in steps])
        ours, theirs = engine.params(), adamw.params()
        for p in parameters(config):
            if not p.pieces:
                assert np.array_equal(ours[p.name], theirs[p.name]), p.name
                expected[p.name] = ours[p.name].astype(np.float64)
    started = random_weights(config, seed)
    for p in matrices:
        moved = expected[p.name] - started[p.name]
        assert relative_error(ours[p.name] - started[p.name], moved) < 2e-3, p.name
        assert relative_error(engine.state()[f"exp_avg.{p.name}"], averages[p.name]) < 1e-4
        assert f"exp_avg_sq.{p.name}" not in engine.state()


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (32, 32), (3, 40)])
def test_muon_equals_torchs(shape):
    """torch.optim.Muon rounds its products to bfloat16, 8 bits: that is the tolerance."""
    from sampan.engine.torch.muon import Muon

    rng = torch.Generator().manual_seed(shape[0])
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    optimizer = Muon([(ours, (shape[0],))], momentum=0.9, weight_decay=0.2)
    reference = torch.optim.Muon([theirs], lr=0.03, momentum=0.9, weight_decay=0.2)
    optimizer.param_groups[0]["lr"] = 0.03
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=rng)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
    moved = (theirs - 1).detach().numpy()
    assert np.linalg.norm(moved) > 0.05
    assert relative_error((ours - 1).detach().numpy(), moved) < 1.5e-2


@pytest.mark.parametrize("seed", SEEDS)
def test_micro_batches_add_up_to_the_batch(seed, engine_name):
    config, whole = make_engine(seed, engine_name)
    _, parts = make_engine(seed, engine_name, batch_size=1, gradient_accumulation_steps=4)
    x, y = batch(config, seed)
    y[0] = -1  # one micro-batch counts for nothing, another for half
    y[1, ::2] = -1
    whole.accumulate(x, y)
    for i in range(4):
        parts.accumulate(x[i : i + 1], y[i : i + 1], more=i < 3)
    gradients = parts.gradients()
    for name, gradient in whole.gradients().items():
        if not name.endswith("c_attn.bias"):
            assert relative_error(gradients[name], gradient) < 1e-5, name
    expected, got = whole.update(1e-3), parts.update(1e-3)
    assert got.loss == pytest.approx(expected.loss, rel=1e-5)
    assert got.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_is_that_of_the_loss(seed, engine_name):
    """A small move along the gradient changes the loss by its squared length (central difference)."""
    config, engine = make_engine(seed, engine_name)
    x, y = batch(config, seed)
    y[2, 3:] = -1
    engine.accumulate(x, y)
    weights, gradients = engine.params(), engine.gradients()
    slope = sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values())
    assert slope > 0
    h = 1e-3 / np.sqrt(slope)
    losses = []
    for sign in (1, -1):
        engine.load({name: weights[name] + np.float32(sign * h) * gradients[name] for name in weights})
        losses.append(engine.loss(x, y))
    assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(slope, rel=2e-2)  # float32 losses, differenced


@pytest.mark.parametrize("seed", SEEDS)
def test_gradient_checkpointing_changes_no_gradient(seed, engine_name):
    """Also with dropout: what is computed again drops the same elements."""
    config = replace(random_config(seed), n_layer=3, dropout=0.2)
    found = []
    for again in (False, True):
        settings = dict(dropout=0.2, gradient_checkpointing=again, engine=engine_name, device="cpu", dtype="float32")
        made = TrainConfig(batch_size=4, gradient_accumulation_steps=2, **settings)
        engine = open_engine(config, made, made)
        engine.load(random_weights(config, seed))
        for micro in range(2):
            engine.accumulate(*batch(config, micro), more=micro == 0)
        found.append(engine.gradients())
    assert all(g.any() for g in found[0].values())
    for name, gradient in found[0].items():
        assert np.array_equal(found[1][name], gradient), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_an_engine_continues_from_state_bit_by_bit(dropout, optimizer, engine_name):
    config = replace(random_config(4), dropout=dropout)
    machine = MachineConfig(engine=engine_name, device="cpu", dtype="float32")
    recipe = OptimizerSettings(optimizer=optimizer, batch_size=4, gradient_accumulation_steps=1)
    first = open_engine(config, machine, recipe)
    first.load(random_weights(config, 4))

    def run(engine, steps):
        for step in steps:
            engine.accumulate(*batch(config, step))
            engine.update(1e-2)

    run(first, range(3))
    second = open_engine(config, machine, recipe)
    second.load(first.params())
    second.load_state(first.state())
    run(first, range(3, 6))
    run(second, range(3, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first.params().values(), second.params().values(), strict=True))
    before, after = first.state(), second.state()
    assert before.keys() == after.keys() and all(np.array_equal(before[k], after[k]) for k in before)


def test_dropout_is_keyed_by_seed_step_and_micro_batch(engine_name):
    config = replace(random_config(0), dropout=0.5)
    x, y = batch(config, 0)

    def losses(seed):
        optimizer = OptimizerSettings(batch_size=4, gradient_accumulation_steps=1, seed=seed)
        engine = open_engine(config, MachineConfig(engine=engine_name, device="cpu"), optimizer)
        engine.load(random_weights(config, 0))
        result = []
        for _ in range(3):
            engine.accumulate(x, y)
            result.append(engine.update(0.0).loss)
        assert engine.loss(x, y) == engine.loss(x, y), "evaluation drops nothing"
        return result

    assert losses(1) == losses(1)
    assert len(set(losses(1) + losses(2))) == 6


@pytest.mark.parametrize("seed", SEEDS)
def test_logits_equal_those_of_plain_numpy(seed, engine_name):
    """At every position; model/forward.py is the reference that is neither ours in C nor PyTorch's."""
    config, engine = make_engine(seed, engine_name)
    x, _ = batch(config, seed, rows=2)
    expected = forward(config, random_weights(config, seed), x, np.float64)["logits"]
    session = engine.session(2)
    for t in range(config.block_size):
        assert relative_error(session.feed(x[:, t : t + 1]), expected[:, t]) < 1e-5


@pytest.mark.parametrize("seed", SEEDS)
def test_cached_logits_equal_uncached_ones(seed, engine_name):
    config, engine = make_engine(seed, engine_name)
    x, _ = batch(config, seed, rows=2)
    session = engine.session(2)
    ends = sorted(np.random.default_rng(seed).choice(np.arange(1, config.block_size), 3, replace=False).tolist())
    for start, end in zip([0, *ends], [*ends, config.block_size], strict=True):  # chunks of any length
        logits = session.feed(x[:, start:end])
        assert (session.positions == end).all()
        assert relative_error(logits, engine.session(2).feed(x[:, :end])) < 1e-5
    with pytest.raises(ValueError, match="full"):
        session.feed(x[:, :1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", SEEDS[:3])
def test_a_sequence_has_the_same_bits_in_any_company(seed, dtype, engine_name):
    """12 sequences of any lengths join and leave a batch between tokens: the logits of each are those it has alone."""
    config, engine = make_engine(seed, engine_name, dtype=dtype, threads=1)
    draw = np.random.default_rng(seed)
    texts = [draw.integers(0, config.vocab_size, int(draw.integers(2, config.block_size + 1))) for _ in range(12)]
    prompts = [int(draw.integers(1, len(text))) for text in texts]

    def alone(text, prompt):
        session = engine.session(1)
        rows = [session.feed(text[None, :prompt].astype(np.int32))]
        return [*rows, *(session.feed(np.int32([[token]])) for token in text[prompt:])]

    session, waiting, running = engine.session(11), [*range(12)], {}  # {slot: (text, tokens fed)}
    found = {number: [] for number in waiting}
    while waiting or running:
        free = [slot for slot in range(11) if slot not in running]
        for slot in free[: int(draw.integers(0, 4))]:
            if waiting:
                number = waiting.pop(int(draw.integers(len(waiting))))
                session.clear(slot)
                found[number].append(session.feed(texts[number][None, : prompts[number]].astype(np.int32), [slot]))
                running[slot] = number, prompts[number]
        running = {slot: (n, fed) for slot, (n, fed) in running.items() if fed < len(texts[n])}
        slots = sorted(running)
        if slots:
            ids = np.int32([[texts[n][fed]] for n, fed in (running[slot] for slot in slots)])
            for slot, row in zip(slots, session.feed(ids, slots), strict=True):
                number, fed = running[slot]
                found[number].append(row[None])
                running[slot] = number, fed + 1
                assert session.positions[slot] == fed + 1
    for number, text in enumerate(texts):
        expected = np.concatenate(alone(text, prompts[number]))
        assert np.array_equal(np.concatenate(found[number]), expected) and np.abs(expected).max() > 0


@pytest.mark.parametrize("dtype,tolerance", [("bfloat16", 3e-2), ("float16", 4e-3)])
def test_half_precision_is_near_and_learns(dtype, tolerance, engine_name):
    """Rounding of 8 and 11 bits; float16 goes through the loss scaler, whose state is saved."""
    if dtype == "float16" and engine_name == "c":
        pytest.skip("float16 is torch's")
    config, exact = make_engine(5, engine_name, learning_rate=1e-2)
    _, engine = make_engine(5, engine_name, dtype=dtype)
    x, y = batch(config, 5)
    assert engine.loss(x, y) == pytest.approx(exact.loss(x, y), rel=tolerance)
    before = engine.loss(x, y)
    for _ in range(20):
        engine.accumulate(x, y)
        engine.update(1e-2)
    assert engine.loss(x, y) < before - 0.1
    state = engine.state()
    assert ("loss_scale" in state) == (dtype == "float16")
    engine.load_state(state)
    assert all(w.dtype == np.float32 for w in engine.params().values())


def test_what_an_engine_cannot_do_is_one_sentence(engine_name):
    """The same one in both engines: nothing to update with, ids that the vocabulary lacks, more tokens than a block."""
    config, engine = make_engine(0, engine_name)
    x, y = batch(config, 0)
    with pytest.raises(UserError, match="nothing was accumulated for an update"):
        engine.update(1e-3)
    V = config.vocab_size
    for call in (engine.accumulate, engine.loss):
        for wrong in (V, -1):
            with pytest.raises(UserError, match=f"token {wrong} is not among the {V} of the vocabulary"):
                call(np.full_like(x, wrong), y)
        for wrong in (V, -2):
            with pytest.raises(UserError, match=f"target {wrong} is not among the {V} of the vocabulary"):
                call(x, np.full_like(y, wrong))
        with pytest.raises(UserError, match=f"block_size is {config.block_size}"):
            call(np.tile(x, 2), np.tile(y, 2))
    with pytest.raises(UserError, match=f"token {V} is not among"):
        engine.session(1).feed(np.array([[V]], np.int32))
    with pytest.raises(UserError, match="nothing was accumulated for an update"):
        engine.update(1e-3)
    engine.accumulate(x, y)
    assert engine.update(1e-3).grad_norm > 0, "and nothing is broken by it"


@pytest.mark.parametrize("capability, emulated, expected", [((9, 0), False, "bfloat16"), ((8, 0), False, "bfloat16"),
    ((7, 5), True, "float16"), ((7, 0), True, "float16"), ((6, 1), True, "float32"), ((5, 2), True, "float32")])  # fmt: skip
def test_a_gpu_computes_in_what_its_hardware_has(monkeypatch, capability, emulated, expected):
    """T4 (7.5) and V100 (7.0) have float16 in their tensor cores; PyTorch says that they support bfloat16: emulated."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    real = {True: True, False: not emulated}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: real[including_emulation])
    assert pick_dtype("auto", torch.device("cuda", 0)) == DTYPES[expected]
    assert pick_dtype("bfloat16", torch.device("cuda", 0)) == torch.bfloat16, "as asked"
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32


def test_threads_are_those_asked_for(engine_name):
    config, _ = make_engine(0, engine_name)
    engine = open_engine(config, MachineConfig(engine=engine_name, device="cpu", threads=1))
    assert "1 thread," in engine.description
    make_engine(0, engine_name, threads=count_cores())
