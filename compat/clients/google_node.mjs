// Google's SDK for Node.
import { GoogleGenAI } from "@google/genai";
import { KEY, MODEL, PROMPT, SCHEMA, URL, noteCall, run } from "./harness.mjs";

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
    const contents = [{ role: "user", parts: [{ text: PROMPT }] }];
    const config = { tools: [{ functionDeclarations: [{ name: "add", parametersJsonSchema: SCHEMA }] }] };
    for (;;) {
      const answer = await client.models.generateContent({ model: MODEL, contents, config });
      if (!answer.functionCalls) return answer.text;
      for (const call of answer.functionCalls) noteCall(call.name, call.args);
      const parts = answer.functionCalls.map(({ name }) => ({ functionResponse: { name, response: { sum: 2 } } }));
      contents.push(answer.candidates[0].content, { role: "user", parts });
    }
  },
});
