#!/usr/bin/env node
// An MCP server over stdio that remembers what it did, for tests that count executions. Plain Node, no packages.
//
//   pay{amount, delay_ms?}      no annotations: class once
//   charge_idempotent{amount, delay_ms?}   idempotentHint: a key that was seen is answered from the ledger, not run
//   lookup{name}                readOnlyHint
//   slow{ms}                    readOnlyHint, answers after ms milliseconds
//
// Each execution appends one JSON line {tool, arguments, key, pid, at} to the file LEDGER_FILE (O_APPEND, then fsync)
// after its delay and before its answer. A delay of pay ends early when the call is cancelled: then nothing is paid.
// While a call waits out its delay, LEDGER_FILE + ".started" holds one such line for it too, so that a test can kill the
// daemon or this server at a known point.

import { closeSync, existsSync, fsyncSync, openSync, readFileSync, writeSync } from "node:fs";
import { createInterface } from "node:readline";

const ledgerFile = process.env.LEDGER_FILE;
if (!ledgerFile) {
  process.stderr.write("ledger_server: LEDGER_FILE is not set\n");
  process.exit(2);
}

const amount = { type: "number", description: "Amount of money." };
const delay = { type: "integer", minimum: 0, description: "Milliseconds before it happens." };
const tools = [
  {
    name: "pay",
    description: "Pays an amount. Every execution pays again.",
    inputSchema: { type: "object", properties: { amount, delay_ms: delay }, required: ["amount"] },
  },
  {
    name: "charge_idempotent",
    description: "Charges an amount once for each idempotency key.",
    inputSchema: { type: "object", properties: { amount, delay_ms: delay }, required: ["amount"] },
    annotations: { idempotentHint: true },
  },
  {
    name: "lookup",
    description: "Looks a name up; changes nothing.",
    inputSchema: { type: "object", properties: { name: { type: "string" } }, required: ["name"] },
    annotations: { readOnlyHint: true },
  },
  {
    name: "slow",
    description: "Answers after a while; changes nothing.",
    inputSchema: { type: "object", properties: { ms: { type: "integer", minimum: 0 } }, required: ["ms"] },
    annotations: { readOnlyHint: true },
  },
];

const waiting = new Map(); // request id -> wake, of calls that wait out a delay

function append(file, entry) {
  const fd = openSync(file, "a", 0o600);
  try {
    writeSync(fd, JSON.stringify(entry) + "\n");
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function seen(tool, key) {
  if (!key || !existsSync(ledgerFile)) return false;
  return readFileSync(ledgerFile, "utf8")
    .split("\n")
    .filter(Boolean)
    .some((line) => {
      const entry = JSON.parse(line);
      return entry.tool === tool && entry.key === key;
    });
}

function send(message) {
  process.stdout.write(JSON.stringify({ jsonrpc: "2.0", ...message }) + "\n");
}

const text = (words, isError = false) => ({ content: [{ type: "text", text: words }], isError });

async function execute(id, tool, args, key) {
  const entry = () => ({ tool, arguments: args, key: key ?? null, pid: process.pid, at: Date.now() });
  const ms = tool === "slow" ? args.ms : (args.delay_ms ?? 0);
  append(ledgerFile + ".started", entry());
  if (ms > 0) {
    const cancelled = await new Promise((resolve) => {
      const timer = setTimeout(() => resolve(false), ms);
      waiting.set(id, () => {
        clearTimeout(timer);
        resolve(true);
      });
    });
    waiting.delete(id);
    if (cancelled) return null;
  }
  if (tool === "charge_idempotent" && seen(tool, key)) return text(`already charged ${args.amount} under key ${key}`);
  append(ledgerFile, entry());
  switch (tool) {
    case "pay":
      return text(`receipt: paid ${args.amount}, key ${key ?? "none"}`);
    case "charge_idempotent":
      return text(`receipt: charged ${args.amount}, key ${key ?? "none"}`);
    case "lookup":
      return text(`${args.name}: found`);
    default:
      return text(`waited ${args.ms} ms`);
  }
}

async function call(id, params) {
  const tool = tools.find((one) => one.name === params?.name);
  if (!tool) return send({ id, error: { code: -32602, message: `Unknown tool: ${params?.name}` } });
  const args = params.arguments ?? {};
  for (const name of tool.inputSchema.required) {
    if (args[name] === undefined) return send({ id, result: text(`${name} is missing`, true) });
  }
  const result = await execute(id, tool.name, args, params._meta?.["mainstay/idempotencyKey"]);
  if (result) send({ id, result }); // a cancelled call gets no answer
}

function handle(message) {
  const { id, method, params } = message;
  switch (method) {
    case "initialize":
      return send({
        id,
        result: {
          protocolVersion: "2025-11-25",
          capabilities: { tools: {} },
          serverInfo: { name: "ledger", version: "1.0.0" },
        },
      });
    case "ping":
      return send({ id, result: {} });
    case "tools/list":
      return send({ id, result: { tools } });
    case "tools/call":
      return void call(id, params);
    case "notifications/cancelled":
      return void waiting.get(params?.requestId)?.();
    default:
      if (id !== undefined) send({ id, error: { code: -32601, message: "Method not found" } });
  }
}

const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  if (line.trim()) handle(JSON.parse(line));
});
lines.on("close", () => process.exit(0));
