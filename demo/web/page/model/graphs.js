// The two graphs that `flashsloth export` writes, as `OnnxFlashSloth` runs them; rows are always one.

import { KeyValues } from "./key_values.js";

const ENCODED = ["image_tokens", "image_features"];

/** Image encoder and decoder. */
export class Graphs {
  constructor(ort, encoder, decoder) {
    this.ort = ort;
    this.encoder = encoder;
    this.decoder = decoder;
    /** Whether there is what an explanation needs: the decoder has no such output without queries. */
    this.explains = decoder.outputNames.includes("query_attention");
    this.last = Promise.resolve();
    this.shapes = Object.fromEntries(decoder.inputMetadata.map(({ name, shape }) => [name, shape]));
  }

  /**
   * Opens both, the encoder while the decoder may still be coming.
   *
   * @param {Promise<{ort: object, providers: string[]}>} runtime
   * @param {Promise<Uint8Array>} encoder, decoder the files.
   */
  static async open(runtime, encoder, decoder) {
    const create = ({ ort, providers }, bytes) =>
      // More optimisation takes longer than it saves in a conversation.
      ort.InferenceSession.create(bytes, { executionProviders: providers, graphOptimizationLevel: "basic" });
    const encoding = Promise.all([runtime, encoder]).then((both) => create(...both));
    const [opened, session, bytes] = await Promise.all([runtime, encoding, decoder]);
    return new Graphs(opened.ort, session, await create(opened, bytes));
  }

  /**
   * Encodes one image.
   *
   * @param {Float32Array} pixels `(V, 3, H, W)`.
   * @param {{width: number, height: number}} size of a view.
   * @returns {Promise<Object<string, {data: Float32Array, dims: number[]}>>} each output, `(1, ...)`.
   */
  async encode(pixels, { width, height }) {
    const views = pixels.length / (3 * width * height);
    const input = new this.ort.Tensor("float32", pixels, [1, views, 3, height, width]);
    const outputs = await this.#alone(() => this.encoder.run({ pixel_values: input }));
    return Object.fromEntries(Object.entries(outputs).map(([name, { data, dims }]) => [name, { data, dims }]));
  }

  /** Encoded images as the decoder takes them, `(N, ...)`; a blank one where there is none, as no size may be 0. */
  imagesOf(encoded) {
    return Object.fromEntries(ENCODED.map((name) => {
      const width = this.shapes[name][2];
      if (!encoded.length) return [name, new this.ort.Tensor("float32", new Float32Array(width), [1, 1, width])];
      const parts = encoded.map((image) => image[name]);
      const all = new Float32Array(parts.reduce((sum, { data }) => sum + data.length, 0));
      parts.reduce((at, { data }) => (all.set(data, at), at + data.length), 0);
      return [name, new this.ort.Tensor("float32", all, [parts.length, ...parts[0].dims.slice(1)])];
    }));
  }

  /** An empty cache. */
  keyValues() {
    return new KeyValues(this.ort, this.shapes);
  }

  /**
   * Runs the decoder on the ids behind those that are cached, which it caches.
   *
   * @param {number[]} ids all so far, L of them.
   * @param {object} images what `imagesOf` returned.
   * @param {KeyValues} cache
   * @param {string[]} others outputs to return beside the logits.
   * @returns {Promise<{logits: Float32Array}>} of the last position.
   */
  async step(ids, images, cache, others = []) {
    const whole = (values) => new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length]);
    const feeds = { input_ids: whole(ids), attention_mask: whole(ids.map(() => 1)), ...images, ...cache.feeds };
    const names = ["logits", ...cache.outputNames, ...others];
    const outputs = await this.#alone(() => this.decoder.run(feeds, names));
    cache.keep(outputs);
    return Object.fromEntries(["logits", ...others].map((name) => [name, outputs[name].data]));
  }

  /** One run after another: an image may come while an answer grows. */
  #alone(run) {
    this.last = this.last.then(run, run);
    return this.last;
  }
}
