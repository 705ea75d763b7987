// Vercel's AI SDK with its Google provider, whose base URL has the version in it.
import { createGoogleGenerativeAI } from "@ai-sdk/google";
import { runModel } from "./ai_chat.mjs";
import { KEY, MODEL, URL } from "./harness.mjs";

await runModel(createGoogleGenerativeAI({ baseURL: `${URL}/v1beta`, apiKey: KEY })(MODEL));
