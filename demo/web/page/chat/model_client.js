import { Refusal } from "../refusal.js";

/** The model, which lives in a worker, as methods that return promises. */
export class ModelClient {
  /** @param {(progress: {loaded: number, total: number}) => void} onProgress bytes of the model that have come. */
  constructor(onProgress) {
    this.waiting = new Map();
    this.calls = 0;
    this.worker = new Worker(new URL("../worker.js", import.meta.url), { type: "module" });
    this.worker.addEventListener("message", ({ data }) => (data.progress ? onProgress(data.progress) : this.#hear(data)));
    this.worker.addEventListener("error", (event) => this.#fail(event.message || "its code did not load"));
  }

  /** Resolves to `{visualTokens, numViews}`: the numbers of a view to choose from, and the views of an image. */
  open(backend) {
    return this.#call("open", { backend });
  }

  /** Numbers an image and reads it; resolves to `{number, preview, width, height}`. */
  async read(blob, label) {
    const number = this.calls;
    return { number, ...(await this.#call("read", { image: number, blob, label })) };
  }

  forget(number) {
    return this.#call("forget", { image: number });
  }

  /** Answers, as `FlashSloth.answer`, and tells `onText` the answer so far. */
  answer(messages, numbers, visualTokens, onText) {
    return this.#call("answer", { messages, numbers, visualTokens }, onText);
  }

  stop() {
    return this.#call("stop");
  }

  #call(name, values = {}, onPiece = () => {}) {
    const call = this.calls++;
    return new Promise((resolve, reject) => {
      this.waiting.set(call, { resolve, reject, onPiece });
      this.worker.postMessage({ call, name, ...values });
    });
  }

  #hear({ call, piece, result, refusal, fault }) {
    const { resolve, reject, onPiece } = this.waiting.get(call);
    if (piece !== undefined) return onPiece(piece);
    this.waiting.delete(call);
    if (refusal !== undefined) reject(new Refusal(refusal));
    else if (fault !== undefined) reject(new Error(fault));
    else resolve(result);
  }

  #fail(message) {
    for (const { reject } of this.waiting.values()) reject(new Error(`the model's thread ended: ${message}`));
    this.waiting.clear();
  }
}
