// The first frame of a GIF as Pillow makes it RGB: transparent pixels have the colour that the palette gives them.
// A browser would make them black.

import { Refusal } from "../refusal.js";
import { checkSize } from "./formats.js";

const DAMAGED = "it is damaged or cut short: save it anew";
const IMAGE = 0x2c, EXTENSION = 0x21, GRAPHIC_CONTROL = 0xf9;
// First row and step of each pass of an interlaced frame.
const PASSES = [[0, 8], [4, 8], [2, 4], [1, 2]];

/**
 * Decodes the first frame.
 *
 * @param {Uint8Array} bytes of the file.
 * @returns {{rgb: Uint8Array, width: number, height: number}} 3 bytes a pixel, row by row.
 * @throws {Refusal} for a file that is damaged or too large.
 */
export function decodeGif(bytes) {
  const file = new Reader(bytes);
  file.at = 6;
  const screen = { width: file.short(), height: file.short() };
  const flags = file.byte();
  file.skip(2);
  let palette = flags & 128 ? file.take(6 << (flags & 7)) : null;
  let transparent = 0;
  for (let kind = file.byte(); kind !== IMAGE; kind = file.byte()) {
    if (kind !== EXTENSION) throw new Refusal(DAMAGED);
    const isControl = file.byte() === GRAPHIC_CONTROL;
    const block = file.blocks();
    if (isControl && block[0] & 1) transparent = block[3];
  }

  const [left, top, columns, rows] = [file.short(), file.short(), file.short(), file.short()];
  const frameFlags = file.byte();
  if (frameFlags & 128) palette = file.take(6 << (frameFlags & 7));
  const width = Math.max(screen.width, left + columns), height = Math.max(screen.height, top + rows);
  checkSize(width, height);
  const codeSize = file.byte();
  const indices = unpack(file.blocks(), codeSize, columns * rows);

  const colours = new Uint8Array(768).map((_, at) => Math.floor(at / 3)); // Pillow's where a palette ends early
  if (palette) colours.set(palette);
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0; i < rgb.length; i++) rgb[i] = colours[3 * transparent + (i % 3)];
  const order = frameFlags & 64 ? interlaced(rows) : null;
  for (let row = 0, from = 0; row < rows; row++) {
    let to = 3 * ((top + (order ? order[row] : row)) * width + left);
    for (let column = 0; column < columns; column++, from++) {
      for (let channel = 0; channel < 3; channel++) rgb[to++] = colours[3 * indices[from] + channel];
    }
  }
  return { rgb, width, height };
}

function interlaced(rows) {
  const order = [];
  for (const [first, step] of PASSES) for (let row = first; row < rows; row += step) order.push(row);
  return order;
}

/** LZW codes of a growing number of bits to `count` indices of colours. */
function unpack(data, codeSize, count) {
  if (codeSize < 1 || codeSize > 8) throw new Refusal(DAMAGED);
  const clear = 1 << codeSize, end = clear + 1, most = 4096;
  const prefix = new Uint16Array(most), suffix = new Uint8Array(most), stack = new Uint8Array(most + 1);
  const indices = new Uint8Array(count);
  for (let code = 0; code < clear; code++) suffix[code] = code;
  let size = codeSize + 1, next = clear + 2, previous = -1, first = 0, bits = 0, held = 0, to = 0;
  for (const byte of data) {
    held |= byte << bits;
    bits += 8;
    while (bits >= size && to < count) {
      const code = held & ((1 << size) - 1);
      held >>= size;
      bits -= size;
      if (code === clear) {
        size = codeSize + 1, next = clear + 2, previous = -1;
        continue;
      }
      if (code === end) throw new Refusal(DAMAGED); // before all pixels
      if (code > next || (code === next && previous < 0)) throw new Refusal(DAMAGED);
      let depth = 0, walk = code;
      if (code === next) stack[depth++] = first, walk = previous;
      for (; walk >= clear; walk = prefix[walk]) stack[depth++] = suffix[walk];
      first = suffix[walk];
      stack[depth++] = first;
      while (depth && to < count) indices[to++] = stack[--depth];
      if (previous >= 0 && next < most) {
        prefix[next] = previous, suffix[next++] = first;
        if (next === 1 << size && size < 12) size++;
      }
      previous = code;
    }
  }
  if (to < count) throw new Refusal(DAMAGED);
  return indices;
}

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  take(count) {
    if (this.at + count > this.bytes.length) throw new Refusal(DAMAGED);
    return this.bytes.subarray(this.at, (this.at += count));
  }

  skip(count) {
    this.take(count);
  }

  byte() {
    return this.take(1)[0];
  }

  short() {
    const [low, high] = this.take(2);
    return low | (high << 8);
  }

  /** Sub-blocks up to the empty one, as one. */
  blocks() {
    const parts = [];
    for (let size = this.byte(); size; size = this.byte()) parts.push(this.take(size));
    const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
    return whole;
  }
}
