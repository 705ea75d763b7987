// Vercel's AI SDK with its OpenAI provider, whose default is the Responses API.
import { createOpenAI } from "@ai-sdk/openai";
import { runModel } from "./ai_chat.mjs";
import { KEY, MODEL, URL } from "./harness.mjs";

await runModel(createOpenAI({ baseURL: URL, apiKey: KEY })(MODEL));
