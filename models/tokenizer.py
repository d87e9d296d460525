"""A tokenizer built from the training texts: frequent words are whole tokens, everything else is spelled.

A model that trains for minutes has no time to learn what subwords mean. A frequent word is one token. A rare word or a
random string is spelled in characters, so that reading a line of text is one character at a time; a character that the
texts do not contain is spelled in UTF-8 bytes. Decoding restores the text except for runs of spaces.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<unk>", "<eos>", "<image>", "<user>", "<assistant>")
# A conversation in these tokens; the processor replaces `<image>` by the image's placeholders.
CHAT_TEMPLATE = """{%- for message in messages -%}
{%- if message.role == 'user' -%}
{%- if message.content is string -%}{{ '<user>' + message.content }}
{%- else -%}
{%- for part in message.content if part.type == 'image' -%}{{ '<image>' }}{%- endfor -%}
{{ '<user>' }}{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{%- endif -%}
{%- else -%}
{{ '<assistant>' }}{%- generation -%}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}{%- endif -%}
{{ '<eos>' }}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<assistant>' }}{%- endif -%}"""
PRINTABLE = tuple(map(chr, range(33, 127)))


def build_tokenizer(
    texts: Iterable[str], *, extra: Sequence[str] = (), frame: str = "", max_words: int = 4000, min_count: int = 3
) -> PreTrainedTokenizerFast:
    """Build a tokenizer whose words are those that occur at least `min_count` times in `texts`.

    Args:
        texts: captions, questions and answers of the training split.
        extra: further tokens that are never split, such as `<loc00>` or `<mask>`.
        frame: tokens around every text, such as `<cls> $A <sep>`; they must be in the vocabulary. Empty for none.
        max_words: the number of most frequent words that may become tokens.

    Returns:
        A `PreTrainedTokenizerFast` with `<pad>`, `<eos>`, `<image>`, `<user>` and `<assistant>`.
    """
    # A word includes the space before it (▁); punctuation is a piece of its own.
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"[^\w▁']"), behavior="isolated"),
        ]
    )
    tokens = [*SPECIALS, *extra, *_vocabulary(texts, split, max_words, min_count)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    # Without merges and with `ignore_merges`, a piece is either one token or its characters.
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, ignore_merges=True))
    # `<mask>` replaces a word together with the space before it.
    tokenizer.add_tokens([AddedToken(token, normalized=False, lstrip=token == "<mask>") for token in extra])
    tokenizer.pre_tokenizer = split  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]
    )
    if frame:
        framing = [(token, vocabulary[token]) for token in frame.split() if token != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=framing)  # type: ignore[assignment]
    named = {f"{name}_token": f"<{name}>" for name in ("mask", "cls", "sep") if f"<{name}>" in extra}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        extra_special_tokens=["<image>", "<user>", "<assistant>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _vocabulary(texts: Iterable[str], split: pre_tokenizers.PreTokenizer, max_words: int, min_count: int) -> list[str]:
    """Characters and bytes, then the frequent words in alphabetical order."""
    pieces: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for text in texts:
        for piece, _ in split.pre_tokenize_str(text):
            pieces[piece] += 1
            characters.update(piece)
    words = [w for w, n in pieces.most_common(max_words) if n >= min_count and len(w) > 1]
    alphabet = dict.fromkeys((*PRINTABLE, "▁", *sorted(c for c, n in characters.items() if n >= min_count)))
    return [*alphabet, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(words)]
