from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor, FlavaConfig, FlavaForPreTraining
from transformers.models.flava.image_processing_pil_flava import FlavaMaskingGenerator

from models.masked.flava import Flava, block_masks, build, swap_captions
from models.masked.token_masking import IGNORE_INDEX
from models.zoo import ZOO

TEXTS = ["a red circle left of a blue star", "two green crosses", "a blue star", "a red circle above two green stars"]
SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "image_layers": 2,
    "text_layers": 2,
    "fusion_layers": 2,
    "projection_dim": 24,
    "head_dim": 16,
    "text_length": 16,
    "codebook_size": 12,
    "max_masked_patches": 6,
    "min_block_patches": 2,
    "mask_probability": 0.4,
    "swap_probability": 0.5,
    "initializer_range": 0.2,  # large, so that the compared values are far from zero
}


@pytest.fixture(scope="module")
def model_and_processor():
    torch.manual_seed(0)
    model, processor = build(TEXTS * 3, **SIZES)
    return model.eval(), processor


@pytest.fixture
def batch(model_and_processor):
    tokens = model_and_processor[1].tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    return {"pixel_values": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), **tokens}


@pytest.fixture
def masks_and_partners(model_and_processor, batch):
    torch.manual_seed(2)
    masked_tokens = model_and_processor[0].hide_words(batch["input_ids"], batch["attention_mask"])
    return {
        "patch_mask": block_masks(4, 4, 6, 2, torch.device("cpu")),
        "masked_tokens": masked_tokens,
        "partner": torch.arange(4),
    }


def stock(model, batch, patch_mask, masked_tokens, partner, side) -> Any:
    """Return transformers' losses of the same model, with the given masks and partners."""
    classes = model.patch_classes(batch["pixel_values"])
    text = {
        "input_ids": batch["input_ids"][partner],
        "input_ids_masked": masked_tokens[0][partner],
        "attention_mask": batch["attention_mask"][partner],
        "mlm_labels": masked_tokens[1][partner],
    }
    image = {"pixel_values": batch["pixel_values"], "bool_masked_pos": patch_mask, "mim_labels": classes.clone()}
    both = {**text, **image, "itm_labels": (partner == torch.arange(len(partner))).long()}
    chosen = {"text": text, "image": image, "both": both}[side]
    return stock_forward(model, **chosen, return_loss=True).loss_info


def stock_forward(model, **given) -> Any:
    """Call the forward of transformers' class."""
    return FlavaForPreTraining.forward(model, **given, return_dict=True)


def test_the_six_losses_equal_those_of_transformers_on_pairs_texts_and_images(
    model_and_processor, batch, masks_and_partners
):
    model, _ = model_and_processor
    with torch.no_grad():
        ours = model(**batch, **masks_and_partners)
        pairs, text, image = (
            stock(model, batch, **masks_and_partners, side=side) for side in ("both", "text", "image")
        )
    assert pairs.mim is None and pairs.mlm is None  # transformers computes no unimodal losses of a paired batch
    assert {name for name, value in text.items() if value is not None} == {"mlm"}
    assert {name for name, value in image.items() if value is not None} == {"mim"}
    expected = {"mim": image.mim, "mlm": text.mlm, "itm": pairs.itm, "global_contrastive": pairs.global_contrastive}
    expected |= {"mmm_image": pairs.mmm_image, "mmm_text": pairs.mmm_text}
    assert ours.parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours.parts[name], value, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(ours.loss, torch.stack([*expected.values()]).sum())


def test_swapped_captions_only_count_for_matching_as_in_transformers(model_and_processor, batch, masks_and_partners):
    model, _ = model_and_processor
    masks_and_partners["partner"] = torch.tensor([2, 1, 0, 3])
    with torch.no_grad():
        ours, paired = (
            model(**batch, **masks_and_partners).parts,
            stock(model, batch, **masks_and_partners, side="both"),
        )
    for name in ("itm", "mmm_image", "mmm_text"):
        torch.testing.assert_close(ours[name], paired[name])
    pixels = batch["pixel_values"].requires_grad_()
    parts = model(**batch, **masks_and_partners).parts
    fused = (
        torch.autograd.grad(parts["mmm_image"] + parts["mmm_text"], pixels, retain_graph=True)[0].abs().sum((1, 2, 3))
    )
    assert (fused > 0).tolist() == [False, True, False, True]
    assert (torch.autograd.grad(parts["itm"], pixels)[0].abs().sum((1, 2, 3)) > 0).all()


def test_the_contrastive_loss_ignores_masking_and_swapping(model_and_processor, batch, masks_and_partners):
    model, _ = model_and_processor
    with torch.no_grad():
        one = model(**batch, **masks_and_partners).parts
        other = model(
            **batch,
            **{
                **masks_and_partners,
                "patch_mask": ~masks_and_partners["patch_mask"],
                "partner": torch.tensor([1, 2, 3, 0]),
            },
        ).parts
        image, text = (
            model.get_image_features(batch["pixel_values"]),
            model.get_text_features(batch["input_ids"], batch["attention_mask"]),
        )
    assert torch.equal(one["global_contrastive"], other["global_contrastive"])
    assert not torch.equal(one["mim"], other["mim"])
    logits = [[float(F.cosine_similarity(x, y, dim=0)) / 0.07 for y in text] for x in image]
    rows = [-torch.tensor(logits[i]).log_softmax(0)[i] for i in range(4)]
    columns = [-torch.tensor([logits[j][i] for j in range(4)]).log_softmax(0)[i] for i in range(4)]
    torch.testing.assert_close(one["global_contrastive"], torch.stack(rows + columns).mean(), rtol=1e-4, atol=1e-4)


def test_a_swapped_caption_with_equal_text_is_a_match(model_and_processor, batch, masks_and_partners):
    model, _ = model_and_processor
    for name in ("input_ids", "attention_mask"):
        batch[name] = batch[name][[0, 0, 2, 3]]
    masks_and_partners["masked_tokens"] = tuple(x[[0, 0, 2, 3]] for x in masks_and_partners["masked_tokens"])
    with torch.no_grad():
        own = model(**batch, **masks_and_partners).parts
        same = model(**batch, **{**masks_and_partners, "partner": torch.tensor([1, 0, 2, 3])}).parts
        wrong = model(**batch, **{**masks_and_partners, "partner": torch.tensor([0, 2, 1, 3])}).parts
    torch.testing.assert_close(own["itm"], same["itm"])
    assert not torch.allclose(own["itm"], wrong["itm"])


def test_match_score_and_fill_mask_equal_transformers_heads_and_depend_on_the_image(model_and_processor, batch):
    model, _ = model_and_processor
    batch["input_ids"][:, 2] = model.config.mask_token_id
    with torch.no_grad():
        given = {**batch, "input_ids_masked": batch["input_ids"]}
        output = stock_forward(model, **given, return_loss=False)
        match, fill = model.match_score(**batch), model.fill_mask(**batch)
        batch["pixel_values"] = batch["pixel_values"].flip(0)
        assert not torch.allclose(fill, model.fill_mask(**batch))
        assert not torch.allclose(match, model.match_score(**batch))
    torch.testing.assert_close(match, output.itm_logits[:, 1] - output.itm_logits[:, 0])
    torch.testing.assert_close(fill, output.mmm_text_logits)


def test_attention_maps_are_the_last_fusion_layers_attention_to_the_patches(model_and_processor, batch):
    model, _ = model_and_processor
    with torch.no_grad():
        output = model.encode_pairs(**batch, output_hidden_states=True)
        layer = model.flava.multimodal_model.encoder.layer[-1]
        attention, x = layer.attention.attention, layer.layernorm_before(output.hidden_states[-2])
        query, key = (f(x).unflatten(-1, (2, 16)).transpose(1, 2) for f in (attention.query, attention.key))
        visible = torch.cat([torch.ones(4, 2 + 16), batch["attention_mask"]], 1)[:, None, None].bool()
        weights = (query @ key.mT / 4).masked_fill(~visible, -1e9).softmax(-1).mean(1)  # (N, 2 + 16 + L, 2 + 16 + L)
        maps = model.attention_maps(**batch)
    length = batch["input_ids"].shape[1]
    assert maps.shape == (4, length, 4, 4)
    torch.testing.assert_close(maps[:, :, 2, 1], weights[:, -length:, 2 + 4 * 2 + 1])
    torch.testing.assert_close(maps.flatten(2), weights[:, -length:, 2 : 2 + 16])


def test_padding_does_not_change_the_outputs(model_and_processor, batch):
    model, _ = model_and_processor
    longer = {name: F.pad(batch[name], (0, 4)) for name in ("input_ids", "attention_mask")}
    longer["pixel_values"] = batch["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(model.match_score(**batch), model.match_score(**longer))
        torch.testing.assert_close(
            model.get_text_features(batch["input_ids"], batch["attention_mask"]),
            model.get_text_features(longer["input_ids"], longer["attention_mask"]),
        )


def test_every_trainable_parameter_gets_a_gradient(model_and_processor, batch):
    model, _ = model_and_processor
    torch.manual_seed(0)
    model(**batch).loss.backward()
    without_gradient = [
        name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    # Attention is invariant to a shift of all keys, so the gradient of the key bias is only rounding error.
    assert not [name for name in without_gradient if not name.endswith("key.bias")]
    model.zero_grad()


def test_block_masks_are_rectangles_up_to_the_papers_number_of_patches():
    torch.manual_seed(0)
    masks = block_masks(500, 14, 75, 16, torch.device("cpu"))
    counts = masks.sum(1)
    stock_counts = torch.stack([FlavaMaskingGenerator(14, 75, mask_group_min_patches=16)() for _ in range(100)]).sum(
        (1, 2)
    )
    assert counts.max() <= 75
    assert abs(counts.float().mean() - stock_counts.float().mean()) < 3
    # The neighbour of a masked patch is masked far more often than with independent draws (38%).
    grid = masks.view(-1, 14, 14)
    assert (grid[:, :, 1:] & grid[:, :, :-1]).sum() / grid[:, :, :-1].sum() > 0.7
    # Most masks are a single block that fills its bounding box; its aspect ratio is at most 1/0.3, up to rounding.
    single = block_masks(500, 14, 16, 16, torch.device("cpu")).view(-1, 14, 14)
    tall, wide = single.any(2).sum(1), single.any(1).sum(1)
    filled = single.sum((1, 2))
    is_rectangle = filled == tall * wide
    assert is_rectangle.float().mean() > 0.6
    assert (torch.maximum(tall, wide) / torch.minimum(tall, wide))[is_rectangle & (filled >= 12)].max() <= 4.5


def test_swap_captions_permutes_a_share_of_the_captions():
    torch.manual_seed(0)
    partner = swap_captions(10000, 0.3, torch.device("cpu"))
    assert sorted(partner.tolist()) == list(range(10000))
    assert abs((partner != torch.arange(10000)).float().mean() - 0.3) < 0.02
    assert torch.equal(swap_captions(8, 0.0, torch.device("cpu")), torch.arange(8))


def test_the_loss_is_the_weighted_sum(batch):
    torch.manual_seed(0)
    model, _ = build(TEXTS * 3, **SIZES, loss_weights={"itm": 2.0, "mim": 0.0})
    with torch.no_grad():
        out = model(**batch)
    parts = out.parts
    pairs = parts["global_contrastive"] + parts["mmm_image"] + parts["mmm_text"]
    torch.testing.assert_close(out.loss, pairs + parts["mlm"] + 2 * parts["itm"])


def test_masks_are_drawn_from_the_global_generator(model_and_processor, batch):
    model, _ = model_and_processor
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            losses.append(model(**batch).loss)
    assert losses[0] == losses[1] != losses[2]


def test_hide_words_masks_at_least_one_ordinary_token_of_every_row(model_and_processor, batch):
    model, processor = model_and_processor
    masked, labels = model.hide_words(batch["input_ids"], batch["attention_mask"])
    assert (labels != IGNORE_INDEX).any(1).all()
    assert not torch.isin(labels, torch.tensor(processor.tokenizer.all_special_ids)).any()
    assert (masked == processor.tokenizer.mask_token_id).any()


def test_a_saved_model_loads_with_our_class_and_with_auto_model(model_and_processor, batch, tmp_path):
    model, processor = model_and_processor
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, towers = (
        ZOO["flava"].model_class.from_pretrained(tmp_path).eval(),
        AutoModel.from_pretrained(tmp_path).eval(),
    )
    with torch.no_grad():
        assert torch.equal(model.match_score(**batch), again.match_score(**batch))
        assert torch.equal(model.patch_classes(batch["pixel_values"]), again.patch_classes(batch["pixel_values"]))
        stock_features = towers.get_image_features(batch["pixel_values"]).pooler_output[:, 0]
        assert torch.equal(model.get_image_features(batch["pixel_values"]), stock_features)
    assert again.config.max_masked_patches == 6
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.tokenizer("two crosses")["input_ids"] == processor.tokenizer("two crosses")["input_ids"]
    assert loaded.image_processor.size == processor.image_processor.size


def test_the_codebook_of_public_weights_is_used(batch, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = FlavaConfig(
        text_config={**sizes, "vocab_size": 400, "max_position_embeddings": 16},
        image_config={**sizes, "image_size": 32, "patch_size": 16, "vocab_size": 9},
        multimodal_config=sizes,
        image_codebook_config={"hidden_size": 4, "vocab_size": 9, "num_blocks_per_group": 1},
        hidden_size=16,
        projection_dim=16,
    )
    public: Any = FlavaForPreTraining(config).eval()
    public.save_pretrained(tmp_path)
    ours = Flava.from_pretrained(tmp_path).eval()
    assert ours.config.mask_token_id == 103  # of BERT's tokenizer, with which the public weights were trained
    pixels = batch["pixel_values"]
    with torch.no_grad():
        assert torch.equal(ours.get_image_features(pixels), public.flava.get_image_features(pixels).pooler_output[:, 0])
        classes = ours.patch_classes(pixels)
        mean, std = (
            torch.tensor([0.48145466, 0.4578275, 0.40821073]),
            torch.tensor([0.26862954, 0.26130258, 0.27577711]),
        )
        unnormalised = (pixels.permute(0, 2, 3, 1) * std + mean).permute(0, 3, 1, 2)
        halved = F.interpolate(unnormalised, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
        assert torch.equal(classes, public.image_codebook.get_codebook_indices(halved * 0.8 + 0.1).view(4, 4))
        loss = ours(**batch).loss
    assert loss.isfinite()
