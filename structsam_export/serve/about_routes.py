"""The routes about the server: whether it lives, whether it can work, what it measured.

They need no thread, so that they answer whatever the others wait for.
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from structsam_export.serve.measures import CONTENT_TYPE
from structsam_export.serve.schemas import HealthAnswer
from structsam_export.serve.service import Service


def about_routes(service: Service) -> APIRouter:
    """Return /healthz, /readyz and /metrics."""
    router = APIRouter(tags=["server"])

    def health() -> HealthAnswer:
        facts = service.describe()
        return HealthAnswer(
            status=service.state,
            bundle=facts["bundle"],
            backend=facts["backend"],
        )

    @router.get("/healthz", summary="It lives")
    async def healthz() -> HealthAnswer:
        """Answer 200 as long as the process lives."""
        return health()

    @router.get("/readyz", summary="It can work", responses={503: {"model": HealthAnswer}})
    async def readyz(response: Response) -> HealthAnswer:
        """Answer 200 once both networks have run, 503 before and while it stops."""
        if service.state != "ok":
            response.status_code = 503
        return health()

    @router.get("/metrics", summary="For Prometheus", response_class=Response)
    async def metrics() -> Response:
        """Queues, latencies, cache hits and bytes in Prometheus' text format."""
        return Response(service.measures.text(), media_type=CONTENT_TYPE)

    return router
