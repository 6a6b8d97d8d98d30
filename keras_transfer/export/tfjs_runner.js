// Run a TensorFlow.js graph model in Node.js, with the scripts that a web page would load.
// node tfjs_runner.js TFJS WASM MODEL INPUTS SHAPE STORED DTYPE OUTPUTS
"use strict";
const fs = require("fs");
const os = require("os");
const path = require("path");
const perf_hooks = require("perf_hooks");
const vm = require("vm");

const [tfjs, wasm, folder, given, shape, stored, dtype, answered] = process.argv.slice(2);
const ROWS = 8; // at once, to bound the memory

// The scripts find `tf` among the globals, as in a browser, and the WASM script Node's modules, too.
Object.assign(globalThis, { fs, path, perf_hooks, require, __dirname: wasm, "require$$4": os });
for (const file of [path.join(tfjs, "tf.min.js"), path.join(wasm, "tf-backend-wasm.min.js")]) {
  new vm.Script(fs.readFileSync(file, "utf8"), { filename: path.basename(file) }).runInThisContext();
}
tf.env().set("IS_TEST", true); // no advertisement for the bindings of Node.js

const sizes = JSON.parse(shape);
const each = sizes.slice(1).reduce((a, b) => a * b, 1);
const kinds = { uint8: Uint8Array, int32: Int32Array, float32: Float32Array };
const bytes = fs.readFileSync(given);
const values = new kinds[stored](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));

async function answers(backend) {
  await tf.setBackend(backend);
  const document = JSON.parse(fs.readFileSync(path.join(folder, "model.json"), "utf8"));
  const parts = document.weightsManifest.flatMap((group) => group.paths);
  const weights = Buffer.concat(parts.map((part) => fs.readFileSync(path.join(folder, part))));
  const model = await tf.loadGraphModel(
    tf.io.fromMemory({
      modelTopology: document.modelTopology,
      signature: document.signature,
      userDefinedMetadata: document.userDefinedMetadata,
      weightSpecs: document.weightsManifest.flatMap((group) => group.weights),
      weightData: weights.buffer.slice(weights.byteOffset, weights.byteOffset + weights.length),
    }),
  );
  const outputs = {};
  for (let row = 0; row < sizes[0]; row += ROWS) {
    const rows = Math.min(ROWS, sizes[0] - row);
    const part = kinds[dtype].from(values.subarray(row * each, (row + rows) * each));
    const input = tf.tensor(part, [rows, ...sizes.slice(1)], dtype);
    const named = await model.predictAsync(input);
    for (const [name, tensor] of Object.entries(named)) {
      (outputs[name] ??= []).push(...(await tensor.array()));
    }
    tf.dispose([input, named]);
  }
  return outputs;
}

async function main() {
  let outputs;
  try {
    tf.wasm.setWasmPaths(wasm + path.sep);
    outputs = await answers("wasm");
  } catch (error) {
    if (!/wasm/i.test(String(error))) throw error;
    console.log(`${String(error).split("\n")[0]}: JavaScript computes the examples, which takes longer`);
    outputs = await answers("cpu");
  }
  fs.writeFileSync(answered, JSON.stringify(outputs));
}

main().catch((error) => {
  console.error(String(error).split("\n")[0]);
  process.exit(1);
});
