"""YAML in which a key may occur only once in a mapping."""

import copy
from functools import lru_cache
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader takes the last of several values of a key. `1` and `"1"` count as one key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} occurs twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: it is not YAML, or a mapping has a key twice.
    """
    return copy.deepcopy(_parse(text))


@lru_cache(maxsize=4)
def _parse(text: str) -> Any:
    """Parse a text once: a run reads its recipe for every step."""
    return yaml.load(text, _Loader)
