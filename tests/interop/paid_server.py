"""A model server that remembers what it was asked, and answers each question after a while."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class PaidServer:
    """``asked`` maps each prompt to how often it came."""

    def __init__(self, latency):
        self.asked, self.lock = {}, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                prompt = body["messages"][-1]["content"]
                with outer.lock:
                    outer.asked[prompt] = outer.asked.get(prompt, 0) + 1
                time.sleep(latency)
                reminder = prompt[prompt.rindex("Respond with") :]
                names = [name for name in ("reasoning", "answer") if name in reminder]
                parts = [f"[[ ## {name} ## ]]\nthe {name}" for name in names]
                data = json.dumps(
                    {
                        "id": "x",
                        "model": body["model"],
                        "choices": [
                            {
                                "index": 0,
                                "finish_reason": "stop",
                                "message": {
                                    "role": "assistant",
                                    "content": "\n\n".join([*parts, "[[ ## completed ## ]]"]),
                                },
                            }
                        ],
                        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
                    }
                ).encode()
                try:
                    self.send_response(200)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # it was killed meanwhile

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def base(self):
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    @property
    def total(self):
        return sum(self.asked.values())

    def close(self):
        self.server.shutdown()
        self.server.server_close()
