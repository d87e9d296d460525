"""The vision-language model: a small decoder that reads image tokens and answers in words and location tokens."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import ModelOutput

from models.blocks import Block, sinusoidal_positions, sinusoidal_positions_2d
from models.tiny.configuration import TinyConfig
from models.tiny.dual_encoder import TinyDualEncoder, TinyPreTrainedModel, VisionTower


@dataclass
class TinyOutput(ModelOutput):
    """Output of `TinyForConditionalGeneration`.

    loss: scalar, the mean over answer tokens; None without labels.
    logits: (N, L, V); None with labels.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None


class ImageTokenNorm(nn.LayerNorm):
    """A layer norm whose scale starts at 0.2, which keeps image tokens as small as word and position embeddings.

    Without it image tokens outgrow both, and their sum with the positions loses the position.
    """


class TinyModel(TinyPreTrainedModel):
    """A vision tower, a connector and a decoder, next to the frozen dual encoder that the tower was copied from.

    Fine-tuning changes the copy and leaves the dual encoder's embeddings as they are. A tower shared by both would
    need the contrastive loss in every later stage; without it most of the retrieval recall was lost in a minute.

    The image stands at the front of its sequence as `image_tokens` placeholders. They attend to each other in both
    directions; the text after them is causal. With `segment_ids`, several questions about one image share its prefix
    and cannot attend to each other, so a row of k turns encodes its image once instead of k times.
    """

    def __init__(self, config: TinyConfig):
        super().__init__(config)
        self.dual_encoder = TinyDualEncoder(config)
        self.vision = VisionTower(config)
        self.connector = nn.Sequential(
            nn.Linear(config.vision_hidden_size * config.scale_factor**2, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
            ImageTokenNorm(config.hidden_size),
        )
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(
            Block(config.hidden_size, config.num_attention_heads, config.mlp_ratio, layer)
            for layer in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ImageTokenNorm):
            nn.init.constant_(module.weight, 0.2)

    @torch.no_grad()
    def init_sinusoidal_positions(self, first_location: int) -> None:
        """Initialise the location tokens and the positions of the image tokens with sinusoids.

        This gives a new model a prior: bin 31 lies next to bin 32, and every image token has its place in the grid.

        Args:
            first_location: the id of `<loc00>`; the ids of the other location tokens follow it.
        """
        bins, width, tokens = self.config.location_bins, self.config.hidden_size, self.config.image_tokens
        centres = (torch.arange(bins) + 0.5) / bins
        side = self.config.patches_per_side // self.config.scale_factor
        self.embed_tokens.weight[first_location : first_location + bins] = 0.09 * sinusoidal_positions(centres, width)
        self.positions.weight[:tokens] += 0.2 * sinusoidal_positions_2d(side, width)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def image_prefix(self, patches: torch.Tensor) -> torch.Tensor:
        """Pixel shuffle and connector: each s×s square of patches becomes one token; (N, P, D) to (N, P/s², D')."""
        n, _, width = patches.shape
        side, s = self.config.patches_per_side, self.config.scale_factor
        squares = patches.view(n, side // s, s, side // s, s, width).permute(0, 1, 3, 2, 4, 5)
        return self.connector(squares.reshape(n, self.config.image_tokens, s * s * width))

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **_: object,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: (N, L), with `image_tokens` placeholders in front of each row that has an image.
            pixel_values: (M, 3, H, W), one image for each row that has one, in order.
            attention_mask: (N, K) over the cached and the new tokens, 0 for padding.
            segment_ids: (N, L), 0 for the shared prefix, k for turn k, −1 for padding.

        Raises:
            ValueError: the numbers of placeholders and image tokens differ, for example after truncation.
        """
        x = self.embed_tokens(input_ids)  # (N, L, D)
        is_image = input_ids == self.config.image_token_id  # (N, L)
        if pixel_values is not None:
            x = self._insert_image_tokens(x, is_image, pixel_values)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = self._positions(input_ids, attention_mask, segment_ids, past)
        x = x + self.positions(position_ids)
        mask = self._mask(input_ids, is_image, attention_mask, segment_ids, past)
        for block in self.blocks:
            x = block(x, mask, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), past_key_values=past_key_values)

    def _insert_image_tokens(self, x: torch.Tensor, is_image: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Put the image tokens at the placeholders of x (N, L, D)."""
        prefix = self.image_prefix(self.vision(pixel_values))  # (M, image_tokens, D)
        images, tokens, _ = prefix.shape
        if int(is_image.sum()) != images * tokens:
            raise ValueError(
                f"Image features and image tokens do not match: {images} images need {images * tokens} placeholders, "
                f"but the text has {int(is_image.sum())}"
            )
        return x.masked_scatter(is_image[..., None], prefix.to(x.dtype))

    def _positions(
        self, ids: torch.Tensor, attention_mask: torch.Tensor | None, segment_ids: torch.Tensor | None, past: int
    ) -> torch.Tensor:
        """(N, L) positions, counted from the row's first token, or in each segment from the end of the prefix."""
        if segment_ids is None:
            if attention_mask is None:
                attention_mask = torch.ones(len(ids), past + ids.shape[1], dtype=torch.long, device=ids.device)
            return (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, past : past + ids.shape[1]]
        index = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        starts = torch.ones_like(segment_ids, dtype=torch.bool)  # (N, L), True at the first token of a segment
        starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
        start = torch.where(starts, index, 0).cummax(1).values
        prefix = (segment_ids == 0).sum(1, keepdim=True)
        return torch.where(segment_ids > 0, index - start + prefix, index)

    def _mask(
        self,
        ids: torch.Tensor,
        is_image: torch.Tensor,
        attention_mask: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        past: int,
    ) -> torch.Tensor:
        """(N, 1, L, K) bool: causal, bidirectional within the image; False between segments and for padding."""
        length = ids.shape[1]
        query = torch.arange(past, past + length, device=ids.device)[:, None]
        key = torch.arange(past + length, device=ids.device)[None, :]
        mask = (key <= query)[None].expand(len(ids), -1, -1)  # (N, L, K)
        if past == 0:
            mask = mask | (is_image[:, :, None] & is_image[:, None, :])
        if segment_ids is not None:
            mask = mask & ((segment_ids[:, None, :] == 0) | (segment_ids[:, None, :] == segment_ids[:, :, None]))
        elif attention_mask is not None:
            # A padding query may attend to itself: a fully masked row would make the softmax NaN.
            mask = mask & (attention_mask[:, None, :].bool() | (key == query)[None])
        return mask[:, None]


class TinyForConditionalGeneration(TinyPreTrainedModel, GenerationMixin):
    """A vision-language model of about 1.2M parameters that also embeds images and captions.

    Source: the layout of LLaVA (Liu et al. 2023) with the pixel shuffle of Idefics3 (Laurençon et al. 2024).
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: TinyConfig):
        super().__init__(config)
        self.model = TinyModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def train(self, mode: bool = True) -> "TinyForConditionalGeneration":
        """Set the mode; the dual encoder stays frozen, also after loading, which makes all parameters trainable."""
        super().train(mode)
        self.model.dual_encoder.requires_grad_(False)
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns unit vectors (N, E)."""
        return self.model.dual_encoder.get_image_features(pixel_values)

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """input_ids, attention_mask: (N, L); returns unit vectors (N, E)."""
        return self.model.dual_encoder.get_text_features(input_ids, attention_mask)

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **_: object,
    ) -> TinyOutput:
        """Compute the loss of the answers, or without labels the logits.

        Args:
            labels: (N, L), −100 where nothing is scored; only scored positions pass through the head.

        The other arguments are those of `TinyModel.forward`.
        """
        outputs = self.model(
            input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            segment_ids=segment_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        x = outputs.last_hidden_state  # (N, L, D)
        if labels is None:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            return TinyOutput(logits=self.lm_head(x[:, kept]), past_key_values=outputs.past_key_values)
        targets = labels[:, 1:]
        scored = targets != -100
        logits = self.lm_head(x[:, :-1][scored])  # (scored tokens, V)
        # A batch without scored tokens gives a zero that still has a gradient.
        return TinyOutput(F.cross_entropy(logits.float(), targets[scored], reduction="sum") / scored.sum().clamp(min=1))
