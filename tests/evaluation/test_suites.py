"""Which test conversations are asked about."""

from pathlib import Path

import pytest

from vlmflow.artifacts import dataset
from vlmflow.evaluation.suites import _test_turns


def test_repeated_conversations_count_once_and_several_images_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Which?"},
        {"role": "assistant", "content": "red"},
    ]
    row = {"pair": "", "images": [b"x"], "messages": messages, "task": "vqa", "split": "test"}
    rows = [{**row, "uid": uid} for uid in ("a", "a", "b")] + [{**row, "uid": "c", "images": [b"x", b"y"]}]
    turns = _test_turns(dataset.write(tmp_path, "conversations", rows))["vqa"]
    assert [(row["uid"], question, answer) for row, _, question, answer in turns] == [
        ("a", "Be brief.\nWhich?", "red"),
        ("b", "Be brief.\nWhich?", "red"),
    ]
    assert "1 test conversations have several images" in caplog.text
