// What the scripts for Node share: run the action that is asked for, and print one line of JSON about it.
export const { CGW_URL: URL, CGW_KEY: KEY, CGW_MODEL: MODEL } = process.env;
export const PROMPT = "Good day";
export const SCHEMA = {
  type: "object",
  properties: { first: { type: "integer" }, second: { type: "integer" } },
  required: ["first", "second"],
};
const calls = [];

// Notes a call of a tool that the client was given.
export function noteCall(name, args) {
  calls.push([name, args]);
}

function findStatus(error) {
  for (let depth = 0; error && depth < 10; depth += 1) {
    for (const name of ["status", "statusCode", "code"]) {
      if (Number.isInteger(error[name])) return error[name];
    }
    error = error.lastError ?? error.cause;
  }
  return null;
}

// `plain` and `tools` return the answer's text, `stream` is an asynchronous generator of its pieces.
export async function run({ plain, stream, tools }) {
  const action = process.argv.at(-1);
  let said;
  try {
    if (action === "stream") {
      const pieces = [];
      for await (const piece of stream()) if (piece) pieces.push(piece);
      said = { text: pieces.join(""), pieces: pieces.length };
    } else if (action === "abort") {
      for await (const piece of stream()) {
        if (!piece) continue;
        said = { text: piece };
        break; // ends the generator, and with it the request
      }
    } else {
      said = { text: await { plain, tools }[action](), calls };
    }
  } catch (error) {
    said = { error: error.message, type: error.constructor.name, status: findStatus(error) };
  }
  console.log(JSON.stringify(said));
  process.exit(0);
}
