import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor

from models.masked.mask_vlm import MaskVLM, MaskVLMConfig, build, patch_to_pixel_mask
from models.masked.random_codebook import patchify
from models.zoo import ZOO

COLOURS = {"red": (1.5, -1.0, -1.0), "green": (-1.0, 1.5, -1.0), "blue": (-1.0, -1.0, 1.5)}
TEXTS = [f"a {colour} image" for colour in COLOURS]
SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "stem_channels": (8, 16),
    "hidden_size": 32,
    "image_layers": 1,
    "text_layers": 1,
    "cross_layers": 2,
    "head_dim": 16,
    "mlp_ratio": 2,
    "projection_dim": 16,
    "text_length": 8,
}


def build_model(seed=0):
    torch.manual_seed(seed)
    model, processor = build(TEXTS * 3, **SIZES)
    return model.eval(), processor


def randomized(model):
    """Randomize the weights: blocks start as the identity, and tests need every path to have an effect."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    return model


@pytest.fixture(scope="module")
def model_and_processor():
    model, processor = build_model()
    return randomized(model), processor


def pairs(processor, count=6, seed=0):
    """Return noisy images of one colour each, and captions that name the colour."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.arange(count) % 3
    pixels = torch.tensor(list(COLOURS.values()))[colours][:, :, None, None].expand(count, 3, 32, 32)
    tokens = processor.tokenizer([TEXTS[i] for i in colours], return_tensors="pt", return_token_type_ids=False)
    return {"pixel_values": pixels + 0.1 * torch.randn(pixels.shape, generator=generator), **tokens}


def fully_masked(processor):
    """Return a batch and masks that cover the whole image and the word of the colour.

    A masked modality can then only be predicted from the other one.
    """
    batch = pairs(processor)
    labels = torch.full_like(batch["input_ids"], -100)
    positions = [
        processor.tokenizer.convert_ids_to_tokens(row).index(f"▁{c}")
        for row, c in zip(batch["input_ids"].tolist(), [*COLOURS] * 2, strict=True)
    ]
    masked, rows = batch["input_ids"].clone(), torch.arange(6)
    labels[rows, positions] = masked[rows, positions]
    masked[rows, positions] = processor.tokenizer.mask_token_id
    return batch, {"patch_mask": torch.ones(6, 16, dtype=torch.bool), "masked_tokens": (masked, labels)}


def test_each_modality_is_predicted_from_the_other():
    model, processor = build_model()
    batch, masks = fully_masked(processor)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch, **masks).loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        parts = model(**batch, **masks).parts
        # The other modality is taken from the next pair, which has another colour.
        ids, pixels = batch["input_ids"].roll(1, 0), batch["pixel_values"].roll(1, 0)
        (masked_ids, labels), patch_mask = masks["masked_tokens"], masks["patch_mask"]
        image, text = model.image(batch["pixel_values"], patch_mask), model.text(masked_ids, batch["attention_mask"])
        other = model.text(ids, batch["attention_mask"])
        predicted = model.predict_patches(image, other, batch["attention_mask"])
        mim_other_text = F.l1_loss(predicted, patchify(batch["pixel_values"], 8))
        mim_no_text = F.l1_loss(
            model.predict_patches(image, 0 * other, batch["attention_mask"]), patchify(batch["pixel_values"], 8)
        )
        token_mask = labels != -100
        logits = model.predict_tokens(text, model.image(pixels))
        mlm_other_image = F.cross_entropy(logits[token_mask], labels[token_mask])
        logits = model.predict_tokens(text, 0 * model.image(batch["pixel_values"]))
        mlm_no_image = F.cross_entropy(logits[token_mask], labels[token_mask])
    assert parts["mim"] < 0.3 and parts["mlm"] < 0.3
    assert min(mim_other_text, mim_no_text) > 2 * parts["mim"]
    assert min(mlm_other_image, mlm_no_image) > 2 * parts["mlm"]
    with torch.no_grad():
        filled = model.fill_mask(masked_ids, batch["attention_mask"], batch["pixel_values"]).argmax(-1)
        assert (filled[token_mask] == labels[token_mask]).all()
        reconstructed = model.reconstruct(patch_mask=patch_mask, **batch)
        assert (reconstructed.mean((2, 3)).argmax(1) == torch.arange(6) % 3).all()


def test_losses_equal_a_slow_formula(model_and_processor):
    model, processor = model_and_processor
    batch = pairs(processor)
    torch.manual_seed(3)
    patch_mask, words = model.hide_patches(6), model.hide_words(batch["input_ids"], batch["attention_mask"])
    with torch.no_grad():
        parts = model(**batch, patch_mask=patch_mask, masked_tokens=words).parts
        reconstructed = model.reconstruct(patch_mask=patch_mask, **batch)
        logits = model.fill_mask(words[0], batch["attention_mask"], batch["pixel_values"])
        image, text = (
            model.get_image_features(batch["pixel_values"]),
            model.get_text_features(batch["input_ids"], batch["attention_mask"]),
        )
    assert patch_mask.sum(1).tolist() == [10] * 6  # 60% of 16; the number of visible patches is rounded down
    pixels = []
    for n, patch in patch_mask.nonzero().tolist():
        y, x = 8 * (patch // 4), 8 * (patch % 4)
        pixels.append((reconstructed - batch["pixel_values"])[n, :, y : y + 8, x : x + 8].abs())
    torch.testing.assert_close(parts["mim"], torch.stack(pixels).mean())
    nll = [-logits[n, i].log_softmax(0)[words[1][n, i]] for n, i in (words[1] != -100).nonzero().tolist()]
    torch.testing.assert_close(parts["mlm"], torch.stack(nll).mean())
    cosines = image @ text.T / 0.07
    expected = [x[i].log_softmax(0)[i] for x in (cosines, cosines.T) for i in range(6)]
    torch.testing.assert_close(parts["itc"], -torch.stack(expected).mean())


def test_visible_pixels_are_no_target_and_masked_pixels_are_not_encoded(model_and_processor):
    model, processor = model_and_processor
    batch = pairs(processor)
    patch_mask = torch.zeros(6, 16, dtype=torch.bool)
    patch_mask[:, [0, 5, 6, 15]] = True
    pixel_mask = patch_to_pixel_mask(patch_mask, 8, 32).expand(6, 3, 32, 32)
    pixels = batch["pixel_values"]
    target = pixels.clone().requires_grad_()
    with torch.no_grad():
        predicted = model.predict_patches(
            model.image(pixels, patch_mask),
            model.text(batch["input_ids"], batch["attention_mask"]),
            batch["attention_mask"],
        )
        before = model.reconstruct(patch_mask=patch_mask, **batch)
        after = model.reconstruct(
            patch_mask=patch_mask, **{**batch, "pixel_values": torch.where(pixel_mask, 9.0, pixels)}
        )
        changed = model.reconstruct(
            patch_mask=patch_mask, **{**batch, "pixel_values": torch.where(pixel_mask, pixels, pixels + 1)}
        )
    F.l1_loss(predicted[patch_mask], patchify(target, 8)[patch_mask]).backward()
    assert ((target.grad != 0) == pixel_mask).all()
    assert torch.equal(before[pixel_mask], after[pixel_mask])
    assert torch.equal(before[~pixel_mask], pixels[~pixel_mask])
    assert not torch.allclose(before[pixel_mask], changed[pixel_mask])


def test_gradients_of_each_masked_loss_reach_every_input_of_the_other_modality(model_and_processor):
    model, processor = model_and_processor
    batch = pairs(processor)
    torch.manual_seed(0)
    parts = model(**batch).parts
    of_mlm = torch.autograd.grad(parts["mlm"], model.image.positions, retain_graph=True)[0]
    of_mim = torch.autograd.grad(parts["mim"], model.text.tokens.weight)[0]
    assert (of_mlm.abs().sum(1) > 0).all()  # every patch: tokens attend to the unmasked image
    used = batch["input_ids"].unique()
    assert (of_mim[used].abs().sum(1) > 0).all()


def test_every_parameter_gets_a_gradient(model_and_processor):
    model, processor = model_and_processor
    torch.manual_seed(0)
    model(**pairs(processor)).loss.backward()
    without_gradient = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Attention is invariant to a shift of all keys, so the gradient of the key bias is only rounding error.
    assert not [name for name in without_gradient if not name.endswith("key.bias")]
    model.zero_grad()


def test_negatives_are_the_most_similar_pairs_and_never_have_equal_captions(model_and_processor):
    model, processor = model_and_processor
    batch = pairs(processor)
    with torch.no_grad():
        image = model.image(batch["pixel_values"])
        text = model.text(batch["input_ids"], batch["attention_mask"])
        mask = batch["attention_mask"]
        same = (batch["input_ids"][:, None] == batch["input_ids"][None]).all(-1)
        assert same.sum() == 12  # each caption equals itself and the other one of its colour
        # Image i is most similar to text i + 1, text j to image j + 2; the logits make the draws deterministic.
        logits = torch.zeros(6, 6)
        logits[torch.arange(6), (torch.arange(6) + 1) % 6] = 1000
        logits[(torch.arange(6) + 2) % 6, torch.arange(6)] = 900
        logits[torch.arange(6), (torch.arange(6) + 3) % 6] = 5000  # equal captions: must not be masks
        loss = model.matching(image, text, mask, logits, same)
        rows = []
        for i in range(6):
            rows.append(-model.match_logits(image[i : i + 1], text[i : i + 1], mask[i : i + 1]).log_softmax(1)[0, 1])
            hard = (i + 1) % 6
            rows.append(
                -model.match_logits(image[i : i + 1], text[hard : hard + 1], mask[hard : hard + 1]).log_softmax(1)[0, 0]
            )
            hard = max((k for k in range(6) if not same[k, i]), key=lambda k, i=i: logits[k, i])
            rows.append(
                -model.match_logits(image[hard : hard + 1], text[i : i + 1], mask[i : i + 1]).log_softmax(1)[0, 0]
            )
        torch.testing.assert_close(loss, torch.stack(rows).mean())
        one_caption = model.matching(image[::3], text[::3], mask[::3], logits[::3, ::3], same[::3, ::3])
    assert one_caption.isfinite()  # a batch with a single caption has no negatives


def test_padding_does_not_change_the_outputs(model_and_processor):
    model, processor = model_and_processor
    batch = pairs(processor)
    longer = {name: F.pad(batch[name], (0, 2)) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(model.match_score(**batch), model.match_score(batch["pixel_values"], **longer))
        patch_mask = model.hide_patches(6)
        one, other = (
            model.reconstruct(batch["pixel_values"], patch_mask, **x)
            for x in ({name: batch[name] for name in longer}, longer)
        )
        torch.testing.assert_close(one, other)


def test_cross_attention_of_the_first_token_does_not_depend_on_other_tokens(model_and_processor):
    model, processor = model_and_processor
    batch = pairs(processor)
    with torch.no_grad():
        image, text = model.image(batch["pixel_values"]), model.text(batch["input_ids"], batch["attention_mask"])
        whole = model.text_cross(text, image)[:, :1]
        torch.testing.assert_close(model.text_cross(text[:, :1], image), whole)


def test_a_saved_model_gives_equal_outputs_when_loaded(model_and_processor, tmp_path):
    model, processor = model_and_processor
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = pairs(processor)
    with torch.no_grad():
        for again in (
            AutoModel.from_pretrained(tmp_path).eval(),
            ZOO["mask-vlm"].model_class.from_pretrained(tmp_path).eval(),
        ):
            assert torch.equal(model.match_score(**batch), again.match_score(**batch))
    assert (
        AutoProcessor.from_pretrained(tmp_path).tokenizer("red")["input_ids"] == processor.tokenizer("red")["input_ids"]
    )


def test_initial_weights_are_initialized_and_blocks_start_as_the_identity():
    model, _ = build_model()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.image.positions.std() > 0.05 and model.text.positions.std() > 0.05
    assert model.image.mask_token.any() and model.image.cls_token.any()
    x, other = torch.randn(2, 3, 32), torch.randn(2, 5, 32)
    assert torch.equal(model.text_cross.blocks[0](x, other, None), x)
    assert abs(model.scale.item() - 1 / 0.07) < 1e-3


def test_a_stem_whose_strides_do_not_give_the_patch_size_is_refused():
    with pytest.raises(ValueError, match="3 strides of 2 do not make a patch_size of 16"):
        MaskVLMConfig(patch_size=16, stem_channels=(8, 16))
    assert isinstance(
        MaskVLM(MaskVLMConfig(hidden_size=24, image_layers=1, text_layers=1, cross_layers=1, vocab_size=9)).image.stem[
            0
        ],
        torch.nn.Conv2d,
    )
