// What the JavaScript libraries find. Reads {library, url, model, picture, question, answer, schema} from stdin and
// prints {check: "yes" or what went wrong}, as ask.py does. Runs where its packages (package.json) are installed.
import assert from "node:assert/strict";
import { text } from "node:stream/consumers";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { AIMessage, HumanMessage } from "@langchain/core/messages";
import { ChatOpenAI } from "@langchain/openai";
import { generateText, jsonSchema, Output, streamText, tool } from "ai";

const { library, url, model, picture, question, answer, schema } = JSON.parse(await text(process.stdin));
const key = "none";
const colours = schema.properties.color.enum;

const right = (said) => assert.equal(said.trim(), answer);
const fits = (fields) => assert(colours.includes(fields?.color), JSON.stringify(fields));

// Vercel's AI SDK with one of its providers.
function vercel(chosen) {
  const first = {
    role: "user",
    content: [{ type: "image", image: picture }, { type: "text", text: question }],
  };
  const again = [first, { role: "assistant", content: answer }, { role: "user", content: question }];
  const said = (messages, options = {}) =>
    generateText({ model: chosen, messages, temperature: 0, maxRetries: 0, ...options });
  const report = tool({ description: "Report.", inputSchema: jsonSchema(schema) });
  const called = { tools: { report }, toolChoice: { type: "tool", toolName: "report" } };
  return {
    image: async () => right((await said([first])).text),
    stream: async () => right(await streamText({ model: chosen, messages: [first], temperature: 0 }).text),
    JSON: async () => fits((await said([first], { output: Output.object({ schema: jsonSchema(schema) }) })).output),
    tools: async () => fits((await said([first], called)).toolCalls[0].input),
    turns: async () => right((await said(again)).text),
  };
}

function langchain() {
  const chat = new ChatOpenAI({ model, temperature: 0, apiKey: key, maxRetries: 0, configuration: { baseURL: url } });
  const first = new HumanMessage({
    content: [{ type: "image_url", image_url: { url: picture } }, { type: "text", text: question }],
  });
  const again = [first, new AIMessage(answer), new HumanMessage(question)];
  const report = { type: "function", function: { name: "report", description: "Report.", parameters: schema } };
  return {
    image: async () => right((await chat.invoke([first])).content),
    stream: async () => {
      let said = "";
      for await (const chunk of await chat.stream([first])) said += chunk.content;
      right(said);
    },
    JSON: async () => fits(await chat.withStructuredOutput(schema, { method: "jsonSchema", name: "colour" }).invoke([first])),
    tools: async () => fits((await chat.bindTools([report], { tool_choice: "report" }).invoke([first])).tool_calls[0].args),
    turns: async () => right((await chat.invoke(again)).content),
  };
}

const compatible = () =>
  createOpenAICompatible({ name: "local", baseURL: url, apiKey: key, supportsStructuredOutputs: true })(model);
const libraries = {
  "@ai-sdk/openai-compatible": () => vercel(compatible()),
  "@ai-sdk/openai": () => vercel(createOpenAI({ baseURL: url, apiKey: key })(model)), // over /v1/responses
  "@langchain/openai": langchain,
};

const found = {};
for (const [name, check] of Object.entries(libraries[library]())) {
  try {
    await check();
    found[name] = "yes";
  } catch (fault) {
    found[name] = `${fault.name}: ${fault.message}`.split("\n")[0].slice(0, 160);
  }
}
console.log(JSON.stringify(found));
