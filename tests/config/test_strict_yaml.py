import pytest
import yaml

from vlmflow.config.recipes import parse
from vlmflow.config.strict_yaml import parse_yaml
from vlmflow.errors import RecipeError


def test_a_key_may_occur_once() -> None:
    text = "base: &base {a: 1, b: 2}\nown: {<<: *base, b: 3}\nagain: *base\nlist: [{a: 1}, {a: 2}]\n"
    assert parse_yaml(text) == yaml.safe_load(text)
    for text in ("a: 1\nb: 2\na: 3\n", "a: {b: 1, b: 1}\n", "- {a: 1, a: 2}\n", "{1: a, '1': b}"):
        with pytest.raises(yaml.YAMLError, match="occurs twice"):
            parse_yaml(text)


def test_a_section_may_occur_once_in_a_recipe() -> None:
    with pytest.raises(RecipeError, match=r"key 'ingest' occurs twice.*line 3"):
        parse("ingest: {limit: 3}\ncurate: {}\ningest: {limit: 4}\n")
