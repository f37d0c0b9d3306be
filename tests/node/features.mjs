// What OpenAI's Node SDK finds here, feature by feature. Reads {url, model, image} as JSON from stdin, prints
// {feature: null or what went wrong} as JSON. tests/serving/test_node_sdk.py runs it; names are the README's rows.
import assert from "node:assert/strict";
import { text } from "node:stream/consumers";
import OpenAI from "openai";

const { url, model, image } = JSON.parse(await text(process.stdin));
const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0, timeout: 120_000 });

const content = [{ type: "image_url", image_url: { url: image } }, { type: "text", text: "what?" }];
const messages = [{ role: "user", content }];
const input = [
  { role: "user", content: [{ type: "input_image", image_url: image }, { type: "input_text", text: "what?" }] },
];
const parameters = {
  type: "object",
  properties: { where: { type: "string", enum: ["left", "right"] } },
  required: ["where"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "look", parameters } }];
const named = { type: "function", function: { name: "look" } };

const chat = (options = {}) =>
  client.chat.completions.create({ model, messages, max_tokens: 16, temperature: 0, ...options });
const respond = (options = {}) =>
  client.responses.create({ model, input, max_output_tokens: 16, temperature: 0, ...options });

async function all(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

const features = {
  "Chat completions: images by data URL, answer with usage": async () => {
    const reply = await chat();
    assert.ok(reply.choices[0].message.content);
    assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens);
  },
  "Chat completions: messages of images alone": async () => {
    const reply = await chat({ messages: [{ role: "user", content: content.slice(0, 1) }] });
    assert.ok(reply.choices[0].message.content);
  },
  "Chat completions: streaming, with usage": async () => {
    const whole = await chat();
    const chunks = await all(await chat({ stream: true, stream_options: { include_usage: true } }));
    const joined = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
    assert.equal(joined, whole.choices[0].message.content);
    assert.equal(chunks.at(-1).usage.completion_tokens, whole.usage.completion_tokens);
  },
  "Chat completions: cancelling a stream stops the engine": async () => {
    const metric = async (name) => {
      const lines = (await (await fetch(url.replace(/\/v1$/, "/metrics"))).text()).split("\n");
      return lines.filter((line) => line.startsWith(`${name}{`)).reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
    };
    const stream = await chat({ stream: true, max_tokens: 900, ignore_eos: true });
    for await (const _ of stream) break;
    stream.controller.abort();
    for (let tries = 0; tries < 100 && (await metric("vllm:num_requests_running")); tries++)
      await new Promise((done) => setTimeout(done, 100));
    assert.equal(await metric("vllm:num_requests_running"), 0);
    const stopped = await metric("vllm:generation_tokens_total");
    await new Promise((done) => setTimeout(done, 1000));
    assert.equal(await metric("vllm:generation_tokens_total"), stopped);
  },
  "Chat completions: stop": async () => {
    const whole = (await chat()).choices[0].message.content;
    const stop = [...whole][Math.floor([...whole].length / 2)];
    const choice = (await chat({ stop: [stop] })).choices[0];
    assert.equal(choice.message.content, whole.slice(0, whole.indexOf(stop)));
    assert.equal(choice.finish_reason, "stop");
  },
  "Chat completions: max_tokens, max_completion_tokens": async () => {
    assert.equal((await chat({ max_tokens: 5, ignore_eos: true })).usage.completion_tokens, 5);
    const reply = await chat({ max_tokens: undefined, max_completion_tokens: 3, ignore_eos: true });
    assert.equal(reply.usage.completion_tokens, 3);
  },
  "Chat completions: logprobs, top_logprobs": async () => {
    const tokens = (await chat({ logprobs: true, top_logprobs: 3, max_tokens: 4 })).choices[0].logprobs.content;
    assert.deepEqual(tokens.map((token) => token.top_logprobs.length), [3, 3, 3, 3]);
  },
  "Chat completions: n": async () => {
    const choices = (await chat({ n: 3, temperature: 1.5, seed: 1 })).choices;
    assert.deepEqual(choices.map((choice) => choice.index), [0, 1, 2]);
  },
  "Chat completions: functions, function_call, audio, web_search_options": async () => {
    await assert.rejects(chat({ web_search_options: {} }), (error) =>
      error instanceof OpenAI.BadRequestError && error.param === "web_search_options");
  },
  "Tools: tool_choice: a function's name, required": async () => {
    for (const tool_choice of [named, "required"]) {
      const reply = await chat({ tools, tool_choice, parallel_tool_calls: false, max_tokens: 100 });
      const [call] = reply.choices[0].message.tool_calls;
      assert.equal(call.function.name, "look");
      assert.match(JSON.parse(call.function.arguments).where, /left|right/);
    }
  },
  "Tools: results in the next turn": async () => {
    const called = (await chat({ tools, tool_choice: named, max_tokens: 100 })).choices[0].message;
    const result = { role: "tool", tool_call_id: called.tool_calls[0].id, content: "a cat" };
    assert.ok((await chat({ tools, messages: [...messages, called, result] })).choices[0].message.content);
  },
  "Responses: images, instructions, usage": async () => {
    const reply = await respond();
    assert.equal(reply.output_text, (await chat()).choices[0].message.content);
    assert.equal(reply.usage.input_tokens, (await chat()).usage.prompt_tokens);
  },
  "Responses: streaming": async () => {
    const events = await all(await respond({ stream: true }));
    const deltas = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
    assert.equal(deltas.join(""), (await respond()).output_text);
    assert.equal(events.at(-1).response.usage.output_tokens, 16);
  },
  "Responses: tools of type function": async () => {
    const tool = { type: "function", name: "look", parameters };
    const choice = { type: "function", name: "look" };
    const reply = await respond({ tools: [tool], tool_choice: choice, max_output_tokens: 100 });
    assert.equal(reply.output[0].type, "function_call");
    assert.match(JSON.parse(reply.output[0].arguments).where, /left|right/);
  },
  "Responses: previous_response_id, conversation, prompt, background, tools of other types": async () => {
    await assert.rejects(respond({ previous_response_id: "resp_1" }), (error) =>
      error instanceof OpenAI.BadRequestError && error.param === "previous_response_id");
  },
  "Models: list, retrieve; adapters with parent and root": async () => {
    const [base, adapter] = (await client.models.list()).data;
    assert.equal(adapter.parent, base.id);
    assert.equal((await client.models.retrieve(adapter.id)).root, adapter.root);
  },
  "Others: completions (text), with streaming, logprobs, echo, several prompts": async () => {
    const options = { model, prompt: "Once", max_tokens: 4, temperature: 0 };
    const whole = (await client.completions.create(options)).choices[0].text;
    const chunks = await all(await client.completions.create({ ...options, stream: true }));
    assert.equal(chunks.map((chunk) => chunk.choices[0]?.text ?? "").join(""), whole);
  },
  "Others: embeddings, audio, files, moderations, images, batches, fine-tuning": async () => {
    await assert.rejects(client.embeddings.create({ model, input: "x" }), OpenAI.NotFoundError);
  },
  "Others: errors as the SDK's exceptions, with message and param": async () => {
    await assert.rejects(chat({ model: "nobody" }), OpenAI.NotFoundError);
    await assert.rejects(chat({ messages: [{ role: "user", content: [] }] }), (error) =>
      error instanceof OpenAI.BadRequestError && error.param === "messages[0].content");
  },
};

const results = {};
for (const [name, test] of Object.entries(features)) {
  try {
    await test();
    results[name] = null;
  } catch (error) {
    results[name] = String(error.stack ?? error);
  }
}
console.log(JSON.stringify(results));
