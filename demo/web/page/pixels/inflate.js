/**
 * Unpacks zlib data with the browser's own decoder.
 *
 * @param {Uint8Array[]} pieces of it.
 * @param {number} length that it has unpacked; what comes beyond is left out, so that no small file fills the memory.
 * @returns {Promise<Uint8Array>}
 * @throws if the data are damaged or shorter.
 */
export async function inflate(pieces, length) {
  const reader = new Blob(pieces).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const unpacked = new Uint8Array(length);
  let at = 0;
  while (at < length) {
    const { done, value } = await reader.read();
    if (done) throw new Error(`${at} of ${length} bytes`);
    unpacked.set(value.subarray(0, length - at), at);
    at += value.length;
  }
  reader.cancel().catch(() => {});
  return unpacked;
}
