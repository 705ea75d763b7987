"""Codex CLI, without a terminal (``codex exec``)."""

import re
import shlex
import threading
from pathlib import Path

import agent_programs as agents

home = Path(agents.HOME) / ".codex"
home.mkdir()
(home / "config.toml").write_text(
    f"""
model = "{agents.MODEL}"
model_provider = "cgw"
check_for_update_on_startup = false
[analytics]
enabled = false
[features]
apps = false
plugins = false
remote_plugin = false
[model_providers.cgw]
name = "cgw"
base_url = "{agents.URL}"
env_key = "CGW_KEY"
wire_api = "responses"
"""
)
# Its own sandbox needs what containers often forbid; the folder is a scratch one.
command = [f"{agents.FOLDER}/codex", "exec", "--json", "--skip-git-repo-check"]
command += ["--dangerously-bypass-approvals-and-sandbox", agents.PROMPT]
run = agents.Run(command)
for event in run.read_events():
    item = event.get("item") or {}
    match event.get("type"), item.get("type"):
        case "turn.started", _ if agents.ACTION == "abort":
            # It shows no pieces; by then the answer is under way, and far from its end.
            threading.Timer(8, run.stop).start()
        case "item.completed", "agent_message":
            run.text = item["text"]
        case "item.completed", "command_execution":
            run.calls.append(["exec_command", {"cmd": shlex.split(item["command"])[-1]}])
        case (("error" | "turn.failed"), _):
            run.error = event.get("message") or event["error"]["message"]
            if agents.ACTION == "plain" and re.match("Reconnecting.*(429|503)", run.error):
                run.stop()  # this is what its user sees; it goes on for as long as `retry-after` says
                break
run.report()
