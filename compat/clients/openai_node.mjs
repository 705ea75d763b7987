// OpenAI's SDK for Node, Chat Completions.
import OpenAI from "openai";
import { KEY, MODEL, PROMPT, URL, run } from "./harness.mjs";

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
    const call = { id: "call_1", type: "function", function: { name: "add", arguments: "{}" } };
    const history = [
      ...messages,
      { role: "assistant", tool_calls: [call] },
      { role: "tool", tool_call_id: "call_1", content: "2" },
    ];
    const tools = [{ type: "function", function: { name: "add", parameters: { type: "object", properties: {} } } }];
    return (await client.chat.completions.create({ model: MODEL, messages: history, tools })).choices[0].message.content;
  },
});
