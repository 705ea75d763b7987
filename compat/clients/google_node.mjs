// Google's SDK for Node.
import { GoogleGenAI } from "@google/genai";
import { KEY, MODEL, PROMPT, URL, run } from "./harness.mjs";

const client = new GoogleGenAI({ apiKey: KEY, httpOptions: { baseUrl: URL } });

await run({
  async plain() {
    return (await client.models.generateContent({ model: MODEL, contents: PROMPT })).text;
  },
  async *stream() {
    const chunks = await client.models.generateContentStream({ model: MODEL, contents: PROMPT });
    for await (const chunk of chunks) yield chunk.text;
  },
  async tools() {
    const config = { tools: [{ functionDeclarations: [{ name: "add" }] }] };
    return (await client.models.generateContent({ model: MODEL, contents: PROMPT, config })).text;
  },
});
