// Anthropic's SDK for Node.
import Anthropic from "@anthropic-ai/sdk";
import { KEY, MODEL, PROMPT, SCHEMA, URL, noteCall, run } from "./harness.mjs";

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
    const history = [...messages];
    for (;;) {
      // The beta client adds `?beta=true` and a header.
      const events = client.beta.messages.stream({
        ...fields,
        messages: history,
        tools: [{ name: "add", input_schema: SCHEMA }],
      });
      const { content } = await events.finalMessage();
      const uses = content.filter((block) => block.type === "tool_use");
      if (!uses.length) return content[0].text;
      for (const use of uses) noteCall(use.name, use.input);
      const results = uses.map((use) => ({ type: "tool_result", tool_use_id: use.id, content: "2" }));
      history.push({ role: "assistant", content }, { role: "user", content: results });
    }
  },
});
