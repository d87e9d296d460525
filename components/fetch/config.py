"""The section `fetch` of a recipe."""

from pydantic import Field

from vlmflow.config.section import Section


class FetchConfig(Section):
    """A git repository with DVC data, and the paths of the artifacts in it (the outputs in its dvc.yaml)."""

    repo: str = Field(default=".", description="Git repository with DVC data: a folder or a URL.")
    remote: str = Field(default="", description="DVC remote to fetch from; empty uses the repository's default remote.")
    raw: str = Field(default="data/raw", description="Path of the raw pairs.")
    curated: str = Field(default="data/curated", description="Path of the curated pairs.")
    ledger: str = Field(default="data/ledger", description="Path of the curation ledger.")
    funnel: str = Field(default="data/funnel.html", description="Path of the curation funnel page.")
    conversations: str = Field(default="data/instructions", description="Path of the conversations.")
