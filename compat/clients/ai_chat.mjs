// Vercel's AI SDK, with the model that is given.
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { PROMPT, SCHEMA, noteCall, run } from "./harness.mjs";

export async function runModel(model) {
  await run({
    async plain() {
      return (await generateText({ model, prompt: PROMPT })).text;
    },
    async *stream() {
      const controller = new AbortController();
      let failure;
      try {
        const onError = ({ error }) => (failure = error);
        const result = streamText({ model, prompt: PROMPT, abortSignal: controller.signal, onError });
        for await (const text of result.textStream) yield text;
        if (failure) throw failure;
      } finally {
        controller.abort();
      }
    },
    async tools() {
      const execute = async (args) => (noteCall("add", args), 2);
      const add = tool({ description: "Add two numbers", inputSchema: jsonSchema(SCHEMA), execute });
      return (await generateText({ model, prompt: PROMPT, tools: { add }, stopWhen: stepCountIs(5) })).text;
    },
  });
}
