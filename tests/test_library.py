"""The library: any data of integers through the one loop, in both engines, with no files; generate, save, load."""

import ast
import importlib
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import readable

import sampan
from sampan import GPT, Evaluation, Step, UserError
from sampan.data.examples import fixed_batches, open_data, training_steps
from sampan.training.loop import train
from sampan.training.plan import make_plan

SHAPE = dict(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=12, threads=1, dtype="float32", device="cpu")
SHORT = dict(max_iters=6, batch_size=4)


@pytest.fixture
def make(engine_name):
    """A tiny model of each engine in turn."""
    return lambda **settings: GPT(**SHAPE | {"engine": engine_name} | settings)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 12, 200)


@pytest.fixture
def rows():
    return np.random.default_rng(1).integers(0, 12, (10, 9))


def losses(records) -> list[float]:
    return [r.loss for r in records if isinstance(r, Step)]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# ---- training ----


def test_windows_are_the_commands(make, engine_name):
    """The same text, shape and seed: the losses of the library and of a run in a folder are the same bits."""
    Path("text.txt").write_text(readable(3000), encoding="utf-8")
    machine = {k: SHAPE[k] for k in ("threads", "dtype", "device")} | {"engine": engine_name}
    settings = dict(
        n_layer=2, n_head=2, n_embd=16, block_size=8, batch_size=4, max_iters=6, eval_interval=3, eval_iters=2
    )
    plan = make_plan("text.txt", settings | machine)
    expected = list(train(plan))
    gpt = GPT(plan.model, **machine)
    records = list(gpt.train(plan.data.train, plan.data.val, max_iters=6, batch_size=4, eval_interval=3, eval_iters=2))
    assert losses(records) == losses(expected) and len(losses(records)) == 6
    kept = [(r.train_loss, r.val_loss, r.best) for r in records if isinstance(r, Evaluation)]
    assert kept == [(r.train_loss, r.val_loss, r.best) for r in expected if isinstance(r, Evaluation)]
    assert len(kept) == 3


def test_both_engines_give_the_same_losses(tokens, rows):
    pytest.importorskip("torch")
    y = rows[:, 1:].copy()
    y[:, :3] = -1
    for data in (tokens, (rows[:, :-1], y)):
        c, torch = (losses(GPT(**SHAPE, engine=e).train(data, **SHORT)) for e in ("c", "torch"))
        assert c == pytest.approx(torch, rel=1e-4) and c[0] != c[-1]


def test_the_same_seed_gives_the_same_bits(make, tokens):
    first, again, other = make(dropout=0.1), make(dropout=0.1), make(dropout=0.1, seed=2)
    assert losses(first.train(tokens, **SHORT)) == losses(again.train(tokens, **SHORT))
    assert same(first.weights, again.weights) and not same(first.weights, other.weights)


def test_every_form_of_the_same_data_trains_the_same(make, rows):
    """Rows as an array, two arrays, a list, a torch Dataset, tensors; in one order as batches of every kind."""
    torch = pytest.importorskip("torch")
    from torch.utils.data import Dataset, IterableDataset, TensorDataset

    class Rows(Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, i):
            row = torch.from_numpy(rows[i])
            return row[:-1], row[1:]

    x, y = rows[:, :-1], rows[:, 1:]
    tensors = torch.from_numpy(x.copy()), torch.from_numpy(y.copy())
    shuffled = [rows, rows.tolist(), (x, y), tensors, list(zip(x, y, strict=True)), Rows(), TensorDataset(*tensors)]
    expected = losses(make().train(rows, **SHORT))
    for data in shuffled:
        assert losses(make().train(data, **SHORT)) == expected, type(data)

    class Pairs(IterableDataset):
        def __len__(self):
            return len(rows)

        def __iter__(self):
            return zip(*tensors, strict=True)

    settings = dict(max_iters=2, batch_size=5)
    loader = torch.utils.data.DataLoader(Rows(), batch_size=5)
    numbered = itertools.count()
    in_order = [
        Pairs(), zip(x, y, strict=True), loader, [(x[:5], y[:5]), (x[5:], y[5:])].__iter__(),
        lambda: (x[5 * (i := next(numbered)) : 5 * i + 5], y[5 * i : 5 * i + 5]),
    ]  # fmt: skip
    found = [losses(make().train(data, **settings)) for data in in_order]
    assert all(f == found[0] for f in found) and len(found[0]) == 2


def test_an_example_is_seen_once_in_an_epoch(make, rows):
    seen = []

    class Watched:
        def __len__(self):
            return len(rows)

        def __getitem__(self, i):
            seen.append(i)
            return rows[i, :-1], rows[i, 1:]

    list(make().train(Watched(), max_iters=4, batch_size=5))
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    list(make(seed=2).train(Watched(), max_iters=2, batch_size=5))
    assert sorted(seen[20:]) == list(range(10)) and seen[20:] not in (seen[:10], seen[10:20]), (
        "another seed, another order"
    )
    seen.clear()
    gpt = make()
    for _ in range(2):
        list(gpt.train(Watched(), max_iters=2, batch_size=2, gradient_accumulation_steps=2))
        list(gpt.train(Watched(), max_iters=1, batch_size=2, gradient_accumulation_steps=1))
    epochs = [seen[i : i + 8] for i in (0, 10)]
    assert len(seen) == 20 and all(len({*epoch}) == 8 for epoch in epochs), "every micro-batch has examples of its own"
    assert epochs[0] != epochs[1], "each training of a model has another order"


def test_processes_share_the_global_batch(monkeypatch, rows):
    """Whatever their number, also where it does not divide: together they have the batch that one process has."""
    gpt = GPT(**SHAPE)
    config = gpt._training_config(dict(batch_size=4, gradient_accumulation_steps=2))

    def batches(rank, processes):
        monkeypatch.setattr("sampan.data.examples.world", lambda: (rank, processes))
        steps = training_steps(open_data(rows, gpt.model, 1, "data"), config)
        return [batch for batch, _ in (itertools.chain(*itertools.islice(steps, 3)))]

    whole = np.concatenate(batches(0, 1)).reshape(3, 8, -1)
    for processes in (2, 3):
        shares = [np.concatenate(batches(rank, processes)).reshape(3, -1, 8) for rank in range(processes)]
        assert np.array_equal(np.concatenate(shares, axis=1), whole)


def test_evaluations_cover_the_data_evenly(rows):
    """No more batches than eval_iters, and from the first to the last part of what can be indexed."""
    gpt = GPT(**SHAPE)
    x, y = np.tile(np.arange(10)[:, None], 4), np.zeros((10, 4), int)
    config = gpt._training_config(dict(batch_size=2, eval_iters=2))
    whole = [(x[i : i + 2], y[i : i + 2]) for i in range(0, 10, 2)]

    def read(data):
        return [b[:, 0].tolist() for b, _ in fixed_batches(open_data(data, gpt.model, 1, "val"), config, "val")]

    assert read((x, y)) == [[0, 2], [5, 7]] and read(iter(whole)) == [[0, 1], [2, 3]]
    records = list(gpt.train((x, y), (x, y), max_iters=40, batch_size=1, eval_iters=1))
    assert [r.step for r in records if isinstance(r, Evaluation)] == list(range(0, 41, 2)), "a twentieth of the steps"


def test_ignored_targets_teach_nothing(make, rows):
    """Where only the first three targets count, the rest of the row may be anything: a causal model cannot see it."""
    y = rows[:, 1:].copy()
    y[:, 3:] = -1
    whole, short = make(), make()
    a = losses(whole.train((rows[:, :-1], y), **SHORT))
    b = losses(short.train((rows[:, :3], y[:, :3]), **SHORT))
    assert a == pytest.approx(b, rel=1e-5)
    one_by_one = [make().loss(rows[:1, : t + 1], np.append(np.full(t, -1), rows[0, t + 1])) for t in range(3)]
    assert make().loss(rows[0, :-1], y[0]) == pytest.approx(np.mean(one_by_one), rel=1e-5)


def test_an_iterator_is_read_no_sooner_than_needed_and_ends_the_training(make, rows):
    read = []

    def batches(count):
        for i in range(count):
            read.append(i)
            yield rows[:4, :-1], rows[:4, 1:]

    records = make().train(batches(100), max_iters=7)
    assert read == []
    for number, record in enumerate(itertools.islice(records, 5)):
        assert record.step == number and len(read) == number + 1
    assert len(list(records)) == 2 and len(read) == 7
    assert len(list(make().train(batches(3), max_iters=7))) == 3
    halves = list(make().train(batches(3), (rows[:, :-1], rows[:, 1:]), max_iters=7, gradient_accumulation_steps=2))
    assert len(losses(halves)) == 2 and halves[-1].step == 2, "the last step has what was left; an evaluation ends it"
    assert math.isnan(halves[-1].train_loss) and math.isfinite(halves[-1].val_loss)


def test_an_iterable_begins_again(make, rows):
    class Twice:
        def __iter__(self):
            return iter([(rows[:4, :-1], rows[:4, 1:]), (rows[4:8, :-1], rows[4:8, 1:])])

    batches = [*Twice()] * 3
    assert losses(make().train(Twice(), max_iters=6)) == losses(make().train(iter(batches), max_iters=6))

    class Seven:
        def __iter__(self):
            return iter([(row[:-1], row[1:]) for row in rows[:7]])

    batches = [(rows[i : i + 4, :-1], rows[i : i + 4, 1:]) for i in (0, 4, 0)]
    batches[1] = tuple(part[:3] for part in batches[1])
    expected = losses(make().train(iter(batches), max_iters=3))
    assert losses(make().train(Seven(), max_iters=3, batch_size=4)) == expected, "the last examples are a smaller batch"


def test_evaluation_moves_nothing(make, tokens):
    alone = losses(make(dropout=0.1).train(tokens, **SHORT))
    records = list(make(dropout=0.1).train(tokens, tokens[:50], eval_interval=1, **SHORT))
    assert losses(records) == alone and sum(isinstance(r, Evaluation) for r in records) == 7


def test_between_two_records_the_model_can_be_used(make, tokens):
    gpt, undisturbed = make(), make()
    expected = losses(undisturbed.train(tokens, **SHORT))
    found, before = [], gpt.weights
    for record in gpt.train(tokens, **SHORT):
        found.append(record.loss)
        gpt.generate([1, 2], 3), gpt.loss(tokens[:5], tokens[1:6]), gpt.save("kept")
        assert not same(gpt.weights, before)
        before = gpt.weights
    assert found == expected and same(gpt.weights, undisturbed.weights)


def test_a_second_training_begins_where_the_first_ended(make, tokens):
    gpt = make()
    first = gpt.train(tokens, max_iters=50)
    next(first), next(first)
    weights = gpt.weights
    second = gpt.train(tokens, **SHORT)
    assert same(gpt.weights, weights) and list(first) == [], "the first has ended"
    other = GPT(gpt.model, weights=weights, engine=gpt.machine.engine, threads=1, dtype="float32", seed=gpt.seed + 1)
    rates = dict(optimizer="muon", decay_lr=True, min_lr=0.0)
    assert losses(second) != losses(other.train(tokens, **rates, **SHORT)), "fine-tuning has another rate"
    assert not same(gpt.weights, weights)


def test_a_failed_call_loses_nothing(make, tokens):
    gpt = make()
    list(gpt.train(tokens, **SHORT))
    weights = gpt.weights
    for data, settings in ((tokens + 5, {}), (tokens, {"batch_sise": 3}), (tokens.astype(float), {})):
        with pytest.raises(UserError):
            gpt.train(data, **settings)
    assert same(gpt.weights, weights)


# ---- using ----


def test_save_and_load(make, tokens):
    gpt = make()
    list(gpt.train(tokens, **SHORT))
    tokenizer = sampan.characters("abcdefghijkl")
    gpt.save("folder", tokenizer)
    again = GPT.load("folder", engine=gpt.machine.engine, threads=1, dtype="float32")
    assert same(again.weights, gpt.weights) and again.model == gpt.model
    assert again.tokenizer.encode("lad").tolist() == [11, 0, 3] and gpt.tokenizer is None
    x, y = tokens[:8], tokens[1:9]
    assert again.loss(x, y) == pytest.approx(gpt.loss(x, y), rel=1e-6)
    assert np.array_equal(again.generate(x, 20, seed=3), gpt.generate(x, 20, seed=3))
    again.save("copy")
    assert Path("copy/tokenizer.json").read_bytes() == Path("folder/tokenizer.json").read_bytes()
    assert GPT.load("folder", block_size=None, dropout=0.5).model.dropout == 0.5
    assert GPT.load("folder", block_size=4).model.block_size == 4
    with pytest.raises(UserError, match="tokenizer has 13 tokens"):
        gpt.save("other", sampan.characters("abcdefghijklm"))


def test_a_loaded_model_is_fine_tuned(make, tokens):
    gpt = make()
    gpt.save("folder")
    loaded = GPT.load("folder", threads=1)
    assert [r.lr for r in loaded.train(tokens, **SHORT)] == [1e-3] * 6
    assert [r.lr for r in gpt.train(tokens, **SHORT)][:2] != [1e-3] * 2


def test_generate_follows_the_logits(make):
    gpt = make()
    prompts = np.array([[1, 2, 3], [4, 5, 6]])
    ids = gpt.generate(prompts, 10, temperature=0)
    assert ids.shape == (2, 13) and ids.dtype == np.int32 and np.array_equal(ids[:, :3], prompts)
    for row in ids:
        for t in range(3, 9):  # within the block
            assert row[t] == gpt.logits(row[:t])[0, -1].argmax()
    assert np.array_equal(gpt.generate(prompts[1], 10, temperature=0), ids[1:])
    drawn = gpt.generate(prompts, 5, num_samples=3, temperature=1.0, top_k=None)
    assert drawn.shape == (6, 8) and np.array_equal(drawn[:, :3], np.repeat(prompts, 3, axis=0))
    assert np.array_equal(drawn, gpt.generate(prompts, 5, num_samples=3, temperature=1.0, top_k=None))
    assert np.array_equal(gpt.generate(prompts, 0), prompts)
    many = gpt.generate([[1, 2, 3], [4], [5, 6]], 12, temperature=0)
    assert [len(row) for row in many] == [15, 13, 14]
    for row, prompt in zip(many, ([1, 2, 3], [4], [5, 6]), strict=True):
        assert np.array_equal(row, gpt.generate(prompt, 12, temperature=0)[0])
    assert np.array_equal(gpt.generate(prompts, 20), gpt.generate(prompts, 20, seed=gpt.seed))
    assert not np.array_equal(gpt.generate(prompts, 20), gpt.generate(prompts, 20, seed=gpt.seed + 1))


def test_a_loaded_model_continues_a_text(make):
    """With the folder's tokenizer, which has fewer tokens than the model: no id that writes nothing is drawn."""
    make().save("folder", sampan.characters("abcdefg\n"))
    gpt = GPT.load("folder", threads=1)
    text = gpt.generate("abc", 40, temperature=2.0, top_k=0)
    assert text.startswith("abc") and len(text) == 43 and set(text[3:]) <= set("abcdefg\n")
    many = gpt.generate("abc", 40, temperature=2.0, top_k=0, num_samples=3)
    assert many[0] == text and len({*many}) == 3
    assert gpt.generate("abc", 40, temperature=2.0, top_k=0, stop=text[10]) == text[: text.index(text[10], 3)]
    ids = gpt.generate(gpt.tokenizer.encode("abc"), 40, temperature=2.0, top_k=0)
    assert gpt.tokenizer.decode(ids[0]) == text


def test_loss_is_of_the_logits(make, rows):
    gpt, x, y = make(), rows[0, :-1], rows[0, 1:]
    logits = gpt.logits(x)[0].astype(float)
    assert np.array_equal(gpt.logits(x[:3])[0], gpt.logits(x)[0, :3]), "each position, and each knows only those before"
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y])
    assert gpt.loss(x, y) == pytest.approx(expected, rel=1e-5)


def test_weights_are_copies_and_can_be_given(make):
    gpt = make()
    weights = gpt.weights
    given = make(weights=weights)
    weights["wte.weight"][:] = 0
    assert not same(gpt.weights, weights)
    assert same(make(weights=gpt.weights).weights, gpt.weights) and given.pretrained
    for change, message in (
        ({"x": np.zeros(1)}, "x is no parameter"),
        ({"wte.weight": np.zeros(3, np.float32)}, "expected float32"),
        ({"wte.weight": weights["wte.weight"].astype(float)}, "wte.weight is float64"),
    ):
        with pytest.raises(UserError, match=message):
            make(weights=gpt.weights | change)
    with pytest.raises(UserError, match="is missing"):
        make(weights={})


def test_defaults_are_the_recipes():
    gpt = GPT(vocab_size=12, block_size=8, threads=1)
    assert (gpt.model.family, gpt.model.n_layer, gpt.model.n_embd, gpt.model.n_head) == ("qwen3", 4, 128, 4)
    config = gpt._training_config({})
    assert config.optimizer == "muon" and config.batch_size * 8 == 12 * 128 and config.min_lr == 0.0
    assert gpt._training_config({"optimizer": "adamw"}).learning_rate == 3e-3


# ---- what is refused ----


@pytest.mark.parametrize(
    "data, message",
    [
        (np.arange(8), "data is too short: it has 8 tokens, and a block of 8 needs 9"),
        (np.arange(20), "data has 19: expected tokens from 0 to 11"),
        (np.arange(13), "data has 12: expected tokens from 0 to 11"),
        (np.arange(-1, 11), "data has -1"),
        (np.full(20, 2**32 + 1), "data has 4294967297"),
        (np.zeros(20), "data is of float64: expected integers"),
        (np.zeros((2, 3, 4), int), "data has 3 dimensions"),
        (np.zeros((2, 10), int), "data has sequences of 9 tokens, and the model's block_size is 8"),
        ((np.zeros((2, 3), int), np.zeros((2, 4), int)), r"shapes \(2, 3\) and \(2, 4\)"),
        ((np.zeros((2, 3), int), np.full((2, 3), -2)), "data: y has -2: expected tokens from 0 to 11, or -1"),
        ((np.full((2, 3), -1), np.zeros((2, 3), int)), "data: x has -1: expected tokens from 0 to 11"),
        ([(np.zeros((2, 3), int),) * 2] * 2, r"examples of shapes \(2, 3\): expected x and y \(T,\)"),
        ([[1, 2], [3]], "data cannot be read as an array"),
        ([], "empty"),
        (iter([]), "data is empty"),
        ([1], "it has 1 tokens"),
        (iter([[1, 2, 3]]), r"data: expected pairs \(x, y\), not list"),
        (iter([([1, 2], [3, 4]), ([1], [2])]), r"examples of shapes \(1,\) and \(2,\)"),
        ([{"x": [1], "y": [2]}], "expected pairs .*not dict"),
        ((i for i in range(3)), r"expected pairs \(x, y\), not int"),
        (3, "data is a int"),
        (lambda: 3, r"expected pairs \(x, y\), not int"),
    ],
)
def test_data_that_cannot_be(data, message):
    with pytest.raises(UserError, match=message) as error:
        list(GPT(**SHAPE).train(data, max_iters=2, batch_size=2))
    assert "\n" not in str(error.value)


def test_settings_that_cannot_be(tokens):
    gpt = GPT(**SHAPE)
    for call, message in (
        (lambda: GPT(n_layer=2), "vocab_size is not known"),
        (lambda: GPT(vocab_size=3, n_leyer=2), "unknown setting 'n_leyer'; did you mean n_layer"),
        (lambda: GPT(vocab_size=3, max_iters=2), "GPT: max_iters is no setting of it"),
        (lambda: GPT(vocab_size=0), "vocab_size=0: expected"),
        (lambda: gpt.train(tokens, n_layer=3), "GPT.train: n_layer is no setting of it"),
        (lambda: gpt.train(tokens, out_dir="x"), "GPT.train: out_dir is no setting of it"),
        (lambda: gpt.train(tokens, learning_rate=-1), "learning_rate=-1.0: expected"),
        (lambda: gpt.train(tokens, tokens[:5]), "val is too short: it has 5 tokens"),
        (lambda: gpt.train(tokens, (np.zeros((1, 3), int), np.full((1, 3), -1))), "val has no target"),
        (lambda: gpt.generate(np.zeros((2, 0), int)), r"prompt has shape \(2, 0\): .*at least one"),
        (lambda: gpt.generate([99]), "prompt has 99"),
        (lambda: gpt.generate([1], stop="x"), "GPT.generate: stop is no setting of it"),
        (lambda: gpt.generate([1], temperature=-1), "temperature"),
        (lambda: gpt.logits(np.zeros(9, int)), "ids has 9 tokens"),
        (lambda: gpt.generate("abc"), "this model has no tokenizer"),
        (lambda: gpt.train(tokens, lr=1e-3), "unknown setting 'lr'; did you mean learning_rate"),
        (lambda: gpt.train(tokens, wd=0.1), "did you mean weight_decay"),
        (lambda: GPT(vocab_size=3, seed=-1), "seed=-1: expected"),
        (lambda: gpt.loss([1], [-1]), "every target is -1"),
        (lambda: GPT.load("nowhere/at/all"), "no such folder"),
        (lambda: GPT.load(".", n_layer=2), "GPT.load: n_layer is no setting of it"),
    ):
        with pytest.raises(UserError, match=message):
            call()


# ---- the package ----


def test_documents_are_whole():
    Path("a.txt").write_text("one\ntwo\n", encoding="utf-8")
    Path("b.jsonl").write_text('{"text": "three\\nfour"}\n{"text": "five"}\n', encoding="utf-8")
    assert sampan.documents("a.txt", "b.jsonl") == ["one\ntwo\n", "three\nfour", "five"]


def test_no_file_is_written(make, tokens):
    list(make().train(tokens, tokens[:50], **SHORT))
    assert list(Path.cwd().iterdir()) == []


def test_the_package_lists_its_names():
    assert {"GPT", "UserError", "train", "__version__"} <= {*dir(sampan)} and dir(sampan) == sorted(dir(sampan))


def test_the_stub_names_what_the_package_has():
    """Type checkers read __init__.pyi, Python reads __init__.py: the same names from the same modules."""
    stub = ast.parse((Path(sampan.__file__).parent / "__init__.pyi").read_text(encoding="utf-8"))
    found = {
        a.asname: node.module.removeprefix("sampan.")
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for a in node.names
    }
    assert found == sampan._WHERE
    for name, module in found.items():
        assert getattr(sampan, name) is getattr(importlib.import_module(f"sampan.{module}"), name)
    assert (Path(sampan.__file__).parent / "py.typed").exists()
