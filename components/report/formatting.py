"""Labels and number formats of the page."""

LABELS = {
    "contrastive": "Contrastive",
    "caption": "Caption",
    "ground": "Ground",
    "aligned": "DPO",
    "control": "SFT control",
    "retrieval": "Retrieval",
    "zero-shot": "Zero-shot classification",
    "captioning": "Captioning",
    "objects": "Object lists",
    "hallucination": "Hallucination",
    "grounding": "Grounding",
    "ocr": "OCR",
    "ocr errors": "OCR errors",
    "pope": "POPE (yes or no)",
    "preference": "True answer preferred",
}
MINUS = "\N{MINUS SIGN}"


def label(name: str) -> str:
    """Label of a stage, dataset or capability; a name without an entry is capitalised."""
    return LABELS.get(name, name.replace("_", " ").capitalize())


def percent(value: float) -> str:
    """A share as a percentage without the % sign: 0.4567 → 45.7."""
    return f"{100 * value:.1f}".replace("-", MINUS)


def points(value: float) -> str:
    """A difference of shares in percentage points with a sign: −0.021 → −2.1."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def quantity(value: float) -> str:
    """A count without decimals, or any other number with three."""
    if float(value).is_integer() and abs(value) > 1:
        return f"{value:,.0f}"
    return f"{value:.3f}".replace("-", MINUS)
