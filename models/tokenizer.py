"""A tokenizer made from the texts at hand: words whole, everything else letter by letter.

A model that learns in minutes cannot afford to learn what a subword means. A frequent word is one token; a
rare word or a random string is spelled, so that reading a line is a letter at a time; a letter never seen
is its UTF-8 bytes. Encoding and decoding lose nothing but runs of spaces.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<unk>", "<eos>", "<image>", "<user>", "<assistant>")
# A conversation in these tokens; `<image>` stands where the processor writes out a picture's places.
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


def build(
    texts: Iterable[str], *, extra: Sequence[str] = (), frame: str = "", max_words: int = 4000, min_count: int = 3
) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose words are those that `texts` hold at least `min_count` times.

    Args:
        texts: captions, questions and answers of the training split.
        extra: further tokens that are never cut, such as `<loc00>` or `<mask>`.
        frame: what a text is put in, such as `<cls> $A <sep>`; its tokens must be known. Without it, nothing.
        max_words: the most frequent words that become tokens.

    Returns:
        A `PreTrainedTokenizerFast` with `<pad>`, `<eos>`, `<image>`, `<user>` and `<assistant>`.
    """
    # A word carries the space before it (▁); punctuation stands alone.
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"[^\w▁']"), behavior="isolated"),
        ]
    )
    counts: Counter[str] = Counter()
    letters: Counter[str] = Counter()
    for text in texts:
        for piece, _ in split.pre_tokenize_str(text):
            counts[piece] += 1
            letters.update(piece)
    words = [w for w, n in counts.most_common(max_words) if n >= min_count and len(w) > 1]
    alphabet = dict.fromkeys((*PRINTABLE, "▁", *sorted(c for c, n in letters.items() if n >= min_count)))
    tokens = [*SPECIALS, *extra, *alphabet, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(words)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    # With no merges and `ignore_merges`, a piece is either one token or its letters.
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, ignore_merges=True))
    # A mask stands for a word with the space before it.
    tokenizer.add_tokens([AddedToken(token, normalized=False, lstrip=token == "<mask>") for token in extra])
    tokenizer.pre_tokenizer = split  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]
    )
    if frame:
        around = [(token, vocabulary[token]) for token in frame.split() if token != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=around)  # type: ignore[assignment]
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
