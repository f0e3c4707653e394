const PAST = "past_key_values", PRESENT = "present";

/** Keys and values of a decoder's layers, for one answer. */
export class KeyValues {
  /**
   * @param {object} ort ONNX Runtime.
   * @param {Object<string, (number | string)[]>} shapes of the decoder's inputs; those of keys and values are
   *   `(rows, heads, cached, width)`.
   */
  constructor(ort, shapes) {
    const names = Object.keys(shapes).filter((name) => name.startsWith(`${PAST}.`));
    this.feeds = Object.fromEntries(names.map((name) => {
      const [, heads, , width] = shapes[name];
      return [name, new ort.Tensor("float32", new Float32Array(0), [1, heads, 0, width])];
    }));
    this.outputNames = names.map((name) => name.replace(PAST, PRESENT));
  }

  /** Takes what a step returned in place of what it was given. */
  keep(outputs) {
    this.dispose();
    for (const name of Object.keys(this.feeds)) this.feeds[name] = outputs[name.replace(PAST, PRESENT)];
  }

  /** Frees memory that is not the script's own. */
  dispose() {
    for (const tensor of Object.values(this.feeds)) tensor.dispose();
  }
}
