// node-llama-cpp as a peer: llama.cpp as it comes prebuilt from npm, one sequence at a time.
// The same job on standard input and the same lines out as workload.py; rows prefill and decode.
// Its packages lie in the folder named by STARAI_NODE_PEER.

import { createRequire } from "node:module";
import { readFileSync, writeSync } from "node:fs";
import { loadavg } from "node:os";
import { pathToFileURL } from "node:url";

const home = process.env.STARAI_NODE_PEER + "/";
const require = createRequire(home);
const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);
const { version } = JSON.parse(
  readFileSync(home + "node_modules/node-llama-cpp/package.json", "utf8"),
);

const KINDS = { 16: "bf16", 8: "q8_0", 4: "q4_0" };
const FIRST_ID = 1000;
const LAST_ID = 150000;

const job = JSON.parse(readFileSync(0, "utf8"));
const say = (values) => writeSync(1, "@@result " + JSON.stringify(values) + "\n");
const now = () => performance.now() / 1000;
const residentMb = () => Math.round(process.memoryUsage().rss / 1e6);

const begun = now();
const llama = await getLlama({ gpu: false, build: "never", progressLogs: false });
const model = await llama.loadModel({ modelPath: `${job.model}/${KINDS[job.bits]}.gguf` });
const context = await model.createContext({
  contextSize: job.context,
  threads: job.threads,
  batchSize: 512,
});
const sequence = context.getSequence();
const loadedMb = residentMb();

// Seconds from the start to each token.
async function run(length, count) {
  await sequence.clearHistory();
  const prompt = Array.from(
    { length },
    () => FIRST_ID + Math.floor(Math.random() * (LAST_ID - FIRST_ID)),
  );
  const start = now();
  const seen = [];
  for await (const _ of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    seen.push(now() - start);
    if (seen.length >= count) break;
  }
  return seen;
}

const ROWS = {
  prefill: async (row) => {
    const rates = {};
    for (const length of row.lengths) rates[length] = length / (await run(length, 1))[0];
    return rates;
  },
  decode: async (row) => {
    const seen = await run(row.prompt, row.tokens);
    return { 1: (seen.length - 1) / (seen.at(-1) - seen[0]) };
  },
};

await run(64, 4);
say({
  about: {
    version,
    isa: llama.systemInfo.replaceAll("\n", " ").trim(),
    load_s: Math.round((now() - begun) * 10) / 10,
    resident_mb: loadedMb,
  },
});
for (const [name, row] of Object.entries(job.rows)) {
  for (let repeat = 0; repeat < (row.repeats ?? job.repeats); repeat++) {
    if (!(name in ROWS)) {
      say({ row: name, error: "one sequence at a time here" });
      break;
    }
    const values = await ROWS[name](row);
    say({ row: name, values, load: loadavg()[0], resident_mb: residentMb() });
  }
}
say({ done: true });
process.exit(0);
