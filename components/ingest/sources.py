"""The sources: the reader of each, and what `ingest.path` and `ingest.index` mean for it.

| source | path | index |
|---|---|---|
| folder | a folder of images, or its index file | the JSON, JSONL, CSV or TSV file in the folder |
| parquet | a file, a folder or a glob pattern | |
| webdataset | tar shards: a file, a folder or a glob pattern | metadata parquet with a column `uid`, inside `path` |
| datasets | a dataset name on the Hugging Face hub, or a folder | the configuration |
| coco | a folder of images, or the annotation file | the annotation file (JSON) |
| refcoco | a folder with `refs(…).p` and `instances.json` | the refs file |
| captions | a folder of images, each with a `.txt` file of its caption | |
| conversations, preferences | parquet, JSON, JSONL, or a folder with one of them and images | the JSON or JSONL file |
| voc, sroie, funsd | a folder of images and their annotation files | |
| yolo | a folder of images and their annotation files | the file with the class names |

The source `scenes` has no reader: `synthetic_scenes.py` generates its rows.

To add a source, write a class with the methods of `record.Reader`, add it to `READERS`, and add its name to
`SourceName` in `config.py`. The reader yields records with the values of the source; `pair_builder.py` turns
them into pairs, reads and checks the images, and writes unusable rows to the quarantine.
"""

import importlib

from components.ingest.record import Reader

READERS = {
    "folder": "components.ingest.folder:FolderReader",
    "captions": "components.ingest.caption_files:CaptionFilesReader",
    "parquet": "components.ingest.parquet:ParquetReader",
    "webdataset": "components.ingest.webdataset:WebDatasetReader",
    "datasets": "components.ingest.hub:HubReader",
    "coco": "components.ingest.coco:CocoReader",
    "refcoco": "components.ingest.refcoco:RefCocoReader",
    "voc": "components.ingest.voc:VocReader",
    "yolo": "components.ingest.yolo:YoloReader",
    "sroie": "components.ingest.sroie:SroieReader",
    "funsd": "components.ingest.funsd:FunsdReader",
    "conversations": "components.ingest.conversation_rows:ConversationReader",
    "preferences": "components.ingest.conversation_rows:ConversationReader",
}


def open_reader(source: str, path: str, index: str) -> Reader:
    """Open a source.

    Raises:
        DataError: the source does not exist, or `index` is empty and several index files match.
    """
    module, name = READERS[source].split(":")
    opened: Reader = getattr(importlib.import_module(module), name)(path, index)
    return opened
