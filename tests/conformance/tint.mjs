// Compiles WGSL with Tint, Chrome's compiler, down to a pipeline within WebGPU's default limits:
// tint.mjs < [{ "name", "text", "overrides" }, ...]. Says what it refuses and exits with 1, or with 77 where it
// cannot be loaded.

import { readFileSync } from "node:fs";

const { create, globals } = await import("webgpu").catch((error) => {
  console.log(`Tint cannot be loaded: ${error.message}`);
  process.exit(77);
});
Object.assign(globalThis, globals);

const requiredFeatures = ["shader-f16", "subgroups"];
let gpu = create([]); // has to outlive what is made from it
let adapter = await gpu.requestAdapter();
if (!requiredFeatures.every((feature) => adapter?.features.has(feature))) {
  // Dawn's own stand-in for an adapter: shaders are checked and then thrown away.
  gpu = create(["backend=null"]);
  adapter = await gpu.requestAdapter();
}
const device = await adapter.requestDevice({ requiredFeatures });

const refusals = [];

// Returns a module, or nothing where it is refused.
async function compiled(name, text) {
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ code: text });
  const { messages } = await module.getCompilationInfo();
  await device.popErrorScope(); // says what the messages say
  for (const { type, lineNum, linePos, message } of messages) {
    refusals.push(`${name}:${lineNum}:${linePos}: ${type}: ${message}`);
  }
  if (messages.length === 0) return module;
}

const modules = new Map(); // by text: many kernels differ by their overrides alone
for (const { name, text, overrides } of JSON.parse(readFileSync(0))) {
  if (!modules.has(text)) modules.set(text, await compiled(name, text));
  const module = modules.get(text);
  if (!module) continue;
  const compute = { module, entryPoint: "main", constants: overrides };
  await device.createComputePipelineAsync({ layout: "auto", compute }).catch((error) => {
    refusals.push(`${name}: ${error.message}`);
  });
}
device.destroy();
console.log(refusals.join("\n") || `compiled by Tint for ${adapter.info.description || adapter.info.device}`);
// To exit at once would take the driver's threads down in the middle of their work.
process.exitCode = refusals.length > 0 ? 1 : 0;
