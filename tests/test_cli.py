"""The program as a person meets it: commands, their output, what they refuse, Ctrl-C. Each is a process of its own."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import readable
from helpers import environment, refused, sampan

from sampan.cli.flags import make_parser, tidy
from sampan.cli.main import COMMANDS, main
from sampan.config import SampleConfig, build
from sampan.messages import columns_of

TINY = ["--device=cpu", "--threads=1", "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4"]


@pytest.fixture
def text(tmp_path) -> str:
    (tmp_path / "river.txt").write_text(readable(4000), encoding="utf-8")
    return "river.txt"


def test_prepare_train_sample_resume(text):
    assert re.search(r"4,000 characters, \d+ distinct symbols", sampan("prepare", text).stdout)
    trained = sampan("train", text, *TINY, "--max_iters=20", "--eval_interval=10").stdout
    for word in ("4,000 characters", "parameters: qwen3, 1 layers", "epochs", "memory", "time", "on cpu", "thread"):
        assert word in trained
    assert re.search(r"^step 10: train loss \d\.\d{4}, val loss \d\.\d{4}$", trained, re.M)
    assert re.search(
        r"^iter 10: loss \d\.\d{4}, time [\d.]+ms, mfu [\d.]+%, lr [\d.]+, norm [\d.]+, epoch [\d.]+$", trained, re.M
    )
    assert "best, step 20" in trained
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "run.json",
        "metrics.jsonl",
        "loss.svg",
        "last/optimizer.safetensors",
    ):
        assert (Path("out/river") / name).is_file(), name

    first = sampan("sample", "out/river", "--prompt", "the boat", "--max_new_tokens=40", "--num_samples=2", "--seed=3")
    assert first.stdout.startswith("the boat") and "---------------" in first.stdout
    assert "best, step 20, val" in first.stderr
    assert (
        first.stdout
        == sampan(
            "sample", "--out_dir=out/river", "--start=the boat", "--max_new_tokens=40", "--num_samples=2", "--seed=3"
        ).stdout
    )
    Path("prompt.txt").write_text("the river")
    assert sampan("sample", "out/river", "--prompt=FILE:prompt.txt", "--max_new_tokens=3").stdout.startswith(
        "the river"
    )
    assert sampan("sample", "out/river", "--prompt=-", "--max_new_tokens=3", stdin="rain").stdout.startswith("rain")
    assert (
        sampan("sample", "out/river", "--weights=last", "--max_new_tokens=100").stdout.count("\n") > 0
    )  # past block_size

    assert "--resume" in refused("train", text, *TINY)
    more = sampan("train", text, "--resume", "--max_iters=25").stdout
    assert "iter 20:" in more and "iter 19:" not in more
    sampan("train", text, *TINY, "--max_iters=2", "--overwrite")


def test_a_nanogpt_configuration_with_flags_over_it(text):
    Path("config").mkdir()
    Path("config/train_river.py").write_text(
        "# a baby GPT\nimport time\nout_dir = 'out-river'\neval_interval = 5\neval_iters = 2\nlog_interval = 1\n"
        f"wandb_run_name = 'run-' + str(time.time())\ndataset = '{text}'\ngradient_accumulation_steps = 1\nbatch_size = 8 * 2\n"
        "max_iters = 3000\nlr_decay_iters = 3000\nlearning_rate = 1e-3\nwarmup_iters = 1\n"
    )
    done = sampan(
        "train",
        "config/train_river.py",
        *TINY,
        "--compile=False",
        "--max_iters=5",
        "--lr_decay_iters=5",
        "--dropout=0.0",
    )
    assert re.search(r"^iter 4: loss", done.stdout, re.M) and Path("out-river/run.json").exists()
    assert "64 tokens each" in done.stdout, "the flag's batch_size over the file's"


def test_a_shipped_recipe_is_found_by_name(text):
    done = sampan("plan", "configs/shakespeare_char.toml", "--dataset", text, "--device=cpu", "--batch_size=1")
    assert "6 layers, 6 heads, 384 wide, block 256" in " ".join(done.stdout.split())
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    "words,expected",
    [
        (["train", "missing.txt"], "no such"),
        (["train", "empty.txt"], "empty"),
        (["train", "binary.txt"], "binary"),
        (["train", "torn.txt"], "is binary"),
        (["train", "short.txt"], "a block"),
        (["train", "river.txt", "--max_iter=3"], "did you mean max_iters"),
        (["train", "river.txt", "--max-iters=3", "--n_layers=2"], "did you mean n_layer"),
        (["train", "river.txt", "--max_iters=ten"], "whole number"),
        (["train", "river.txt", "--n_embd=30", "--n_head=4"], "multiple"),
        (["train", "river.txt", "--device=cuda:77"], "device"),
        (["train", "river.txt", "--device=abacus"], "device"),
        (["train", "river.txt", "--init_from=folder"], "config.json"),
        (["train", "river.txt", "--init_from=gpt2"], "SAMPAN_MIRROR"),
        (["train", "river.txt", "--resume"], "nothing to resume"),
        (["train", "river.txt", "missing.txt"], "missing.txt: no such"),
        (["train"], "nothing to train on"),
        (["train", "nowhere.toml"], "no such file"),
        (["train", "broken.toml"], "TOML"),
        (["train", "evil.py"], "never executed"),
        (["train", "river.txt", "--resume", "--overwrite"], "one of them"),
        (["train", "river.txt", "--val_fraction=0"], "val_fraction"),
        (["sample", "out/nowhere"], "no such folder"),
        (["prepare", "shakespear"], "did you mean"),
        (["prepare", "tinyshakespeare"], "SAMPAN_MIRROR"),
        (["prepare", "river.txt", "--tokenizer=bpe:12"], "bpe:12"),
        (["prepare", "river.txt", "--tokenizer=gpt2"], "SAMPAN_MIRROR"),
        (["sample", "folder"], "not a model"),
        (["sample", "nowhere/at/all"], "no such folder"),
        (["sample", "river.txt"], "river.txt"),
        (["smaple"], "did you mean sample"),
        (["teach"], "the commands are prepare, plan, train"),
        (["train", "river.txt", "--lang=xx"], "lang=xx"),
        (["sample", "out", "-x"], "unexpected argument '-x'"),
        (["train", "river.txt", "--out_dir=river.txt/x", "--max_iters=1"], "is a file"),
    ],
)
def test_bad_input_gets_one_sentence(words, expected, text):
    Path("empty.txt").touch()
    Path("binary.txt").write_bytes(b"\x00\x01" * 500)
    Path("torn.txt").write_bytes(bytes(range(1, 256)) * 9)
    Path("short.txt").write_text("too short")
    Path("broken.toml").write_text("max_iters = = 3")
    Path("evil.py").write_text("max_iters = __import__('os').system('touch owned')")
    Path("folder").mkdir()
    sentence = refused(*words)
    assert expected in sentence
    assert not Path("owned").exists() and not list(Path(".").rglob("*.partial"))


def test_two_texts_of_one_name_do_not_break_a_resume(text):
    sampan("train", text, *TINY, "--max_iters=1e0")
    Path("other").mkdir()
    Path("other/river.txt").write_text(readable(3000, seed=2))
    assert "another text" in sampan("train", "other/river.txt", *TINY, "--max_iters=1", "--out_dir=out/other").stderr
    sampan("train", "--resume", "--out_dir=out/river", "--max_iters=2")


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readmes_python(readme):
    cell = re.search(r"```python\n(.*?)```", (Path(__file__).parents[1] / readme).read_text(encoding="utf-8"), re.S)[1]
    data = "import numpy as np\ndata = np.random.default_rng(0).integers(0, 10, 400)\n"
    cell = data + cell.replace("max_iters=1000", "max_iters=2")
    done = subprocess.run([sys.executable, "-c", cell], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("0 "), done.stderr
    assert Path("my-model/config.json").is_file()


def test_a_vocabulary_that_does_not_fit_the_weights(text, make_folder):
    make_folder("model", text="abc")
    assert "leave --tokenizer out" in refused("train", text, "--init_from=model", "--tokenizer=char")
    assert "the vocabulary" in refused("train", text, "--init_from=model")  # the model's own tokenizer lacks characters


def test_a_text_that_is_not_the_runs_is_refused_at_a_resume(text):
    sampan("train", text, "--max_iters=2", "--size=tiny", "--block_size=8", "--out_dir=out/a")
    Path("other.txt").write_text(readable(2000), encoding="utf-8")
    for name in ("other.txt", "missing.txt"):
        assert f"learns from {text}, not from {name}" in refused("train", name, "--resume", "--out_dir=out/a")
    assert "no such folder" in refused("train", "--resume", "--out_dir=out/b")
    done = sampan("train", f"./{text}", "--resume", "--out_dir=out/a", "--max_iters=3")
    assert "step 3:" in done.stdout
    done = sampan("plan", "--resume", "--out_dir=out/a", "--max_iters=5")
    assert "5 steps" in done.stdout and "from step 3" in done.stdout


def test_a_run_of_no_steps_writes_a_fresh_model(text):
    sampan("train", text, "--max_iters=0", "--size=tiny", "--block_size=8", "--out_dir=out/fresh")
    assert Path("out/fresh/model.safetensors").exists()


def test_a_block_that_no_text_fills_is_refused_before_anything_is_measured(text):
    begun = time.monotonic()
    assert "too short" in refused("plan", text, "--block_size=1000000")
    assert time.monotonic() - begun < 20, "a plan of it would take hours"


def test_fine_tuning_keeps_the_minutes(text):
    sampan("train", text, "--max_iters=2", "--size=tiny", "--block_size=16", "--out_dir=out/base")
    steps = []
    for minutes in ("0.01", "0.2"):
        done = sampan("plan", text, "--init_from=out/base", f"--minutes={minutes}", "--block_size=16")
        steps.append(int(re.search(r": ([\d,]+) steps", done.stdout)[1].replace(",", "")))
    assert steps[0] < steps[1]


def test_a_disk_that_is_full_behind_the_output_is_one_sentence(text):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "sampan", "prepare", text]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment())
    assert done.returncode == 2 and done.stderr == "sampan: No space left on device\n"


def test_a_folder_of_texts_leaves_out_runs(text):
    sampan("train", text, "--max_iters=2", "--size=tiny", "--block_size=8")
    assert "1 document" in (out := sampan("prepare", ".").stdout) or "documents" not in out


def test_help_fits_80_columns():
    for command in ("", "prepare", "plan", "train", "sample", "import", "export"):
        for words in ([], ["all"]):
            shown = sampan(*([command] if command else []), "--help", *words).stdout
            assert all(len(line) <= 80 for line in shown.splitlines()), command


def test_an_unknown_character_in_the_prompt(make_folder):
    make_folder("model", text="abc\n")
    assert "字 (U+5B57), character 3" in refused("sample", "model", "--prompt=ab字c")
    done = sampan("sample", "model", "--prompt=ab字c", "--oov=skip", "--max_new_tokens=2")
    assert done.stdout.startswith("abc")


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_says_how_to_go_on(text, number):
    flags = [*TINY, "--max_iters=100000", "--eval_interval=50", "--log_interval=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sampan", "train", text, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("iter 60:"):
            process.send_signal(number)
            break
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    assert "Traceback" not in rest
    command = re.search(r"continue with: sampan (train --resume .*)", rest)[1].split()
    last = int(re.findall(r"^iter (\d+):", "".join(lines) + rest, re.M)[-1])
    again = sampan(*command, f"--max_iters={last + 3}")
    assert re.search(rf"^iter {last + 1}:", again.stdout, re.M) and f"iter {last}:" not in again.stdout


def test_help_is_quick_and_names_every_setting():
    start = time.perf_counter()
    top = sampan("--help").stdout
    seconds = time.perf_counter() - start
    assert all(name in top for name in ("prepare", "plan", "train", "sample"))
    assert seconds < 3, "a guard against a heavy import, with room for a busy machine; bench/ has the figure"
    from sampan.config import SampleConfig, TrainConfig

    for command, cls in (("train", TrainConfig), ("sample", SampleConfig)):
        text = sampan(command, "--help", "all").stdout
        assert all(f"--{name}" in text for name in cls.__dataclass_fields__ if name not in ("title", "rope_scaling"))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_run_begins_with_a_few_lines_and_run_json_has_the_reasons(text, language):
    """Of 24 lines the first scroll away on a terminal of 24; `sampan plan` and run.json have them all."""
    flags = ["--size=tiny", "--block_size=8", "--max_iters=1", f"--lang={language}"]
    shown = sampan("train", text, *flags).stdout
    start = shown.split("\n\n")[1].splitlines()
    assert 5 <= len(start) <= 7 and all(columns_of(line) <= 80 for line in start)
    words = shlex.split(start[-1])[1:]
    assert words[:3] == ["sampan", "plan", text]
    full = sampan(*words[1:]).stdout
    reasons = json.loads(Path("out/river/run.json").read_text(encoding="utf-8"))["reasons"]
    assert reasons["optimizer"].split()[0] in full and reasons.keys() > {"optimizer", "n_layer", "eval_interval"}
    sampan("train", "--resume", "--out_dir=out/river", "--max_iters=2")
    assert json.loads(Path("out/river/run.json").read_text(encoding="utf-8"))["reasons"] == reasons


def test_lines_are_as_wide_as_the_terminal(text, monkeypatch):
    for columns, widest in (("40", 40), ("90", 90), ("300", 100)):
        monkeypatch.setenv("COLUMNS", columns)
        lines = sampan("plan", text, "--size=tiny", "--max_iters=1").stdout.splitlines()
        assert widest - 25 < max(map(columns_of, lines)) <= widest


def test_printed_commands_are_quoted(text):
    done = sampan("train", text, *TINY, "--max_iters=1", "--out_dir=out/my river (1)")
    words = shlex.split(re.search("More samples: (.*)", done.stdout)[1])
    assert words == ["sampan", "sample", "out/my river (1)"]
    sampan(*words[1:], "--max_new_tokens=1")


@pytest.mark.parametrize(
    "words",
    [
        ["--check", "out/t"],
        ["--check", "True", "out/t"],
        ["out/t", "--check"],
        ["--check=True", "--out_dir", "out/t"],
        ["--valid_utf8", "out/t"],
    ],
)
def test_a_yes_or_no_flag_takes_no_folder(words):
    read = vars(make_parser("sample", COMMANDS["sample"]).parse_args(tidy(words, SampleConfig)))
    assert read["source"] == ["out/t"] or read["out_dir"] == "out/t"
    assert (read["check"] or read["valid_utf8"]) == "True"


def test_flags_have_several_spellings():
    """nanoGPT's in cmd.exe, which keeps single quotes; dashes; values that look like flags."""
    words = ["--init_from='resume'", "--max-new-tokens", "9", "--start='To be'", "--top-k=3", "--stop", "--- x"]
    read = build(SampleConfig, {k: v for k, v in vars(make_parser("sample", COMMANDS["sample"]).parse_args(
        tidy(words, SampleConfig))).items() if v and k != "source"})  # fmt: skip
    assert (read.init_from, read.max_new_tokens, read.start) == ("resume", 9, "To be")
    assert (read.top_k, read.stop) == (3, ("--- x",))
    assert tidy(["--prompt", "'tis", "--prompt='Well'"], SampleConfig) == ["--prompt='tis", "--prompt='Well'"]
    assert "expected one argument" in refused("sample", "--prompt", "--check")


def test_a_closed_pipe_needs_no_sigpipe(monkeypatch):
    """Windows has no such signal."""

    def closed(argv: list[str]) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("sampan.cli.main.run_command", closed)
    monkeypatch.delattr(signal, "SIGPIPE", raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert main(["plan"]) == 141


def test_a_run_is_found_by_its_name(text):
    """It is not asked of the hub; without a name the newest one is taken, and named."""
    run = ["--max_iters=1", "--size=tiny", "--block_size=8", "--threads=1"]
    sampan("train", text, *run)
    sampan("train", text, *run, "--out_dir=out-other")
    quick = ["--max_new_tokens=1", "--threads=1"]
    assert "out/river: best" in sampan("sample", "river", *quick).stderr
    assert "out/river: best" in sampan("sample", "--out_dir=river", "--check", *quick).stderr
    assert "out-other: best" in sampan("sample", "other", *quick).stderr
    assert "out-other (the newest run): best" in sampan("sample", "--check", *quick).stderr
    os.utime("out/river/last/model.safetensors", (2**32, 2**32))
    assert "out/river (the newest run): best" in sampan("sample", *quick).stderr
    assert "out/river" in sampan("plan", text, "--init_from=river", "--max_iters=1").stdout
    assert "the runs here are out/river" in refused("sample", "rivers")
    Path("river").mkdir()  # of something else
    assert "out/river: best" in sampan("sample", "river", *quick).stderr
