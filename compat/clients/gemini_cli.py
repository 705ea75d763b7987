"""gemini-cli, without a terminal (``gemini -p``)."""

import json
from pathlib import Path

import agent_programs as agents

home = Path(agents.HOME) / ".gemini"
home.mkdir()
settings = {
    "general": {"disableAutoUpdate": True, "disableUpdateNag": True, "enableAutoUpdate": False},
    "privacy": {"usageStatisticsEnabled": False},
    "telemetry": {"enabled": False},
    "security": {"auth": {"selectedType": "gemini-api-key"}},
}
(home / "settings.json").write_text(json.dumps(settings))
environ = {
    "GEMINI_API_KEY": agents.KEY,
    "GOOGLE_GEMINI_BASE_URL": agents.URL,
    "GEMINI_CLI_TRUST_WORKSPACE": "true",
    "GEMINI_TELEMETRY_ENABLED": "false",
}
command = [
    f"{agents.FOLDER}/gemini",
    "-m",
    agents.MODEL,
    "-p",
    agents.PROMPT,
    "--output-format",
    "stream-json",
    "--approval-mode",
    "yolo",
]
run = agents.Run(command, environ)
for event in run.read_events():
    match event.get("type"):
        case "message" if event.get("role") == "assistant":
            run.pieces.append(event["content"])
            run.text = "".join(run.pieces)
            if agents.ACTION == "abort":
                run.stop()
                break
        case "tool_use":
            run.calls.append([event["tool_name"], event["parameters"]])
            run.pieces.clear()
        case "error" if event.get("severity") != "warning":
            run.error = event.get("message")
        case "result" if event.get("status") == "error":
            run.error = (event.get("error") or {}).get("message") or "no words"
run.report()
