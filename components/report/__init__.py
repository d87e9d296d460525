"""Report: the whole life of a model as one HTML file that asks nothing of any network.

`artifacts` reads what the steps left behind, `findings` says what fell short, `figures`, `lineage` and
`pictures` draw, and `page` puts it together with the template beside it.
"""
