"""The Data Docs page of a validation: one HTML file that loads nothing from the network."""

from typing import Any

from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
from great_expectations.render.view.view import DefaultJinjaPageView
from jinja2 import ChoiceLoader, DictLoader

# The page of Great Expectations loads style sheets, scripts, fonts and images from eight hosts. This one has the same
# sections, rendered by the same templates, with the few styles that they need.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Validation of {{ verdict.schema | e }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2430; margin: 0 auto; max-width: 68rem; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0; } h5 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; } h6 { margin: .6rem 0 .2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #dfe4ea; padding: .35rem .6rem; text-align: left; vertical-align: top; }
th { font-weight: 600; background: #f4f6f8; }
td { overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.badge { background: #e7ebf0; border-radius: .3rem; padding: 0 .3rem; }
.text-success, .passed { color: #1a7f37; } .text-danger, .critical { color: #b42318; }
.text-warning, .warning { color: #9a6700; }
.fas { font-style: normal; font-weight: 700; }
.fa-check-circle::before { content: "\\2713"; }
.fa-times::before { content: "\\2717"; }
.fa-exclamation-triangle::before { content: "!"; }
.collapse, [data-toggle="collapse"], [hidden] { display: none; }
</style>
</head>
<body>
<h1>Validation of {{ verdict.rows }} {{ verdict.schema | e }}</h1>
<p class="{{ 'passed' if verdict.success else 'critical' }}">{{ 'Passed' if verdict.success else 'Failed' }}.
Dataset <code>{{ verdict.dataset[:12] }}</code>, Great Expectations {{ ge_version }}.</p>
<table>
<tr><th>result</th><th>severity</th><th>expectation</th><th>column</th><th>failing rows</th><th>%</th></tr>
{% for one in verdict.expectations | sort(attribute='success') %}
<tr><td class="{{ 'passed' if one.success else one.severity }}">{{ 'passed' if one.success else 'failed' }}</td>
<td>{{ one.severity | e }}</td><td>{{ one.meaning | e }}</td><td>{{ one.column | e }}</td>
<td class="number">{{ one.unexpected }}</td><td class="number">{{ '%.2f' % one.unexpected_percent }}</td></tr>
{% endfor %}
</table>
{% for section in sections if section.section_name != 'Overview' %}
{% set section_loop = loop -%}
{% include 'section.j2' %}
{% endfor %}
</body>
</html>
"""


def render_page(result: ExpectationSuiteValidationResult, verdict: dict[str, Any]) -> str:
    """Return the page as HTML: the verdict as a table, then the sections of Data Docs, one per column."""
    view = DefaultJinjaPageView()
    loader = view.env.loader
    view.env.loader = ChoiceLoader([DictLoader({"offline.j2": PAGE}), *([loader] if loader else [])])
    document = ValidationResultsPageRenderer(run_info_at_end=True).render(result)
    return view.render(document, template="offline.j2", verdict=verdict)
