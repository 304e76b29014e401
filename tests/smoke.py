"""Check an installed wheel: train a tiny model with the C engine for a few steps, and sample from it.

    python tests/smoke.py      # in an environment with nothing but the wheel and its dependencies

cibuildwheel runs it for each wheel. It needs no pytest and no PyTorch, and reads nothing of the checkout.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def sampan(*words: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "sampan", *words], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    Path("boat.txt").write_text("We row the old boat slowly under a bridge, and bail.\n" * 60, encoding="utf-8")
    shape = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16"]
    print(sampan("--version"))
    print(sampan("train", "boat.txt", "--engine=c", *shape, "--batch_size=4", "--max_iters=20"))
    text = sampan("sample", "out/boat", "--engine=c", "--prompt=We ", "--max_new_tokens=20")
    assert text.startswith("We ") and len(text) > 20, text
    os.chdir(os.path.dirname(folder))  # Windows cannot remove the working directory
print("the wheel works")
