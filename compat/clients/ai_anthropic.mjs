// Vercel's AI SDK with its Anthropic provider, whose base URL has the version in it.
import { createAnthropic } from "@ai-sdk/anthropic";
import { runModel } from "./ai_chat.mjs";
import { KEY, MODEL, URL } from "./harness.mjs";

await runModel(createAnthropic({ baseURL: `${URL}/v1`, apiKey: KEY })(MODEL));
