"""Tolerations of pods, as in Kubernetes' pod specification."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vlmflow.config.section import Section


class Toleration(Section):
    """A taint of nodes that a pod tolerates. Defaults and rules are those of Kubernetes."""

    key: str = Field(default="", description="Key of the taint; empty matches every key.")
    operator: Literal["Equal", "Exists"] = Field(default="Equal", description="`Equal` also compares `value`.")
    value: str = Field(default="", description="Value of the taint, with operator `Equal`.")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        default="", description="Effect of the taint; empty matches every effect."
    )

    @model_validator(mode="after")
    def _check_operator(self) -> Self:
        if self.operator == "Exists" and self.value:
            raise ValueError(f"`value: {self.value}` needs `operator: Equal`; `Exists` compares only the key")
        if self.operator == "Equal" and not self.key:
            raise ValueError("without `key`, set `operator: Exists` to tolerate every taint")
        return self
