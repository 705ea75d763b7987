"""The clients that are run. A further one is a script in ``clients/``, a lock in ``locks/``, and a line here."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen

from cgw.testing.script import ScriptedCall

Registry = Literal["PyPI", "npm"]
Api = Literal["anthropic", "openai", "google"]

MODELS: dict[Api, str] = {
    "anthropic": "claude-sonnet-4-5",
    "openai": "gpt-4o",
    "google": "gemini-2.5-flash",
}
"""The model that is asked for of each API."""

ADD = ScriptedCall("add", '{"first": 1, "second": 1}')
"""The call that the scripted model makes of the tool which every script offers."""


@frozen
class Task:
    """A task of several turns for an agent: the calls that the model makes, and the file that is there afterwards."""

    calls: tuple[ScriptedCall, ...]
    path: str
    content: str


@frozen
class Client:
    """A client: its package, whose version and dependencies are in ``locks/<lock>``, and the script that uses it.

    - ``absent`` names scenarios that it has not, with the reason.
    - ``call`` is the call in the scenario "tools"; ``ends_with_call``: its user gets the call itself.
    - ``shows_pieces``: it shows a stream as it comes.
    - ``attempts`` allows more attempts in a scenario than other clients need.
    - ``statuses`` has those that it shows instead of cgw's, 0 for none.
    - ``hides`` names scenarios in which it does not show cgw's words.
    - ``notes`` are about scenarios that it passes.
    - ``python`` is the newest Python that it supports.
    - ``post_install`` is a script of its package, which is not run with the installation.
    """

    name: str
    registry: Registry
    package: str
    lock: str
    script: str
    api: Api
    absent: tuple[tuple[str, str], ...] = ()
    call: ScriptedCall = ADD
    ends_with_call: bool = False
    shows_pieces: bool = True
    attempts: tuple[tuple[str, int], ...] = ()
    statuses: tuple[tuple[str, int], ...] = ()
    hides: tuple[str, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    python: str | None = None
    post_install: str | None = None
    task: Task | None = field(default=None, repr=False)


def _shell(command: str) -> ScriptedCall:
    """Return a call of Codex CLI's tool."""
    return ScriptedCall("exec_command", f'{{"cmd": "{command}"}}')


NOTE = "note.txt"
"""The file of the agents' tasks. In arguments ``$FOLDER`` stands for the folder that the agent works in."""

CLIENTS = (
    Client("openai", "PyPI", "openai", "openai", "openai_python.py", "openai"),
    Client("openai, Responses", "PyPI", "openai", "openai", "openai_responses.py", "openai"),
    Client("anthropic", "PyPI", "anthropic", "anthropic", "anthropic_python.py", "anthropic"),
    Client("google-genai", "PyPI", "google-genai", "google-genai", "google_genai.py", "google"),
    Client("langchain-openai", "PyPI", "langchain-openai", "langchain-openai", "langchain_openai_chat.py", "openai"),
    Client(
        "langchain-anthropic",
        "PyPI",
        "langchain-anthropic",
        "langchain-anthropic",
        "langchain_anthropic_chat.py",
        "anthropic",
    ),
    Client(
        "litellm, Anthropic",
        "PyPI",
        "litellm",
        "litellm",
        "litellm_anthropic.py",
        "anthropic",
        statuses=(("upstream 503", 500),),
        notes=(("upstream 503", "shown as 500: litellm goes by the body, which says `overloaded_error`"),),
    ),
    Client("litellm, OpenAI", "PyPI", "litellm", "litellm", "litellm_openai.py", "openai"),
    Client("instructor", "PyPI", "instructor", "instructor", "instructor_openai.py", "openai", ends_with_call=True),
    Client("pydantic-ai, OpenAI", "PyPI", "pydantic-ai-slim", "pydantic-ai", "pydantic_ai_openai.py", "openai"),
    Client(
        "pydantic-ai, Anthropic", "PyPI", "pydantic-ai-slim", "pydantic-ai", "pydantic_ai_anthropic.py", "anthropic"
    ),
    Client("pydantic-ai, Google", "PyPI", "pydantic-ai-slim", "pydantic-ai", "pydantic_ai_google.py", "google"),
    Client("openai-agents", "PyPI", "openai-agents", "openai-agents", "openai_agents.py", "openai"),
    Client("llm", "PyPI", "llm", "llm", "llm_openai.py", "openai"),
    Client(
        "aider",
        "PyPI",
        "aider-chat",
        "aider",
        "aider_chat.py",
        "openai",
        absent=(("tools", "it offers none: edits are in the text"),),
        attempts=(("quota used up", 12), ("upstream 503", 12), ("cut stream", 12)),
        notes=(("upstream 503", "it goes on, for ten minutes and more"),),
        python="3.12",
    ),
    Client("openai (Node)", "npm", "openai", "openai-node", "openai_node.mjs", "openai"),
    Client("@anthropic-ai/sdk", "npm", "@anthropic-ai/sdk", "anthropic-node", "anthropic_node.mjs", "anthropic"),
    Client("ai, OpenAI", "npm", "ai", "ai", "ai_openai.mjs", "openai"),
    Client("ai, Anthropic", "npm", "ai", "ai", "ai_anthropic.mjs", "anthropic"),
    Client("ai, Google", "npm", "ai", "ai", "ai_google.mjs", "google"),
    Client("@google/genai", "npm", "@google/genai", "google-node", "google_node.mjs", "google"),
    Client(
        "Claude Code",
        "npm",
        "@anthropic-ai/claude-code",
        "claude-code",
        "claude_code.py",
        "anthropic",
        call=ScriptedCall("Bash", '{"command": "echo 2", "description": "Add"}'),
        notes=(("upstream 503", "with `CLAUDE_CODE_MAX_RETRIES=2`; its default is 10, which takes minutes"),),
        post_install="node_modules/@anthropic-ai/claude-code/install.cjs",
        task=Task(
            (
                ScriptedCall("Write", '{"file_path": "$FOLDER/note.txt", "content": "one\\ntwo\\n"}'),
                ScriptedCall("Read", '{"file_path": "$FOLDER/note.txt"}'),
                ScriptedCall(
                    "Edit",
                    '{"file_path": "$FOLDER/note.txt", "old_string": "two", "new_string": "three",'
                    ' "replace_all": false}',
                ),
                ScriptedCall("Bash", '{"command": "cat note.txt", "description": "Show the note"}'),
            ),
            NOTE,
            "one\nthree\n",
        ),
    ),
    Client(
        "Codex CLI",
        "npm",
        "@openai/codex",
        "codex",
        "codex.py",
        "openai",
        call=_shell("echo 2"),
        shows_pieces=False,
        attempts=(("wrong key", 6),),
        hides=("quota used up",),
        notes=(
            ("wrong key", "it retries a 401 as any other error"),
            ("stream", "`codex exec` shows an answer as a whole"),
            ("quota used up", "it goes on waiting for as long as `retry-after` says, which may be hours"),
            ("upstream 503", "it goes on: 5 times, with `retry-after` in between"),
        ),
        task=Task(
            (
                _shell("printf 'one\\\\ntwo\\\\n' > note.txt"),
                _shell("cat note.txt"),
                _shell("sed -i s/two/three/ note.txt"),
                _shell("cat note.txt"),
            ),
            NOTE,
            "one\nthree\n",
        ),
    ),
    Client(
        "gemini-cli",
        "npm",
        "@google/gemini-cli",
        "gemini-cli",
        "gemini_cli.py",
        "google",
        call=ScriptedCall("list_directory", '{"dir_path": "."}'),
        attempts=(("quota used up", 10), ("upstream 503", 10), ("cut stream", 10)),
        statuses=(("quota used up", 0), ("upstream 503", 0)),
        task=Task(
            (
                ScriptedCall("write_file", '{"file_path": "$FOLDER/note.txt", "content": "one\\ntwo\\n"}'),
                ScriptedCall("read_file", '{"file_path": "$FOLDER/note.txt"}'),
                ScriptedCall(
                    "replace",
                    '{"file_path": "$FOLDER/note.txt", "old_string": "two", "new_string": "three",'
                    ' "instruction": "Replace two by three."}',
                ),
                ScriptedCall("read_file", '{"file_path": "$FOLDER/note.txt"}'),
            ),
            NOTE,
            "one\nthree\n",
        ),
    ),
)
