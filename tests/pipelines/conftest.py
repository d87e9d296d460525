"""Each pipeline is compiled once for each placement and set of images, which takes seconds."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from kfp.dsl.graph_component import GraphComponent

from pipelines import flow
from pipelines.placement import Placement
from vlmflow.runtime.container_image import image_name


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Keep the output of `pipelines.flow.compile`, also for the command line in this process."""
    texts: dict[tuple[str, ...], str] = {}
    real = flow.compile

    def compile(pipeline: GraphComponent, placement: Placement) -> str:
        key = (pipeline.name or "", repr(placement), *map(image_name, ("step", "train", "serve")))
        if key not in texts:
            with ThreadPoolExecutor(1) as thread:  # KFP inspects the whole stack often; that of a thread is short
                texts[key] = thread.submit(real, pipeline, placement).result()
        return texts[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "compile", compile)
        yield
