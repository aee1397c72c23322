"""Logging: one JSON object a line on stderr; never hand it a prompt, an answer or a key."""

from __future__ import annotations

import logging
import sys

import msgspec

_ENCODE = msgspec.json.Encoder().encode
_FIELDS = "starai_fields"


class JsonLines(logging.Formatter):
    """Renders a record as one JSON object: time, level, logger, event and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, object] = {
            "t": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(getattr(record, _FIELDS, {}))
        if record.exc_info and record.exc_info[1] is not None:
            # The class and place of a fault, never its text: a message may quote user input.
            fault = record.exc_info[1]
            frame = fault.__traceback__
            while frame is not None and frame.tb_next is not None:
                frame = frame.tb_next
            line["fault"] = type(fault).__name__
            if frame is not None:
                line["at"] = f"{frame.tb_frame.f_code.co_name}:{frame.tb_lineno}"
        return _ENCODE(line).decode()


def setup(level: str = "INFO") -> None:
    """Send all logging to stderr as JSON lines; call once, at a process's edge."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("nats", "httpx", "httpcore", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def event(
    logger: logging.Logger, name: str, /, level: int = logging.INFO, **fields: object
) -> None:
    """Log the event ``name`` with ``fields``; fields are identifiers and numbers, never content."""
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={_FIELDS: fields})
