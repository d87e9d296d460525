"""What the rows of a source may make this machine read."""

import base64
from pathlib import Path

import pytest
from upath import UPath

from components.ingest.config import IngestConfig
from components.ingest.image_access import ImageAccess
from components.ingest.ingestion import _image_access
from tests.ingest.test_ingestion import encoded
from vlmflow.errors import RecordError
from vlmflow.images import image_bytes


@pytest.mark.parametrize(
    "name",
    [
        "zip://a::http://169.254.169.254/x", "webhdfs://host/a.png", "ftp://host/a.png", "s3://secret/a.png",
        "gopher://x/y", "ZIP://a::http://host/x", "S3://secret/a.png", "memory://a.png", "simplecache::s3://b/a.png",
        "s3://bucket/images/../secret.png", "s3://bucket/images-of-others/a.png", "file://host/a.png",
    ],
)  # fmt: skip
def test_an_address_that_the_recipe_does_not_allow_is_never_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(image_bytes, "read", lambda *_: pytest.fail("opened"))
    for value in (name, {"bytes": None, "path": name}, [name]):
        with pytest.raises(RecordError, match="address not allowed"):
            ImageAccess(("s3://bucket/images",), refuse_outside=False).read(value, [UPath(tmp_path)])


def test_addresses_below_the_source_and_those_of_the_recipe_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_bytes, "read", lambda name, _: name.encode())

    def check(name: str, path: str, source: str = "folder", addresses: tuple[str, ...] = ()) -> bool:
        access = _image_access(IngestConfig.model_validate({"source": source, "path": path, "addresses": addresses}))
        try:
            return access.read(name, []) == name.encode()
        except RecordError as reason:
            assert reason.kind == "address not allowed"
            return False

    assert check("s3://b/set/a.png", "s3://b/set") and check("s3://b/set/x/a.png", "s3://b/set/index.csv")
    assert not check("s3://b/other/a.png", "s3://b/set") and not check("s3://b/set/a.png", "set")
    assert check("s3://b/x/a.png", "set", addresses=("s3://b/x/",))
    for revision, owner in (("", "owner"), ("@1f2e", "owner"), ("@refs%2Fconvert%2Fparquet", "owner"), ("@1", "other")):
        allowed = check(f"hf://datasets/{owner}/name{revision}/a.png", "owner/name", "datasets")
        assert allowed == (owner == "owner")


def test_local_files_outside_of_the_source_are_counted_or_refused(tmp_path: Path) -> None:
    for name in ("secret.png", "set/images/a.png", "set/b.png", "set-of-others/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    root, near = UPath(tmp_path / "set"), UPath(tmp_path / "set" / "images")
    folders = [near, root]
    strict, open_access = (ImageAccess((), refuse_outside=refuse) for refuse in (True, False))
    for name, file in (("a.png", "set/images/a.png"), ("../b.png", "set/b.png"), ("./images/../b.png", "set/b.png"),
                       (f"{root}/b.png", "set/b.png"), (f"file://{root}/b.png", "set/b.png")):  # fmt: skip
        assert strict.read(name, folders) == open_access.read(name, folders) == file.encode()
    assert open_access.outside == []
    outside = ["../../secret.png", f"{tmp_path}/secret.png", f"file://{tmp_path}/secret.png", "../../secret.png"]
    for name in [*outside, f"{tmp_path}/gone.png", "../../gone.png", "../../set-of-others/c.png"]:
        with pytest.raises(RecordError, match="outside the source"):
            strict.read(name, folders)
    assert {open_access.read(name, folders) for name in outside} == {b"secret.png"}
    assert open_access.read("../set-of-others/c.png", [root]) == b"set-of-others/c.png"
    assert len(open_access.outside) == 5
    with pytest.raises(RecordError, match="no such file"):
        strict.read("gone.png", folders)
    with pytest.raises(RecordError, match="no such file"):
        open_access.read("a.png", [])


def test_a_pod_refuses_files_outside_of_the_source_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(value: str | None) -> bool:
        section = {"source": "folder", "path": "set", "outside_files": value}
        return _image_access(IngestConfig.model_validate(section)).refuse_outside

    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert [refuses(value) for value in (None, "read", "refuse")] == [False, False, True]
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert [refuses(value) for value in (None, "read", "refuse")] == [True, False, True]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP"])
def test_bare_base64_of_a_small_picture_is_not_a_path(form: str) -> None:
    content = encoded(form, size=(40, 30))
    access = ImageAccess((), refuse_outside=True)
    assert access.read(base64.b64encode(content).decode(), []) == content
