"""nanoGPT's and minGPT's files become folders of ours, and a run goes on as torch.optim would have gone on.

The files are made here, with the structure that those programs give them; the reference of what comes next is the
same module trained on by torch's own AdamW.
"""

import json
import os
import pickle
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from nanogpt_files import RATE, SYMBOLS, TEXT, Theirs, batches, checkpoint, data_folder, learn, shape

import sampan.data.nanogpt
from sampan.checkpoint.folder import load_model, load_tokenizer
from sampan.checkpoint.run import Run
from sampan.cli.main import main
from sampan.config import DataConfig, ImportConfig, MachineConfig, change
from sampan.config_files import read_file
from sampan.data.given import open_given
from sampan.data.prepare import prepare
from sampan.engine.open import open_engine
from sampan.errors import UserError
from sampan.exchange.convert import import_path
from sampan.model.shape import ModelShape
from sampan.text.corpora import find_corpus
from sampan.tokens.byte_level import train_bpe
from sampan.tokens.characters import characters
from sampan.training.loop import train
from sampan.training.plan import make_plan


@pytest.fixture
def trained(tmp_path):
    """A data folder and a checkpoint of three steps."""
    config = shape()
    model = Theirs(config)
    optimizer = model.optimizer()
    learn(model, optimizer, batches(config, 0, 3))
    data_folder(tmp_path / "data/letters")
    return config, model, optimizer, checkpoint(tmp_path / "out-letters", config, model, optimizer, 3)


def same(a, b) -> bool:
    size = float(np.linalg.norm(b))
    assert size > 0
    return float(np.linalg.norm(a - b)) < 1e-5 * size


@pytest.mark.parametrize(("bias", "prefix"), [(True, ""), (False, "_orig_mod.")])
def test_training_goes_on_as_torchs_own_would(bias, prefix, tmp_path, engine_name):
    config = shape(bias=bias)
    model = Theirs(config)
    optimizer = model.optimizer()
    learn(model, optimizer, batches(config, 0))
    data_folder(tmp_path / "data/letters")
    path = checkpoint(tmp_path / "theirs", config, model, optimizer, 4, prefix)
    import_path(str(path), ImportConfig(out_dir="out/ours"))

    run = Run("out/ours")
    again, weights = load_model(run.folder)
    assert again == config
    _, state, progress = run.load_last(config)
    assert (progress.step, progress.best_val_loss, int(state["step"])) == (4, 2.5, 4)
    made = change(run.settings(), dict(engine=engine_name, device="cpu", dtype="float32", threads=1))
    engine = open_engine(config, made, made)
    engine.load(weights)
    engine.load_state(state)
    for (x, y), theirs in zip(batches(config, 1), learn(model, optimizer, batches(config, 1)), strict=True):
        engine.accumulate(x, y)
        assert engine.update(RATE).loss == pytest.approx(theirs, rel=1e-5)
    reference = dict(model.transformer.named_parameters())
    for name, weight in engine.params().items():
        theirs = reference[name].detach().numpy()
        if name.endswith("c_attn.bias"):  # a bias on the keys has no gradient: AdamW makes steps of its rounding
            weight, theirs = (np.delete(b, np.s_[config.n_embd : 2 * config.n_embd]) for b in (weight, theirs))
        assert same(weight, theirs), name


def test_the_commands(trained, capsys):
    before = {p: p.read_bytes() for p in Path("data/letters").iterdir()}
    assert main(["import", "out-letters/ckpt.pt"]) == 0
    said = capsys.readouterr().out
    assert "step 3" in said and "sampan train --resume --out_dir out/nanogpt-letters" in " ".join(said.split())
    assert all(len(line) <= 80 for line in said.splitlines())
    assert all(path.read_bytes() == data for path, data in before.items())  # nanoGPT reads it as before
    assert main(["train", "--resume", "--out_dir=out/nanogpt-letters", "--threads=1"]) == 0
    said = capsys.readouterr().out
    assert "iter 3:" in said and "iter 2:" not in said and "step 6: train loss" in said
    assert main(["sample", "out/nanogpt-letters", "--prompt=世", "--max_new_tokens=5"]) == 0
    assert capsys.readouterr().out.startswith("世")
    assert main(["import", "out-letters/ckpt.pt"]) == 2  # nothing is overwritten
    assert "already exists" in capsys.readouterr().err
    assert not list(Path(".").rglob("*.partial"))


def test_the_printed_commands_are_quoted(trained):
    lines = import_path("out-letters/ckpt.pt", ImportConfig(out_dir="my runs/letters (1)"))
    for word in ("sample", "--out_dir"):
        command = next(line for line in lines if f"{word} 'my runs" in line)
        assert shlex.split(command.partition(f"{word} ")[2])[0] == "my runs/letters (1)"


def test_a_data_folder_alone_is_trained_on(trained):
    import_path("data/letters", ImportConfig())
    plan = make_plan(
        "data/letters", dict(max_iters=1, n_layer=1, n_embd=8, n_head=1, block_size=8, out_dir="out/x", threads=1)
    )
    assert (plan.data.meta.train_tokens, plan.data.meta.val_tokens) == (300, len(TEXT) - 300)
    assert plan.data.tokenizer.decode(plan.data.train) == TEXT[:300]
    assert len(list(train(plan))) == 3
    assert import_path("data/letters/meta.pkl", ImportConfig())  # once more, by the name of its vocabulary


TINY = dict(n_layer=1, n_head=1, n_embd=8, block_size=8, max_iters=1, threads=1)


def data_of(dataset: str, **settings):
    """The data that a nanoGPT configuration with this dataset is trained on."""
    Path("train_it.py").write_text(f"out_dir = 'out-it'\ndataset = '{dataset}'\n", encoding="utf-8")
    return make_plan(None, read_file("train_it.py") | TINY | settings, recipe=False).data


def test_a_dataset_is_the_folder_of_that_name_as_in_nanogpt():
    """The folder wins over a corpus's name, in a configuration and on the command line."""
    for name in ("letters", "shakespeare_char", "shakespeare", "sanzijing_char"):
        folder = data_folder(Path("data") / name)
        before = {p: p.read_bytes() for p in folder.iterdir()}
        for data in (data_of(name), data_of(name), prepare(name, DataConfig())):  # when it is first met, and later
            assert str(data.folder) == str(folder) and data.tokenizer.decode(data.train) == TEXT[:300]
        assert all(path.read_bytes() == data for path, data in before.items())


def test_the_folder_that_was_made_of_a_corpus_is_not_nanogpts(real, monkeypatch):
    monkeypatch.setenv("SAMPAN_MIRROR", str(real))
    made = prepare("sanzijing", DataConfig())
    assert prepare("sanzijing", DataConfig(val_fraction=0.2)).folder == made.folder  # prepared again, not refused
    assert data_of("sanzijing_char").meta.origin == made.meta.origin


def test_a_second_prepare_py_is_noticed(trained):
    first = open_given(Path("data/letters"))
    data_folder(Path("data/letters"), TEXT[::-1])
    assert main(["import", "data/letters"]) == 0
    again = open_given(Path("data/letters"))
    assert again.tokenizer.decode(again.train) == TEXT[::-1][:300] and again.meta.sha256 != first.meta.sha256


def test_the_new_tokens_are_not_those_of_the_run(trained):
    import_path("out-letters/ckpt.pt", ImportConfig())
    make_plan(None, dict(init_from="resume", out_dir="out/nanogpt-letters"))
    np.fromfile("data/letters/train.bin", np.uint16)[::-1].tofile("data/letters/train.bin")  # of the same size
    with pytest.raises(UserError, match="has changed since"):
        make_plan(None, dict(init_from="resume", out_dir="out/nanogpt-letters"))


def test_the_text_of_a_fork_is_read_where_its_prepare_py_was_not_run():
    texts = {"shuixu_char/水浒传.txt": TEXT, "mine/input.txt": TEXT[::-1], "mine/notes.txt": "not this one" * 9}
    for name, text in texts.items():
        (Path("data") / name).parent.mkdir(parents=True, exist_ok=True)
        (Path("data") / name).write_text(text, encoding="utf-8")
    data = data_of("shuixu_char")
    assert (data.meta.tokenizer, data.tokenizer.decode(data.train)) == ("char", TEXT[: int(len(TEXT) * 0.9)])
    data = data_of("mine")
    assert data.meta.name == "mine" and data.tokenizer.decode(data.train) == TEXT[::-1][: int(len(TEXT) * 0.9)]
    assert not Path("data/shuixu_char/train.bin").exists()  # nanoGPT's folder is not written into


@pytest.mark.parametrize(
    ("dataset", "corpus", "tokenizer"),
    [
        ("sanzijing_char", "sanzijing", "char"),
        ("shuixu_char", "shuihu", "char"),
        ("shuixu_full", "shuihu", "gpt2"),
        ("chucknorris", "chuck_norris", "gpt2"),
    ],
)
def test_the_tutorials_datasets_are_known(dataset, corpus, tokenizer):
    Path("train_it.py").write_text(f"dataset = '{dataset}'\n", encoding="utf-8")
    assert read_file("train_it.py") == {"dataset": corpus, "tokenizer": tokenizer}
    assert find_corpus(corpus)


def test_documents_in_the_tokens_are_counted(monkeypatch):
    bpe = train_bpe([TEXT], 300)
    monkeypatch.setattr(sampan.data.nanogpt, "fetch_gpt2_tokenizer", lambda: bpe)
    end = bpe.end_of_text
    folder = data_folder(Path("data/web"))
    (folder / "meta.pkl").unlink()
    np.array([5, 6, end, 7, end, 8, end] * 20, np.uint16).tofile(folder / "train.bin")
    np.array([5, 6], np.uint16).tofile(folder / "val.bin")
    assert open_given(folder).meta.documents == 60


def test_other_data_is_refused_at_the_resume(trained):
    import_path("out-letters/ckpt.pt", ImportConfig())
    meta = json.loads(Path("data/letters/meta.json").read_text())
    Path("data/letters/meta.json").write_text(json.dumps(meta | {"sha256": "another"}))
    with pytest.raises(UserError):
        make_plan(None, dict(init_from="resume", out_dir="out/nanogpt-letters"))


def test_without_its_data_it_is_a_model(trained):
    Path("data").rename("elsewhere")
    lines = import_path("out-letters/ckpt.pt", ImportConfig(tokenizer="elsewhere/letters/meta.pkl"))
    assert any("--data_dir" in line for line in lines)
    assert load_tokenizer("out/nanogpt-letters").encode("世a").tolist() == [SYMBOLS.index("世"), SYMBOLS.index("a")]
    import_path("out-letters/ckpt.pt", ImportConfig(out_dir="out/b", data_dir="elsewhere/letters"))
    assert Run("out/b").can_resume()


REFUSALS = {
    "other sizes than its tensors'": (lambda s: s["model_args"].update(n_layer=3), "n_layer=3"),
    "a tensor too few": (lambda s: s["model"].pop("transformer.ln_f.weight"), "ln_f.weight is missing"),
    "a tensor too many": (lambda s: s["model"].update(extra=torch.ones(1)), "extra is unexpected"),
    "a shape": (lambda s: s["model"].update({"transformer.ln_f.weight": torch.ones(3)}), "shape (3,)"),
    "integers": (lambda s: s["model"].update({"transformer.ln_f.weight": torch.ones(16).long()}), "int64"),
    "heads that do not fit": (lambda s: s["model_args"].update(n_head=3), "multiple"),
    "no heads": (lambda s: s["model_args"].pop("n_head"), "--n_head"),
    "another optimizer": (lambda s: s["optimizer"]["param_groups"].pop(), "groups"),
    "half an optimizer": (lambda s: s["optimizer"]["state"].pop(2), "AdamW"),
    "moments of another shape": (lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.ones(2)), "exp_avg"),
    "no step": (lambda s: s.pop("iter_num"), "iter_num"),
    "a setting out of range": (lambda s: s["config"].update(beta1=7.0), "beta1"),
    "not a model": (lambda s: s.update(model=3), "neither"),
    "a vocabulary of another size": (lambda s: Path("data/letters/meta.pkl").write_bytes(
        pickle.dumps({"itos": dict(enumerate("".join(SYMBOLS) + "z"))})), "trained with"),
    "words": (lambda s: Path("data/letters/meta.pkl").write_bytes(pickle.dumps({"itos": {0: "ab"}})), "characters"),
    "a malicious meta.pkl": (lambda s: Path("data/letters/meta.pkl").write_bytes(b"cos\nsystem\n."), "os.system"),
    "token beyond": (lambda s: np.array([99], np.uint16).tofile("data/letters/val.bin"), "token 99"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_carried_is_refused(case, trained, capsys):
    change_it, expected = REFUSALS[case]
    saved = torch.load(trained[3], weights_only=False)
    change_it(saved)
    torch.save(saved, trained[3])
    assert main(["import", str(trained[3])]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not Path("out").exists() or not list(Path("out").iterdir())


# ---- minGPT ----


def mingpt_folder(folder: Path, config: ModelShape, about: dict) -> Theirs:
    """As minGPT's chargpt.py leaves it: an untied head, biases, buffers of the causal mask, and a config.json."""
    model = Theirs(config)
    tensors = model.state_dict()
    T = config.block_size
    for i in range(config.n_layer):
        tensors[f"transformer.h.{i}.attn.bias"] = torch.tril(torch.ones(T, T)).view(1, 1, T, T)
    folder.mkdir(parents=True)
    torch.save(tensors, folder / "model.pt")
    (folder / "config.json").write_text(json.dumps({"system": {"work_dir": str(folder)}, "model": about}))
    return model


@pytest.mark.parametrize("about", [{"model_type": "gpt-nano", "n_head": None}, {"model_type": None, "n_head": 3}])
def test_a_model_of_mingpt(about, tmp_path, engine_name):
    config = shape(n_head=3, n_embd=24, bias=True, tie_word_embeddings=False)
    model = mingpt_folder(tmp_path / "out/chargpt", config, about)
    Path("input.txt").write_text(TEXT, encoding="utf-8")
    import_path("out/chargpt/model.pt", ImportConfig(tokenizer="input.txt"))
    again, weights = load_model("out/mingpt-chargpt")
    assert again == config
    engine = open_engine(config, MachineConfig(engine=engine_name, device="cpu", dtype="float32", threads=1))
    engine.load(weights)
    ids = np.arange(8, dtype=np.int32)[None]
    reference = model.lm_head(model.transformer.features(torch.from_numpy(ids).long()))[:, -1].detach().numpy()
    assert same(engine.session(1).feed(ids), reference)
    assert load_tokenizer("out/mingpt-chargpt").encode(TEXT).tolist() == characters(TEXT).encode(TEXT).tolist()


def test_heads_and_vocabulary_that_mingpt_does_not_say(tmp_path):
    mingpt_folder(tmp_path / "work", shape(bias=True, tie_word_embeddings=False), {})
    with pytest.raises(UserError, match="--n_head"):
        import_path("work/model.pt", ImportConfig())
    os.remove("work/config.json")
    lines = import_path("work/model.pt", ImportConfig(n_head=2))
    assert "no vocabulary" in lines[0] and not Path("out/mingpt-work/tokenizer.json").exists()
    Path("short.txt").write_text("abc")
    with pytest.raises(UserError, match="the one that the model was trained with"):
        import_path("work/model.pt", ImportConfig(n_head=2, out_dir="out/c", tokenizer="short.txt"))


def test_what_is_no_format_of_these():
    Path("x.safetensors").touch()
    for path, expected in (("x.safetensors", "imported"), ("nowhere.pt", "no such file")):
        with pytest.raises(UserError, match=expected):
            import_path(path, ImportConfig())
