"""aider, without a terminal (``aider --message``)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

action = sys.argv[-1]
environ = {
    **os.environ,
    "OPENAI_API_BASE": os.environ["CGW_URL"],
    "OPENAI_API_KEY": os.environ["CGW_KEY"],
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "PYTHONUNBUFFERED": "1",
}
# Or it fetches a list of prices.
caches = Path(os.environ["HOME"]) / ".aider" / "caches"
caches.mkdir(parents=True)
(caches / "model_prices_and_context_window.json").write_text('{"none": {}}')
command = [str(Path(sys.executable).with_name("aider")), "--model", f"openai/{os.environ['CGW_MODEL']}"]
command += ["--message", "Good day", "--no-git", "--yes-always", "--no-check-update", "--analytics-disable"]
command += [
    "--no-show-model-warnings",
    "--no-show-release-notes",
    "--no-pretty",
    "--no-detect-urls",
    "--chat-mode",
    "ask",
]
command += ["--stream" if action in ("stream", "abort") else "--no-stream"]
process = subprocess.Popen(
    command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
)
seen, pieces = b"", 0
while piece := os.read(process.stdout.fileno(), 65536):
    seen += piece
    pieces += b"Good" in seen or b"word" in seen
    if action == "abort" and b"word" in seen:
        process.terminate()
        break
    if action == "plain" and b"ServiceUnavailableError" in seen and b"Retrying in" in seen:
        process.terminate()  # this is what its user sees; it goes on for ten minutes and more
        break
process.wait(120)
text = seen.decode("utf-8", "replace")
if action == "abort":
    said = {"text": "word"}
elif match := re.search(r"^Good day to you[^\n]*", text, re.MULTILINE):
    said = {"text": match[0], "pieces": pieces}
else:
    # It wraps its lines.
    words = " ".join(text.split())
    error = words[words.find("litellm.") :] if "litellm." in words else words[-300:]
    statuses = {
        "AuthenticationError": 401,
        "RateLimitError": 429,
        "InternalServerError": 500,
        "ServiceUnavailable": 503,
    }
    status = next((status for name, status in statuses.items() if name in text), None)
    said = {"error": error[:300], "status": status}
print(json.dumps(said), flush=True)
