"""Curate: keep the pairs worth learning from, with a verdict for every one.

`curation` is the step; `measurement` looks at every row once, `rules` judges what it saw, and `score`
adds the judgement of a dual encoder. `ledger` and `funnel` say what went, and why.
"""
