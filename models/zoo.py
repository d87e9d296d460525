"""The one table of families: what each is, and what it can do.

Evaluation and serving dispatch on abilities, never on names. A family's builder is named as text, so that
reading this table imports no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

ABILITIES = ("embed", "classify", "caption", "chat", "ground", "read", "score")
SPEAKS = frozenset({"caption", "chat", "ground", "read", "score"})
EMBEDS = frozenset({"embed", "classify"})


@dataclass(frozen=True)
class Family:
    """One family: paradigm as in Bordes et al. 2024, paper, abilities and `module:function` that builds it."""

    paradigm: str
    paper: str
    abilities: frozenset[str]
    builder: str

    def build(self, *args: Any, **sizes: Any) -> Any:
        """Call the builder: texts for the vocabulary, or the dual encoder to grow from, then sizes."""
        return self._load(self.builder)(*args, **sizes)

    def grow(self, dual: Any, processor: Any, **sizes: Any) -> Any:
        """A language model and its processor whose picture tower is `dual`'s."""
        module, _ = self.builder.split(":")
        return self._load(f"{module}:grow")(dual, processor, **sizes)

    @staticmethod
    def _load(place: str) -> Callable[..., Any]:
        module, name = place.split(":")
        return getattr(import_module(module), name)


ZOO: dict[str, Family] = {
    "sketch-dual": Family("contrastive", "Radford et al. 2021", EMBEDS, "models.sketch:build_dual_encoder"),
    "sketch": Family("pretrained backbone", "Liu et al. 2023", SPEAKS | EMBEDS, "models.sketch:build_language_model"),
    "siglip": Family("contrastive", "Zhai et al. 2023", EMBEDS, "models.contrastive.siglip:build"),
    "idefics3": Family("pretrained backbone", "Laurençon et al. 2024", SPEAKS, "models.backbone.idefics3:build"),
}
