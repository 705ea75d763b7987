// Vercel's AI SDK with its OpenAI provider, whose default is the Responses API.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, jsonSchema, streamText, tool } from "ai";
import { KEY, MODEL, PROMPT, URL, run } from "./harness.mjs";

const model = createOpenAI({ baseURL: URL, apiKey: KEY })(MODEL);

await run({
  async plain() {
    return (await generateText({ model, prompt: PROMPT })).text;
  },
  async *stream() {
    const controller = new AbortController();
    let failure;
    try {
      const result = streamText({
        model,
        prompt: PROMPT,
        abortSignal: controller.signal,
        onError: ({ error }) => (failure = error),
      });
      for await (const text of result.textStream) yield text;
      if (failure) throw failure;
    } finally {
      controller.abort();
    }
  },
  async tools() {
    const tools = { add: tool({ description: "adds", inputSchema: jsonSchema({ type: "object", properties: {} }) }) };
    return (await generateText({ model, prompt: PROMPT, tools })).text;
  },
});
