// The files that `assemble.py` laid out: fetched with progress, kept for later visits, unpacked.

import { Refusal } from "../refusal.js";

const INDEX = "files.json";

/** What is laid out beside the page. */
export class Files {
  /**
   * @param {URL} root where the page is.
   * @param {{version: string, packed: Object<string, number>}} index files.json: the version of all files together, and
   *   the bytes of each packed one.
   */
  constructor(root, index) {
    this.root = root;
    this.index = index;
    this.loaded = {}; // bytes of each packed file so far
    this.onProgress = () => {}; // gets bytes so far and bytes of all packed files asked for
  }

  /** @throws {Refusal} if nothing is laid out. */
  static async open(root) {
    const response = await get(new URL(INDEX, root), { cache: "no-cache" });
    return new Files(root, await response.json().catch(() => {
      throw new Refusal(`${INDEX} on this server is damaged: lay the page out again with assemble.py.`);
    }));
  }

  /** Parsed JSON. */
  async json(name) {
    return JSON.parse(await this.text(name));
  }

  /** Text. */
  async text(name) {
    return new TextDecoder().decode(await this.bytes(name));
  }

  /**
   * A file, unpacked where it is packed.
   *
   * @param {string} name without `.gz`.
   * @returns {Promise<Uint8Array>}
   * @throws {Refusal} naming the file that is missing or damaged.
   */
  async bytes(name) {
    const packed = `${name}.gz`;
    const size = this.index.packed[packed];
    if (size === undefined) return new Uint8Array(await (await get(new URL(name, this.root))).arrayBuffer());
    this.#count(packed, 0);
    const bytes = await this.#kept(packed);
    this.#count(packed, size);
    try {
      return await unpack(bytes);
    } catch {
      await this.#forget(packed);
      throw new Refusal(`${packed} arrived damaged: reload the page.`);
    }
  }

  /** The URL of a file, for what fetches by itself. */
  url(name) {
    return new URL(name, this.root).href;
  }

  /** From an earlier visit, or from the server and kept. */
  async #kept(name) {
    const url = new URL(name, this.root);
    const cache = await this.#cache();
    const kept = await cache?.match(url);
    if (kept) return new Uint8Array(await kept.arrayBuffer());
    const response = await get(url);
    const parts = [];
    let count = 0;
    const reader = response.body.getReader();
    try {
      for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
        parts.push(value);
        this.#count(name, (count += value.length));
      }
    } catch {
      throw new Refusal(`${name} did not arrive whole: is the network there?`);
    }
    const blob = new Blob(parts);
    cache?.put(url, new Response(blob)).catch(() => {}); // no room: it is fetched again next time
    return new Uint8Array(await blob.arrayBuffer());
  }

  async #forget(name) {
    await (await this.#cache())?.delete(new URL(name, this.root));
  }

  /** Caches are there at https and localhost alone, and not where a visitor forbids them. */
  async #cache() {
    const name = `flashsloth ${this.root.pathname} ${this.index.version}`; // as in sw.js
    return globalThis.caches?.open(name).catch(() => undefined);
  }

  #count(name, bytes) {
    this.loaded[name] = bytes;
    const sum = (values) => values.reduce((total, one) => total + one, 0);
    const names = Object.keys(this.loaded);
    this.onProgress(sum(Object.values(this.loaded)), sum(names.map((one) => this.index.packed[one])));
  }
}

async function get(url, options) {
  const name = decodeURIComponent(url.pathname.split("/").at(-1));
  const response = await fetch(url, options).catch(() => {
    throw new Refusal(`${name} cannot be fetched: is the network there?`);
  });
  if (response.ok) return response;
  throw new Refusal(`${name} is missing on this server (${response.status}): lay the page out with assemble.py.`);
}

/** Gunzips, unless a server that knows `.gz` had the browser do so already. */
async function unpack(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
