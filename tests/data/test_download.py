import gzip
import hashlib
import io
import os
import tarfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lilliput.core.errors import DataError, UsageError
from lilliput.core.progress import Progress
from lilliput.data import download
from lilliput.data.download import extract_members, fetch

CONTENT = bytes(i * i % 251 for i in range(300_000))
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """What the server does; each request takes the next number of `cuts`: it sends so many bytes and hangs up."""

    url: str = ""
    content: bytes = CONTENT
    status: int = 200
    ranges: bool = True
    shift: int = 0
    with_length: bool = True
    cuts: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def site(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers["Range"]
            state.asked.append(wanted)
            if state.status != 200:
                self.send_error(state.status)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and state.ranges else 0
            if start and start >= len(state.content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                begin = start + state.shift
                self.send_header("Content-Range", f"bytes {begin}-{len(state.content) - 1}/{len(state.content)}")
            if state.with_length:
                self.send_header("Content-Length", str(len(state.content) - start))
            self.end_headers()
            body = state.content[start:]
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}/data.bin"
        yield state
        server.shutdown()
        thread.join()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("checksum", [MD5, SHA256])
@pytest.mark.parametrize("with_length", [True, False])
def test_fetched_file_is_the_one_that_was_sent(site, tmp_path, checksum, with_length):
    site.with_length = with_length
    path = tmp_path / "new/folder/data.bin"
    assert fetch(site.url, path, checksum=checksum) == path
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["data.bin"]


def test_file_that_is_there_is_not_fetched_again(site, tmp_path):
    (tmp_path / "data.bin").write_bytes(CONTENT)
    fetch(site.url, tmp_path / "data.bin", checksum=MD5)
    assert site.asked == []


def test_file_with_another_checksum_is_not_overwritten(site, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"mine")
    with pytest.raises(DataError, match="another checksum"):
        fetch(site.url, tmp_path / "data.bin", checksum=MD5)
    assert (tmp_path / "data.bin").read_bytes() == b"mine"


def test_cut_connection_is_resumed_where_it_ended(site, tmp_path):
    site.cuts = [100_000, 150_000]
    fetch(site.url, tmp_path / "data.bin", checksum=MD5)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert site.asked == [None, "bytes=100000-", "bytes=250000-"]


def test_next_call_goes_on_where_the_last_one_failed(site, tmp_path):
    site.cuts = [100_000, 0]
    with pytest.raises(DataError, match="ended after 100000 bytes; run it again"):
        fetch(site.url, tmp_path / "data.bin", checksum=MD5)
    assert names(tmp_path) == ["data.bin.part"]
    assert (tmp_path / "data.bin.part").read_bytes() == CONTENT[:100_000]
    fetch(site.url, tmp_path / "data.bin", checksum=MD5)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert site.asked == [None, "bytes=100000-", "bytes=100000-"]


def test_server_that_cuts_every_time_is_given_up(site, tmp_path):
    site.cuts = [1] * 100
    with pytest.raises(DataError, match="ended after"):
        fetch(site.url, tmp_path / "data.bin", checksum=MD5)
    assert len(site.asked) < 10


def test_server_without_ranges_starts_again(site, tmp_path):
    site.ranges = False
    (tmp_path / "data.bin.part").write_bytes(b"x" * 1000)
    fetch(site.url, tmp_path / "data.bin", checksum=MD5)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_wrong_range_in_the_answer_starts_again(site, tmp_path):
    site.shift = 5
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1000])
    fetch(site.url, tmp_path / "data.bin", checksum=MD5)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert site.asked == ["bytes=1000-", None]


def test_part_that_is_complete_only_needs_its_name(site, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    fetch(site.url, tmp_path / "data.bin", checksum=MD5)
    assert names(tmp_path) == ["data.bin"]


@pytest.mark.parametrize("part", [b"of another file", b"z" * 400_000])
def test_part_of_another_file_is_thrown_away(site, tmp_path, part):
    (tmp_path / "data.bin.part").write_bytes(part)
    fetch(site.url, tmp_path / "data.bin", checksum=MD5)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_wrong_checksum_leaves_nothing(site, tmp_path):
    site.content = CONTENT[::-1]
    with pytest.raises(DataError, match=r"its md5 is .*expected"):
        fetch(site.url, tmp_path / "data.bin", checksum=MD5)
    assert names(tmp_path) == []
    assert len(site.asked) == 1


@pytest.mark.parametrize("status", [403, 404, 500])
def test_refusal_of_the_server_is_told(site, tmp_path, status):
    site.status = status
    with pytest.raises(DataError, match=f"HTTP {status}"):
        fetch(site.url, tmp_path / "data.bin", checksum=MD5)


def test_no_server_is_told(site, tmp_path):
    with pytest.raises(DataError, match="no connection"):
        fetch("http://127.0.0.1:1/data.bin", tmp_path / "data.bin", checksum=MD5)


def test_full_disk_is_told(site, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "data.bin.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left"):
        fetch(site.url, tmp_path / "data.bin", checksum=MD5)


def test_folder_that_cannot_be_made_is_told(site, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot write"):
        fetch(site.url, tmp_path / "file/data.bin", checksum=MD5)


def test_endless_download_is_stopped(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", 100_000)
    with pytest.raises(DataError, match="more than 100000 bytes"):
        fetch(site.url, tmp_path / "data.bin", checksum=MD5)


@pytest.mark.parametrize(
    ("url", "checksum"), [("file:///etc/passwd", MD5), ("http://x/y", "crc:1"), ("http://x/y", "")]
)
def test_other_schemes_and_checksums_are_refused(tmp_path, url, checksum):
    with pytest.raises(UsageError, match="http"):
        fetch(url, tmp_path / "data.bin", checksum=checksum)


def test_progress_counts_every_byte_of_the_file(site, tmp_path):
    class Counting(Progress):
        def __init__(self):
            self.tasks = []

        @contextmanager
        def task(self, title, total=None):
            steps = []
            self.tasks.append((title, total, steps))
            yield steps.append

    counting = Counting()
    site.cuts = [100_000]
    fetch(site.url, tmp_path / "data.bin", checksum=MD5, progress=counting)
    assert [(title, total) for title, total, _ in counting.tasks] == [("download data.bin", 300_000)] * 2
    assert [sum(steps) for _, _, steps in counting.tasks] == [100_000, 300_000]


def archive(path, *entries):
    with tarfile.open(path, "w:gz") as tar:
        for name, content, kind in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/hostname"
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content))
    return path


REGULAR = tarfile.REGTYPE


def test_asked_members_come_out_by_their_last_name(tmp_path):
    tar = archive(tmp_path / "a.tar.gz", ("top/one.bin", b"1", REGULAR), ("top/two.bin", b"2", REGULAR))
    extract_members(tar, ("top/two.bin",), tmp_path / "out")
    assert names(tmp_path / "out") == ["two.bin"]
    assert (tmp_path / "out/two.bin").read_bytes() == b"2"


@pytest.mark.parametrize("name", ["../evil.bin", "/evil.bin", "top/../../evil.bin", "out/../evil.bin"])
def test_no_path_of_an_archive_leads_out_of_the_folder(tmp_path, name):
    tar = archive(tmp_path / "a.tar.gz", (name, b"evil", REGULAR), ("top/one.bin", b"1", REGULAR))
    extract_members(tar, ("top/one.bin",), tmp_path / "box/out")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.bin")) == ["box/out/one.bin"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_not_taken_for_files(tmp_path, kind):
    tar = archive(tmp_path / "a.tar.gz", ("top/one.bin", b"", kind))
    with pytest.raises(DataError, match=r"no regular file top/one\.bin"):
        extract_members(tar, ("top/one.bin",), tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_a_missing_member_means_that_none_arrives(tmp_path):
    tar = archive(tmp_path / "a.tar.gz", ("top/one.bin", b"1", REGULAR))
    with pytest.raises(DataError, match=r"top/two\.bin"):
        extract_members(tar, ("top/one.bin", "top/two.bin"), tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_huge_member_is_refused_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", 1000)
    tar = archive(tmp_path / "a.tar.gz", ("top/one.bin", bytes(2000), REGULAR))
    with pytest.raises(DataError, match="2000 bytes cannot be right"):
        extract_members(tar, ("top/one.bin",), tmp_path / "out")


@pytest.mark.parametrize("damage", ["cut", "flip", "no archive", "no tar", "missing"])
def test_damaged_archive_is_told_and_leaves_nothing(tmp_path, damage):
    tar = archive(tmp_path / "a.tar.gz", ("top/one.bin", os.urandom(50_000), REGULAR))
    content = bytearray(tar.read_bytes())
    if damage == "missing":
        tar.unlink()
    else:
        content[20_000] ^= 255
        tar.write_bytes(
            {
                "cut": bytes(content[:20_000]),
                "flip": content,
                "no archive": b"hello",
                "no tar": gzip.compress(b"x" * 999),
            }[damage]
        )
    with pytest.raises(DataError, match="unpack"):
        extract_members(tar, ("top/one.bin",), tmp_path / "out")
    assert names(tmp_path / "out") == []
