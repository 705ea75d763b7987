// OpenAI's SDK for Node, Chat Completions.
import OpenAI from "openai";
import { KEY, MODEL, PROMPT, SCHEMA, URL, noteCall, run } from "./harness.mjs";

const client = new OpenAI({ baseURL: URL, apiKey: KEY });
const messages = [{ role: "user", content: PROMPT }];

await run({
  async plain() {
    return (await client.chat.completions.create({ model: MODEL, messages })).choices[0].message.content;
  },
  async *stream() {
    const chunks = await client.chat.completions.create({ model: MODEL, messages, stream: true });
    for await (const chunk of chunks) yield chunk.choices[0]?.delta.content;
  },
  async tools() {
    const add = { name: "add", parameters: SCHEMA, parse: JSON.parse, function: (args) => (noteCall("add", args), "2") };
    const runner = client.chat.completions.runTools({
      model: MODEL,
      messages: [...messages],
      tools: [{ type: "function", function: { ...add, description: "Add two numbers" } }],
      stream: true,
    });
    return runner.finalContent();
  },
});
