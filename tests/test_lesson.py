"""csrc/lesson/gpt.c, the GPT in plain loops: compiled here, and compared with both engines, which it is the oracle of.

Its own gradients are compared with finite differences in double precision, so that the chain does not rest on one of
our programs alone. Skipped where there is no C compiler.
"""

import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import readable, tiny_config
from helpers import engine_state

from sampan.config import MachineConfig, OptimizerSettings
from sampan.engine.open import open_engine
from sampan.exchange.llmc.state import read_state
from sampan.exchange.llmc.tokens import write_tokens
from sampan.exchange.llmc.weights import in_order, read_weights, write_weights
from sampan.model.parameters import parameters

SOURCE = Path(__file__).resolve().parents[1] / "csrc" / "lesson" / "gpt.c"
TOLERANCE = 1e-5  # float32 sums in another order, relative to the norm
B, T, STEPS = 3, 13, 10
RECIPE = dict(learning_rate=1e-2, beta1=0.9, beta2=0.95, weight_decay=0.3, grad_clip=0.5)


SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compile_c(source: Path, program: Path, *flags: str) -> Path:
    """Compile one C file without a warning; skip the test where there is no compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler (cc)")
    words = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", *flags, source, "-o", program, "-lm"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode and flags[:1] == SANITIZERS[:1]:  # which not every compiler has
        return compile_c(source, program, *flags[len(SANITIZERS) :])
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """lesson(command, **settings): run the compiled program; its result."""
    program = compile_c(SOURCE, tmp_path_factory.mktemp("lesson") / "gpt", *SANITIZERS)

    def run(command: str, **settings) -> subprocess.CompletedProcess:
        words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
        quiet = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}  # a refusal frees nothing
        return subprocess.run([program, command, *words], capture_output=True, text=True, timeout=60, env=quiet)

    return run


@pytest.fixture
def model():
    return tiny_config("gpt2", n_layer=3)


@pytest.fixture
def files(model):
    """Write gpt2.bin and tokens.bin; return the weights, none of which is 0 or 1, and the ids."""
    draw = np.random.default_rng(2)
    weights = {p.name: draw.normal(p.mean, 0.2, p.shape).astype(np.float32) for p in parameters(model)}
    ids = draw.integers(0, model.vocab_size, 4 * B * T + 5, dtype=np.int32)  # 4 batches, which 10 steps take in turn
    write_weights(Path("gpt2.bin"), model, weights, "f32")
    write_tokens(Path("tokens.bin"), ids, model.vocab_size)
    return weights, ids


def open_with(model, weights, engine_name: str):
    optimizer = {name: value for name, value in RECIPE.items() if name != "learning_rate"}
    machine = MachineConfig(engine=engine_name, device="cpu", dtype="float32", threads=1)
    engine = open_engine(model, machine, OptimizerSettings(batch_size=B, gradient_accumulation_steps=1, **optimizer))
    engine.load(weights)
    return engine


def batch(ids: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    piece = ids[number * B * T : (number + 1) * B * T + 1]
    return piece[:-1].reshape(B, T), piece[1:].reshape(B, T)


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    size = float(np.linalg.norm(reference))
    assert size > 0, "a reference of zeros proves nothing"
    return float(np.linalg.norm(np.asarray(ours, np.float64) - reference)) / size


# ---- the lesson by itself ----


def check(source: Path, program: Path) -> subprocess.CompletedProcess:
    """Compare every gradient of a tiny model with finite differences."""
    compile_c(source, program, "-DDOUBLE")
    shape = "--n_layer 2 --n_head 3 --n_embd 12 --vocab_size 23 --block_size 7 --batch_size 2"
    return subprocess.run([program, "check", *shape.split()], capture_output=True, text=True, timeout=60)


def test_every_gradient_equals_finite_differences():
    done = check(SOURCE, Path("gpt").absolute())
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^(\S+) +(\S+), by differences +(\S+): error (\S+)$", done.stdout, re.M)
    assert [name for name, *_ in rows] == [p.name for p in in_order(tiny_config("gpt2"))]
    for name, gradient, difference, error in rows:
        assert abs(float(gradient)) > 1e-4 and float(error) < 1e-7, name
        assert float(gradient) == pytest.approx(float(difference), rel=1e-5), name


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("- normed * mean_dn", "+ normed * mean_dn"),  # LayerNorm
        ("p[s] * (dp[s] - sum)", "p[s] * dp[s]"),  # attention's softmax
        ("dwpe[m % T * C + c] += dx", "dwpe[m % T * C + c] = dx"),  # of all sequences
    ],
)
def test_a_mistake_in_a_backward_pass_is_found(right, wrong):
    text = SOURCE.read_text()
    assert text.count(right) == 1
    Path("wrong.c").write_text(text.replace(right, wrong))
    done = check(Path("wrong.c"), Path("wrong").absolute())
    assert done.returncode == 1 and "WRONG" in done.stdout


# ---- the lesson and the engines ----


def test_logits_loss_and_every_gradient_equal_an_engines(lesson, model, files, engine_name):
    weights, ids = files
    done = lesson("state", data="tokens.bin", init_from="gpt2.bin", batch_size=B, block_size=T, out="state.bin")
    assert done.returncode == 0, done.stderr
    state = read_state(Path("state.bin"), model)
    x, y = batch(ids, 0)
    assert np.array_equal(state.x, x) and np.array_equal(state.y, y)
    expected = engine_state(open_with(model, weights, engine_name), x, y)
    assert relative_error(state.logits, expected.logits) < TOLERANCE
    assert state.loss == pytest.approx(expected.loss, rel=1e-6)
    assert state.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        assert relative_error(state.gradients[name], gradient) < TOLERANCE, name


def test_ten_steps_of_adamw_follow_an_engine(lesson, model, files, engine_name):
    weights, ids = files
    engine = open_with(model, weights, engine_name)
    settings = dict(batch_size=B, block_size=T, max_iters=STEPS, max_new_tokens=5, out="after.bin")
    done = lesson("train", data="tokens.bin", init_from="gpt2.bin", **settings, **RECIPE)
    assert done.returncode == 0, done.stderr
    rows = re.findall(rf"^step \d+/{STEPS}: loss (\S+), norm (\S+), \S+ ms$", done.stdout, re.M)
    assert len(rows) == STEPS
    for step, (loss, norm) in enumerate(rows):
        engine.accumulate(*batch(ids, step % 4))
        update = engine.update(RECIPE["learning_rate"])
        assert float(loss) == pytest.approx(update.loss, rel=TOLERANCE)
        assert float(norm) == pytest.approx(update.grad_norm, rel=1e-4) and float(norm) > RECIPE["grad_clip"]
    assert float(rows[-1][0]) < float(rows[0][0]) - 0.5
    found, after = read_weights(Path("after.bin"))
    assert found == model
    for name, weight in engine.params().items():
        if not name.endswith("c_attn.bias"):  # the keys' true gradient is 0: AdamW makes whole steps of its rounding
            assert relative_error(after[name] - weights[name], weight - weights[name]) < 2e-3, name
    assert len(done.stdout.splitlines()[-1].split()) == 5


def test_a_new_model_learns_a_text(lesson):
    Path("text.txt").write_text(readable(3000))
    settings = dict(n_layer=1, n_head=2, n_embd=16, block_size=16, batch_size=4, max_iters=40, learning_rate=1e-2)
    done = lesson("train", data="text.txt", max_new_tokens=40, seed=3, **settings)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss (\S+),", done.stdout)]
    assert losses[0] == pytest.approx(np.log(256), abs=0.1) and losses[-1] < losses[0] - 2
    again = lesson("train", data="text.txt", max_new_tokens=40, seed=3, **settings)
    written, rewritten = (run.stdout.split(" ms\n")[-1] for run in (done, again))
    assert written == rewritten and len(written) == 41


# ---- the page ----


def blocks(kind: str) -> list[str]:
    page = (SOURCE.parents[2] / "docs" / "en" / "lesson.md").read_text(encoding="utf-8")
    return [text for found, text in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.M | re.S) if found == kind]


def run_python(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_the_page_quotes_is_in_the_file():
    quotes = blocks("c")
    assert len(quotes) > 2
    for quote in quotes:
        assert quote in SOURCE.read_text()


def test_the_pages_derivation_equals_finite_differences():
    *shown, last = run_python(blocks("python")[0])
    formula, differences = ([float(v) for v in re.findall(r"-?\d+\.\d+", line)] for line in shown)
    assert len(formula) == 6 and formula == pytest.approx(differences, abs=2e-6)
    assert float(last.split()[-1]) < 1e-8
    assert any(shown == block.splitlines()[:2] for block in blocks(""))


def test_the_page_shows_attention(make_folder):
    make_folder("out/lesson", text=readable(2000) + "First Citizen:", n_layer=2, n_head=2)
    _, *heads = run_python(blocks("python")[1])
    assert len(heads) == 2
    for line in heads:
        weights = [int(word) for word in line.split()[2:]]
        assert len(weights) == 14 and sum(weights) == pytest.approx(100, abs=7)


# ---- what is wrong is said in a sentence ----


def test_mistakes_are_refused_in_one_sentence(lesson, model, files):
    whole = Path("gpt2.bin").read_bytes()
    Path("short.bin").write_bytes(whole[:-4])
    Path("long.bin").write_bytes(whole + b"\0")
    Path("heads.bin").write_bytes(whole[:20] + struct.pack("<i", 5) + whole[24:])
    Path("sizes.bin").write_bytes(whole[:24] + struct.pack("<i", 1 << 30) + whole[28:])
    Path("half.bin").write_bytes(whole[:4] + struct.pack("<i", 5) + whole[8:])
    Path("cut.bin").write_bytes(Path("tokens.bin").read_bytes()[:-2])
    Path("few.txt").write_text("few")
    data = dict(data="tokens.bin", batch_size=B, block_size=T)
    for said, command, settings in (
        ("usage: gpt train|state|check", "sample", {}),
        ("unknown setting --n_heads", "train", dict(n_heads=2)),
        ("--learning_rate x: expected a number", "train", dict(learning_rate="x", **data)),
        ("--data is required", "train", {}),
        ("--out is required", "state", dict(init_from="gpt2.bin", **data)),
        ("none.bin: No such file", "train", dict(init_from="none.bin", **data)),
        ("tokens.bin: not a weights file", "train", dict(init_from="tokens.bin", **data)),
        ("half.bin: not a weights file of llm.c, version 3", "train", dict(init_from="half.bin", **data)),
        ("short.bin: ends inside ln_f.bias", "train", dict(init_from="short.bin", **data)),
        ("long.bin: longer than its header says", "train", dict(init_from="long.bin", **data)),
        ("not a multiple of n_head 5", "train", dict(init_from="heads.bin", **data)),
        ("too large", "train", dict(init_from="sizes.bin", **data)),
        ("gpt2.bin: a file of llm.c, but not GPT-2's tokens", "train", dict(init_from="gpt2.bin", data="gpt2.bin")),
        ("cut.bin: ", "train", dict(init_from="gpt2.bin", **data | dict(data="cut.bin"))),
        ("vocab_size is 9", "train", dict(vocab_size=9, **data)),
        ("few.txt: 3 tokens; a batch needs 40", "train", data | dict(data="few.txt")),
    ):
        done = lesson(command, **settings)
        assert done.returncode == 2 and said in done.stderr, (said, done.stdout, done.stderr)
        assert done.stderr.startswith("gpt: ") and done.stderr.count("\n") == 1
