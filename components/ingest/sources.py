"""Every source by its name in a recipe, and what `ingest.path` and `ingest.index` are to it.

| source | path | index |
|---|---|---|
| folder | a folder of pictures, or its index | the JSON, JSONL or CSV file in it |
| parquet | a file, a folder or a glob | |
| webdataset | tar shards: a file, a folder or a glob | metadata parquet with a column `uid`, within the path |
| datasets | a name on the Hugging Face hub, or a folder | the configuration |
| coco | a folder of pictures | the annotations' JSON |
| refcoco | a folder with `refs(…).p` and `instances.json` | the refs file |
| conversations, preferences | parquet, JSON, JSONL, or a folder with one and pictures | the JSON or JSONL in it |
| voc, yolo, sroie, funsd | a folder of pictures and their annotations | |
"""

import importlib

from components.ingest.record import Reader

READERS = {
    "folder": "components.ingest.folder:FolderReader",
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
        DataError: it is not there, or the choice of its index is not clear.
    """
    module, name = READERS[source].split(":")
    made: Reader = getattr(importlib.import_module(module), name)(path, index)
    return made
