"""Messages between a measuring process and its worker: JSON behind its length, over a pipe."""

from __future__ import annotations

import json
import os
from typing import Any

Message = dict[str, Any]


class Closed(Exception):
    """The other side is gone."""


def send(fd: int, message: Message) -> None:
    """Write one message. Raises Closed when the other side is gone."""
    body = json.dumps(message).encode()
    data = memoryview(len(body).to_bytes(4, "little") + body)
    try:
        while data:
            data = data[os.write(fd, data) :]
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Closed from error


def receive(fd: int) -> Message:
    """Read one message. Raises Closed when the other side is gone."""
    size = int.from_bytes(_exactly(fd, 4), "little")
    message: Message = json.loads(_exactly(fd, size))
    return message


def _exactly(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, size)
        if not part:
            raise Closed
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
