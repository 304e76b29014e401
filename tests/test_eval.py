"""sampan eval: the losses are those of the definition, window by window, and the same as lm-evaluation-harness reports.

The definition is computed here with one forward pass for each token, by the engine's decoding session.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import readable
from helpers import random_config, random_weights, refused, relative_error, sampan
from hypothesis import given, strategies as st
from tokenizers import processors

from sampan.checkpoint.folder import load_model, load_tokenizer, save_model
from sampan.config import MachineConfig, ModelSettings
from sampan.engine.open import open_engine
from sampan.evaluation.choices import NAMES, Question, accuracy, answer, encode_pair, is_questions, read_questions
from sampan.evaluation.score import mean_and_error, score, sliding_windows
from sampan.model.parameters import initialize
from sampan.model.shape import resolve
from sampan.tokens.byte_level import train_bpe
from sampan.tokens.kinds import open_tokenizer

TEXT = readable(6000)
QUESTION = {"ctx": "the cat", "endings": ["sat", "sang a song"], "label": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of random weights, large enough for it to have opinions, with a BPE that knows an end of text."""
    tokenizer = train_bpe([TEXT], 300)
    shape = resolve(
        ModelSettings(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=tokenizer.vocab_size, family="qwen3")
    )
    weights = {name: w * 20 if w.ndim == 2 else w for name, w in initialize(shape, 1).items()}
    path = tmp_path_factory.mktemp("model")
    save_model(path, shape, weights, tokenizer)
    return path


def engine_of(folder, name: str = "c"):
    shape, weights = load_model(folder)
    engine = open_engine(shape, MachineConfig(engine=name, device="cpu", dtype="float32", threads=1))
    engine.load(weights)
    return engine


def token_by_token(engine, ids: np.ndarray, block_size: int, stride: int) -> np.ndarray:
    """The definition: the loss of each token given those before it in its window."""
    losses, seen = [], 0
    for start, new in sliding_windows(len(ids) - 1, block_size, stride):
        end = seen + new
        session = engine.session(1)
        for i in range(start, end):
            logits = session.feed(np.array([[ids[i]]], np.int32))[0].astype(np.float64)
            if i >= seen:
                losses.append(np.logaddexp.reduce(logits) - logits[ids[i + 1]])
        seen = end
    return np.array(losses)


# ---- windows ----


@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_every_target_is_new_once_and_has_its_context(targets, block_size, data):
    stride = data.draw(st.integers(1, block_size))
    seen = 0
    for start, new in sliding_windows(targets, block_size, stride):
        length = min(block_size, targets)
        assert start + length - new == seen and start >= 0
        if start:
            assert length - new >= block_size - stride
        seen += new
    assert seen == targets


@pytest.mark.parametrize("engine_name", ["c", "torch"])
@pytest.mark.parametrize(("targets", "stride"), [(5, 4), (16, 16), (41, 5), (48, 16)])
def test_losses_are_those_of_the_definition(folder, engine_name, targets, stride):
    ids = load_tokenizer(folder).encode(TEXT)[: targets + 1]
    engine = engine_of(folder, engine_name)
    expected = token_by_token(engine, ids, 16, stride)
    assert expected.std() > 0.1, "losses that are all alike prove nothing"
    for batch_size in (1, 3):
        found = score(engine, ids, 16, stride, batch_size)
        assert found.dtype == np.float32 and relative_error(found, expected) < 1e-5


def test_engines_give_each_target_its_loss():
    for seed in range(5):
        shape = random_config(seed)
        engines = [
            open_engine(shape, MachineConfig(engine=name, device="cpu", dtype="float32")) for name in ("c", "torch")
        ]
        draw = np.random.default_rng(seed)
        x, y = draw.integers(0, shape.vocab_size, (2, 3, shape.block_size))
        y[0, :4] = -1
        for engine in engines:
            engine.load(random_weights(shape, seed))
        ours, theirs = (engine.losses(x, y) for engine in engines)
        assert ours.shape == y.shape and not ours[0, :4].any() and not theirs[0, :4].any()
        assert relative_error(ours, theirs) < 1e-5
        assert ours.sum() / (y >= 0).sum() == pytest.approx(engines[0].loss(x, y), rel=1e-6)


def test_more_context_helps_a_model_that_uses_it(folder):
    """A stride of a whole block leaves the first tokens of each block without context, and no two strides agree."""
    engine, ids = engine_of(folder), load_tokenizer(folder).encode(TEXT)[:200]
    whole, half, each = (score(engine, ids, 16, stride) for stride in (16, 8, 1))
    assert relative_error(whole[:16], each[:16]) < 1e-6  # the first window is everybody's
    assert relative_error(whole, each) > 1e-3 and relative_error(half, each) > 1e-3


# ---- mean and error ----


def test_error_is_that_of_independent_groups():
    draw = np.random.default_rng(1)
    losses = draw.normal(3, 1, 10_000)
    mean, error = mean_and_error(losses, 1)
    assert mean == pytest.approx(losses.mean()) and error == pytest.approx(losses.std(ddof=1) / 100, rel=1e-9)
    together = np.repeat(losses[:100], 100)  # neighbours that say the same say it once
    assert mean_and_error(together, 100)[1] == pytest.approx(losses[:100].std(ddof=1) / 10, rel=1e-9)
    assert math.isnan(mean_and_error(losses[:5], 5)[1])


# ---- texts ----


def test_figures_of_a_text_follow_from_its_losses(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT[:500] + "é", encoding="utf-8")
    done = sampan("eval", str(folder), str(text), "--json", "True", "--per_token", "losses.tsv", "--dtype", "float32")
    figures = json.loads(done.stdout)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(text.read_text(encoding="utf-8"))
    expected = token_by_token(engine_of(folder), np.array([tokenizer.end_of_text, *ids]), 16, 8)
    assert figures["nats_per_token"] == pytest.approx(expected.mean(), rel=1e-5)
    assert (figures["tokens"], figures["characters"], figures["bytes"]) == (len(ids), 501, 502)
    assert figures["bits_per_byte"] == pytest.approx(expected.sum() / math.log(2) / 502, rel=1e-5)
    assert figures["bits_per_character"] * 501 == pytest.approx(figures["bits_per_byte"] * 502)
    assert figures["perplexity"] == pytest.approx(math.exp(expected.mean()), rel=1e-4)
    base = figures["baselines_bits_per_character"]
    assert base["uniform"] > base["unigram"] > 0 and base["xz"] > 0
    header, *rows = Path("losses.tsv").read_text(encoding="utf-8").splitlines()
    assert header.split("\t") == ["position", "id", "nats", "token"]
    table = [row.split("\t") for row in rows]
    assert [int(row[1]) for row in table] == ids.tolist()
    assert relative_error(np.array([float(row[2]) for row in table]), expected) < 1e-4
    assert "".join(json.loads(row[3]) for row in table[:20]) == tokenizer.decode(ids[:20])


def test_a_run_is_measured_on_its_own_val_split():
    Path("book.txt").write_text(TEXT, encoding="utf-8")
    settings = [
        "--n_layer",
        "1",
        "--n_head",
        "2",
        "--n_embd",
        "16",
        "--block_size",
        "16",
        "--max_iters",
        "3",
        "--engine",
        "c",
        "--dtype",
        "float32",
    ]
    sampan("train", "book.txt", *settings, "--out_dir", "out/book")
    lines = sampan("eval", "out/book", "--dtype", "float32").stdout.splitlines()
    assert lines[0].startswith("out/book: best") and "val split of" in lines[1]
    assert all(len(line) <= 80 for line in lines)
    shown = json.loads(sampan("eval", "out/book", "--json", "True", "--stride", "16", "--dtype", "float32").stdout)
    assert shown["tokens"] + 1 == shown["characters"] == len(TEXT) - int(len(TEXT) * 0.9)
    mean = f"{shown['nats_per_token']:.4f}"
    assert mean in sampan("eval", "out/book", "--stride", "16", "--dtype", "float32").stdout


def test_a_val_split_and_the_same_text_in_a_file_have_one_loss(tmp_path):
    """Also where the tokenizer's template begins a text with BOS, which is there once."""
    inner = train_bpe([TEXT], 300).inner
    bos = ("<|endoftext|>", inner.token_to_id("<|endoftext|>"))
    inner.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    tokenizer = open_tokenizer(inner)
    assert tokenizer.begin == (bos[1],)
    shape = resolve(ModelSettings(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=tokenizer.vocab_size))
    save_model(tmp_path / "model", shape, initialize(shape, 1), tokenizer)
    Path("book.txt").write_text(TEXT, encoding="utf-8")
    Path("end.txt").write_text(TEXT[int(len(TEXT) * 0.9) :], encoding="utf-8")
    flags = ["--init_from", "model", "--max_iters", "2", "--engine", "c", "--dtype", "float32", "--out_dir", "out/book"]
    sampan("train", "book.txt", *flags)
    val, file = (
        json.loads(sampan("eval", "out/book", *text, "--json", "True", "--dtype", "float32").stdout)
        for text in ([], ["end.txt"])
    )
    names = ("tokens", "characters", "nats_per_token", "nats_per_token_stderr")
    assert [val[name] for name in names] == [file[name] for name in names] and val["tokens"] > 100


def test_a_run_that_is_named_keeps_its_normalization():
    Path("wide.txt").write_text(TEXT.replace("a", "ａ"), encoding="utf-8")
    settings = ["n_layer=1", "n_head=2", "n_embd=16", "block_size=16", "max_iters=1", "engine=c", "normalize=nfkc"]
    sampan("train", "wide.txt", *[f"--{s}" for s in settings], "--out_dir", "out/wide")
    found = [json.loads(sampan("eval", name, "wide.txt", "--json", "True").stdout) for name in ("out/wide", "wide")]
    assert found[0]["nats_per_token"] == found[1]["nats_per_token"] and found[0]["bytes"] == len(TEXT)


def test_refusals(folder, tmp_path):
    Path("q.jsonl").write_text(json.dumps(QUESTION) + "\n", encoding="utf-8")
    Path("text.txt").write_text("a text", encoding="utf-8")
    assert "block_size is 16" in refused("eval", str(folder), "text.txt", "--stride", "17")
    assert "q.jsonl holds questions" in refused("eval", str(folder), "q.jsonl", "text.txt")
    assert "has no run.json" in refused("eval", str(folder))
    assert "nowhere" in refused("eval", str(folder), "nowhere.txt")
    assert "cannot be written" in refused("eval", str(folder), "text.txt", "--per_token", "no/such/folder.tsv")
    Path("q.jsonl").write_text(json.dumps(QUESTION | {"endings": ["a", "long " * 99]}) + "\n", encoding="utf-8")
    assert "q.jsonl, line 1: an ending has" in refused("eval", str(folder), "q.jsonl")


# ---- multiple choice ----


def test_answers_are_the_losses_of_the_endings(folder):
    engine, tokenizer = engine_of(folder), load_tokenizer(folder)
    questions = [
        Question("the cat and", ("sat", "sang a song"), 0, "1"),
        Question(TEXT[:300], ("one", "another one", "two"), 2, "2"),  # more than a block
        Question("", ("nothing before", "it"), 1, "3"),
    ]
    for batch_size in (1, 4):
        found = answer(engine, tokenizer, questions, 16, " ", batch_size)
        for question, values in zip(questions, found, strict=True):
            for ending, value in zip(question.endings, values, strict=True):
                before, after = encode_pair(tokenizer, question.context, " " + ending)
                ids = np.array((before + after)[-17:])
                expected = token_by_token(engine, ids, 16, 16)[-len(after) :].sum()
                assert -value == pytest.approx(expected, rel=1e-5) and expected > 1


def test_pairs_are_encoded_as_the_whole_text():
    tokenizer = train_bpe([TEXT], 300)
    for context, ending in [("the cat", " sat"), ("the cat ", "sat"), ("a\n\n", "b"), ("", "x y")]:
        before, after = encode_pair(tokenizer, context, ending)
        before = before if context else before[1:]
        assert tokenizer.decode(before + after) == context + ending and after


def test_accuracy_counts_the_likeliest():
    questions = [Question("", ("aaaa", "b"), 0, ""), Question("", ("aaaa", "b"), 1, "")]
    values = [np.array([-4.0, -3.0]), np.array([-4.0, -3.0])]
    assert accuracy(questions, values, per_character=False)[0] == 0.5
    assert accuracy(questions, values, per_character=True)[0] == 0.5
    assert accuracy(questions[:1], values[:1], per_character=True) == (1.0, pytest.approx(math.nan, nan_ok=True))


@pytest.mark.parametrize("context", NAMES["context"])
@pytest.mark.parametrize("endings", NAMES["endings"])
def test_usual_names_are_read(tmp_path, context, endings):
    for key, value in zip(NAMES["answer"], [1, "1", "B", "sang"], strict=True):
        path = tmp_path / "q.jsonl"
        path.write_text(json.dumps({context: "c", endings: ["sat", "sang"], key: value}) + "\n\n", encoding="utf-8")
        assert is_questions(path)
        assert [(q.context, q.endings, q.answer) for q in read_questions(path)] == [("c", ("sat", "sang"), 1)]


def test_arc_form_is_read(tmp_path):
    path = tmp_path / "arc.jsonl"
    choices = {"text": ["sat", "sang"], "label": ["1", "2"]}
    path.write_text(json.dumps({"question": "c", "choices": choices, "answerKey": "2"}), encoding="utf-8")
    assert read_questions(path)[0].answer == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[1]", "line 2: not a JSON object"),
        ('{"endings": ["a", "b"], "label": 0}', "line 2: the context is missing; it can be called context, ctx,"),
        ('{"ctx": 1, "endings": ["a", "b"], "label": 0}', "line 2: the context is not a text"),
        ('{"ctx": "c", "endings": ["a"], "label": 0}', "line 2: the endings are not a list of two or more"),
        ('{"ctx": "c", "endings": ["a", ""], "label": 0}', "line 2: the endings are not a list of two or more"),
        ('{"ctx": "c", "endings": ["a", "b"], "label": 2}', "line 2: the answer 2 is neither a number from 0 to 1"),
        ('{"ctx": "c", "endings": ["a", "b"], "label": true}', "line 2: the answer True is neither"),
    ],
)
def test_a_line_that_is_no_question_is_named(folder, line, why):
    Path("q.jsonl").write_text(json.dumps(QUESTION) + "\n" + line + "\n", encoding="utf-8")
    assert why in refused("eval", str(folder), "q.jsonl")


# ---- lm-evaluation-harness ----

TASKS = {
    "choices": """
output_type: multiple_choice
doc_to_text: "{{ctx}}"
doc_to_choice: "{{endings}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
}


@pytest.mark.slow
def test_lm_evaluation_harness_agrees(folder, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    from lm_eval.__main__ import cli_evaluate

    words, draw = TEXT.split(), np.random.default_rng(3)
    questions = []
    for i in range(60):
        start = int(draw.integers(0, len(words) - 60))
        endings = [" ".join(words[j : j + 1 + int(draw.integers(1, 5))]) for j in draw.integers(0, len(words) - 60, 4)]
        context = " ".join(words[start : start + 1 + i % 40])
        questions.append({"ctx": context, "endings": endings, "label": str(int(draw.integers(0, 4)))})
    Path("choices.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions), encoding="utf-8")
    Path("text.jsonl").write_text(json.dumps({"text": TEXT[:2000]}) + "\n", encoding="utf-8")
    Path("tasks").mkdir()
    for name, task in TASKS.items():
        head = f"task: local_{name}\ndataset_path: json\ntest_split: test\ndataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}"
        Path("tasks", f"{name}.yaml").write_text(head + task, encoding="utf-8")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    command = f"--model hf --model_args pretrained={folder},dtype=float32 --include_path tasks --device cpu"
    monkeypatch.setattr(
        sys, "argv", ["lm_eval", *command.split(), "--tasks", "local_choices,local_text", "--output_path", "o.json"]
    )
    cli_evaluate()
    (found,) = Path().glob("o*.json")
    theirs = json.loads(found.read_text())["results"]

    def ours(*words: str) -> dict:
        return json.loads(sampan("eval", str(folder), *words, "--json", "True", "--dtype", "float32").stdout)

    choices = ours("choices.jsonl")
    assert 0 < choices["accuracy"] < 1
    for name, other in (("accuracy", "acc"), ("accuracy_per_character", "acc_norm")):
        assert choices[name] == pytest.approx(theirs["local_choices"][f"{other},none"], abs=1e-9)
        assert choices[f"{name}_stderr"] == pytest.approx(theirs["local_choices"][f"{other}_stderr,none"], rel=1e-6)
    text = ours("text.jsonl", "--stride", "16")
    assert text["bits_per_byte"] == pytest.approx(theirs["local_text"]["bits_per_byte,none"], rel=1e-5)
