// The model in a thread of its own, so that the page stays awake. Takes `{call, name, ...}` and posts `{call, piece}`
// any number of times, then `{call, result}`, `{call, refusal}` or `{call, fault}`; and `{progress}` while it opens.

import { Files } from "./files/files.js";
import { FlashSloth } from "./model/flashsloth.js";
import { previewOf } from "./pixels/preview.js";
import { readImage } from "./pixels/read.js";
import { Refusal } from "./refusal.js";

const root = new URL("./", import.meta.url);
const images = new Map(); // by the numbers that the page gave them: promises of what the model reads
let model, stopped;

const calls = {
  /** Opens the model; `backend` is "wasm", "webgpu" or null. Returns what visitors can choose of it. */
  async open({ backend }) {
    model = openModel(backend);
    const { visualTokens, numViews } = await model;
    return { visualTokens, numViews };
  },

  /** Reads an image and begins to encode it; returns a small copy to show. */
  async read({ image, blob, label }) {
    const pixels = await readImage(blob, label);
    const encoded = model.then((opened) => opened.encode(pixels));
    encoded.catch(() => {}); // said when it is asked about
    images.set(image, encoded);
    return { preview: await previewOf(pixels), width: pixels.width, height: pixels.height };
  },

  forget({ image }) {
    images.delete(image);
  },

  /** Answers, with what the model looked at; `numbers` are the images of the messages, in reading order. */
  async answer({ messages, numbers, visualTokens }, post) {
    stopped = false;
    const opened = await model;
    const encoded = await Promise.all(numbers.map((number) => images.get(number)));
    return opened.answer(messages, encoded, async (text) => {
      post(text);
      await new Promise((resolve) => setTimeout(resolve)); // `stop` may be waiting
      return !stopped;
    }, visualTokens);
  },

  stop() {
    stopped = true;
  },
};

async function openModel(backend) {
  const files = await Files.open(root);
  files.onProgress = (loaded, total) => postMessage({ progress: { loaded, total } });
  return FlashSloth.open(files, backend);
}

addEventListener("message", async ({ data: { call, name, ...values } }) => {
  try {
    const result = await calls[name](values, (piece) => postMessage({ call, piece }));
    postMessage({ call, result }, result?.preview ? [result.preview] : []);
  } catch (error) {
    const kind = error instanceof Refusal ? "refusal" : "fault";
    postMessage({ call, [kind]: error.message ?? String(error) });
  }
});
