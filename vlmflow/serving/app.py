"""The ASGI application of a predictor: KServe's V1 and V2 protocols, OpenAI chat, health and metrics.

KServe's repository routes are left out: they would let anyone unload the model, and the server could not load it again.
"""

import struct
from logging import getLogger
from typing import Any

from cloudevents.exceptions import GenericException as CloudEventError
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kserve import ModelRepository
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServerNotLive, ServerNotReady
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest.server import metrics_handler
from kserve.protocol.rest.v1_endpoints import V1Endpoints
from kserve.protocol.rest.v2_endpoints import V2Endpoints
from starlette.exceptions import HTTPException

from vlmflow.serving import chat
from vlmflow.serving.error_response import error_response
from vlmflow.serving.predictor import Predictor
from vlmflow.serving.request_limits import RequestLimits

logger = getLogger(__name__)

_STATUS: dict[type[Exception], int] = {
    InvalidInput: 400,
    ModelNotFound: 404,
    RequestValidationError: 422,
    ModelNotReady: 503,
    ServerNotLive: 503,
    ServerNotReady: 503,
}


class PredictorDataPlane(DataPlane):
    """KServe's data plane for one predictor that is always loaded."""

    def __init__(self, predictor: Predictor):
        registry = ModelRepository()
        registry.update(predictor)
        super().__init__(registry)
        self.predictor = predictor

    async def live(self) -> dict[str, str]:  # type: ignore[override]  # KServe's is static and always alive
        """`alive` while the model can answer."""
        return {"status": "alive" if await self.predictor.healthy() else "dead"}

    async def check_live(self) -> dict[str, str]:
        """Return the status. Raises ServerNotLive if the model cannot answer."""
        if (status := await self.live())["status"] != "alive":
            raise ServerNotLive
        return status

    async def ready(self) -> bool:
        """Whether the model can answer."""
        return await self.predictor.healthy()

    async def get_model(self, name: str) -> Predictor:
        """Return the predictor. Raises ModelNotFound or ModelNotReady; KServe's would load the model again."""
        self.get_model_from_registry(name)
        if not await self.predictor.healthy():
            raise ModelNotReady(name)
        return self.predictor

    def metadata(self) -> dict[str, Any]:
        """Name and version of the server; it has no extensions."""
        return {**super().metadata(), "extensions": []}

    def decode(self, body: Any, headers: Any, *arguments: Any, **options: Any) -> Any:
        """Decode a request, JSON unless it is a cloud event, whatever its content type.

        Raises:
            InvalidInput: it does not follow its protocol; KServe raises many types.
        """
        try:
            kept = {name: value for name, value in headers.items() if name != "content-type" or "cloudevents" in value}
            return super().decode(body, kept, *arguments, **options)
        except (LookupError, TypeError, AttributeError, ValueError, struct.error, CloudEventError) as error:
            raise InvalidInput(f"the request does not follow its protocol: {error}") from None


def create_app(predictor: Predictor) -> FastAPI:
    """Return the application that serves `predictor`."""
    app = FastAPI(title="vlmflow", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.predictor = predictor
    app.include_router(_kserve_routes(PredictorDataPlane(predictor)))
    app.include_router(chat.router)
    app.add_middleware(RequestLimits)
    for kind in _STATUS:
        app.add_exception_handler(kind, _expected_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    return app


def _kserve_routes(plane: PredictorDataPlane) -> APIRouter:
    router, v1, v2 = APIRouter(), V1Endpoints(plane), V2Endpoints(plane)
    router.add_api_route("/", plane.check_live)
    router.add_api_route("/metrics", metrics_handler)
    router.add_api_route("/v1/models", v1.models)
    router.add_api_route("/v1/models/{model_name}", v1.model_ready)
    router.add_api_route("/v1/models/{model_name}:predict", v1.predict, response_model=None, methods=["POST"])
    router.add_api_route("/v2", v2.metadata)
    router.add_api_route("/v2/health/live", v2.live)
    router.add_api_route("/v2/health/ready", v2.ready)
    router.add_api_route("/v2/models", v2.models)
    router.add_api_route("/v2/models/{model_name}", v2.model_metadata)
    router.add_api_route("/v2/models/{model_name}/ready", v2.model_ready)
    router.add_api_route("/v2/models/{model_name}/infer", v2.infer, response_model=None, methods=["POST"])
    return router


async def _expected_error(request: Request, error: Exception) -> JSONResponse:
    message = str(error)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        message = f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"
    status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
    logger.info("%s: %d: %s", request.url.path, status, message[:200])
    return error_response(request.url.path, status, message)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_response(request.url.path, error.status_code, str(error.detail))


async def _unexpected_error(request: Request, error: Exception) -> JSONResponse:
    return error_response(request.url.path, 500, "internal error")  # Starlette raises it again, and uvicorn logs it
