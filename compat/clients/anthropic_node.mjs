// Anthropic's SDK for Node.
import Anthropic from "@anthropic-ai/sdk";
import { KEY, MODEL, PROMPT, URL, run } from "./harness.mjs";

const client = new Anthropic({ baseURL: URL, apiKey: KEY });
const fields = { model: MODEL, max_tokens: 1000 };
const messages = [{ role: "user", content: PROMPT }];

await run({
  async plain() {
    return (await client.messages.create({ ...fields, messages })).content[0].text;
  },
  async *stream() {
    const events = await client.messages.create({ ...fields, messages, stream: true });
    for await (const event of events) yield event.type === "content_block_delta" ? event.delta.text : "";
  },
  async tools() {
    const history = [
      ...messages,
      { role: "assistant", content: [{ type: "tool_use", id: "toolu_1", name: "add", input: {} }] },
      { role: "user", content: [{ type: "tool_result", tool_use_id: "toolu_1", content: "2" }] },
    ];
    const tools = [{ name: "add", input_schema: { type: "object" } }];
    return (await client.beta.messages.create({ ...fields, messages: history, tools })).content[0].text;
  },
});
