"""Validate: check a dataset with Great Expectations. Critical failures stop the pipeline."""

import json
import logging
from pathlib import Path
from typing import Any

import great_expectations as gx
from great_expectations.core.expectation_validation_result import (
    ExpectationSuiteValidationResult,
    ExpectationValidationResult,
)
from great_expectations.expectations.metadata_types import FailureSeverity

from components.validate.config import ValidateConfig
from components.validate.data_docs import render_page
from components.validate.row_table import build_table
from components.validate.suites import build_suite
from vlmflow.artifacts.dataset import Dataset
from vlmflow.errors import GateError

logger = logging.getLogger(__name__)
logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)  # its import enables INFO

SAMPLE = 5  # failing rows listed per expectation


def validate(data: Path, section: ValidateConfig, report: Path, verdict: Path) -> dict[str, Any]:
    """Check the dataset at `data`; write the Data Docs page to `report` and the findings to `verdict` (JSON).

    Returns:
        The verdict: schema, rows, success, and for each expectation name, column, severity, success,
        unexpected, unexpected_percent and a sample of failing rows.

    Raises:
        DataError: a shard is missing, damaged, or not the one that the card describes.
        GateError: a critical expectation fails; both files are written first.
    """
    dataset = Dataset(data)
    dataset.verify()
    result = _run(dataset, section)
    findings = [_finding(one) for one in result.results]
    failed = [one for one in findings if not one["success"]]
    critical = [one for one in failed if one["severity"] == "critical"]
    summary = {
        "schema": dataset.card.schema,
        "dataset": dataset.hash,
        "rows": len(dataset),
        "success": not critical,
        "expectations": findings,
    }
    verdict.write_text(json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    report.write_text(render_page(result, summary), encoding="utf-8")
    for one in failed:
        (logger.error if one in critical else logger.warning)("%s", _format(one))
    if critical:
        raise GateError(
            f"{dataset.card.schema} of {len(dataset)} rows: {'; '.join(_format(one) for one in critical)}; "
            "fix these rows in the source, or relax the limits of the section"
        )
    logger.info("%d %s, %d expectations, %d warnings", len(dataset), dataset.card.schema, len(findings), len(failed))
    return summary


def write_skipped(section: str, report: Path, verdict: Path) -> None:
    """Write to `report` and `verdict` that validation was skipped, because the recipe has no such section."""
    reason = f"the recipe has no section {section!r}"
    logger.warning("validation skipped: %s", reason)
    verdict.write_text(json.dumps({"skipped": reason}) + "\n", encoding="utf-8")
    title = f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>{section}</title>'
    report.write_text(f"{title}<p>Validation skipped: {reason}.</p></html>\n", encoding="utf-8")


def _run(dataset: Dataset, section: ValidateConfig) -> ExpectationSuiteValidationResult:
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}  # type: ignore[assignment]
    schema = dataset.card.schema
    rules = build_suite(
        schema,
        strict=section.strict,
        min_rows=section.min_rows,
        max_text=section.max_text,
        decontaminated=bool(section.decontaminate),
    )
    asset = context.data_sources.add_pandas("vlmflow").add_dataframe_asset(schema)
    definition = gx.ValidationDefinition(
        name=schema,
        data=asset.add_batch_definition_whole_dataframe("all"),
        suite=context.suites.add(gx.ExpectationSuite(name=schema, expectations=rules)),
    )
    return context.validation_definitions.add(definition).run(
        batch_parameters={"dataframe": build_table(dataset, section.decode, section.decontaminate)},
        result_format={
            "result_format": "SUMMARY",
            "unexpected_index_column_names": ["uid"],
            "partial_unexpected_count": SAMPLE,
        },
    )


def _finding(one: ExpectationValidationResult) -> dict[str, Any]:
    config, exception = one.expectation_config, one.exception_info or {}
    if config is None or exception.get("raised_exception"):
        raise RuntimeError(f"{config and config.type}: {exception.get('exception_traceback')}")
    result: dict[str, Any] = one.to_json_dict()["result"]  # type: ignore[assignment]  # NumPy's numbers as Python's
    indexes = result.get("partial_unexpected_index_list") or []
    column = str(config.kwargs.get("column", ""))
    sample = [{key: entry[key] for key in ("uid", column)} for entry in indexes]
    return {
        "name": config.type,
        "column": column,
        "meaning": (config.description or "").rpartition(" [")[0],
        "severity": FailureSeverity(config.severity).value,
        "success": bool(one.success),
        "unexpected": int(result.get("unexpected_count", 0 if one.success else 1)),
        "unexpected_percent": round(float(result.get("unexpected_percent") or 0.0), 4),
        "observed": result.get("observed_value"),
        "sample": sample,
    }


def _format(one: dict[str, Any]) -> str:
    if not one["column"]:
        return f"{one['name']}: observed {one['observed']}"
    sample = [
        " ".join([str(entry["uid"]), *(f"({v})" for k, v in entry.items() if k != "uid")])
        for entry in one["sample"][:3]
    ]
    return f"{one['name']}({one['column']}): {one['unexpected']} rows, such as uid {', '.join(sample)}"
