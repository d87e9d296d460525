import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor

from models.masked.mask_vlm import MaskVLM, MaskVLMConfig, build, patch_to_pixel_mask
from models.masked.random_codebook import patchify
from models.zoo import ZOO

COLOURS = {"red": (1.5, -1.0, -1.0), "green": (-1.0, 1.5, -1.0), "blue": (-1.0, -1.0, 1.5)}
TEXTS = [f"a {colour} picture" for colour in COLOURS]
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


def new(seed=0):
    torch.manual_seed(seed)
    model, processor = build(TEXTS * 3, **SIZES)
    return model.eval(), processor


def stirred(model):
    """Blocks start as the identity; with other weights every path counts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    return model


@pytest.fixture(scope="module")
def made():
    model, processor = new()
    return stirred(model), processor


def pairs(processor, count=6, seed=0):
    """Pictures of one colour each, with noise, and captions that name it."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.arange(count) % 3
    pixels = torch.tensor(list(COLOURS.values()))[which][:, :, None, None].expand(count, 3, 32, 32)
    words = processor.tokenizer([TEXTS[i] for i in which], return_tensors="pt", return_token_type_ids=False)
    return {"pixel_values": pixels + 0.1 * torch.randn(pixels.shape, generator=generator), **words}


def blind(processor):
    """A batch whose hidden side says nothing by itself: the whole picture, and the colour's word."""
    batch = pairs(processor)
    labels = torch.full_like(batch["input_ids"], -100)
    place = [
        processor.tokenizer.convert_ids_to_tokens(row).index(f"▁{c}")
        for row, c in zip(batch["input_ids"].tolist(), [*COLOURS] * 2, strict=True)
    ]
    masked, rows = batch["input_ids"].clone(), torch.arange(6)
    labels[rows, place] = masked[rows, place]
    masked[rows, place] = processor.tokenizer.mask_token_id
    return batch, {"patch_mask": torch.ones(6, 16, dtype=torch.bool), "masked_tokens": (masked, labels)}


def test_each_hidden_side_is_found_by_looking_at_the_other():
    model, processor = new()
    batch, drawn = blind(processor)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch, **drawn).loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        parts = model(**batch, **drawn).parts
        # The other side of the next pair, whose colour is another.
        ids, pixels = batch["input_ids"].roll(1, 0), batch["pixel_values"].roll(1, 0)
        words, hidden = drawn["masked_tokens"], drawn["patch_mask"]
        picture, text = model.image(batch["pixel_values"], hidden), model.text(words[0], batch["attention_mask"])
        other = model.text(ids, batch["attention_mask"])
        painted = model.predict_patches(picture, other, batch["attention_mask"])
        misled = F.l1_loss(painted, patchify(batch["pixel_values"], 8))
        nothing = F.l1_loss(
            model.predict_patches(picture, 0 * other, batch["attention_mask"]), patchify(batch["pixel_values"], 8)
        )
        told = words[1] != -100
        unseen = F.cross_entropy(model.predict_tokens(text, model.image(pixels))[told], words[1][told])
        empty = F.cross_entropy(
            model.predict_tokens(text, 0 * model.image(batch["pixel_values"]))[told], words[1][told]
        )
    assert parts["mim"] < 0.3 and parts["mlm"] < 0.3
    assert min(misled, nothing) > 2 * parts["mim"]
    assert min(unseen, empty) > 2 * parts["mlm"]
    with torch.no_grad():
        assert (
            model.fill_mask(words[0], batch["attention_mask"], batch["pixel_values"]).argmax(-1)[told] == words[1][told]
        ).all()
        picture = model.reconstruct(patch_mask=hidden, **batch)
        assert (picture.mean((2, 3)).argmax(1) == torch.arange(6) % 3).all()


def test_losses_are_those_of_a_slow_formula(made):
    model, processor = made
    batch, words = pairs(processor), None
    torch.manual_seed(3)
    hidden, words = model.hide_patches(6), model.hide_words(batch["input_ids"], batch["attention_mask"])
    with torch.no_grad():
        parts = model(**batch, patch_mask=hidden, masked_tokens=words).parts
        painted = model.reconstruct(patch_mask=hidden, **batch)
        logits = model.fill_mask(words[0], batch["attention_mask"], batch["pixel_values"])
        image, text = (
            model.get_image_features(batch["pixel_values"]),
            model.get_text_features(batch["input_ids"], batch["attention_mask"]),
        )
    assert hidden.sum(1).tolist() == [10] * 6  # 60% of 16, and what is left rounded down
    pixels = []
    for n, patch in hidden.nonzero().tolist():
        y, x = 8 * (patch // 4), 8 * (patch % 4)
        pixels.append((painted - batch["pixel_values"])[n, :, y : y + 8, x : x + 8].abs())
    torch.testing.assert_close(parts["mim"], torch.stack(pixels).mean())
    said = [-logits[n, i].log_softmax(0)[words[1][n, i]] for n, i in (words[1] != -100).nonzero().tolist()]
    torch.testing.assert_close(parts["mlm"], torch.stack(said).mean())
    cosines = image @ text.T / 0.07
    expected = [x[i].log_softmax(0)[i] for x in (cosines, cosines.T) for i in range(6)]
    torch.testing.assert_close(parts["itc"], -torch.stack(expected).mean())


def test_visible_pixels_are_no_target_and_hidden_ones_are_not_seen(made):
    model, processor = made
    batch = pairs(processor)
    hidden = torch.zeros(6, 16, dtype=torch.bool)
    hidden[:, [0, 5, 6, 15]] = True
    where = patch_to_pixel_mask(hidden, 8, 32).expand(6, 3, 32, 32)
    pixels = batch["pixel_values"]
    target = pixels.clone().requires_grad_()
    with torch.no_grad():
        painted = model.predict_patches(
            model.image(pixels, hidden),
            model.text(batch["input_ids"], batch["attention_mask"]),
            batch["attention_mask"],
        )
        before = model.reconstruct(patch_mask=hidden, **batch)
        after = model.reconstruct(patch_mask=hidden, **{**batch, "pixel_values": torch.where(where, 9.0, pixels)})
        moved = model.reconstruct(
            patch_mask=hidden, **{**batch, "pixel_values": torch.where(where, pixels, pixels + 1)}
        )
    F.l1_loss(painted[hidden], patchify(target, 8)[hidden]).backward()
    assert ((target.grad != 0) == where).all()
    assert torch.equal(before[where], after[where])
    assert torch.equal(before[~where], pixels[~where])
    assert not torch.allclose(before[where], moved[where])


def test_gradients_of_each_masked_loss_reach_the_other_side_and_the_whole_of_it(made):
    model, processor = made
    batch = pairs(processor)
    torch.manual_seed(0)
    parts = model(**batch).parts
    of_mlm = torch.autograd.grad(parts["mlm"], model.image.positions, retain_graph=True)[0]
    of_mim = torch.autograd.grad(parts["mim"], model.text.tokens.weight)[0]
    assert (of_mlm.abs().sum(1) > 0).all()  # every patch: the picture is whole where words look at it
    said = batch["input_ids"].unique()
    assert (of_mim[said].abs().sum(1) > 0).all()


def test_every_parameter_learns(made):
    model, processor = made
    torch.manual_seed(0)
    model(**pairs(processor)).loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Attention is blind to what moves all keys alike: their bias has no gradient but rounding.
    assert not [name for name in still if not name.endswith("key.bias")]
    model.zero_grad()


def test_mismatches_are_the_ones_that_contrast_finds_alike_and_never_say_the_same(made):
    model, processor = made
    batch = pairs(processor)
    with torch.no_grad():
        picture = model.image(batch["pixel_values"])
        text = model.text(batch["input_ids"], batch["attention_mask"])
        mask = batch["attention_mask"]
        same = (batch["input_ids"][:, None] == batch["input_ids"][None]).all(-1)
        assert same.sum() == 12  # each with itself and with the one of its colour
        # Picture i is most like text i + 1, text j most like picture j + 2: so certain that nothing is left to chance.
        logits = torch.zeros(6, 6)
        logits[torch.arange(6), (torch.arange(6) + 1) % 6] = 1000
        logits[(torch.arange(6) + 2) % 6, torch.arange(6)] = 900
        logits[torch.arange(6), (torch.arange(6) + 3) % 6] = 5000  # the same colour: must not be drawn
        loss = model.matching(picture, text, mask, logits, same)
        rows = []
        for i in range(6):
            rows.append(-model.match_logits(picture[i : i + 1], text[i : i + 1], mask[i : i + 1]).log_softmax(1)[0, 1])
            hard = (i + 1) % 6
            rows.append(
                -model.match_logits(picture[i : i + 1], text[hard : hard + 1], mask[hard : hard + 1]).log_softmax(1)[
                    0, 0
                ]
            )
            hard = max((k for k in range(6) if not same[k, i]), key=lambda k, i=i: logits[k, i])
            rows.append(
                -model.match_logits(picture[hard : hard + 1], text[i : i + 1], mask[i : i + 1]).log_softmax(1)[0, 0]
            )
        torch.testing.assert_close(loss, torch.stack(rows).mean())
        alone = model.matching(picture[::3], text[::3], mask[::3], logits[::3, ::3], same[::3, ::3])
    assert alone.isfinite()  # a batch of one caption has no mismatch


def test_padding_changes_nothing(made):
    model, processor = made
    batch = pairs(processor)
    longer = {name: F.pad(batch[name], (0, 2)) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(model.match_score(**batch), model.match_score(batch["pixel_values"], **longer))
        hidden = model.hide_patches(6)
        one, other = (
            model.reconstruct(batch["pixel_values"], hidden, **x)
            for x in ({name: batch[name] for name in longer}, longer)
        )
        torch.testing.assert_close(one, other)


def test_the_first_token_needs_no_other_token_to_look_at_the_other_side(made):
    model, processor = made
    batch = pairs(processor)
    with torch.no_grad():
        picture, text = model.image(batch["pixel_values"]), model.text(batch["input_ids"], batch["attention_mask"])
        whole = model.text_cross(text, picture)[:, :1]
        torch.testing.assert_close(model.text_cross(text[:, :1], picture), whole)


def test_a_saved_model_is_the_same_again(made, tmp_path):
    model, processor = made
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


def test_initial_weights_are_drawn_and_the_blocks_start_as_the_identity():
    model, _ = new()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.image.positions.std() > 0.05 and model.text.positions.std() > 0.05
    assert model.image.mask_token.any() and model.image.cls_token.any()
    x, other = torch.randn(2, 3, 32), torch.randn(2, 5, 32)
    assert torch.equal(model.text_cross.blocks[0](x, other, None), x)
    assert abs(model.scale.item() - 1 / 0.07) < 1e-3


def test_a_stem_that_does_not_make_a_patch_is_refused():
    with pytest.raises(ValueError, match="3 strides of 2 do not make a patch_size of 16"):
        MaskVLMConfig(patch_size=16, stem_channels=(8, 16))
    assert isinstance(
        MaskVLM(MaskVLMConfig(hidden_size=24, image_layers=1, text_layers=1, cross_layers=1, vocab_size=9)).image.stem[
            0
        ],
        torch.nn.Conv2d,
    )
