"""Both providers' batch APIs on one real socket, faithful in what they check and how they answer.

In a test it is an async context manager; as a process it prints its port and serves until killed:

    python tests/lm/batch/server.py --log calls.jsonl --hold hold

What becomes of a request may be written in its own text: ``@400``, ``@429``, ``@expired``,
``@canceled``, ``@missing``, ``@garbage``; with ``-once`` behind it only the first time it is asked.
While the file ``--hold`` exists no batch ends. The log has a line for every batch that is created
with the prompts in it, and one for every other call: the oracle for what was paid.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import re
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.chaos.oracle import answer_to

KEYS = ("sk-batch-tests-0123456789", "sk-chaos")
_ORDER = re.compile(r"@(400|429|500|expired|canceled|missing|garbage)(-once)?")
_SECTION = re.compile(r"^\[\[ ## (\w+) ## \]\]\n(.*?)\n\n", re.DOTALL | re.MULTILINE)
_WANTED = re.compile(r"^Answer with `\[\[ ## (\w+) ## \]\]`", re.MULTILINE)
_CUSTOM = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_POLL = 0.01


@dataclass
class Fault:
    """What goes wrong with the next calls whose ``METHOD path`` matches.

    ``after`` lets the call take effect first; ``reset`` breaks the connection instead of an answer,
    ``cut`` sends so many bytes of the body and then does.
    """

    match: str
    status: int = 500
    times: int = 1
    after: bool = False
    reset: bool = False
    cut: int | None = None
    delay: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()
    body: dict[str, Any] | None = None


@dataclass
class Line:
    """One request of a batch."""

    custom_id: str
    body: dict[str, Any]
    text: str
    ask: str


@dataclass
class Made:
    """A batch."""

    id: str
    number: int
    lines: list[Line]
    created: float
    meta: dict[str, str] | None = None
    looks: int = 0
    fate: str = ""
    errors: list[dict[str, Any]] = field(default_factory=list)
    output: bytes = b""
    error: bytes = b""
    counts: Counter[str] = field(default_factory=Counter)


class BatchServer:
    """The server. ``fate`` decides by number what becomes of a batch: ``completed``, ``expired``,
    ``cancelled`` or ``failed:CODE[:LINE]``; ``looks`` is how often it must be looked at before.
    """

    def __init__(self, *, log: Path | None = None, hold: Path | None = None, looks: int = 1) -> None:
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Made] = {}
        self.faults: list[Fault] = []
        self.calls: list[str] = []
        self.asked: Counter[str] = Counter()  # prompts by their text, as often as they were in a batch
        self.heads: list[dict[str, str]] = []
        self.fate: Callable[[int], str] = lambda _number: "completed"
        self.looks = looks
        self.held = False
        self.seconds = 0.0  # a batch takes at least so long
        self.most_lines = 50_000
        self.rng = random.Random(7)
        self._seen: Counter[str] = Counter()
        self._log = log.open("ab", buffering=0) if log is not None else None
        self._hold = hold
        self._open: set[asyncio.Task[Any]] = set()

    # ------------------------------------------------------------------------------------ sockets

    async def __aenter__(self) -> BatchServer:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, limit=1 << 22)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """The address to give as api_base."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:]) if n}
        self.heads.append(headers)
        name = f"{method} {urlsplit(target).path}"
        fault = next((f for f in self.faults if re.search(f.match, name)), None)
        if fault is not None:
            fault.times -= 1
            if fault.times <= 0:
                self.faults.remove(fault)
        length = int(headers.get("content-length", "0"))
        if fault is not None and fault.cut is not None and method == "POST":
            await reader.readexactly(min(length, fault.cut))
            return _reset(writer)
        body = await reader.readexactly(length)
        self._note({"op": "call", "call": name})
        self.calls.append(name)
        status, kind, data = 200, "application/json", b""
        extra: tuple[tuple[str, str], ...] = ()
        if fault is None or fault.after or fault.cut is not None:
            status, kind, data = self._answer(method, target, headers, body)
        if fault is not None:
            await asyncio.sleep(fault.delay)
            if fault.reset:
                return _reset(writer)
            if fault.cut is None:
                status, extra = fault.status, fault.headers
                data = json.dumps(fault.body or {"error": {"message": "told to"}}).encode()
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(data)}"]
        lines += [f"{n}: {v}" for n, v in extra]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        if fault is not None and fault.cut is not None:
            writer.write(data[: fault.cut])
            await writer.drain()
            return _reset(writer)
        writer.write(data)
        await writer.drain()
        return True

    def _note(self, line: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(json.dumps(line).encode() + b"\n")

    # ------------------------------------------------------------------------------------- routes

    def _answer(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, str, bytes]:
        split = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        path = split.path.removeprefix("/v1")
        if path.startswith("/messages"):
            return self._anthropic(method, path, query, headers, body)
        if headers.get("authorization") not in [f"Bearer {key}" for key in KEYS]:
            return _refuse(401, "invalid_api_key", "Incorrect API key provided")
        if (method, path) == ("POST", "/files"):
            return self._upload(headers, body)
        if (method, path) == ("POST", "/batches"):
            return self._create_openai(json.loads(body))
        if (method, path) == ("GET", "/batches"):
            return self._list(query.get("after"), int(query.get("limit", "20")), _openai_batch)
        match = re.fullmatch(r"/batches/([\w.-]+)", path)
        if match and method == "GET":
            made = self.batches.get(match[1])
            if made is None:
                return _refuse(404, None, f"No batch found with id '{match[1]}'.")
            self._look(made)
            return _json(_openai_batch(made))
        match = re.fullmatch(r"/files/([\w.-]+)/content", path)
        if match and method == "GET":
            if match[1] not in self.files:
                return _refuse(404, None, f"No such File object: {match[1]}")
            return 200, "application/octet-stream", self.files[match[1]]
        return _refuse(404, None, f"Unknown request URL: {method} {path}")

    def _upload(self, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        match = re.fullmatch(r"multipart/form-data; boundary=(\S+)", headers.get("content-type", ""))
        if match is None:
            return _refuse(400, None, "not a form")
        parts: dict[str, bytes] = {}
        mark = b"--" + match[1].encode()
        sections = body.split(mark)
        if sections[0] != b"" or sections[-1] != b"--\r\n":
            return _refuse(400, None, "the form has no end")
        for section in sections[1:-1]:
            top, _, data = section.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            found = re.search(rb'name="(\w+)"', top)
            if found is None or not data.endswith(b"\r\n"):
                return _refuse(400, None, "a part has no name or no end")
            parts[found[1].decode()] = data[:-2]
        if parts.get("purpose") != b"batch" or "file" not in parts:
            return _refuse(400, None, "purpose and file are required")
        name = f"file-{len(self.files):04d}"
        self.files[name] = parts["file"]
        return _json({"id": name, "object": "file", "bytes": len(parts["file"]), "purpose": "batch"})

    def _create_openai(self, asked: dict[str, Any]) -> tuple[int, str, bytes]:
        data = self.files.get(asked.get("input_file_id", ""))
        if data is None or asked.get("completion_window") != "24h":
            return _refuse(400, None, "no such input file, or no such window")
        lines, errors = [], []
        names: set[str] = set()
        models: set[str] = set()
        for number, text in enumerate(data.split(b"\n"), 1):
            if not text.strip():
                continue
            value = json.loads(text)
            if value["url"] != asked["endpoint"] or value["method"] != "POST":
                errors.append({"code": "mismatched_url", "message": "another endpoint", "line": number})
            if value["custom_id"] in names:
                errors.append({"code": "duplicate_custom_id", "message": "twice", "line": number})
            names.add(value["custom_id"])
            models.add(value["body"]["model"])
            lines.append(_line(value["custom_id"], value["body"]))
        if len(models) != 1:
            errors.append({"code": "mismatched_model", "message": "two models", "line": None})
        if len(lines) > self.most_lines:
            errors.append({"code": "token_limit_exceeded", "message": "Enqueued token limit", "line": None})
        made = self._make("batch_", lines, asked.get("metadata"))
        if errors:
            made.fate, made.errors = "failed", errors
        return _json(_openai_batch(made))

    def _make(self, prefix: str, lines: list[Line], meta: dict[str, str] | None) -> Made:
        number = len(self.batches)
        made = Made(f"{prefix}{number:04d}", number, lines, time.time(), meta)
        self.batches[made.id] = made
        self._note({"op": "created", "batch": made.id, "asks": [line.ask for line in lines]})
        self.asked.update(line.text for line in lines)
        return made

    def _list(
        self, after: str | None, limit: int, form: Callable[[Made], dict[str, Any]]
    ) -> tuple[int, str, bytes]:
        found = list(self.batches.values())[::-1]
        if after is not None:
            place = next(n for n, made in enumerate(found) if made.id == after)
            found = found[place + 1 :]
        page = found[:limit]
        first, last = (page[0].id, page[-1].id) if page else (None, None)
        return _json(
            {
                "object": "list",
                "data": [form(made) for made in page],
                "first_id": first,
                "last_id": last,
                "has_more": len(found) > limit,
            }
        )

    # ---------------------------------------------------------------------------------- anthropic

    def _anthropic(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, str, bytes]:
        if headers.get("x-api-key") not in KEYS:
            return _refuse_anthropic(401, "authentication_error", "invalid x-api-key")
        if "anthropic-version" not in headers:
            return _refuse_anthropic(400, "invalid_request_error", "anthropic-version: header is required")
        if (method, path) == ("POST", "/messages/batches"):
            return self._create_anthropic(json.loads(body))
        if (method, path) == ("GET", "/messages/batches"):
            return self._list(query.get("after_id"), int(query.get("limit", "20")), _anthropic_batch)
        match = re.fullmatch(r"/messages/batches/([\w.-]+)(/results)?", path)
        made = self.batches.get(match[1]) if match else None
        if match is None or made is None or method != "GET":
            return _refuse_anthropic(404, "not_found_error", "no such batch")
        if match[2] is None:
            self._look(made)
            return _json(_anthropic_batch(made))
        if not made.fate:
            return _refuse_anthropic(404, "not_found_error", "the batch has no results yet")
        return 200, "application/x-jsonl", made.output

    def _create_anthropic(self, asked: dict[str, Any]) -> tuple[int, str, bytes]:
        lines = []
        names: set[str] = set()
        for number, one in enumerate(asked["requests"]):
            name = one["custom_id"]
            if _CUSTOM.fullmatch(name) is None or name in names:
                text = f"requests.{number}.custom_id: not unique, or not 1 to 64 allowed characters"
                return _refuse_anthropic(400, "invalid_request_error", text)
            names.add(name)
            lines.append(_line(name, one["params"]))
        if not lines:
            return _refuse_anthropic(400, "invalid_request_error", "requests: at least one")
        if len(lines) > self.most_lines:
            return _refuse_anthropic(413, "request_too_large", "too large")
        return _json(_anthropic_batch(self._make("msgbatch_", lines, None)))

    # ------------------------------------------------------------------------------------ the work

    def _look(self, made: Made) -> None:
        held = self.held or (self._hold is not None and self._hold.exists())
        if made.fate or held or time.time() < made.created + self.seconds:
            return
        made.looks += 1
        if made.looks < self.looks:
            return
        fate, _, detail = self.fate(made.number).partition(":")
        made.fate = fate
        if fate == "failed":
            code, _, line = detail.partition(":")
            made.errors = [{"code": code, "message": "as told", "line": int(line) if line else None}]
            return
        outcomes = [(line, self._outcome(line, made)) for line in made.lines]
        self.rng.shuffle(outcomes)
        write = _write_anthropic if made.id.startswith("msg") else _write_openai
        write(made, outcomes)
        if made.output and not made.id.startswith("msg"):
            self.files[f"{made.id}-out"] = made.output
        if made.error:
            self.files[f"{made.id}-err"] = made.error

    def _outcome(self, line: Line, made: Made) -> str:
        self._seen[line.text] += 1
        order = _ORDER.search(line.text)
        if order is not None and (not order[2] or self._seen[line.text] == 1):
            return order[1]
        if made.fate in ("expired", "cancelled") and line is not made.lines[0]:
            return "expired" if made.fate == "expired" else "canceled"
        return "ok"


def _line(name: str, body: dict[str, Any]) -> Line:
    texts = []
    for message in body["messages"]:
        content = message["content"]
        blocks = [content] if isinstance(content, str) else [b.get("text", "") for b in content]
        if message["role"] == "user":
            texts.append("".join(blocks))
    digest = hashlib.sha256(json.dumps([body.get("system"), body["messages"]]).encode()).hexdigest()[:16]
    return Line(name, body, texts[-1], digest)


def _content(line: Line) -> str:
    inputs = dict(_SECTION.findall(line.text))
    wanted = _WANTED.search(line.text)
    if wanted is None:
        return f"echo: {line.text}"
    if "@garbage" in line.text:
        return "I cannot."
    return f"[[ ## {wanted[1]} ## ]]\n{answer_to(wanted[1], inputs)}\n\n[[ ## completed ## ]]"


def _write_openai(made: Made, outcomes: list[tuple[Line, str]]) -> None:
    good, bad = [], []
    for line, outcome in outcomes:
        made.counts["failed" if outcome not in ("ok", "garbage") else "completed"] += outcome != "missing"
        entry: dict[str, Any] = {"id": f"batch_req_{line.ask}", "custom_id": line.custom_id, "error": None}
        if outcome in ("ok", "garbage"):
            answer = {
                "id": f"chatcmpl-{line.ask}",
                "object": "chat.completion",
                "model": line.body["model"],
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": _content(line), "refusal": None},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
            }
            entry["response"] = {"status_code": 200, "request_id": line.ask, "body": answer}
            good.append(entry)
        elif outcome in ("expired", "canceled"):
            code = "batch_expired" if outcome == "expired" else "batch_cancelled"
            bad.append({**entry, "response": None, "error": {"code": code, "message": "not asked"}})
        elif outcome != "missing":
            kinds = {"400": "invalid_request_error", "429": "rate_limit_error", "500": "server_error"}
            error = {"error": {"message": "told to", "type": kinds[outcome], "code": None}}
            response = {"status_code": int(outcome), "request_id": line.ask, "body": error}
            bad.append({**entry, "response": response})
    made.output = b"".join(json.dumps(entry).encode() + b"\n" for entry in good)
    made.error = b"".join(json.dumps(entry).encode() + b"\n" for entry in bad)


def _write_anthropic(made: Made, outcomes: list[tuple[Line, str]]) -> None:
    entries = []
    for line, outcome in outcomes:
        if outcome in ("ok", "garbage"):
            message = {
                "id": f"msg_{line.ask}",
                "type": "message",
                "role": "assistant",
                "model": line.body["model"],
                "content": [{"type": "text", "text": _content(line)}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": 100, "output_tokens": 20},
            }
            result: dict[str, Any] = {"type": "succeeded", "message": message}
            made.counts["succeeded"] += 1
        elif outcome in ("expired", "canceled"):
            result = {"type": outcome}
            made.counts[outcome] += 1
        else:
            kinds = {"400": "invalid_request_error", "429": "rate_limit_error", "500": "api_error"}
            error = {"type": kinds.get(outcome, "api_error"), "message": "told to"}
            result = {"type": "errored", "error": {"type": "error", "error": error, "request_id": line.ask}}
            made.counts["errored"] += 1
        if outcome != "missing":
            entries.append({"custom_id": line.custom_id, "result": result})
    made.output = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def _openai_batch(made: Made) -> dict[str, Any]:
    status = made.fate or ("validating" if made.looks == 0 else "in_progress")
    return {
        "id": made.id,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "errors": {"object": "list", "data": made.errors} if made.errors else None,
        "input_file_id": "file-in",
        "completion_window": "24h",
        "status": status,
        "output_file_id": f"{made.id}-out" if made.output else None,
        "error_file_id": f"{made.id}-err" if made.error else None,
        "created_at": int(made.created),
        "request_counts": {
            "total": 0 if status in ("validating", "failed") else len(made.lines),
            "completed": made.counts["completed"],
            "failed": made.counts["failed"],
        },
        "metadata": made.meta,
    }


def _anthropic_batch(made: Made) -> dict[str, Any]:
    names = ("succeeded", "errored", "canceled", "expired")
    moment = datetime.fromtimestamp(made.created, timezone.utc).isoformat()
    counts = {name: made.counts[name] for name in names}
    return {
        "id": made.id,
        "type": "message_batch",
        "processing_status": "ended" if made.fate else "in_progress",
        "request_counts": {**counts, "processing": len(made.lines) if not made.fate else 0},
        "created_at": moment.replace("+00:00", "Z"),
        "expires_at": moment.replace("+00:00", "Z"),
        "ended_at": moment.replace("+00:00", "Z") if made.fate else None,
        "cancel_initiated_at": None,
        "results_url": "http://169.254.169.254/latest" if made.fate else None,
    }


def _json(value: dict[str, Any]) -> tuple[int, str, bytes]:
    return 200, "application/json", json.dumps(value).encode()


def _refuse(status: int, code: str | None, message: str) -> tuple[int, str, bytes]:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return status, "application/json", json.dumps({"error": error}).encode()


def _refuse_anthropic(status: int, kind: str, message: str) -> tuple[int, str, bytes]:
    value = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}
    return status, "application/json", json.dumps(value).encode()


def _reset(writer: asyncio.StreamWriter) -> bool:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def _serve(given: argparse.Namespace) -> None:
    async with BatchServer(log=given.log, hold=given.hold, looks=given.looks) as server:
        server.seconds = given.seconds
        print(server.port, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--hold", type=Path)
    parser.add_argument("--looks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.0)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
