"""Codex CLI, without a terminal (``codex exec``). It sends its tools with every request."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

action, folder = sys.argv[-1], sys.argv[1]
home = Path(os.environ["HOME"]) / ".codex"
home.mkdir()
(home / "config.toml").write_text(
    f"""
model = "{os.environ["CGW_MODEL"]}"
model_provider = "cgw"
[model_providers.cgw]
name = "cgw"
base_url = "{os.environ["CGW_URL"]}"
env_key = "CGW_KEY"
wire_api = "responses"
request_max_retries = 1
stream_max_retries = 1
"""
)
command = [f"{folder}/codex", "exec", "--json", "--skip-git-repo-check", "--sandbox", "read-only", "Good day"]
process = subprocess.Popen(
    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=os.environ["HOME"]
)
if action == "abort":
    try:
        process.wait(8)  # it shows no pieces; by then the stream is under way
    except subprocess.TimeoutExpired:
        process.terminate()
texts, errors = [], []
for line in process.stdout:
    event = json.loads(line) if line.startswith("{") else {}
    item = event.get("item") or {}
    if event.get("type") == "item.completed" and item.get("type") == "agent_message":
        texts.append(item["text"])
    if event.get("type") in ("error", "turn.failed"):
        errors.append(event.get("message") or event["error"]["message"])
process.wait()
if texts and not process.returncode:
    said = {"text": texts[-1], "pieces": 2}
else:
    words = errors[-1] if errors else process.stderr.read() or "nothing was said"
    status = next(iter(re.findall(r"\b([45]\d\d)\b", words)), None)
    said = {"error": words, "status": None if status is None else int(status)}
print(json.dumps(said))
