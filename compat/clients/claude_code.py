"""Claude Code, without a terminal (``claude -p``). It sends its tools with every request."""

import json
import os
import re
import subprocess
import sys
import time

action, folder = sys.argv[-1], sys.argv[1]
environ = {
    **os.environ,
    "ANTHROPIC_BASE_URL": os.environ["CGW_URL"],
    "ANTHROPIC_API_KEY": os.environ["CGW_KEY"],
    "ANTHROPIC_MODEL": os.environ["CGW_MODEL"],
    "ANTHROPIC_SMALL_FAST_MODEL": os.environ["CGW_MODEL"],
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_MAX_RETRIES": "2",
}
command = [f"{folder}/claude", "-p", "Good day", "--output-format", "stream-json", "--verbose", "--include-partial-messages"]
process = subprocess.Popen(
    command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=environ["HOME"]
)
pieces, result = [], None
for line in process.stdout:
    event = json.loads(line) if line.startswith("{") else {}
    if event.get("type") == "stream_event" and event["event"].get("type") == "content_block_delta":
        pieces.append(event["event"]["delta"].get("text", ""))
        if action == "abort":
            process.terminate()
            break
    if event.get("type") == "result":
        result = event
process.wait()
time.sleep(0.1)
if action == "abort":
    said = {"text": "".join(pieces)}
elif result is not None and not result.get("is_error"):
    said = {"text": result["result"], "pieces": len(pieces)}
else:
    words = (result or {}).get("result") or process.stderr.read() or "nothing was said"
    status = (result or {}).get("api_error_status") or next(iter(re.findall(r"\b([45]\d\d)\b", words)), None)
    said = {"error": words, "status": None if status is None else int(status)}
print(json.dumps(said))
