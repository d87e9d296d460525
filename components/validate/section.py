"""What a recipe says of validation."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How strictly a dataset is judged.

    `strict` makes critical what curation removes: unreadable pictures, repeated pairs, pairs that say
    nothing. `max_text` is the number of characters beyond which a caption or a conversation gets a warning.
    """

    strict: bool = False
    min_rows: int = 1
    max_text: int = 8192

    def __post_init__(self) -> None:
        if self.min_rows < 0:
            raise ValueError(f"min_rows cannot be negative, got {self.min_rows}")
        if self.max_text < 1:
            raise ValueError(f"max_text counts characters and must be at least 1, got {self.max_text}")
