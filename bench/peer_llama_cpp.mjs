// Steps of llama.cpp, by node-llama-cpp's binding: one llama_decode a step, no sampling. Prints one JSON line per figure.
//   node peer_llama_cpp.mjs PACKAGE_DIR MODEL.gguf PROMPT SECONDS THREADS
import { pathToFileURL } from "node:url";

const [packageDir, modelPath, prompt, seconds, threads] = process.argv.slice(2);
const { getLlama } = await import(pathToFileURL(`${packageDir}/node_modules/node-llama-cpp/dist/index.js`));
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
const model = await llama.loadModel({ modelPath, gpuLayers: 0 });
const length = Number(prompt);

async function timed(act) {
    const start = process.hrtime.bigint();
    await act();
    return Number(process.hrtime.bigint() - start) / 1e9;
}

function report(what, batch, tokens, times) {
    times.sort((a, b) => a - b);
    console.log(JSON.stringify({ what, batch, best: tokens / times[0], median: tokens / times[times.length >> 1] }));
}

for (const batch of [1, 8, 32]) {
    const context = await model.createContext({
        sequences: batch, contextSize: length + 80, batchSize: Math.max(length, batch),
        threads: { ideal: Number(threads), min: Number(threads) },
    });
    const ctx = context._ctx;
    ctx.setThreads(Number(threads));
    const prefill = async (sequence) => {
        ctx.disposeSequence(sequence);
        ctx.initBatch(length);
        const tokens = Uint32Array.from({ length }, (_, i) => 300 + ((sequence * 7919 + i * 104729) % 31000));
        ctx.addToBatch(sequence, 0, tokens, Uint32Array.of(length - 1));
        return await timed(() => ctx.decodeBatch());
    };
    for (let s = 0; s < batch; ++s) await prefill(s);
    const times = [];
    let position = length;
    for (const end = Date.now() + 1000 * Number(seconds); times.length < 5 || Date.now() < end;) {
        if (position === length + 64) {
            for (let s = 0; s < batch; ++s) ctx.removeTokenCellsFromSequence(s, length, -1);
            position = length;
        }
        ctx.initBatch(batch);
        for (let s = 0; s < batch; ++s)
            ctx.addToBatch(s, position, Uint32Array.of(300 + ((s * 31 + position) % 31000)), Uint32Array.of(0));
        times.push(await timed(() => ctx.decodeBatch()));
        ++position;
    }
    report("decode", batch, batch, times);
    if (batch === 1) {
        const prefills = [];
        for (const end = Date.now() + 1000 * Number(seconds); prefills.length < 5 || Date.now() < end;)
            prefills.push(await prefill(0));
        report("prefill", 1, length, prefills);
    }
    await context.dispose();
}
process.exit(0);
