// Prints the log-probabilities that llama.cpp gives the tokens of a text, without and with an adapter:
// node benchmarks/gguf_adapter.mjs order.json   where the order names model, adapter, tokens and the folder of node-llama-cpp.
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const {model: modelPath, adapter, tokens, modules} = JSON.parse(readFileSync(process.argv[2], "utf8"));
const {getLlama} = await import(pathToFileURL(`${modules}/node-llama-cpp/dist/index.js`));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath});

async function scores(options) {
    const context = await model.createContext({contextSize: 512, ...options});
    const asked = tokens.slice(0, -1).map((token) => [
        token, {generateNext: {probabilities: true, options: {temperature: 1, topK: 0, topP: 1, minP: 0}}}
    ]);
    const found = await context.getSequence().controlledEvaluate(asked);
    await context.dispose();
    return found.map((one, i) => Math.log(one.next.probabilities.get(tokens[i + 1])));
}

console.log(JSON.stringify({base: await scores({}), adapted: await scores({lora: {adapters: [{filePath: adapter}]}})}));
process.exit(0);
