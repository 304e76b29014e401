"""The READMEs and the tutorials: every command in them runs, and their two languages say the same.

A command is a line of a block marked sh. A document's commands run in order in one folder, by cli.main, on small texts
that stand in for the ones they name; trainings and samples are shortened by flags that are appended here alone. What
is not run is in ELSEWHERE, with the reason. The Chinese documents have the same blocks, so their commands run too.
"""

import dataclasses
import gzip
import hashlib
import io
import random
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nanogpt_files as nanogpt
import numpy as np
import pytest
import torch
from conftest import readable, tiny_config
from rich.cells import cell_len

import sampan.text.corpora
from sampan.checkpoint.folder import save_model
from sampan.cli.main import COMMANDS, main
from sampan.config import check_keys
from sampan.model.parameters import initialize
from sampan.text.corpora import CORPORA
from sampan.tokens.byte_level import train_bpe

ROOT = Path(__file__).resolve().parents[1]
C_PROGRAM = ROOT / "csrc" / "build" / "sampan-c"
PAIRS = {"README": ("README.md", "README.zh-CN.md")}
PAIRS |= {name: (f"docs/en/{name}.md", f"docs/zh/{name}.md") for name in ("tutorial", "lesson", "hacking")}
DOCUMENTS = sorted(name for pair in PAIRS.values() for name in pair)
PROGRAMS = ("sampan ", "pip ", "pytest ", "torchrun ", "make ", "zcat ", "cc ", "./gpt64 ", "csrc/build/")

ELSEWHERE = {  # beginning of a command: why it is not run here
    "pip install": "changes the environment",
    "pytest": "that is this",
    "conda": "changes the environment",
    "cat README.md": "a text stands in for it",
    "cp docs": "a text stands in for it",
    "make -C csrc build/sampan-c": "takes a minute; what needs it is run where it was built",
    "torchrun": "GPT-2 124M on eight GPUs; test_torchrun.py runs torchrun with two processes",
    "sampan train https:": "needs the network; test_fetch.py reads an address",
    "sampan train hf:": "needs the Hugging Face Hub; test_sources.py reads hf: from a stand-in",
}
TINY = "--n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=2 --eval_iters=1 --threads=1 --device=cpu"
SHORTENED = {  # what is appended, by the first flag of these that a command has
    "--resume": "--max_iters=5",  # of a run that stopped at 3
    "--init_from": "--max_iters=3 --batch_size=2 --eval_iters=1 --threads=1 --device=cpu",  # the shape is the model's
    "": f"--max_iters=3 {TINY}",
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", read(name), re.M | re.S)


def commands(name: str) -> list[list[str]]:
    """The words of each command, without comments and with continued lines joined."""
    lines = [line for kind, text in blocks(name) if kind == "sh" for line in text.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def is_elsewhere(words: list[str]) -> bool:
    return " ".join(words).startswith(tuple(ELSEWHERE))


# ---- what stands in for the texts, models and files that the documents name ----


def novel(characters: int) -> str:
    """Chinese characters in sentences, the frequent ones more often, and the words that the prompts have."""
    draw = np.random.default_rng(0)
    signs = np.array([chr(0x4E00 + i) for i in range(600)])
    lines = [
        f"人之初，武松道：“{''.join(draw.choice(signs[: draw.integers(20, 600)], 20))}。”"
        for _ in range(characters // 30)
    ]
    return "\n".join(lines)


def plays() -> str:
    return "".join(f"ROMEO:\n{readable(80, seed)}\n\n" for seed in range(60))


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """A mirror of the named texts and of gpt2, and in the working folder every file that a command names."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    monkeypatch.setenv("SAMPAN_MIRROR", str(mirror))
    texts = {"shakespeare": plays(), "tinyshakespeare": plays(), "sanzijing": novel(1500), "shuihu": novel(15_000)}
    known = []
    for entry in CORPORA:
        if entry.name in texts:
            raw = texts[entry.name].encode()
            (mirror / entry.file.name).write_bytes(raw)
            entry = dataclasses.replace(
                entry, file=dataclasses.replace(entry.file, sha256=hashlib.sha256(raw).hexdigest(), urls=())
            )
        known.append(entry)
    monkeypatch.setattr(sampan.text.corpora, "CORPORA", tuple(known))

    for name in ("sanzijing", "shuihu"):
        Path(f"{name}.txt").write_text(texts[name], encoding="utf-8")
    mixed = "".join(
        line + random.Random(i).choice(["\r\n", "\n"]) for i, line in enumerate(texts["shuihu"].split("\n"))
    )
    Path("shuihu-gb.txt").write_bytes(mixed.encode("gb18030"))
    for name in ("my-novel.txt", "novel.txt"):
        Path(name).write_text(texts["shuihu"], encoding="utf-8")
    for name in ("notes.txt", "letters/one.txt", "src/some/code.py"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(plays(), encoding="utf-8")
    Path("more.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one more text, on a line"}\n' * 20))
    Path("web.txt.gz").write_bytes(gzip.compress(plays().encode()))

    tokenizer = train_bpe([plays()], 300)
    small = tiny_config("gpt2", vocab_size=tokenizer.vocab_size)
    save_model(mirror / "gpt2", small, initialize(small, 1), tokenizer)

    Path("csrc").symlink_to(ROOT / "csrc")
    Path("config").mkdir()
    Path("config/train_shakespeare_char.py").write_text(
        "out_dir = 'out-shakespeare-char'\ndataset = 'shakespeare_char'\n"
    )
    theirs = nanogpt.shape()
    model = nanogpt.Theirs(theirs)
    optimizer = model.optimizer()
    nanogpt.learn(model, optimizer, nanogpt.batches(theirs, 0, 3))
    nanogpt.data_folder(Path("data/shakespeare_char"))
    path = nanogpt.checkpoint(Path("out-shakespeare-char"), theirs, model, optimizer, 3)
    saved = torch.load(path, weights_only=False)
    torch.save(saved | {"config": saved["config"] | {"dataset": "shakespeare_char"}}, path)
    return mirror


# ---- the commands ----


def run(words: list[str], monkeypatch) -> None:
    if "|" in words:  # zcat FILE | sampan ...
        at = words.index("|")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.decompress(Path(words[1]).read_bytes()))))
        words = words[at + 1 :]
    program, command, *rest = words
    extra = []
    if command in ("train", "plan"):
        extra = next(flags for flag, flags in SHORTENED.items() if not flag or flag in rest).split()
    elif command == "sample":
        extra = ["--max_new_tokens=4", "--threads=1"]
    if program == "sampan":
        assert main([command, *rest, *extra]) == 0
        return
    extra = ["--max_iters", "3"] if command == "train" else ["--max_new_tokens", "4"] if command == "sample" else []
    done = subprocess.run([*words, *extra], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("pair", [pair for pair, names in PAIRS.items() if commands(names[0])])
def test_every_command_runs(pair, stand_ins, monkeypatch, capsys):
    words_run = 0
    for words in commands(PAIRS[pair][0]):
        if is_elsewhere(words) or (words[0] == "csrc/build/sampan-c" and not C_PROGRAM.exists()):
            continue
        try:
            run(words, monkeypatch)
        except AssertionError as error:
            shown = capsys.readouterr()
            pytest.fail(f"{' '.join(words)}\n{shown.out[-2000:]}{shown.err}{error}")
        words_run += 1
    assert words_run > 10


def test_what_is_not_run_is_still_there():
    lines = [" ".join(words) for name in DOCUMENTS for words in commands(name)]
    for beginning in ELSEWHERE:
        assert any(line.startswith(beginning) for line in lines), f"{beginning!r} is in no document any more"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_command_is_in_a_block_marked_sh_and_output_fits(name):
    for kind, text in blocks(name):
        if kind != "sh":
            for line in text.splitlines():
                assert not line.startswith(PROGRAMS), f"{name}: mark its block as sh: {line}"
                assert cell_len(line) <= 80 or kind, f"{name}: {cell_len(line)} columns: {line}"


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("docs/**/*.md")) + sorted(ROOT.glob("README*.md")), ids=lambda p: p.name
)
def test_a_command_in_a_sentence_has_settings_that_exist(path):
    """Such as `sampan export RUN --to gguf`; --key and VALUE are read, nothing is run."""
    known = COMMANDS
    for command in re.findall(r"`sampan ((?!-)[a-z]\w* [^`\n]+)`", path.read_text(encoding="utf-8")):
        words = shlex.split(command.replace("...", ""))
        flags = [word[2:].split("=")[0] for word in words if word.startswith("--")]
        options = {"resume", "overwrite", "compare", "help", "lang", "prompt"}
        check_keys(known[words[0]][0], [flag for flag in flags if flag not in options], command)


# ---- the languages ----


@pytest.mark.parametrize("pair", PAIRS)
def test_both_languages_have_the_same_blocks(pair):
    english, chinese = PAIRS[pair]
    assert commands(english) == commands(chinese)
    assert [kind for kind, _ in blocks(english)] == [kind for kind, _ in blocks(chinese)]
    others = [[text for kind, text in blocks(name) if kind != "sh"] for name in (english, chinese)]
    for ours, theirs in zip(*others, strict=True):
        assert re.sub(" +# .*", "", ours) == re.sub(" +# .*", "", theirs)


def prose(name: str) -> list[str]:
    """What is outside of blocks, cut at the headings."""
    return re.split(r"^(?=#+ )", re.sub(r"^```.*?^```$", "", read(name), flags=re.M | re.S), flags=re.M)


def numbers(text: str) -> Counter:
    """Numbers in digits, those of headings left out; 5 million and 500 万 are the same one."""
    text = re.sub(r"^#+ .*", "", text, flags=re.M)
    found = re.findall(r"(?<![\w.:])(\d[\d,]*(?:\.\d+)?)(?: ?(million|万))?", text)
    scale = {"": 1, "million": 1e6, "万": 1e4}
    return Counter(round(float(digits.replace(",", "")) * scale[unit], 6) for digits, unit in found)


@pytest.mark.parametrize("pair", PAIRS)
def test_both_languages_have_the_same_sections_numbers_and_placeholders(pair):
    english, chinese = map(prose, PAIRS[pair])
    assert [len(re.match("#*", part)[0]) for part in english] == [len(re.match("#*", part)[0]) for part in chinese]
    for ours, theirs in zip(english, chinese, strict=True):
        heading = ours.strip().split("\n")[0]
        assert numbers(ours) == numbers(theirs), f"{heading}: other numbers"
        assert ours.count("\n|") == theirs.count("\n|"), f"{heading}: other tables"
        code = [Counter(re.sub(r"\s", "", code) for code in re.findall("`([^`]+)`", part)) for part in (ours, theirs)]
        assert code[0] == code[1], f"{heading}: other names in `code`: {code[0] - code[1]}, {code[1] - code[0]}"
        links = [Counter(re.findall(r"\]\(([^)]+)\)", part)) for part in (ours, theirs)]
        assert sum(links[0].values()) == sum(links[1].values()), f"{heading}: other links"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files(name):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", read(name)):
        assert (ROOT / name).parent.joinpath(link).exists(), link


def anchors(name: str) -> set[str]:
    """The fragments of a document's headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```$", "", read(name), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_headings(name):
    for path, heading in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", read(name)):
        target = (ROOT / name).parent.joinpath(path).resolve() if path else ROOT / name
        assert heading in anchors(str(target.relative_to(ROOT))), f"{path}#{heading}"


@pytest.mark.parametrize("name", [*DOCUMENTS, "docs/FORMATS.md", "docs/RELIABILITY.md", "docs/REPRODUCE.md"])
def test_files_and_tests_that_are_named_exist(name):
    """Such as `src/sampan/config.py`, `test_cli.py` and `test_memory_and_handles_stay`."""
    tests = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    functions = set(re.findall(r"^def (test_\w+)", "".join(tests.values()), re.M))
    for code in re.findall("`([^`\n]+)`", read(name)):
        if re.fullmatch(r"test_\w+\.py", code):
            assert code in tests
        elif re.fullmatch(r"test_\w+", code) and code != "test_gpt2":  # llm.c's
            assert code in functions, code
        elif re.fullmatch(r"(src|csrc|bench|docs|tests|examples)/[\w./]+", code):
            assert (ROOT / code).exists() or code.startswith("csrc/build"), code
