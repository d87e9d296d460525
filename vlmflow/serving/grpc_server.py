"""KServe's V2 protocol over gRPC, without its repository methods; see `app.py`."""

from logging import getLogger
from typing import Any

from grpc import StatusCode, aio
from grpc_interceptor import AsyncExceptionToStatusInterceptor
from grpc_interceptor.exceptions import Unimplemented
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc
from kserve.protocol.grpc.servicer import InferenceServicer

from vlmflow.errors import ServiceError
from vlmflow.serving.app import PredictorDataPlane
from vlmflow.serving.error_response import MAX_CHARACTERS
from vlmflow.serving.predictor import Predictor
from vlmflow.serving.request_limits import MAX_BODY, MAX_WAITING

logger = getLogger(__name__)

_STATUS = {
    InvalidInput: StatusCode.INVALID_ARGUMENT,
    ModelNotFound: StatusCode.NOT_FOUND,
    ModelNotReady: StatusCode.UNAVAILABLE,
}


class _Servicer(InferenceServicer):
    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        raise Unimplemented("this server loads its model at the start")

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        raise Unimplemented("this server never unloads its model")


class _ErrorsToStatus(AsyncExceptionToStatusInterceptor):
    """The status of each expected error; the traceback of an unexpected one goes to the log, not to the client."""

    async def handle_exception(self, ex: Exception, request_or_iterator: Any, context: Any, method_name: str) -> None:
        for kind, status in _STATUS.items():
            if isinstance(ex, kind):
                await context.abort(status, str(ex)[:MAX_CHARACTERS])
        if isinstance(ex, Unimplemented | aio.AbortError):
            await super().handle_exception(ex, request_or_iterator, context, method_name)
        logger.error("%s failed", method_name, exc_info=ex)
        await context.abort(StatusCode.INTERNAL, "internal error")


def create_grpc_server(predictor: Predictor, host: str, port: int) -> tuple[aio.Server, int]:
    """Return a server that listens on `host` once it is started, and its port. Call it in the event loop.

    Raises:
        ServiceError: the port cannot be used.
    """
    server = aio.server(
        interceptors=[_ErrorsToStatus()],
        options=[("grpc.max_receive_message_length", MAX_BODY), ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=MAX_WAITING,
    )
    servicer = _Servicer(PredictorDataPlane(predictor), None)  # type: ignore[arg-type]  no repository
    grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    try:
        return server, server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise ServiceError(f"gRPC port {port} on {host}: {error}; choose another with --grpc-port") from None
