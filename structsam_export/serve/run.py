"""Runs the server until it is told to stop, and says what stands in its way."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle
from structsam_export.serve.settings import ServeSettings

_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_BACKLOG = 128
_SECONDS_TO_STOP = 15  # for calls that run; the application takes up to 10 more


def serve(
    bundle: Bundle,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    token: str | None = None,
    backend: str = "auto",
    settings: ServeSettings | None = None,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> None:
    """Serve a bundle until SIGINT or SIGTERM; calls that run then are answered.

    Args:
        host: address to listen on; one that others reach needs a `token`.
        port: 0 takes a free one.
        token: that requests under /v1 must bear.
        say: told the address.
        backend, options: as of `Predictor`.

    Raises:
        UserError: the port is taken, no such address, or others could use it without a token.
    """
    if token is None and not is_local(host):
        raise UserError(
            f"others can reach {host}: give a `token=` that their requests must bear, or listen "
            "on 127.0.0.1"
        )
    listener = _listen(host, port)
    try:
        import uvicorn

        from structsam_export.serve.app import make_app
        from structsam_export.serve.service import Service

        class Server(uvicorn.Server):
            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                service.refuse_waiting()  # it would wait for those
                await super().shutdown(sockets)

        failures: list[Exception] = []

        def give_up(error: Exception) -> None:
            failures.append(error)
            server.should_exit = True

        service = Service(bundle, backend, settings or ServeSettings(), **options)
        address = listener.getsockname()[0]
        app = make_app(service, token, host_names(host, address), give_up)
        config = uvicorn.Config(
            app,
            log_level="warning",
            timeout_graceful_shutdown=_SECONDS_TO_STOP,
            server_header=False,
        )
        say(f"http://{_bracketed(address)}:{listener.getsockname()[1]}")
        server = Server(config)
        server.run(sockets=[listener])
        if failures:
            raise failures[0]
    finally:
        listener.close()


def require_packages() -> None:
    """Refuse before any work where the extra `serve` is not installed. Raises `UserError`."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import pycocotools  # noqa: F401
        import python_multipart  # noqa: F401
        import scipy  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the server needs packages that are missing ({error}). Install them with "
            "`pip install 'structsam[serve]'`"
        ) from error


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_names(host: str, address: str) -> tuple[str, ...] | None:
    """Return the names that requests may ask for, or None for any: others reach it, with a token.

    Args:
        host: as it was given.
        address: that `host` stands for.
    """
    return (*_LOCAL, _bracketed(host), _bracketed(address)) if is_local(host) else None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except socket.gaierror as error:
        raise UserError(f"no address {host!r} ({error.strerror}). Use 127.0.0.1") from None
    except OverflowError:
        raise UserError(
            f"port {port} is out of range. Use 1 to 65535, or 0 for a free one"
        ) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} is in use. Stop what listens there, or choose another `port=`"
            ) from None
        if error.errno == errno.EACCES:
            raise UserError(f"port {port} needs more rights. Choose one from 1024 on") from None
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
