"""The table of model families: paper, objective, abilities and code.

Evaluation and serving dispatch on abilities, never on names. Classes and builders are referenced by strings, so that
this module can be imported without torch. docs/adding-a-family.md lists the method that each ability requires.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from models.size_names import size_names

ABILITIES = {
    "embed": "image and text to vectors of one space",
    "classify": "zero-shot classification of an image among several names",
    "retrieval": "a score for every image with every text",
    "features": "image to a vector, for other models to use",
    "image_text_matching": "whether an image and a text match",
    "fill_mask": "predict the masked words of a text",
    "reconstruct": "predict the masked patches of an image",
    "caption": "describe an image",
    "chat": "answer questions about an image",
    "ground": "locate an object",
    "ocr": "read a line of text",
    "score": "the log-likelihood of an answer",
}
GENERATIVE = frozenset({"caption", "chat", "ground", "ocr", "score"})
FILL_AND_MATCH = frozenset({"fill_mask", "image_text_matching"})
EMBEDDING = frozenset({"embed", "classify", "retrieval"})


@dataclass(frozen=True)
class Family:
    """One model family. `recipes/zoo` holds recipes for the families that are trained by `pretrain` alone.

    paradigm: as in Bordes et al. 2024.
    paper: author and year.
    objective: what training minimises.
    abilities: keys of ABILITIES.
    model: the class, as `module:class`.
    builder: the function that builds a new model and its processor, as `module:function`.
    uses_all_parameters: every batch gives every trainable parameter a gradient, so that DDP need not search for unused
        ones.
    """

    paradigm: str
    paper: str
    objective: str
    abilities: frozenset[str]
    model: str
    builder: str
    uses_all_parameters: bool = False

    @property
    def build(self) -> Callable[..., Any]:
        """Build a new model and its processor from the texts for the vocabulary and the family's size options."""
        return _load(self.builder)

    @property
    def from_dual_encoder(self) -> Callable[..., Any]:
        """Build a language model and its processor from a dual encoder, its processor and size options; the language
        model's image tower is the dual encoder's."""
        module, _ = self.builder.split(":")
        return _load(f"{module}:from_dual_encoder")

    @property
    def build_sizes(self) -> set[str]:
        """Names of the size options of `build`; they are read without importing torch."""
        return size_names(self.builder)

    @property
    def from_dual_encoder_sizes(self) -> set[str]:
        """Names of the size options of `from_dual_encoder`; they are read without importing torch.

        Raises:
            LookupError: the family has no `from_dual_encoder`.
        """
        module, _ = self.builder.split(":")
        return size_names(f"{module}:from_dual_encoder")

    @property
    def model_class(self) -> Any:
        """The model's class; importing it registers the family with the Auto classes."""
        return _load(self.model)


def _load(reference: str) -> Callable[..., Any]:
    module, name = reference.split(":")
    return getattr(import_module(module), name)


ZOO: dict[str, Family] = {
    "tiny-dual-encoder": Family(
        "contrastive", "Radford et al. 2021", "InfoNCE in both directions", EMBEDDING,
        "models.tiny.build:TinyDualEncoder", "models.tiny.build:build_dual_encoder",
        uses_all_parameters=True,
    ),
    "clip": Family(
        "contrastive", "Radford et al. 2021", "InfoNCE in both directions, optionally SLIP's and NegCLIP's terms",
        EMBEDDING,
        "models.contrastive.clip:CLIP", "models.contrastive.clip:build",
        uses_all_parameters=True,
    ),
    "siglip": Family(
        "contrastive", "Zhai et al. 2023", "sigmoid loss of every pair", EMBEDDING,
        "models.contrastive.siglip:SigLIP", "models.contrastive.siglip:build",
        uses_all_parameters=True,
    ),
    "llip": Family(
        "contrastive", "Lavoie et al. 2024", "SigLIP on an image vector mixed for each caption",
        frozenset({"classify", "retrieval"}), "models.contrastive.llip:Llip", "models.contrastive.llip:build",
        uses_all_parameters=True,
    ),
    "nce": Family(
        "contrastive", "Gutmann and Hyvärinen 2010", "logistic regression of pairs against noise", EMBEDDING,
        "models.contrastive.nce:NCE", "models.contrastive.nce:build",
        uses_all_parameters=True,
    ),
    "energy": Family(
        "contrastive", "LeCun et al. 2006; Du and Mordatch 2019", "energy of data against energy of Langevin samples",
        EMBEDDING,
        "models.contrastive.energy:EnergyModel", "models.contrastive.energy:build",
        uses_all_parameters=True,
    ),
    "bert": Family(
        "masked", "Devlin et al. 2019", "masked words", frozenset({"fill_mask"}),
        "models.masked.bert:MaskedBert", "models.masked.bert:build",
    ),
    "visual-bert": Family(
        "masked", "Li et al. 2019", "masked words, image-text matching", FILL_AND_MATCH,
        "models.masked.visual_bert:VisualBert", "models.masked.visual_bert:build",
    ),
    "vilbert": Family(
        "masked", "Lu et al. 2019", "masked words, classes of masked regions, image-text matching",
        FILL_AND_MATCH, "models.masked.vilbert:Vilbert", "models.masked.vilbert:build",
    ),
    "mae": Family(
        "masked", "He et al. 2022", "pixels of masked patches", frozenset({"features", "reconstruct"}),
        "models.masked.mae:MAE", "models.masked.mae:build",
    ),
    "ijepa": Family(
        "masked", "Assran et al. 2023", "features of masked blocks, given by a moving-average encoder",
        frozenset({"features"}), "models.masked.ijepa:IJepa", "models.masked.ijepa:build",
    ),
    "flava": Family(
        "masked", "Singh et al. 2022", "contrastive, matching, masked words and patches in one and both modalities",
        EMBEDDING | FILL_AND_MATCH, "models.masked.flava:Flava", "models.masked.flava:build",
    ),
    "mask-vlm": Family(
        "masked", "Kwon et al. 2023", "masked parts of each modality from the other, contrastive, matching",
        EMBEDDING | FILL_AND_MATCH | {"reconstruct"}, "models.masked.mask_vlm:MaskVLM", "models.masked.mask_vlm:build",
    ),
    "rate-distortion": Family(
        "masked", "Dubois et al. 2021; Bordes et al. 2024, section 2.3.3", "rate of the code + β · distortion",
        frozenset({"features", "reconstruct"}),
        "models.masked.rate_distortion:RateDistortion", "models.masked.rate_distortion:build",
    ),
    "tiny-vlm": Family(
        "pretrained backbone", "Liu et al. 2023", "next token of the answer", GENERATIVE | EMBEDDING,
        "models.tiny.build:TinyForConditionalGeneration", "models.tiny.build:build_language_model",
    ),
    "idefics3": Family(
        "pretrained backbone", "Laurençon et al. 2024", "next token of the answer", GENERATIVE,
        "transformers:Idefics3ForConditionalGeneration", "models.backbone.idefics3:build",
    ),
}  # fmt: skip
