"""The table of model families: paper, objective, abilities and code.

Evaluation and serving dispatch on abilities, never on names. A family's class and builder are named as text, so that
reading this table imports no torch. What a family must offer for an ability stands in docs/adding-a-family.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

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
    """One family: paradigm as in Bordes et al. 2024, paper, what it minimises, abilities, and where its code is.

    `model` is `module:class` and `builder` `module:function`; `recipes/zoo` holds the values of the families that
    train by themselves.
    """

    paradigm: str
    paper: str
    objective: str
    abilities: frozenset[str]
    model: str
    builder: str
    uses_all_parameters: bool = False  # in every batch: DDP need not search for those without a gradient

    @property
    def build(self) -> Callable[..., Any]:
        """The function of a new model and its processor: texts for the vocabulary, then sizes by its own names."""
        return _load(self.builder)

    @property
    def from_dual_encoder(self) -> Callable[..., Any]:
        """The function of a language model and its processor whose picture tower is a dual encoder's: the dual
        encoder, its processor, then sizes."""
        module, _ = self.builder.split(":")
        return _load(f"{module}:from_dual_encoder")

    @property
    def model_class(self) -> Any:
        """The model's class; importing it registers the family with the Auto classes."""
        return _load(self.model)


def _load(place: str) -> Callable[..., Any]:
    module, name = place.split(":")
    return getattr(import_module(module), name)


ZOO: dict[str, Family] = {
    "tiny-dual-encoder": Family(
        "contrastive", "Radford et al. 2021", "InfoNCE both ways", EMBEDDING,
        "models.tiny.build:TinyDualEncoder", "models.tiny.build:build_dual_encoder",
        uses_all_parameters=True,
    ),
    "clip": Family(
        "contrastive", "Radford et al. 2021", "InfoNCE both ways; SLIP's and NegCLIP's terms on request", EMBEDDING,
        "models.contrastive.clip:CLIP", "models.contrastive.clip:build",
        uses_all_parameters=True,
    ),
    "siglip": Family(
        "contrastive", "Zhai et al. 2023", "a sigmoid for every pair", EMBEDDING,
        "models.contrastive.siglip:SigLIP", "models.contrastive.siglip:build",
        uses_all_parameters=True,
    ),
    "llip": Family(
        "contrastive", "Lavoie et al. 2024", "SigLIP on a picture vector mixed for each caption",
        frozenset({"classify", "retrieval"}), "models.contrastive.llip:Llip", "models.contrastive.llip:build",
        uses_all_parameters=True,
    ),
    "nce": Family(
        "contrastive", "Gutmann and Hyvärinen 2010", "pair or noise, by logistic regression", EMBEDDING,
        "models.contrastive.nce:NCE", "models.contrastive.nce:build",
        uses_all_parameters=True,
    ),
    "energy": Family(
        "contrastive", "LeCun et al. 2006; Du and Mordatch 2019", "energy of data against Langevin samples", EMBEDDING,
        "models.contrastive.energy:EnergyModel", "models.contrastive.energy:build",
        uses_all_parameters=True,
    ),
    "bert": Family(
        "masked", "Devlin et al. 2019", "hidden words", frozenset({"fill_mask"}),
        "models.masked.bert:MaskedBert", "models.masked.bert:build",
    ),
    "visual-bert": Family(
        "masked", "Li et al. 2019", "hidden words, and whether text and picture match", FILL_AND_MATCH,
        "models.masked.visual_bert:VisualBert", "models.masked.visual_bert:build",
    ),
    "vilbert": Family(
        "masked", "Lu et al. 2019", "hidden words, hidden regions' classes, and whether both match",
        FILL_AND_MATCH, "models.masked.vilbert:Vilbert", "models.masked.vilbert:build",
    ),
    "mae": Family(
        "masked", "He et al. 2022", "pixels of hidden patches", frozenset({"features", "reconstruct"}),
        "models.masked.mae:MAE", "models.masked.mae:build",
    ),
    "ijepa": Family(
        "masked", "Assran et al. 2023", "features of hidden blocks, as a slow copy sees them",
        frozenset({"features"}), "models.masked.ijepa:IJepa", "models.masked.ijepa:build",
    ),
    "flava": Family(
        "masked", "Singh et al. 2022", "contrast, match, hidden words and hidden patches, alone and together",
        EMBEDDING | FILL_AND_MATCH, "models.masked.flava:Flava", "models.masked.flava:build",
    ),
    "mask-vlm": Family(
        "masked", "Kwon et al. 2023", "each side's hidden parts from the other side, contrast, match",
        EMBEDDING | FILL_AND_MATCH | {"reconstruct"}, "models.masked.mask_vlm:MaskVLM", "models.masked.mask_vlm:build",
    ),
    "rate-distortion": Family(
        "masked", "Dubois et al. 2021; Bordes et al. 2024, section 2.3.3", "rate of the code + β · distortion",
        frozenset({"features", "reconstruct"}),
        "models.masked.rate_distortion:RateDistortion", "models.masked.rate_distortion:build",
    ),
    "tiny-vlm": Family(
        "pretrained backbone", "Liu et al. 2023", "the next word of the answer", GENERATIVE | EMBEDDING,
        "models.tiny.build:TinyForConditionalGeneration", "models.tiny.build:build_language_model",
    ),
    "idefics3": Family(
        "pretrained backbone", "Laurençon et al. 2024", "the next word of the answer", GENERATIVE,
        "transformers:Idefics3ForConditionalGeneration", "models.backbone.idefics3:build",
    ),
}  # fmt: skip
