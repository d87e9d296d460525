"""The tokenizer: frequent words are single tokens, other words are spelled, and decoding is lossless."""

from hypothesis import given
from hypothesis import strategies as st

from models.tokenizer import build_tokenizer

TEXTS = ["a red circle, left of a blue square."] * 3 + ["rare words once"]
TOKENIZER = build_tokenizer(TEXTS, extra=["<loc00>", "<loc01>"])


def pieces(text: str) -> list[str]:
    return TOKENIZER.convert_ids_to_tokens(TOKENIZER(text)["input_ids"])  # type: ignore[return-value]


def test_frequent_words_are_single_tokens_and_others_are_spelled() -> None:
    assert pieces("a red zq") == ["▁a", "▁red", "▁", "z", "q"]
    assert pieces("<user>red?<assistant><loc01><eos>") == ["<user>", "▁red", "?", "<assistant>", "<loc01>", "<eos>"]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), max_size=30))
def test_decoding_inverts_encoding(text: str) -> None:
    text = text.replace("▁", "").replace("<", "")  # ▁ represents a space, < starts a special token
    assert str(TOKENIZER.decode(TOKENIZER(text)["input_ids"])).strip() == text.strip()
