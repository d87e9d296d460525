"""The example notebook runs from top to bottom."""

import json

from vlmflow.runtime.code_hash import ROOT


def test_the_curation_notebook_explains_a_dropped_pair() -> None:
    cells = json.loads((ROOT / "docs" / "curation.ipynb").read_text(encoding="utf-8"))["cells"]
    namespace: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "curation.ipynb", "exec"), namespace)
    counts = namespace["counts"]
    assert counts["kept"].sum() > 0 and counts["dropped"].sum() > 0
    assert namespace["dropped"].uid in namespace["explanation"][0] and "dropped by" in namespace["explanation"][0]
