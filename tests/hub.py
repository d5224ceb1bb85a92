"""A stand-in for the Hub's HTTP API on 127.0.0.1: enough to create a repository and to commit files to it.

Files named `*.safetensors` go the way of large files (LFS batch, PUT, pointer in the commit), all others inside the
commit; what the commit's `.gitignore` names is ignored, as the Hub does it.
"""

import base64
import fnmatch
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub:
    """Serves from a thread while its `with` block lasts; `files` is what was committed, by repository and path."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.tokens: set[str | None] = set()
        self._large: dict[str, bytes] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, body: bytes) -> Any:
        """The JSON that answers a request; None for one that the stand-in does not know."""
        if path == "/api/whoami-v2":
            return {"type": "user", "name": "someone", "auth": {"type": "access_token"}}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            row = json.loads(body)
            repo = f"{row.get('organization') or 'someone'}/{row['name']}"
            self.files.setdefault(repo, {})
            return {"url": f"{self.url}/{repo}", "name": repo}
        if method == "PUT" and path.startswith("/large/"):
            self._large[path.removeprefix("/large/")] = body
            return {}
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if "/preupload/" in path:
            return self._preupload(json.loads(body))
        if "/commit/" in path:
            return self._commit(path.removeprefix("/api/models/").split("/commit/")[0], body)
        if method == "GET" and path.startswith("/api/models/"):
            repo = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            return {"id": repo, "sha": "0" * 40, "siblings": [{"rfilename": name} for name in self.files[repo]]}
        return None

    def _batch(self, row: dict[str, Any]) -> Any:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.url}/large/{item['oid']}"}}} for item in row["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _preupload(self, row: dict[str, Any]) -> Any:
        ignored = [f"{line}*" for line in row.get("gitIgnore", "").split()]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": any(fnmatch.fnmatch(file["path"], pattern) for pattern in ignored),
            }
            for file in row["files"]
        ]
        return {"files": files}

    def _commit(self, repo: str, body: bytes) -> Any:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[repo][value["path"]] = self._large[value["oid"]]
        return {"commitUrl": f"{self.url}/{repo}/commit/1", "commitOid": "0" * 40, "success": True}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.tokens.add(self.headers.get("Authorization"))
        answer = self.hub.answer(self.command, self.path.split("?")[0], body)
        content = json.dumps(answer if answer is not None else {"error": "not found"}).encode()
        self.send_response(200 if answer is not None else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_HEAD = _serve

    def log_message(self, format: str, *arguments: object) -> None:
        pass
