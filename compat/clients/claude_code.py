"""Claude Code, without a terminal (``claude -p``)."""

import agent_programs as agents

environ = {
    "ANTHROPIC_BASE_URL": agents.URL,
    "ANTHROPIC_API_KEY": agents.KEY,
    "ANTHROPIC_MODEL": agents.MODEL,
    "ANTHROPIC_SMALL_FAST_MODEL": agents.MODEL,
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "CLAUDE_CODE_MAX_RETRIES": "2",  # of 10, which take minutes
}
command = [f"{agents.FOLDER}/claude", "-p", agents.PROMPT, "--output-format", "stream-json", "--verbose"]
command += [
    "--include-partial-messages",
    "--permission-mode",
    "acceptEdits",
    "--allowedTools",
    "Bash",
    "Write",
    "Read",
    "Edit",
]
run = agents.Run(command, environ)
for event in run.read_events():
    match event.get("type"):
        case "stream_event":
            piece = event["event"].get("delta", {}).get("text", "")
            if piece:
                run.pieces.append(piece)
                if agents.ACTION == "abort":
                    run.stop()
                    break
        case "assistant":
            blocks = event["message"]["content"]
            run.calls += [[block["name"], block["input"]] for block in blocks if block["type"] == "tool_use"]
        case "result" if event.get("is_error"):
            run.error, run.status = event.get("result") or "no words", event.get("api_error_status")
        case "result":
            run.text = event["result"]
run.report()
