from kfp import dsl

from vlmflow.runtime.step import step


@step(passes_on=True)
def preferences(
    model: dsl.Input[dsl.Model],
    conversations: dsl.Input[dsl.Dataset],
    recipe: str,
    preferences: dsl.Output[dsl.Dataset],
    section: str = "preferences",
):
    """Collect preference pairs: correct lists of objects, preferred to lists in which the model hallucinates."""
    from pathlib import Path

    from components.preferences.preferences import collect_preferences

    collect_preferences(Path(model.path), Path(conversations.path), Path(preferences.path), recipe, section)
