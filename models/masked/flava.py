"""FLAVA: an image encoder, a text encoder and a multimodal encoder, trained with six losses.

The image and the text encoder each read one modality. The multimodal encoder attends to the states of both, joined to
one sequence with its own class token in front. The encoders and heads are transformers' `FlavaForPreTraining`, so
that public weights load; masking, caption swapping and the weighted sum of the losses are implemented here.
Source: Singh et al. 2022, section 3.
"""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import FlavaConfig, FlavaForPreTraining, FlavaProcessor
from transformers.models.flava.image_processing_pil_flava import FlavaImageProcessorPil

from models.contrastive.losses import clip_loss
from models.masked.random_codebook import RandomCodebook, patchify
from models.masked.token_masking import IGNORE_INDEX, mask_tokens
from models.outputs import PretrainingOutput
from models.tokenizer import build_tokenizer


@strict
class FlavaPretrainingConfig(FlavaConfig):
    """FLAVA's config plus masking and caption swapping; the default token ids are those of the public vocabulary.

    max_masked_patches: maximum number of masked patches of an image, in blocks of at least `min_block_patches`.
    mask_probability: probability that a token is masked.
    swap_probability: probability that a pair gets another pair's caption, as a negative for matching.
    """

    max_masked_patches: int = 75
    min_block_patches: int = 16
    mask_probability: float = 0.15
    swap_probability: float = 0.1
    mask_token_id: int = 103
    special_ids: tuple[int, ...] | list[int] = (0, 100, 101, 102, 103)


class Flava(FlavaForPreTraining):
    """`FlavaForPreTraining` with its own masking and caption swapping, trained on pairs only.

    A unimodal encoder does not depend on the other modality. One pass over masked pairs therefore gives both the losses
    that the paper computes on unpaired images and texts, and the input of the multimodal encoder.
    """

    config: Any
    config_class = FlavaPretrainingConfig
    image_codebook: Any  # the discrete VAE's encoder, if public weights contain it

    def __init__(self, config: Any):
        super().__init__(config)
        if self.image_codebook is None:
            self.codebook = RandomCodebook(config.image_config.patch_size, config.image_config.vocab_size)
        for encoder in (self.flava.image_model, self.flava.text_model, self.flava.multimodal_model):
            cast(nn.Module, encoder.pooler).requires_grad_(False)  # no loss uses them

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, RandomCodebook):
            module.init_codewords()
        else:
            super()._init_weights(module)  # type: ignore[arg-type]

    @property
    def scale(self) -> torch.Tensor:
        """The factor on cosine similarities, from 1 to 100."""
        return self.flava.logit_scale.clamp(0, math.log(100.0)).exp()

    def get_image_features(self, pixel_values: torch.Tensor, **_: Any) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns (N, D) in the space of the contrastive loss."""
        return self.flava.image_projection(self.flava.image_model(pixel_values).last_hidden_state[:, 0])

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> torch.Tensor:
        """input_ids, attention_mask: (N, L); returns (N, D) in the space of the contrastive loss."""
        return self.flava.text_projection(self.flava.text_model(input_ids, attention_mask).last_hidden_state[:, 0])

    def fuse(self, image: torch.Tensor, text: torch.Tensor, attention_mask: torch.Tensor, **options: bool) -> Any:
        """Run the multimodal encoder on image and text states from before the unimodal encoders' last norm.

        image: (N, 1 + P, D); text: (N, L, D); options: keyword arguments of transformers' encoder, such as
        `output_attentions`. Returns an output whose `last_hidden_state` is (N, 1 + 1 + P + L, D).
        """
        pair = [self.flava.image_to_mm_projection(image), self.flava.text_to_mm_projection(text)]
        image_mask = attention_mask.new_ones(len(image), 1 + image.shape[1])  # the class token in front, and the image
        mask = torch.cat([image_mask, attention_mask], dim=1)
        return self.flava.multimodal_model(torch.cat(pair, dim=1), attention_mask=mask, **options)

    def encode_pairs(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **options: bool,
    ) -> Any:
        """Encode N pairs without masking (except mask tokens in `input_ids`); returns the output of `fuse`."""
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        image = self.flava.image_model(pixel_values, output_hidden_states=True).hidden_states[-1]
        text = self.flava.text_model(input_ids, attention_mask, output_hidden_states=True).hidden_states[-1]
        return self.fuse(image, text, attention_mask, **options)

    def match_score(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); input_ids: (N, L); returns (N,), log p(match) − log p(mismatch)."""
        logits = self.itm_head(self.encode_pairs(pixel_values, input_ids, attention_mask).last_hidden_state)
        return logits[:, 1] - logits[:, 0]

    def fill_mask(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, pixel_values: torch.Tensor
    ) -> torch.Tensor:
        """input_ids: (N, L) with mask tokens; pixel_values: (N, 3, H, W); returns (N, L, V) logits."""
        both = self.encode_pairs(pixel_values, input_ids, attention_mask).last_hidden_state
        return self.mmm_text_head(both[:, -input_ids.shape[1] :])

    def attention_maps(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention of each token to the patches in the multimodal encoder's last layer, mean over heads.

        Returns (N, L, side, side). The rest, up to 1, goes to text tokens and to the class tokens of the pair and of
        the image.
        """
        output = self.encode_pairs(pixel_values, input_ids, attention_mask, output_attentions=True)
        maps = output.attentions[-1].mean(1)[:, -input_ids.shape[1] :, 2 : -input_ids.shape[1]]  # (N, L, P)
        return maps.unflatten(2, (round(maps.shape[2] ** 0.5), -1))

    def patch_classes(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The codebook class of each patch, the target where it is masked: (N, P)."""
        size = self.config.image_config.patch_size
        if self.image_codebook is None:
            return self.codebook.nearest_codewords(patchify(pixel_values, size))
        # The VAE's encoder reduces the size eightfold and expects pixel values in 0.1..0.9.
        processor = FlavaImageProcessorPil
        mean, std = (pixel_values.new_tensor(x)[:, None, None] for x in (processor.image_mean, processor.image_std))
        resized = F.interpolate(pixel_values * std + mean, scale_factor=8 / size, mode="bicubic", antialias=True)
        return self.image_codebook.get_codebook_indices(0.1 + 0.8 * resized.clamp(0, 1)).flatten(1)

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        patch_mask: torch.Tensor | None = None,
        masked_tokens: tuple[torch.Tensor, torch.Tensor] | None = None,
        caption_ids: torch.Tensor | None = None,
        partner: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """Compute the six losses, under their names in transformers.

        The multimodal encoder reads image i with caption `partner[i]`. Rows whose caption is not their own only count
        for matching. The contrastive loss always uses the true pairs, without masking.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            input_ids, attention_mask: (N, L), row i the caption of image i.
            patch_mask: (N, P) bool, patches to mask; drawn by default, as are the next two.
            masked_tokens: the masked ids and the labels, (N, L) each, as `mask_tokens` returns them.
            partner: (N,), the index of the caption that is paired with image i.
            caption_ids: (N,), equal for equal captions, which are then not negatives of each other.

        Source: Singh et al. 2022, section 3.2.
        """
        config, count = self.config, len(input_ids)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if patch_mask is None:
            side = config.image_config.image_size // config.image_config.patch_size
            patch_mask = block_masks(
                count, side, config.max_masked_patches, config.min_block_patches, pixel_values.device
            )
        masked, labels = self.hide_words(input_ids, attention_mask) if masked_tokens is None else masked_tokens
        partner = swap_captions(count, config.swap_probability, input_ids.device) if partner is None else partner

        image, text = self.get_image_features(pixel_values), self.get_text_features(input_ids, attention_mask)
        contrast = clip_loss(F.normalize(image, dim=-1), F.normalize(text, dim=-1), self.scale, captions=caption_ids)

        image_output = self.flava.image_model(pixel_values, bool_masked_pos=patch_mask, output_hidden_states=True)
        text_output = self.flava.text_model(masked, attention_mask, output_hidden_states=True)
        partner_text = text_output.hidden_states[-1][partner], attention_mask[partner]
        fused = self.fuse(image_output.hidden_states[-1], *partner_text).last_hidden_state

        match = (input_ids[partner] == input_ids).all(1)  # two images may have equal captions
        kept = (match | ~match.any())[:, None]  # keep all rows if none matches: the mean over no row would be NaN
        classes, patches = self.patch_classes(pixel_values), patch_mask.shape[1]
        token_mask, mmm_patches = labels != IGNORE_INDEX, kept & patch_mask
        partner_labels, mmm_tokens = labels[partner], kept & token_mask[partner]
        parts = {
            "mim": F.cross_entropy(
                self.mim_head(image_output.last_hidden_state[:, 1:][patch_mask]), classes[patch_mask]
            ),
            "mlm": F.cross_entropy(self.mlm_head(text_output.last_hidden_state[token_mask]), labels[token_mask]),
            "itm": F.cross_entropy(self.itm_head(fused), match.long()),
            "global_contrastive": contrast,
            "mmm_image": F.cross_entropy(
                self.mmm_image_head(fused[:, 2 : 2 + patches][mmm_patches]), classes[mmm_patches]
            ),
            "mmm_text": F.cross_entropy(
                self.mmm_text_head(fused[:, 2 + patches :][mmm_tokens]), partner_labels[mmm_tokens]
            ),
        }
        loss = torch.stack([getattr(config, f"{name}_weight") * part for name, part in parts.items()]).sum()
        return PretrainingOutput(loss, parts)

    def hide_words(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return masked ids and labels, (N, L) each."""
        config = self.config
        return mask_tokens(
            input_ids,
            attention_mask,
            mask_token_id=config.mask_token_id,
            vocab_size=config.text_config.vocab_size,
            special_ids=tuple(config.special_ids),
            probability=config.mask_probability,
        )


def swap_captions(count: int, share: float, device: torch.device) -> torch.Tensor:
    """Return the caption index of each image, (N,): its own, or another's for about `share` of the images.

    The selected images exchange their captions in a cycle.
    """
    partner = torch.arange(count, device=device)
    chosen = (torch.rand(count, device=device) < share).nonzero()[:, 0]
    partner[chosen] = chosen.roll(1)
    return partner


def block_masks(count: int, side: int, most: int, smallest: int, device: torch.device) -> torch.Tensor:
    """Draw rectangles of masked patches, at most `most` patches per image in total.

    Ten rectangles are drawn for each image. Their area lies between `smallest` and the number of patches that may still
    be masked, and their aspect ratio between 0.3 and 1/0.3. A rectangle that would exceed `most` is skipped.

    Returns:
        (count, side²) bool.

    Source: Bao et al. 2022 (BEiT), algorithm 1.
    """
    patch_mask = torch.zeros(count, side, side, dtype=torch.bool, device=device)
    axis = torch.arange(side, device=device)
    for _ in range(10):
        left = most - patch_mask.sum((1, 2))  # (N,)
        area, ratio, row, column = torch.rand(4, count, device=device)
        area = smallest + area * (left - smallest)
        ratio = (math.log(0.3) * (1 - 2 * ratio)).exp()
        tall, wide = ((area * x).sqrt().round().clamp(1, side) for x in (ratio, 1 / ratio))
        top, edge = (row * (side - tall + 1)).floor(), (column * (side - wide + 1)).floor()
        rows = (axis >= top[:, None]) & (axis < (top + tall)[:, None])  # (N, side)
        columns = (axis >= edge[:, None]) & (axis < (edge + wide)[:, None])
        union = patch_mask | (rows[:, :, None] & columns[:, None, :])
        fits = union.sum((1, 2)) <= most
        patch_mask = torch.where(fits[:, None, None], union, patch_mask)
    return patch_mask.flatten(1)


def build(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 16,
    hidden_size: int = 768,
    image_layers: int = 12,
    text_layers: int = 12,
    fusion_layers: int = 6,
    projection_dim: int = 768,
    head_dim: int = 64,
    mlp_ratio: int = 4,
    text_length: int = 77,
    vocab_size: int = 0,
    codebook_size: int = 8192,
    max_masked_patches: int = 75,
    min_block_patches: int = 16,
    mask_probability: float = 0.15,
    swap_probability: float = 0.1,
    initializer_range: float = 0.02,
    loss_weights: dict[str, float] | None = None,
) -> tuple[Flava, FlavaProcessor]:
    """Build a FLAVA and its processor; `FlavaPretrainingConfig` documents masking and swapping.

    Args:
        texts: corpus from which the vocabulary is built.
        hidden_size: width of all three encoders.
        head_dim: width of an attention head.
        vocab_size: minimum number of rows of the embedding table.
        codebook_size: number of patch classes.
        initializer_range: standard deviation of the initial weights.
        loss_weights: weights of the losses by name, such as `{itm: 2}`; the default weight is 1.
    """
    tokenizer = build_tokenizer(texts, extra=("<cls>", "<sep>", "<mask>"), frame="<cls> $A <sep>")
    tokenizer.padding_side = "right"
    initializer: dict[str, Any] = {"initializer_range": initializer_range}
    sizes = {
        "hidden_size": hidden_size,
        "intermediate_size": mlp_ratio * hidden_size,
        "num_attention_heads": hidden_size // head_dim,
    } | initializer
    text = {"vocab_size": max(len(tokenizer), vocab_size), "max_position_embeddings": text_length}
    image = {"image_size": image_size, "patch_size": patch_size, "vocab_size": codebook_size}
    weights: dict[str, Any] = {f"{name}_weight": weight for name, weight in (loss_weights or {}).items()}
    config = FlavaPretrainingConfig(
        text_config={**sizes, **text, "num_hidden_layers": text_layers, "pad_token_id": tokenizer.pad_token_id},
        image_config={**sizes, **image, "num_hidden_layers": image_layers},
        multimodal_config={**sizes, "num_hidden_layers": fusion_layers},
        hidden_size=hidden_size,
        projection_dim=projection_dim,
        init_codebook=False,
        max_masked_patches=max_masked_patches,
        min_block_patches=min_block_patches,
        mask_probability=mask_probability,
        swap_probability=swap_probability,
        mask_token_id=tokenizer.mask_token_id,  # type: ignore[arg-type]
        special_ids=tuple(tokenizer.all_special_ids),
        **initializer,
        **weights,
    )
    side = {"height": image_size, "width": image_size}
    image_processor = FlavaImageProcessorPil(size=side, do_center_crop=False, resample=2)  # bilinear
    return Flava(config), FlavaProcessor(image_processor, tokenizer)
