"""The tiny family: Hugging Face compatibility, generation, and packed turns that do not attend to each other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from models.blocks import Block, sinusoidal_positions
from models.contrastive.losses import clip_loss
from models.tiny import build as tiny
from models.tiny.packing import PackedCollator
from vlmflow.artifacts import checkpoint
from vlmflow.config import recipes
from vlmflow.errors import RecipeError
from vlmflow.images.decoding import resize_square
from vlmflow.inference.embedding import embed_images, embed_texts
from vlmflow.inference.generation import chat, chat_prompt, score
from vlmflow.inference.loading import load

TEXTS = ["a red circle, left of a blue square."] * 3 + ["Where is the red circle?", "Name the objects."] * 3


def image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 80, 3), np.uint8))


@pytest.fixture(scope="module")
def vlm():
    """Build a small model and add noise to all weights, because zero-initialised outputs would hide errors."""
    torch.manual_seed(0)
    model, processor = tiny.build_language_model(TEXTS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval(), processor


def test_a_saved_model_loads_with_the_auto_classes(vlm, tmp_path: Path) -> None:
    model, processor = vlm
    checkpoint.save(tmp_path, model, processor, family="tiny-vlm")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).train().eval()
    frozen = {n for n, p in again.named_parameters() if not p.requires_grad}
    assert frozen and all(n.startswith("model.dual_encoder.") for n in frozen)
    other = AutoProcessor.from_pretrained(tmp_path)
    batch = other(images=[image(0)], text=[chat_prompt(other, "Name the objects.")], return_tensors="pt")
    assert torch.equal(model(**batch).logits, again(**batch).logits)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert (other.image_tokens, other.box_convention) == (16, "tiny")
    assert not list(tmp_path.glob("*.bin")) and (tmp_path / "model.safetensors").exists()


def test_a_language_model_contains_the_frozen_dual_encoder() -> None:
    torch.manual_seed(0)
    dual, processor = tiny.build_dual_encoder(TEXTS)
    model, _ = tiny.from_dual_encoder(dual.eval(), processor)
    pixels = torch.rand(2, 3, 64, 64)
    assert torch.equal(dual.get_image_features(pixels), model.eval().get_image_features(pixels))
    assert torch.equal(dual.vision(pixels), model.model.vision(pixels))
    assert not any(parameter.requires_grad for parameter in model.model.dual_encoder.parameters())
    assert type(AutoModel.from_config(dual.config)) is type(dual)


def test_generation_with_cache_and_padding_equals_greedy_decoding_without(vlm, tmp_path: Path) -> None:
    model, processor = vlm
    checkpoint.save(tmp_path, model, processor, family="tiny-vlm")
    loaded = load(tmp_path)
    prompts = ["Name the objects.", "Where is the red circle left of a blue square?", "a"]
    images = [image(i) for i in range(3)]
    answers = chat(loaded, images, prompts, max_new_tokens=6)
    for one, prompt, answer in zip(images, prompts, answers, strict=True):
        batch = processor(images=[one], text=[chat_prompt(processor, prompt)], return_tensors="pt")
        ids = batch["input_ids"]
        for _ in range(6):
            best = model(input_ids=ids, pixel_values=batch["pixel_values"]).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, best], 1)
            if best.item() == processor.tokenizer.eos_token_id:
                break
        generated = ids[0, batch["input_ids"].shape[1] :].tolist()
        generated = generated[:-1] if generated[-1] == processor.tokenizer.eos_token_id else generated
        assert processor.tokenizer.decode(generated).strip() == answer


def test_packed_turns_do_not_attend_to_each_other(vlm) -> None:
    """The logits of a turn packed with others behind one image equal those of the turn alone."""
    model, processor = vlm
    encode = processor.tokenizer
    turns = [
        ("Name the objects.", "a red circle<eos>"),
        ("Where is the red circle?", "<loc03><loc60><loc10><loc63><eos>"),
    ]
    tokens = [(encode(chat_prompt(processor, q, 0))["input_ids"], encode(a)["input_ids"]) for q, a in turns]
    pixels = resize_square(image(1), 64)
    collator = PackedCollator(model.config.image_token_id, 16, 0)

    def logits(turns):
        batch = collator([{"pixels": pixels, "turns": turns}])
        labels = batch.pop("labels")
        return model(**batch).logits[:, :-1][labels[:, 1:] != -100]

    separate = torch.cat([logits([turn]) for turn in tokens])
    torch.testing.assert_close(logits(tokens), separate, atol=2e-5, rtol=1e-4)


def test_the_loss_is_the_mean_over_answer_tokens(vlm) -> None:
    model, processor = vlm
    encode = processor.tokenizer
    turn = (encode("<user>Name the objects.<assistant>")["input_ids"], encode("a red circle<eos>")["input_ids"])
    rows = [{"pixels": resize_square(image(i), 64), "turns": [turn] * (i + 1)} for i in range(3)]
    batch = PackedCollator(model.config.image_token_id, 16, 0)(rows)
    out = model(**batch)
    labels = batch.pop("labels")
    logp = model(**batch).logits.log_softmax(-1)
    slow, count = 0.0, 0
    for n in range(labels.shape[0]):
        for position in range(1, labels.shape[1]):
            if labels[n, position] != -100:
                slow -= logp[n, position - 1, labels[n, position]].item()
                count += 1
    assert out.loss.item() == pytest.approx(slow / count, rel=1e-5)


def test_a_wrong_number_of_placeholders_is_refused(vlm) -> None:
    model, processor = vlm
    batch = processor(images=[image(0)], text=["<image>"], return_tensors="pt")
    with pytest.raises(ValueError, match="1 images need 16 placeholders, but the text has 15"):
        model(batch["input_ids"][:, 1:], pixel_values=batch["pixel_values"])


def test_the_training_path_and_the_processor_give_equal_pixels(vlm) -> None:
    """The uint8 squares of the packed path equal the processor's floats up to rounding."""
    _model, processor = vlm
    floats = processor.image_processor([image(2)], return_tensors="pt")["pixel_values"]
    raw = torch.from_numpy(resize_square(image(2), 64).copy())[None]
    torch.testing.assert_close(raw.float() / 127.5 - 1, floats, atol=0.02, rtol=0)


def test_scores_are_log_likelihoods_of_answers(vlm, tmp_path: Path) -> None:
    model, processor = vlm
    checkpoint.save(tmp_path, model, processor, family="tiny-vlm")
    loaded = load(tmp_path)
    images, prompts, answers = [image(0), image(1)], ["Name the objects."] * 2, ["a red circle", "a"]
    scores = score(loaded, images, prompts, answers)
    separate = [score(loaded, [i], [p], [a])[0] for i, p, a in zip(images, prompts, answers, strict=True)]
    np.testing.assert_allclose(scores, separate, rtol=1e-4)
    head = chat_prompt(processor, prompts[0])
    batch = processor(images=[images[0]], text=[head + "a red circle<eos>"], return_tensors="pt")
    logp = model(**batch).logits.log_softmax(-1)[0]
    ids = batch["input_ids"][0]
    count = len(processor.tokenizer("a red circle<eos>")["input_ids"])
    slow = sum(logp[i - 1, ids[i]].item() for i in range(len(ids) - count, len(ids)))
    assert scores[0] == pytest.approx(slow, rel=1e-4)


def test_embeddings_are_unit_vectors(vlm, tmp_path: Path) -> None:
    model, processor = vlm
    checkpoint.save(tmp_path, model, processor, family="tiny-vlm")
    loaded = load(tmp_path)
    for vectors in (embed_images(loaded, [image(0), image(1)]), embed_texts(loaded, ["a red circle", "zq"])):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_clip_loss_equals_a_slow_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=-1)
    text = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=-1)
    slow = 0.0
    for i in range(5):
        row = [np.exp(7 * float(image[i] @ text[j])) for j in range(5)]
        column = [np.exp(7 * float(image[j] @ text[i])) for j in range(5)]
        slow -= (np.log(row[i] / sum(row)) + np.log(column[i] / sum(column))) / 10
    assert clip_loss(image, text, torch.tensor(7.0)).item() == pytest.approx(slow, rel=1e-5)
    same = torch.nn.functional.normalize(torch.ones(8, 4), dim=-1)
    assert clip_loss(same, same, torch.tensor(3.0)).item() == pytest.approx(np.log(8), rel=1e-5)


def test_a_new_block_is_the_identity() -> None:
    model, _ = tiny.build_language_model(["a red circle"])
    towers = (model.model.vision, model.model.dual_encoder.vision, model.model.dual_encoder.text, model.model)
    for block in (block for tower in towers for block in tower.blocks):
        assert isinstance(block, Block)
        x = torch.randn(2, 5, block.qkv.in_features)
        assert torch.equal(block(x), x)


def test_near_positions_have_near_encodings() -> None:
    vectors = sinusoidal_positions(torch.linspace(0, 1, 64), 128)
    distance = (vectors[31] - vectors).norm(dim=1)
    assert distance[32] < distance[34] < distance[40] and distance[30] < distance[28]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"image_size": 100}, "multiple of 16 pixels, got 100"), ({"image_size": 256}, "256 tokens, which leave no room")],
)
def test_image_sizes_that_cannot_work_are_rejected(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.call(tiny.build_dual_encoder, ["a circle"], values=sizes, where="pretrain.model")


def test_a_language_model_has_the_image_size_of_its_dual_encoder() -> None:
    encoder, processor = tiny.build_dual_encoder(["a circle"], image_size=128, max_position_embeddings=320)
    model, _ = tiny.from_dual_encoder(encoder, processor, num_hidden_layers=1)
    assert model.config.image_size == 128 and model.config.image_tokens == 64
    with pytest.raises(ValueError, match="image_size 64: the dual encoder has 128"):
        tiny.from_dual_encoder(encoder, processor, image_size=64)
