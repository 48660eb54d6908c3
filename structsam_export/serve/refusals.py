"""What the server answers instead of a result: one sentence, and the HTTP status it goes with."""

from __future__ import annotations

from structsam.errors import UserError

_UNKNOWN = 5.0  # seconds


class Refusal(UserError):
    """A request that gets no result.

    Args:
        status: of HTTP.
        retry_after: seconds after which it may be tried again.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class UnknownImage(Refusal):
    """No image of this id is kept."""

    def __init__(self, image_id: str) -> None:
        super().__init__(
            404,
            f"no image {image_id} here: it was never sent, or had to make room for others. Send "
            "the photo again",
        )


class Busy(Refusal):
    """The queue is full.

    Args:
        what: waits there.
        retry_after: seconds that those take; None where nobody knows yet.
    """

    def __init__(self, what: str, waiting: int, retry_after: float | None) -> None:
        seconds = _UNKNOWN if retry_after is None else max(1.0, retry_after)
        super().__init__(429, f"{waiting} {what} are waiting already. Try again later", seconds)


class Stopping(Refusal):
    """The server ends."""

    def __init__(self) -> None:
        super().__init__(503, "the server is stopping. Try again later", 5.0)


class Gone(Refusal):
    """The client has left; nobody reads the answer (the status is that of nginx)."""

    def __init__(self) -> None:
        super().__init__(499, "the client has left")
