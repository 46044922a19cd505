"""Tasks on the wire: one message each, or chunks where a method's extras are too large for one message.

Personal parts of a model (FedMSplit's blocks, FedPAC's classifier) go down with the task of their device.
"""

from __future__ import annotations

from edge_sdk.codecs import chunks, wire
from edge_sdk.core.messages import Task

MAX_TASK = 256 * 1024 * 1024  # bytes of a task in chunks


def encode(device: str, task: Task) -> list[bytes]:
    """Returns the payloads that bring a task to its device, in order; WireFormatError: not even chunks can."""
    data = wire.encode(task, MAX_TASK)
    if len(data) <= wire.MAX_MESSAGE:
        return [data]
    digest = wire.object_digest(data)
    return chunks.split(data, "task", chunks.task_key(device, task.id, digest), digest=digest)


class TaskReader:
    """Puts tasks together from their payloads; chunks may come in any order and twice."""

    def __init__(self) -> None:
        self._assembler = chunks.Assembler(2 * MAX_TASK, 2 * MAX_TASK)

    def read(self, payload: bytes, now_ns: int) -> Task | None:
        """Returns the task when this was its last payload.

        Raises:
            WireFormatError: the payload breaks the format; what was there of its object is dropped.
        """
        if not chunks.is_chunk(payload):
            return wire.decode(Task, payload)
        done = self._assembler.add("coordinator", payload, now_ns)
        return None if done is None else wire.decode(Task, done.data, MAX_TASK)

    def forget(self) -> None:
        """Drops what is incomplete: the connection is new, and the task will be sent whole again."""
        self._assembler.forget("coordinator")


__all__ = ["MAX_TASK", "TaskReader", "encode"]
