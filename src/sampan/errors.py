"""The one exception for what a user can meet and mend; the command line prints it and exits with status 2.

Anything else that is raised is a defect of Sampan and keeps its traceback.
"""

import os
import shlex


class UserError(Exception):
    """One clear sentence: what was wrong, where, and what to do.

    It may quote a file that nobody vouches for: what a terminal would obey is escaped, and what is endless is cut.
    """

    def __init__(self, sentence: str):
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence[:1000])
        super().__init__(shown if len(sentence) <= 1000 else f"{shown} ...")


def command(*words: object) -> str:
    """Return a command of this program, quoted so that it can be pasted.

    >>> command("sample", "out/shakespeare", "--num_samples", 3)
    'sampan sample out/shakespeare --num_samples 3'
    """
    return quoted("sampan", *words)


def quoted(*words: object) -> str:
    """Return words of a command line, quoted for this system's shell."""
    import subprocess  # slow to import

    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return join(list(map(str, words)))


PACKAGES = {  # of each extra of pyproject.toml
    "torch": "torch", "hf": "datasets pyarrow", "wandb": "wandb", "tensorboard": "tensorboardX", "gguf": "gguf",
    "onnx": "onnx onnxruntime",
}  # fmt: skip


def install(extra: str) -> str:
    """Return the command that installs what an optional part needs."""
    return f"pip install {PACKAGES[extra]}"
