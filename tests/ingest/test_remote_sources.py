"""Sources and exports at an address: a real server that speaks S3, on this machine, and fsspec's own memory."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from components.ingest.export import export_webdataset
from tests.ingest.test_formats import sample, tar
from tests.ingest.test_ingestion import encoded, folder, refused, run


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="pictures")
        client.close()
        s3fs.S3FileSystem.clear_instance_cache()
        yield "s3://pictures"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def upload(root: Path, address: str) -> None:
    for file in sorted(root.rglob("*")):
        if file.is_file():
            UPath(address, *file.relative_to(root).parts).write_bytes(file.read_bytes())


def same(near: list[dict[str, Any]], far: list[dict[str, Any]]) -> bool:
    keys = ("uid", "caption", "image", "split", "source", "regions", "lines")
    return [[row[key] for key in keys] for row in near] == [[row[key] for key in keys] for row in far]


def kinds(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**entry, "reason": entry["reason"].partition(":")[0]} for entry in entries]


def test_every_kind_of_source_reads_the_same_from_s3(tmp_path: Path, bucket: str) -> None:
    rows = [{"image": f"images/{i}.png", "caption": f"picture {i}"} for i in range(5)]
    folder(tmp_path / "folder", rows)
    tar(tmp_path / "webdataset" / "00000.tar", sample("000000000", 0, "one") + sample("000000001", 1, "two"))
    pq.write_table(pa.table({"key": ["000000001"], "status": ["ok"]}), tmp_path / "webdataset" / "00000.parquet")
    (tmp_path / "parquet").mkdir()
    table = pa.table({"image": [encoded(), None], "caption": ["x", "y"]})
    pq.write_table(table, tmp_path / "parquet" / "a.parquet")
    for name, content in {"img/a.png": encoded(), "box/a.txt": b"1,2,20,2,20,9,1,9,TOTAL"}.items():
        (tmp_path / "sroie" / name).parent.mkdir(parents=True)
        (tmp_path / "sroie" / name).write_bytes(content)
    for source in ("folder", "webdataset", "parquet", "sroie"):
        upload(tmp_path / source, f"{bucket}/{source}")
        _, near, near_entries = run(tmp_path / source, tmp_path / f"near-{source}", source=source)
        _, far, far_entries = run(f"{bucket}/{source}", tmp_path / f"far-{source}", source=source)  # type: ignore[arg-type]
        assert same(near, far), source
        assert near and kinds(near_entries) == kinds(far_entries), source
    _, far, _ = run(f"{bucket}/webdataset/*.tar", tmp_path / "glob", source="webdataset")  # type: ignore[arg-type]
    assert len(far) == 2


def test_a_local_index_may_name_remote_images(tmp_path: Path, bucket: str) -> None:
    UPath(f"{bucket}/loose/a.png").write_bytes(encoded(seed=3))
    root = folder(tmp_path / "set", [{"image": f"{bucket}/loose/{name}.png", "caption": "x"} for name in "ab"])
    assert "address not allowed" in refused(root, tmp_path / "o")
    _, rows, entries = run(root, tmp_path / "out", addresses=[f"{bucket}/loose/"])
    assert [row["image"]["bytes"] for row in rows] == [encoded(seed=3)]
    assert [entry["reason"] for entry in entries] == [f"no such file: {bucket}/loose/b.png"]


def test_an_unreachable_source_is_a_one_line_error(tmp_path: Path, bucket: str) -> None:
    assert "no such folder" in refused(f"{bucket}/nothing", tmp_path / "o")  # type: ignore[arg-type]
    assert "'gopher://x/y'" in refused("gopher://x/y", tmp_path / "o")  # type: ignore[arg-type]


def test_export_to_webdataset_and_ingest_again(tmp_path: Path, bucket: str) -> None:
    rows = [
        {"image": f"images/{i % 4}.png", "caption": text, "kind": "k", "licence": "CC0",
         "part": ("train", "test")[i % 2], "boxes": [{"label": "b", "category": "c", "box": [1, 2, 9, 8]}],
         "lines": [{"text": "t", "box": [1, 2, 9, 8]}]}
        for i, text in enumerate(["one", "", "two\nlines", "é", "  spaces ", "{}", "seven"])
    ]  # fmt: skip
    given = {"boxes": "boxes", "lines": "lines", "label": "kind", "licence": "licence", "split": "part"}
    root = folder(tmp_path / "set", rows)
    first, before, _ = run(root, tmp_path / "in", columns=given)
    columns = {"boxes": "regions", "lines": "lines", "split": "split", "label": "label", "licence": "licence"}
    for out in (str(tmp_path / "shards"), f"{bucket}/shards"):
        assert export_webdataset(first, out, rows_per_shard=3) == 3
        assert sorted(file.name for file in UPath(out).glob("*.tar")) == [f"{i:05d}.tar" for i in range(3)]
        name = out.rpartition("/")[0][-3:].strip("/")
        _, again, entries = run(out, tmp_path / f"again-{name}", source="webdataset", columns=columns)  # type: ignore[arg-type]
        assert entries == []
        assert [{**row, "source": ""} for row in again] == [
            {**row, "image": {"bytes": row["image"]["bytes"], "path": None}, "source": ""} for row in before
        ]


def test_exported_shards_follow_the_img2dataset_layout(tmp_path: Path) -> None:
    import tarfile

    first, before, _ = run(folder(tmp_path / "set", [{"image": "images/0.png", "caption": "x"}]), tmp_path / "in")
    export_webdataset(first, str(tmp_path / "shards"), rows_per_shard=10)
    with tarfile.open(tmp_path / "shards" / "00000.tar") as file:
        assert file.getnames() == ["000000000.png", "000000000.txt", "000000000.json"]
        content = file.extractfile("000000000.json")
        assert content is not None and json.loads(content.read())["uid"] == before[0]["uid"]
    table = pq.read_table(io.BytesIO((tmp_path / "shards" / "00000.parquet").read_bytes()))
    assert table.column_names[:4] == ["key", "uid", "caption", "width"] and table["uid"].to_pylist() == [
        before[0]["uid"]
    ]
