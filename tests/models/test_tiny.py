"""The tiny family: a Hugging Face model in every way, and packed turns that cannot see each other."""

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
from vlmflow.images.decoding import resize_square
from vlmflow.inference.embedding import embed_images, embed_texts
from vlmflow.inference.generation import chat, chat_prompt, score
from vlmflow.inference.loading import load

TEXTS = ["a red circle, left of a blue square."] * 3 + ["Where is the red circle?", "Name the objects."] * 3


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 80, 3), np.uint8))


@pytest.fixture(scope="module")
def vlm():
    """A small model with random weights everywhere: zero-initialised outputs would hide mistakes."""
    torch.manual_seed(0)
    model, processor = tiny.build_language_model(TEXTS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval(), processor


def test_saved_and_loaded_with_auto_classes(vlm, tmp_path: Path) -> None:
    model, processor = vlm
    checkpoint.save(tmp_path, model, processor, family="tiny-vlm")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).train().eval()
    frozen = {n for n, p in again.named_parameters() if not p.requires_grad}
    assert frozen and all(n.startswith("model.dual_encoder.") for n in frozen)
    other = AutoProcessor.from_pretrained(tmp_path)
    batch = other(images=[picture(0)], text=[chat_prompt(other, "Name the objects.")], return_tensors="pt")
    assert torch.equal(model(**batch).logits, again(**batch).logits)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert (other.image_tokens, other.box_convention) == (16, "tiny")
    assert not list(tmp_path.glob("*.bin")) and (tmp_path / "model.safetensors").exists()


def test_a_language_model_grows_from_its_dual_encoder() -> None:
    torch.manual_seed(0)
    dual, processor = tiny.build_dual_encoder(TEXTS)
    model, _ = tiny.from_dual_encoder(dual.eval(), processor)
    pixels = torch.rand(2, 3, 64, 64)
    assert torch.equal(dual.get_image_features(pixels), model.eval().get_image_features(pixels))
    assert torch.equal(dual.vision(pixels), model.model.vision(pixels))
    assert not any(parameter.requires_grad for parameter in model.model.dual_encoder.parameters())
    assert type(AutoModel.from_config(dual.config)) is type(dual)


def test_generation_with_cache_and_padding_equals_without(vlm, tmp_path: Path) -> None:
    model, processor = vlm
    checkpoint.save(tmp_path, model, processor, family="tiny-vlm")
    loaded = load(tmp_path)
    prompts = ["Name the objects.", "Where is the red circle left of a blue square?", "a"]
    pictures = [picture(i) for i in range(3)]
    together = chat(loaded, pictures, prompts, max_new_tokens=6)
    for one, prompt, answer in zip(pictures, prompts, together, strict=True):
        batch = processor(images=[one], text=[chat_prompt(processor, prompt)], return_tensors="pt")
        ids = batch["input_ids"]
        for _ in range(6):
            best = model(input_ids=ids, pixel_values=batch["pixel_values"]).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, best], 1)
            if best.item() == processor.tokenizer.eos_token_id:
                break
        said = ids[0, batch["input_ids"].shape[1] :].tolist()
        said = said[:-1] if said[-1] == processor.tokenizer.eos_token_id else said
        assert processor.tokenizer.decode(said).strip() == answer


def test_packed_turns_do_not_see_each_other(vlm) -> None:
    """Each turn's logits, packed behind one picture, are those of the turn alone."""
    model, processor = vlm
    encode = processor.tokenizer
    turns = [
        ("Name the objects.", "a red circle<eos>"),
        ("Where is the red circle?", "<loc03><loc60><loc10><loc63><eos>"),
    ]
    tokens = [(encode(chat_prompt(processor, q, 0))["input_ids"], encode(a)["input_ids"]) for q, a in turns]
    pixels = resize_square(picture(1), 64)
    collator = PackedCollator(model.config.image_token_id, 16, 0)

    def logits(some):
        batch = collator([{"pixels": pixels, "turns": some}])
        labels = batch.pop("labels")
        return model(**batch).logits[:, :-1][labels[:, 1:] != -100]

    alone = torch.cat([logits([turn]) for turn in tokens])
    torch.testing.assert_close(logits(tokens), alone, atol=2e-5, rtol=1e-4)


def test_the_loss_is_the_mean_over_answer_tokens(vlm) -> None:
    model, processor = vlm
    encode = processor.tokenizer
    turn = (encode("<user>Name the objects.<assistant>")["input_ids"], encode("a red circle<eos>")["input_ids"])
    rows = [{"pixels": resize_square(picture(i), 64), "turns": [turn] * (i + 1)} for i in range(3)]
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


def test_pictures_and_placeholders_must_match(vlm) -> None:
    model, processor = vlm
    batch = processor(images=[picture(0)], text=["<image>"], return_tensors="pt")
    with pytest.raises(ValueError, match="1 images need 16 placeholders, but the text has 15"):
        model(batch["input_ids"][:, 1:], pixel_values=batch["pixel_values"])


def test_the_training_path_sees_what_the_processor_sees(vlm) -> None:
    """uint8 squares of the packed path and the processor's floats are the same picture."""
    _model, processor = vlm
    floats = processor.image_processor([picture(2)], return_tensors="pt")["pixel_values"]
    raw = torch.from_numpy(resize_square(picture(2), 64).copy())[None]
    torch.testing.assert_close(raw.float() / 127.5 - 1, floats, atol=0.02, rtol=0)


def test_scores_are_log_likelihoods_of_answers(vlm, tmp_path: Path) -> None:
    model, processor = vlm
    checkpoint.save(tmp_path, model, processor, family="tiny-vlm")
    loaded = load(tmp_path)
    pictures, prompts, answers = [picture(0), picture(1)], ["Name the objects."] * 2, ["a red circle", "a"]
    both = score(loaded, pictures, prompts, answers)
    alone = [score(loaded, [i], [p], [a])[0] for i, p, a in zip(pictures, prompts, answers, strict=True)]
    np.testing.assert_allclose(both, alone, rtol=1e-4)
    head = chat_prompt(processor, prompts[0])
    batch = processor(images=[pictures[0]], text=[head + "a red circle<eos>"], return_tensors="pt")
    logp = model(**batch).logits.log_softmax(-1)[0]
    ids = batch["input_ids"][0]
    count = len(processor.tokenizer("a red circle<eos>")["input_ids"])
    slow = sum(logp[i - 1, ids[i]].item() for i in range(len(ids) - count, len(ids)))
    assert both[0] == pytest.approx(slow, rel=1e-4)


def test_embeddings_are_unit_vectors(vlm, tmp_path: Path) -> None:
    model, processor = vlm
    checkpoint.save(tmp_path, model, processor, family="tiny-vlm")
    loaded = load(tmp_path)
    for vectors in (embed_images(loaded, [picture(0), picture(1)]), embed_texts(loaded, ["a red circle", "zq"])):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_clip_loss_against_a_slow_formula() -> None:
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


def test_a_new_block_adds_nothing_to_the_stream() -> None:
    model, _ = tiny.build_language_model(["a red circle"])
    towers = (model.model.vision, model.model.dual_encoder.vision, model.model.dual_encoder.text, model.model)
    for block in (block for tower in towers for block in tower.blocks):
        assert isinstance(block, Block)
        x = torch.randn(2, 5, block.qkv.in_features)
        assert torch.equal(block(x), x)


def test_near_places_have_near_waves() -> None:
    vectors = sinusoidal_positions(torch.linspace(0, 1, 64), 128)
    distance = (vectors[31] - vectors).norm(dim=1)
    assert distance[32] < distance[34] < distance[40] and distance[30] < distance[28]
