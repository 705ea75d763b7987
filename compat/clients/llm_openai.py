"""llm, with a model from its own configuration file of OpenAI-compatible servers."""

import json
import os
from pathlib import Path

import harness

folder = Path(os.environ["HOME"]) / "llm"
folder.mkdir()
os.environ["LLM_USER_PATH"] = str(folder)
entry = {"model_id": "cgw", "model_name": harness.MODEL, "api_base": harness.URL, "api_key_name": "cgw"}
entry["supports_tools"] = "true"
(folder / "extra-openai-models.yaml").write_text(
    "- " + "\n  ".join(f"{name}: {value}" for name, value in entry.items()) + "\n"
)

(folder / "keys.json").write_text(json.dumps({"cgw": harness.KEY}))

import llm

model = llm.get_model("cgw")


def plain():
    return model.prompt(harness.PROMPT, stream=False).text()


def stream():
    yield from model.prompt(harness.PROMPT)


def tools():
    return model.chain(harness.PROMPT, tools=[harness.add]).text()


harness.run(plain, stream, tools)
