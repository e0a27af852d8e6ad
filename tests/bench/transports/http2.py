"""The bench's constant server behind nginx, which speaks HTTP/1.1 and HTTP/2 over TLS.

nginx allows 128 streams a connection, as it does by default and as providers' front doors mostly do.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from servers import pin

CONFIGURATION = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log crit;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    keepalive_requests 1000000; http2_max_concurrent_streams 128;
    upstream constant {{ server 127.0.0.1:{behind}; keepalive 512; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port} ssl http2 backlog=4096;
        ssl_certificate {certificate}; ssl_certificate_key {key};
        location / {{
            proxy_pass http://constant; proxy_http_version 1.1; proxy_set_header Connection "";
            add_header x-version $server_protocol;
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, certificate: Path, key: Path, behind: int) -> Iterator[int]:
    """nginx before the server at ``behind``; its port."""
    folder.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    written = folder / "nginx.conf"
    names = {"folder": folder, "port": port, "behind": behind, "certificate": certificate, "key": key}
    written.write_text(CONFIGURATION.format(**names))
    found = shutil.which("nginx")
    assert found is not None
    with subprocess.Popen(
        [found, "-c", str(written), "-p", str(folder)], stderr=subprocess.DEVNULL
    ) as server:
        pin(server.pid)
        try:
            _wait(port, server)
            yield port
        finally:
            server.terminate()


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + 5
    while time.monotonic() < ends and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError("nginx did not start")
