// ONNX Runtime for the browser: on the graphics processor where that serves, else on the processor.

// WebGPU has no kernels for products of integers: such graphs would go back and forth between both.
const ONLY_WASM = ["uint8"];
const WASM = { code: "ort.wasm.min.mjs", binary: "ort-wasm-simd-threaded", providers: ["wasm"] };
const WEBGPU = { code: "ort.webgpu.min.mjs", binary: "ort-wasm-simd-threaded.asyncify", providers: ["webgpu", "wasm"] };

/**
 * Opens the runtime.
 *
 * @param {Files} files
 * @param {string} precision of the graphs, as their manifest says.
 * @param {string | null} wanted "wasm" or "webgpu", in place of what this would choose.
 * @returns {Promise<{ort: object, providers: string[]}>} the module, and what graphs run on.
 */
export async function openRuntime(files, precision, wanted = null) {
  const onGraphics = wanted ? wanted === "webgpu" : !ONLY_WASM.includes(precision) && (await hasWebGpu());
  const { code, binary, providers } = onGraphics ? WEBGPU : WASM;
  const [ort, wasm] = await Promise.all([import(`../vendor/${code}`), files.bytes(`vendor/${binary}.wasm`)]);
  ort.env.logLevel = "error"; // it warns of what WebGPU leaves to the processor, as it should
  ort.env.wasm.wasmPaths = { mjs: files.url(`vendor/${binary}.mjs`) };
  ort.env.wasm.wasmBinary = wasm.buffer;
  return { ort, providers };
}

async function hasWebGpu() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return Boolean(adapter) && !adapter.info?.isFallbackAdapter;
}
