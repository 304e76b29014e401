"""docs/REPRODUCE.md and bench/reproduce.py say the same, and the program knows every command of theirs.

A run is planned with a small text in place of its own, so that nothing is fetched and nothing is trained.
"""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import readable

import sampan
from sampan.cli.flags import make_parser, tidy
from sampan.cli.main import COMMANDS as PROGRAM
from sampan.config import ExportConfig, ImportConfig, TrainConfig, build
from sampan.config_files import find_file, read_file
from sampan.text.corpora import find_corpus
from sampan.training.plan import make_plan

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "REPRODUCE.md").read_text(encoding="utf-8")


def load(name: str):
    """A file of bench/ as a module; it finds its neighbours as when it is run."""
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / f"{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "bench"))


reproduce = load("reproduce")
COMMANDS = list(dict.fromkeys(command for item in reproduce.RUNS for command in item.commands))


def printed(document: str) -> list[str]:
    """The commands of a document's blocks, with continued lines joined."""
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```$", document, re.M | re.S))
    return [" ".join(line.split()) for line in blocks.replace("\\\n", " ").splitlines() if line.strip()]


def parse(words: list[str]) -> tuple[str, list[str], dict]:
    """(command, what it is of, flags) as the program's own parser reads them; an unknown flag is an error."""
    command = PROGRAM[words[0]]
    args, unknown = make_parser(words[0], command).parse_known_args(tidy(words[1:], command.settings))
    assert not unknown
    flags = {name: value for name, value in vars(args).items() if value is not None}
    return words[0], flags.pop("source"), flags


@pytest.fixture
def text() -> str:
    Path("text.txt").write_text(readable(30_000), encoding="utf-8")  # its tenth is longer than GPT-2's block
    return "text.txt"


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("sampan-c")])
def test_the_program_knows_the_command(command, text):
    words = shlex.split(command)
    name, source, flags = parse(words[words.index("sampan") + 1 :])
    if name == "train":
        (file,) = source
        settings = read_file(find_file(file)) | flags
        assert all(find_corpus(name) for name in build(TrainConfig, settings).dataset)
        changed = {"dataset": text, "tokenizer": "char", "init_from": "scratch", "device": "cpu", "engine": "auto"}
        plan = make_plan(None, settings | changed, recipe=False)
        assert plan.config.optimizer == "adamw" and plan.model.family == "gpt2"  # the published recipe, not our own
    else:
        assert len(source) == 1
        build({"export": ExportConfig, "import": ImportConfig}[name], flags)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("sampan-c")])
def test_the_stand_alone_program_knows_the_flags(command):
    sources = [(ROOT / "csrc" / "program" / name).read_text(encoding="utf-8") for name in ("main.c", "settings.inc")]
    known = set(re.findall(r"X\(\w+, (\w+),", "".join(sources)))
    assert "init_from" in known
    flags = re.findall(r"--(\w+)", command)
    assert flags and set(flags) <= known


def test_the_document_has_the_scripts_commands_and_no_others():
    own = [line for line in printed(DOCUMENT) if not line.startswith(("python bench/reproduce.py", "pip ", "make "))]
    assert sorted(own) == sorted(COMMANDS)


def test_the_document_names_every_run_with_what_is_published():
    rows = [line for line in DOCUMENT.splitlines() if line.startswith("| `")]
    cells = {row.split("`")[1]: row.split("|")[2].strip() for row in rows}
    assert cells == {item.name: item.published for item in reproduce.RUNS}


def test_losses_are_read_from_what_is_printed():
    small = "step 0: train loss 10.0, val loss 11.0\n"
    curve = "".join(f"step {n}: train loss {9 - n / 100}, val loss {8 - n / 100}\n" for n in (0, 10, 40, 41))
    assert reproduce.last(small + curve) == "8.5900 / 7.5900"
    assert reproduce.best(curve + "step 50: train loss 1.0, val loss 9.5\n") == "val 7.5900"
    assert (
        reproduce.curve("val loss 8.000000\nstep 0: train loss 1.0 (took 1 ms)\nval loss 7.61\n")
        == "val 8.0000 to 7.6100"
    )
    assert reproduce.tokens("305,260 train tokens, 32,768 val tokens, in data/x/") == "305,260 / 32,768"


def test_llmcs_losses_are_compared_with_ours():
    ours = "val loss 9.5\nstep 0: train loss 9.0 (took 1 ms)\nstep 1: train loss 8.0 (took 1 ms)\n"
    theirs = "val loss 9.500010\nstep 0: train loss 9.000000 (took 1 ms)\nstep 1: train loss 8.020000 (took 1 ms)\n"
    assert "3 losses" in reproduce.compare(ours, theirs) and "within 0.02 " in reproduce.compare(ours, theirs)
    assert "2 gradients right and 1 wrong" in reproduce.compare(
        ours, theirs + "TENSOR OK, a\nTENSOR NOT OK, b\nTENSOR OK, c\n"
    )


TINY = (
    "sampan train {} --family=gpt2 --optimizer=adamw --device=cpu --threads=1 --n_layer=1 --n_head=2 --n_embd=16 "
    "--block_size=16 --batch_size=4 --eval_iters=2 --max_iters=2 --eval_interval=2 --out_dir=out/tiny"
)


@pytest.mark.slow
def test_a_run_gives_losses_and_how_much_they_scatter(text, engine_name, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(sampan.__file__).parents[1]))  # installed or not
    command = TINY.format(Path(text).resolve())
    folder = Path("work/tiny").resolve()
    item = reproduce.Run("tiny", "1.0 / 2.0", (command,), random_windows="out/tiny")
    here = reproduce.execute(item, folder, {}, None, engine_name)
    assert re.fullmatch(r"\d\.\d{4} / \d\.\d{4}", here)
    said = capsys.readouterr().out
    assert f"--engine={engine_name}" in said
    mean, deviation = map(float, re.findall(r"(?:random windows:|moves by) ([\d.]+)", said))
    assert abs(mean - float(here.split()[0])) < 6 * deviation
    assert "$ sampan train" in (folder / "log.txt").read_text(encoding="utf-8")


def test_a_command_that_fails_is_a_row_of_the_table(capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(sampan.__file__).parents[1]))  # installed or not
    runs = (
        reproduce.Run("refused", "1.0 / 2.0", ("sampan train no-such-text.txt",)),
        reproduce.Run("absent", "1.0 / 2.0", ("sampan-c train",)),
        reproduce.Run("larger", "1.0 / 2.0", ("sampan train",), needs="a GPU"),
    )
    monkeypatch.setattr(reproduce, "RUNS", runs)
    monkeypatch.setattr(reproduce, "BUILT", Path("nowhere"))
    monkeypatch.setattr(sys, "argv", ["reproduce.py"])
    assert reproduce.main() == 1
    said = capsys.readouterr().out
    table = said[said.index("published", said.rindex("\nrun")) :]
    assert "no-such-text.txt" in said and "make -C csrc" in said
    assert len(re.findall(r"^(?:refused|absent) .* failed ", table, re.M)) == 2 and "larger (a GPU)" in table
    assert all(len(line) <= 80 for line in table.splitlines())
