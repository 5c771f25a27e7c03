from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from twin_merging import archives
from twin_merging.errors import UserError


def make_zip(members: dict[str, bytes], links: tuple[str, ...] = ()) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = ((stat.S_IFLNK if name in links else stat.S_IFREG) | 0o644) << 16
            archive.writestr(info, content)
    return file


def make_tar(members: dict[str, bytes], links: dict[str, tuple[bytes, str]] | None = None) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, (kind, target) in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return file


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_read_and_extract_only_what_is_asked(make, tmp_path: Path):
    archive = make({"pkg/a.txt": b"a", "pkg/model/b.bin": b"bb", "pkg/model/deep/c.bin": b"ccc", "other.txt": b"x"})
    assert archives.read(archive, "pkg/*.txt") == {"pkg/a.txt": b"a"}
    assert sorted(archives.extract(archive, "pkg/model/", tmp_path)) == ["b.bin", "deep/c.bin"]
    files = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"b.bin": b"bb", "deep/c.bin": b"ccc"}


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["model/../../evil", "model/..\\evil", "model/c:evil"])
def test_a_member_that_leaves_its_folder_is_refused(make, name: str, tmp_path: Path):
    target = tmp_path / "inner" / "target"
    with pytest.raises(UserError, match="leaves the archive"):
        archives.extract(make({name: b"evil"}), "model/", target)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_absolute_name_is_refused(make, tmp_path: Path):
    with pytest.raises(UserError, match="leaves the archive"):
        archives.extract(make({str(tmp_path / "evil"): b"evil"}), str(tmp_path), tmp_path / "target")
    with pytest.raises(UserError, match="leaves the archive"):
        archives.read(make({"/etc/evil": b"evil"}), "*evil")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_tar_links_and_devices_are_refused(kind: bytes, tmp_path: Path):
    archive = make_tar({"model/a": b"a"}, {"model/link": (kind, "/etc/passwd")})
    with pytest.raises(UserError, match="link or a device"):
        archives.extract(archive, "model/", tmp_path)
    with pytest.raises(UserError, match="link or a device"):
        archives.read(archive, "model/l*")
    assert not (tmp_path / "link").is_symlink()


def test_zip_links_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="link or a device"):
        archives.extract(make_zip({"model/link": b"/etc/passwd"}, links=("model/link",)), "model/", tmp_path)


def test_a_link_to_a_folder_cannot_redirect_its_members(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = make_tar({"model/sub/x": b"evil"}, {"model/sub": (tarfile.SYMTYPE, str(outside))})
    with pytest.raises(UserError, match="link or a device"):
        archives.extract(archive, "model/", tmp_path / "target")
    assert not list(outside.iterdir())


def test_nothing_found_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"nope\*"):
        archives.read(make_zip({"a": b"a"}), "nope*")
    with pytest.raises(UserError, match="no such folder"):
        archives.extract(make_zip({"a": b"a"}), "model/", tmp_path)
