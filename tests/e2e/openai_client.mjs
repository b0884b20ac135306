// The published npm client `openai` against a real daemon. openai_client.py starts the daemon and sets MAINSTAY_URL,
// MAINSTAY_KEY; agents and models are the ones that it wrote. Prints what was checked; the first failure ends with 1.

import assert from "node:assert/strict";
import OpenAI from "openai";

const base = process.env.MAINSTAY_URL + "/v1";
const client = new OpenAI({ baseURL: base, apiKey: process.env.MAINSTAY_KEY, maxRetries: 0 });

const all = async (list) => {
  const found = [];
  for await (const one of list) found.push(one);
  return found;
};
const texts = (items) => items.filter((item) => item.type === "message").map((item) => item.content[0].text);
async function refused(status, code, act) {
  try {
    await act();
  } catch (error) {
    assert.equal(error.status, status, error.message);
    if (code) assert.equal(error.code, code, error.message);
    assert.ok(error.message.length > 5 && error.type, "an error has a message and a type");
    return error;
  }
  assert.fail(`answered, where ${status} ${code} was due`);
}

const checks = {
  async "models are listed and read"() {
    const names = (await all(client.models.list())).map((model) => model.id);
    for (const name of ["echo-agent", "plain", "slow"]) assert.ok(names.includes(name), names.join());
    assert.equal((await client.models.retrieve("plain")).id, "plain");
    await refused(404, "model_not_found", () => client.models.retrieve("nobody"));
  },

  async "a blocking response is whole"() {
    const response = await client.responses.create({ model: "plain", input: "hello", metadata: { colour: "blue" } });
    assert.equal(response.status, "completed");
    assert.equal(response.output_text, "plain heard: hello");
    assert.deepEqual(response.metadata, { colour: "blue" });
    for (const key of ["id", "object", "created_at", "completed_at", "status", "incomplete_details", "model",
      "previous_response_id", "instructions", "output", "error", "tools", "tool_choice", "truncation",
      "parallel_tool_calls", "text", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs", "temperature",
      "reasoning", "usage", "max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata",
      "safety_identifier", "prompt_cache_key"])
      assert.ok(key in response, `${key} is present`);
    assert.ok(response.usage.total_tokens > 0 && response.usage.input_tokens_details && response.usage.output_tokens_details);
    assert.deepEqual(response.output[0].content[0].annotations, []);
    const read = await client.responses.retrieve(response.id);
    for (const key of ["id", "status", "output", "usage", "metadata", "created_at", "completed_at"])
      assert.deepEqual(read[key], response[key], key);
    const input = await all(client.responses.inputItems.list(response.id));
    assert.deepEqual(texts(input), ["hello"]);
    assert.ok(input[0].id && input[0].type === "message");
  },

  async "a streamed response equals its final object"() {
    const stream = await client.responses.create({ model: "slow", input: "stream me", stream: true });
    const events = await all(stream);
    const types = events.map((event) => event.type);
    assert.equal(types[0], "response.created");
    assert.equal(types[1], "response.in_progress");
    assert.equal(types.at(-1), "response.completed");
    for (const type of ["response.output_item.added", "response.content_part.added", "response.output_text.delta",
      "response.output_text.done", "response.content_part.done", "response.output_item.done"])
      assert.ok(types.includes(type), `${type} among ${types}`);
    for (let i = 1; i < events.length; ++i)
      assert.ok(events[i].sequence_number > events[i - 1].sequence_number, "sequence numbers grow");
    const joined = events.filter((e) => e.type === "response.output_text.delta").map((e) => e.delta).join("");
    const done = events.find((e) => e.type === "response.output_text.done").text;
    const final = events.at(-1).response;
    assert.equal(joined, done);
    assert.equal(final.output[0].content[0].text, joined);
    const read = await client.responses.retrieve(final.id);
    assert.deepEqual(read.output, final.output);
    assert.deepEqual(read.usage, final.usage);
  },

  async "a streamed tool call arrives in order"() {
    const events = await all(await client.responses.create({ model: "echo-agent", input: "ping", stream: true }));
    const final = events.at(-1).response;
    assert.equal(events.at(-1).type, "response.completed");
    const call = final.output.find((item) => item.type === "mcp_call");
    assert.equal(call.name, "echo");
    assert.equal(call.output, "ping");
    assert.equal(texts(final.output).at(-1), "the tool said ping");
    const indexes = events.filter((e) => e.type === "response.output_item.added").map((e) => e.output_index);
    assert.deepEqual(indexes, indexes.map((_, i) => i), "output indexes are consecutive");
    const doneItems = events.filter((e) => e.type === "response.output_item.done").map((e) => e.item);
    assert.deepEqual(doneItems.map((i) => i.id), final.output.map((i) => i.id));
  },

  async "responses chain by previous_response_id"() {
    const one = await client.responses.create({ model: "recall", input: "my dog is Rex" });
    const two = await client.responses.create({ model: "recall", input: "what did I say?", previous_response_id: one.id });
    assert.equal(two.previous_response_id, one.id);
    assert.equal(two.output_text, "first you said: my dog is Rex");
    const three = await client.responses.create({ model: "recall", input: "and now?", previous_response_id: two.id });
    assert.equal(three.output_text, "first you said: my dog is Rex");
  },

  async "the same parent twice makes two branches"() {
    const root = await client.responses.create({ model: "recall", input: "root fact" });
    const left = await client.responses.create({ model: "plain", input: "left", previous_response_id: root.id });
    const right = await client.responses.create({ model: "plain", input: "right", previous_response_id: root.id });
    assert.notEqual(left.id, right.id);
    const leftNext = await client.responses.create({ model: "recall", input: "?", previous_response_id: left.id });
    const rightNext = await client.responses.create({ model: "recall", input: "?", previous_response_id: right.id });
    for (const next of [leftNext, rightNext]) assert.equal(next.output_text, "first you said: root fact");
    assert.equal(right.previous_response_id, root.id);
    assert.equal((await client.responses.retrieve(left.id)).output_text, "plain heard: left");
    assert.equal((await client.responses.retrieve(right.id)).output_text, "plain heard: right");
    await refused(400, "previous_response_not_found", () =>
      client.responses.create({ model: "plain", input: "x", previous_response_id: "resp_" + "0".repeat(40) }));
  },

  async "conversations keep their items"() {
    const conversation = await client.conversations.create({
      metadata: { topic: "tests" },
      items: [{ type: "message", role: "user", content: "an earlier word" }],
    });
    assert.match(conversation.id, /^conv_/);
    assert.deepEqual(conversation.metadata, { topic: "tests" });
    const answer = await client.responses.create({ model: "plain", input: "hello", conversation: conversation.id });
    assert.equal(answer.conversation.id, conversation.id);
    const items = await all(client.conversations.items.list(conversation.id, { order: "asc" }));
    assert.deepEqual(texts(items), ["an earlier word", "hello", "plain heard: hello"]);
    const newest = await client.conversations.items.list(conversation.id, { limit: 1 });
    assert.deepEqual(texts(newest.data), ["plain heard: hello"]);
    assert.equal(newest.has_more, true);
    const paged = await all(client.conversations.items.list(conversation.id, { limit: 1, order: "asc" }));
    assert.deepEqual(paged.map((i) => i.id), items.map((i) => i.id), "pages join");
    const item = await client.conversations.items.retrieve(items[1].id, { conversation_id: conversation.id });
    assert.equal(item.id, items[1].id);
    const added = await client.conversations.items.create(conversation.id, {
      items: [{ type: "message", role: "user", content: [{ type: "input_text", text: "by hand" }] }],
    });
    assert.deepEqual(texts(added.data), ["by hand"]);
    const changed = await client.conversations.update(conversation.id, { metadata: { topic: "other" } });
    assert.deepEqual(changed.metadata, { topic: "other" });
    assert.deepEqual((await client.conversations.retrieve(conversation.id)).metadata, { topic: "other" });
    assert.equal((await client.conversations.delete(conversation.id)).deleted, true);
    await refused(404, "session_not_found", () => client.conversations.retrieve(conversation.id));
    await refused(404, null, () => client.responses.retrieve(answer.id));
  },

  async "function tools make their round trip"() {
    const tools = [{ type: "function", name: "get_weather", description: "Weather.", strict: true,
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false } }];
    const first = await client.responses.create({ model: "caller", input: "Paris", tools });
    assert.equal(first.status, "completed");
    const call = first.output.find((item) => item.type === "function_call");
    assert.equal(call.name, "get_weather");
    assert.deepEqual(JSON.parse(call.arguments), { city: "Paris" });
    assert.equal(first.tools[0].name, "get_weather");
    assert.equal(first.tools[0].strict, true);
    const second = await client.responses.create({
      model: "teller", tools, previous_response_id: first.id,
      input: [{ type: "function_call_output", call_id: call.call_id, output: "sunny" }],
    });
    assert.equal(second.output_text, "it is sunny");
    const streamed = await all(await client.responses.create({ model: "caller", input: "Rome", tools, stream: true }));
    const args = streamed.filter((e) => e.type === "response.function_call_arguments.delta").map((e) => e.delta).join("");
    const done = streamed.find((e) => e.type === "response.function_call_arguments.done");
    assert.equal(args, done.arguments);
    assert.deepEqual(JSON.parse(args), { city: "Rome" });
  },

  async "store: false leaves nothing to read"() {
    const response = await client.responses.create({ model: "plain", input: "secret", store: false });
    assert.equal(response.output_text, "plain heard: secret");
    assert.equal(response.store, false);
    await refused(404, null, () => client.responses.retrieve(response.id));
  },

  async "background turns are polled and cancelled"() {
    let turn = await client.responses.create({ model: "slow", input: "later", background: true });
    assert.ok(["queued", "in_progress"].includes(turn.status), turn.status);
    const until = Date.now() + 30000;
    while (["queued", "in_progress"].includes(turn.status)) {
      assert.ok(Date.now() < until, "a background turn completes");
      turn = await client.responses.retrieve(turn.id);
    }
    assert.equal(turn.status, "completed");
    assert.equal(turn.output_text, "slow heard: later");
    const long = await client.responses.create({ model: "endless", input: "wait", background: true });
    const cancelled = await client.responses.cancel(long.id);
    assert.equal(cancelled.status, "cancelled");
    assert.equal((await client.responses.cancel(long.id)).status, "cancelled", "a cancel is idempotent");
    assert.equal((await client.responses.retrieve(long.id)).status, "cancelled");
    const after = await client.responses.create({ model: "plain", input: "go on", previous_response_id: long.id });
    assert.equal(after.status, "completed");
  },

  async "errors have OpenAI's shape and stable codes"() {
    const stranger = new OpenAI({ baseURL: base, apiKey: "wrong", maxRetries: 0 });
    await refused(401, "unauthenticated", () => stranger.models.list());
    await refused(401, "unauthenticated", () => stranger.responses.create({ model: "plain", input: "x" }));
    const unknown = await refused(404, "model_not_found", () => client.responses.create({ model: "nobody", input: "x" }));
    assert.match(unknown.message, /v1\/models/, "says where the names are");
    const field = await refused(400, "unknown_field", () =>
      client.responses.create({ model: "plain", input: "x", temprature: 1 }));
    assert.equal(field.param, "temprature");
    await refused(400, null, () => client.responses.create({ model: "plain", input: 7 }));
    await refused(400, "malformed_json", async () => {
      const answer = await fetch(base + "/responses", { method: "POST", body: "{\"model\":",
        headers: { "content-type": "application/json", authorization: "Bearer " + process.env.MAINSTAY_KEY } });
      const body = await answer.json();
      throw Object.assign(new Error(body.error.message), { status: answer.status, code: body.error.code, type: body.error.type });
    });
    await refused(404, "response_not_found", () => client.responses.retrieve("resp_nonsense"));
    await refused(404, "session_not_found", () => client.conversations.retrieve("conv_nonsense"));
  },

  async "an idempotency key means one turn"() {
    const conversation = await client.conversations.create({});
    const body = { model: "plain", input: "once", conversation: conversation.id };
    const options = { headers: { "Idempotency-Key": "k-" + process.pid } };
    const one = await client.responses.create(body, options);
    const { data: two, response } = await client.responses.create(body, options).withResponse();
    assert.equal(two.id, one.id);
    assert.deepEqual(two.output, one.output);
    assert.equal(response.headers.get("idempotency-replayed"), "true");
    assert.deepEqual(texts(await all(client.conversations.items.list(conversation.id, { order: "asc" }))),
      ["once", "plain heard: once"]);
    await refused(422, "idempotency_key_reused", () =>
      client.responses.create({ ...body, input: "something else" }, options));
    const together = await Promise.all([1, 2, 3].map(() =>
      client.responses.create({ model: "slow", input: "at once" }, { headers: { "Idempotency-Key": "t-" + process.pid } })));
    assert.equal(new Set(together.map((r) => r.id)).size, 1, "requests of one key at the same time are one turn");
  },

  async "request fields are kept and echoed"() {
    const response = await client.responses.create({ model: "plain", input: "x", temperature: 0.5, top_p: 0.25,
      max_output_tokens: 1000, instructions: "be brief", truncation: "auto", parallel_tool_calls: false,
      text: { format: { type: "text" } }, safety_identifier: "u1", prompt_cache_key: "c1" });
    assert.equal(response.temperature, 0.5);
    assert.equal(response.top_p, 0.25);
    assert.equal(response.max_output_tokens, 1000);
    assert.equal(response.instructions, "be brief");
    assert.equal(response.parallel_tool_calls, false);
    assert.equal(response.safety_identifier, "u1");
    assert.equal(response.prompt_cache_key, "c1");
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  if (process.argv[2] && !name.includes(process.argv[2])) continue;
  try {
    await check();
    console.log("  ok   " + name);
  } catch (error) {
    ++failed;
    console.log("  FAILED " + name + "\n" + (error.stack ?? error));
  }
}
process.exit(failed ? 1 : 0);
