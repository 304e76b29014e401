"""Time the preparation of a text: characters, GPT-2's BPE compared with tiktoken's own batch, and BPE training.

    python bench/prepare.py FILE [FILE ...] [--threads 2]      # medians of alternating runs, MB/s of UTF-8
    python bench/prepare.py --large 4 --tokenizer char         # a generated source of 4 GB: time and peak memory
    python bench/prepare.py --large 4 --limit 500              # exit status 1 if the peak is above 500 MB

GPT-2's vocabulary is downloaded (src/sampan/fetch.py). If that fails, both sides use a BPE of 50,257 tokens trained on the
text. Nothing is trained but tokenizers.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contest import contest, machine

import sampan.tokens.byte_level
from sampan.config import DataConfig
from sampan.data.nanogpt import fetch_gpt2_tokenizer
from sampan.data.prepare import prepare
from sampan.errors import UserError
from sampan.tokens.byte_level import train_bpe


def prepare_once(path: str, kind: str):
    """Return a function that prepares a file, from its bytes to train.bin and val.bin."""

    def call():
        with tempfile.TemporaryDirectory(dir=".") as folder:
            return prepare(path, DataConfig(tokenizer=kind, data_dir=folder))

    return call


def against_tiktoken(text: str, threads: int) -> None:
    try:
        ours = fetch_gpt2_tokenizer()
    except UserError as error:
        print(f"  gpt2: {error}; using a BPE trained on this text instead")
        ours = train_bpe([text], 50257)
    theirs = ours.fast  # tiktoken's own Encoding
    pieces = [text[i : i + (1 << 16)] for i in range(0, len(text), 1 << 16)]
    sampan.tokens.byte_level.count_cores = lambda: threads
    contest(
        {
            "ours, encode": lambda: ours.encode(text),
            "encode_ordinary_batch": lambda: theirs.encode_ordinary_batch(pieces, num_threads=threads),
            "tokenizers, encode_batch": lambda: ours.inner.encode_batch(pieces, add_special_tokens=False),
        },
        rounds=5, unit="MB/s", work=len(text.encode()) / 1e6,
    )  # fmt: skip


def compare_speeds(path: str, threads: int) -> None:
    raw = Path(path).read_bytes()
    text = raw.decode("utf-8")
    print(f"{path}: {len(raw) / 1e6:.1f} MB, {len(text):,} characters")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        many = Path(folder, "many.txt")  # long enough that opening and syncing files does not count
        many.write_bytes(raw * (100_000_000 // len(raw) + 1))
        kinds = {f"prepare, {kind}": prepare_once(str(many), kind) for kind in ("char", "char+bytes")}
        contest(kinds, rounds=3, unit="MB/s", work=many.stat().st_size / 1e6)
    against_tiktoken(text, threads)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        train_bpe([text], 8192)
        times.append(time.perf_counter() - start)
    print(f"  learning bpe:8192            {statistics.median(times):10.2f} s")


def large(gigabytes: float, kind: str, limit: float | None) -> int:
    """Prepare a source of that size in a separate process. Return 1 if its peak memory exceeds the limit in MB, else 0."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder, "source.jsonl")
        make_source(path, int(gigabytes * 1e9))
        command = [sys.executable, "-m", "sampan", "prepare", path, "--tokenizer", kind, "--data_dir", f"{folder}/data"]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = used.ru_maxrss / (1 << 10 if sys.platform != "darwin" else 1 << 20)
    print(
        f"{gigabytes:g} GB, {kind}: {seconds:.0f} s ({gigabytes * 1e3 / seconds:.0f} MB/s), "
        f"{used.ru_utime + used.ru_stime:.0f} s of CPU, peak {peak:.0f} MB"
    )
    return int(limit is not None and peak > limit)


def make_source(path: Path, size: int) -> None:
    """Write JSON lines of random Chinese and English clauses, in which few words repeat."""
    rng = random.Random(0)
    ideographs = [chr(0x4E00 + int(i)) for i in range(4000)]
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / (i + 9) for i in range(4000)]
    written = 0
    with path.open("wb") as file:
        chunks = [record_block(rng, ideographs, weights, words) for _ in range(64)]
        while written < size:
            written += len(block := "".join(rng.sample(chunks, 8)).encode())
            file.write(block)


def record_block(rng, ideographs, weights, words) -> str:
    records = []
    for _ in range(100):
        chinese = "，".join("".join(rng.choices(ideographs, weights, k=rng.randint(4, 16))) for _ in range(20))
        english = " ".join(rng.choices(words, k=60))
        records.append(json.dumps({"text": f"{chinese}。\n{english}.\n"}, ensure_ascii=False) + "\n")
    return "".join(records)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="texts in UTF-8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--large", type=float, help="prepare a generated source of this many GB")
    parser.add_argument("--tokenizer", default="char", help="for --large")
    parser.add_argument("--limit", type=float, help="memory limit for --large, in MB")
    args = parser.parse_args()
    print(machine())
    for path in args.files:
        compare_speeds(path, args.threads)
    return large(args.large, args.tokenizer, args.limit) if args.large else 0


if __name__ == "__main__":
    sys.exit(main())
