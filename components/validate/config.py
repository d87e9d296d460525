"""What a recipe says of validation."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """How strictly a dataset is judged.

    `strict` makes critical what curation removes: unreadable pictures, repeated pairs, pairs that say
    nothing. `max_text` is the number of characters beyond which a caption or a conversation gets a warning.
    Every picture's header is read; the pixels are decoded of those that look cut off and of about `decode`
    others, chosen by content, or of all of them where `decode` is null. `decontaminate` names evaluation sets
    (datasets, or folders of pictures): a row to learn from that shows a picture of theirs is critical.
    """

    strict: bool = False
    min_rows: int = 1
    max_text: int = 8192
    decode: int | None = 500
    decontaminate: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.min_rows < 0:
            raise ValueError(f"min_rows cannot be negative, got {self.min_rows}")
        if self.max_text < 1:
            raise ValueError(f"max_text counts characters and must be at least 1, got {self.max_text}")
        if self.decode is not None and self.decode < 0:
            raise ValueError(f"decode counts pictures and cannot be negative, got {self.decode}; null means all")
