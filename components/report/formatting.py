"""Names and numbers as the page writes them."""

LABELS = {
    "contrastive": "Contrastive",
    "caption": "Caption",
    "ground": "Ground",
    "ocr": "Read",
    "aligned": "DPO",
    "control": "SFT control",
    "retrieval": "Retrieval",
    "zero-shot": "Zero-shot classes",
    "describe": "Captions",
    "objects": "Objects named",
    "hallucination": "Hallucination",
    "grounding": "Grounding",
    "reading": "Reading",
    "reading errors": "Reading errors",
    "yes-no": "Yes or no",
    "preference": "Truth preferred",
}
MINUS = "\N{MINUS SIGN}"


def label(name: str) -> str:
    """A stage's or capability's name for a heading; what has no entry is written as it is called."""
    return LABELS.get(name, name.replace("_", " ").capitalize())


def percent(value: float) -> str:
    """A share in per cent, without the sign: 0.4567 → 45.7."""
    return f"{100 * value:.1f}".replace("-", MINUS)


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign: −0.021 → −2.1."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def quantity(value: float) -> str:
    """A number of any kind: counts whole, shares with three digits."""
    if float(value).is_integer() and abs(value) > 1:
        return f"{value:,.0f}"
    return f"{value:.3f}".replace("-", MINUS)


def listing(names: list[str]) -> str:
    """`a, b and c`."""
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)
