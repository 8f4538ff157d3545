"""How the API says that something cannot be: a status and {"fault_message": ...}.

Clients look at some of these sentences, which are Firecracker's own.
"""

from __future__ import annotations

import os

from ringzero.errors import RingzeroError

BAD_REQUEST, TOO_LARGE = 400, 413


class ApiFault(RingzeroError):  # noqa: N818 - the API's own noun
    """What is answered instead of what was asked for."""

    kind = "api"

    def __init__(self, message: str, status: int = BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


AFTER_START = "The requested operation is not supported after starting the microVM."
BEFORE_START = "The requested operation is not supported before starting the microVM."
EMPTY_ID = "The ID cannot be empty."
INVALID_ID = "API Resource IDs can only contain alphanumeric characters and underscores."
OTHER_ID = "The id from the path does not match the id from the body!"
NO_BODY = {
    "PUT": "Empty PUT request.",
    "PATCH": "Empty PATCH request.",
}
WITH_BODY = {
    "GET": "GET request cannot have a body.",
    "DELETE": "Empty Delete request.",
}


def invalid_path(method: str, path: str) -> ApiFault:
    """Return the fault of a path that is none, or none for this method."""
    return ApiFault(f"Invalid request method and/or path: {method} {path}.")


def not_json(reason: str) -> ApiFault:
    """Return the fault of a body that is not what the path takes."""
    return ApiFault(f"An error occurred when deserializing the json body of a request: {reason}.")


def not_supported(what: str) -> ApiFault:
    """Return the fault of what this implementation does not have."""
    return ApiFault(f"The requested operation is not supported: {what}")


def os_error(fault: OSError) -> str:
    """Return an error of the host in Firecracker's words."""
    number = fault.errno or 0
    return f"{os.strerror(number)} (os error {number})"


def told(fault: RingzeroError) -> str:
    """Return what is wrong, and what to do about it, in one line."""
    hint = f" ({fault.hint})" if fault.hint else ""
    return " ".join(f"{fault.message}{hint}".split())
