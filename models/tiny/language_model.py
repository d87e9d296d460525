"""The generative half: a small decoder that reads a picture's tokens and answers in words and places."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import ModelOutput

from models.tiny.blocks import Block, waves, waves_2d
from models.tiny.configuration import SketchConfig
from models.tiny.dual_encoder import SketchDualEncoder, SketchPreTrainedModel, VisionTower


@dataclass
class SketchOutput(ModelOutput):
    """loss: scalar or None, the mean over the answers' tokens; logits: (N, L, V) where no labels were given."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None


class PictureNorm(nn.LayerNorm):
    """Keeps picture tokens at the scale of words and positions.

    Without it they outgrow both, and a sum with positions no longer says where a token lies.
    """


class SketchModel(SketchPreTrainedModel):
    """A picture tower, a connector and a decoder, beside the dual encoder that the tower was copied from.

    The copy learns; the dual encoder is frozen. One tower for both would have to be trained for both at every
    later stage, and lost most of its recall within a minute where it was not.

    A picture stands at the front of its sequence as `image_tokens` placeholders; they see each other in
    both directions, the text after them is causal. With `segment_ids` several questions about one picture
    share its prefix and cannot see each other: training a row of k turns costs one picture, not k.
    """

    def __init__(self, config: SketchConfig):
        super().__init__(config)
        self.dual = SketchDualEncoder(config)
        self.vision = VisionTower(config)
        self.connector = nn.Sequential(
            nn.Linear(config.vision_width * config.shuffle**2, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
            PictureNorm(config.hidden_size),
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
        if isinstance(module, PictureNorm):
            nn.init.constant_(module.weight, 0.2)

    @torch.no_grad()
    def place_waves(self, first_location: int) -> None:
        """Start the location tokens and the picture's positions as waves.

        A new model then knows from the start that bin 31 is beside bin 32, and where each picture token lies.

        Args:
            first_location: the id of `<loc00>`; the others follow it.
        """
        bins, width, tokens = self.config.location_bins, self.config.hidden_size, self.config.image_tokens
        centres = (torch.arange(bins) + 0.5) / bins
        self.embed_tokens.weight[first_location : first_location + bins] = 0.09 * waves(centres, width)
        self.positions.weight[:tokens] += 0.2 * waves_2d(self.config.patches // self.config.shuffle, width)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def image_prefix(self, patches: torch.Tensor) -> torch.Tensor:
        """(N, P, D) → (N, P/s², D'): each s×s square of patches becomes one token (pixel shuffle)."""
        n, _, width = patches.shape
        side, s = self.config.patches, self.config.shuffle
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
            input_ids: (N, L), with `image_tokens` placeholders in front where a row has a picture.
            pixel_values: (M, 3, H, W), one for each row that has a picture, in order.
            attention_mask: (N, K) over everything seen so far, 0 for padding.
            segment_ids: (N, L), 0 for the shared prefix, k for turn k, −1 for padding.

        Raises:
            ValueError: placeholders and pictures do not match (a truncated prompt, say).
        """
        x = self.embed_tokens(input_ids)
        is_image = input_ids == self.config.image_token_id
        if pixel_values is not None:
            prefix = self.image_prefix(self.vision(pixel_values))
            if int(is_image.sum()) != prefix.shape[0] * prefix.shape[1]:
                raise ValueError(
                    f"Image features and image tokens do not match: {prefix.shape[0]} pictures need "
                    f"{prefix.shape[0] * prefix.shape[1]} placeholders, the text has {int(is_image.sum())}"
                )
            x = x.masked_scatter(is_image[..., None], prefix.to(x.dtype))
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = self._positions(input_ids, attention_mask, segment_ids, seen)
        x = x + self.positions(position_ids)
        mask = self._mask(input_ids, is_image, attention_mask, segment_ids, seen)
        for block in self.blocks:
            x = block(x, mask, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), past_key_values=past_key_values)

    def _positions(
        self, ids: torch.Tensor, attention: torch.Tensor | None, segments: torch.Tensor | None, seen: int
    ) -> torch.Tensor:
        """Position of each token: from its row's first real token, and from the prefix's end in each segment."""
        if segments is None:
            if attention is None:
                attention = torch.ones(len(ids), seen + ids.shape[1], dtype=torch.long, device=ids.device)
            return (attention.long().cumsum(1) - 1).clamp(min=0)[:, seen : seen + ids.shape[1]]
        index = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        fresh = torch.ones_like(segments, dtype=torch.bool)
        fresh[:, 1:] = segments[:, 1:] != segments[:, :-1]
        start = torch.where(fresh, index, 0).cummax(1).values
        prefix = (segments == 0).sum(1, keepdim=True)
        return torch.where(segments > 0, index - start + prefix, index)

    def _mask(
        self,
        ids: torch.Tensor,
        is_image: torch.Tensor,
        attention: torch.Tensor | None,
        segments: torch.Tensor | None,
        seen: int,
    ) -> torch.Tensor:
        """(N, 1, L, K) bool: causal, but open within the picture; closed between segments and to padding."""
        length = ids.shape[1]
        query = torch.arange(seen, seen + length, device=ids.device)[:, None]
        key = torch.arange(seen + length, device=ids.device)[None, :]
        mask = (key <= query)[None].expand(len(ids), -1, -1)
        if seen == 0:
            mask = mask | (is_image[:, :, None] & is_image[:, None, :])
        if segments is not None:
            mask = mask & ((segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None]))
        elif attention is not None:
            # A padding query may look at itself: a row of nothing would make the softmax NaN.
            mask = mask & (attention[:, None, :].bool() | (key == query)[None])
        return mask[:, None]


class SketchForConditionalGeneration(SketchPreTrainedModel, GenerationMixin):
    """A vision-language model of about 1.2M parameters that also embeds pictures and captions.

    Source: the layout of LLaVA (Liu et al. 2023) with Idefics3's pixel shuffle (Laurençon et al. 2024).
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SketchConfig):
        super().__init__(config)
        self.model = SketchModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def train(self, mode: bool = True) -> "SketchForConditionalGeneration":
        """As for any module; the dual encoder stays frozen, also where loading has made its parameters anew."""
        super().train(mode)
        self.model.dual.requires_grad_(False)
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns unit vectors (N, E)."""
        return self.model.dual.get_image_features(pixel_values)

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """input_ids, attention_mask: (N, L); returns unit vectors (N, E)."""
        return self.model.dual.get_text_features(input_ids, attention_mask)

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
    ) -> SketchOutput:
        """Score answers, or give the logits of every position where there are no labels.

        Args:
            labels: (N, L), −100 where nothing is scored; only the scored positions reach the head.
        """
        hidden = self.model(
            input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            segment_ids=segment_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        x = hidden.last_hidden_state
        if labels is None:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            return SketchOutput(logits=self.lm_head(x[:, kept]), past_key_values=hidden.past_key_values)
        target = labels[:, 1:]
        scored = target != -100
        logits = self.lm_head(x[:, :-1][scored])  # (scored tokens, V)
        # A batch with nothing to score gives a zero that still has a gradient.
        return SketchOutput(
            F.cross_entropy(logits.float(), target[scored], reduction="sum") / scored.sum().clamp(min=1)
        )
