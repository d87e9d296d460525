from pathlib import Path

from tests.ingest.test_ingestion import encoded, refused, run


def test_captions_in_text_files_beside_the_images(tmp_path: Path) -> None:
    root = tmp_path / "set"
    texts = {
        "train/a.b.png": b"a red kite, over a hill\n", "val/a.png": "\ufeffune été\r\n".encode(),
        "train/c.png": b"", "train/d.png": b"caf\xe9", "train/e.png": None,
    }  # fmt: skip
    for i, (name, text) in enumerate(texts.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(seed=i))
        if text is not None:
            (root / name).with_suffix(".txt").write_bytes(text)
    _, rows, entries = run(root, tmp_path / "out", source="captions")
    assert {row["source"]: (row["split"], row["caption"]) for row in rows} == {
        "set/train/a.b.png": ("train", "a red kite, over a hill"), "set/val/a.png": ("test", "une été"),
        "set/train/c.png": ("train", ""),
    }  # fmt: skip
    assert [(entry["place"], entry["reason"].partition(":")[0]) for entry in entries] == [
        ("train/d.png", "not text"), ("train/e.png", "no annotation"),
    ]  # fmt: skip
    for file in root.rglob("*.txt"):
        file.unlink()
    assert "no txt file found" in refused(root, tmp_path / "o", source="captions")
