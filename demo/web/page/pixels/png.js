// PNG to the 8-bit RGB that Pillow and `image_inputs.py` make of it: transparency dropped, not blended; 16-bit grey
// scaled, other 16-bit samples cut to their high byte. A canvas would lose the colours under transparency.

import { Refusal } from "../refusal.js";
import { orientationOf } from "./exif.js";
import { checkSize } from "./formats.js";
import { inflate } from "./inflate.js";

const DAMAGED = "it is damaged or cut short: save it anew";
const GREY = 0, RGB = 2, PALETTE = 3, GREY_ALPHA = 4, RGB_ALPHA = 6;
const SAMPLES = { [GREY]: 1, [RGB]: 3, [PALETTE]: 1, [GREY_ALPHA]: 2, [RGB_ALPHA]: 4 };
const DEPTHS = {
  [GREY]: [1, 2, 4, 8, 16], [RGB]: [8, 16], [PALETTE]: [1, 2, 4, 8], [GREY_ALPHA]: [8, 16], [RGB_ALPHA]: [8, 16],
};
// Adam7: first column and row of each pass, and the steps between its pixels.
const PASSES = [
  [0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2],
];

/**
 * Decodes a PNG, of an animation its still image.
 *
 * @param {Uint8Array} bytes of the file.
 * @returns {Promise<{rgb: Uint8Array, width: number, height: number, orientation: number}>} 3 bytes a pixel, row by
 *   row, not yet turned as `orientation` (of EXIF, 1 to 8) says.
 * @throws {Refusal} for a file that is damaged or too large.
 */
export async function decodePng(bytes) {
  const chunks = readChunks(bytes);
  const header = readHeader(chunks.IHDR?.[0]);
  const { width, height, depth, kind } = header;
  const sizes = header.interlaced ? PASSES : [[0, 0, 1, 1]];
  const bits = depth * SAMPLES[kind];
  const passes = sizes.map(([x, y, dx, dy]) => ({
    x, y, dx, dy, columns: Math.ceil((width - x) / dx), rows: Math.ceil((height - y) / dy),
  })).filter(({ columns, rows }) => columns > 0 && rows > 0);
  const length = passes.reduce((sum, { columns, rows }) => sum + rows * (1 + Math.ceil((columns * bits) / 8)), 0);
  const data = await inflate(chunks.IDAT ?? [], length).catch(() => { throw new Refusal(DAMAGED); });

  const toRgb = painter(kind, depth, paletteOf(chunks.PLTE?.[0]));
  const rgb = new Uint8Array(width * height * 3);
  let at = 0;
  for (const { x, y, dx, dy, columns, rows } of passes) {
    const rowBytes = Math.ceil((columns * bits) / 8);
    let above = new Uint8Array(rowBytes);
    for (let row = 0; row < rows; row++) {
      const line = data.subarray(at + 1, at + 1 + rowBytes);
      unfilter(data[at], line, above, Math.max(1, bits >> 3));
      for (let column = 0; column < columns; column++) {
        toRgb(line, column, rgb, 3 * ((y + row * dy) * width + x + column * dx));
      }
      above = line;
      at += 1 + rowBytes;
    }
  }
  return { rgb, width, height, orientation: chunks.eXIf ? orientationOf(chunks.eXIf[0]) : 1 };
}

/** The data of the chunks that matter, by their names. */
function readChunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const chunks = {};
  for (let at = 8; !chunks.IEND; ) {
    if (at + 12 > bytes.length) throw new Refusal(DAMAGED);
    const length = view.getUint32(at);
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (at + 12 + length > bytes.length) throw new Refusal(DAMAGED);
    const isCritical = !(bytes[at + 4] & 32);
    if (isCritical && crc(bytes.subarray(at + 4, at + 8 + length)) !== view.getUint32(at + 8 + length)) {
      throw new Refusal(DAMAGED);
    }
    if (isCritical || name === "eXIf") (chunks[name] ??= []).push(bytes.subarray(at + 8, at + 8 + length));
    at += 12 + length;
  }
  return chunks;
}

function readHeader(data) {
  if (data?.length !== 13) throw new Refusal(DAMAGED);
  const view = new DataView(data.buffer, data.byteOffset, 13);
  const [depth, kind, compression, filter, interlaced] = data.subarray(8);
  const header = { width: view.getUint32(0), height: view.getUint32(4), depth, kind, interlaced };
  if (!DEPTHS[kind]?.includes(depth) || compression || filter || interlaced > 1) throw new Refusal(DAMAGED);
  checkSize(header.width, header.height);
  return header;
}

/** 256 colours; those that the file does not give are grey, as Pillow's. */
function paletteOf(data = new Uint8Array(0)) {
  const palette = new Uint8Array(768).map((_, at) => Math.floor(at / 3));
  palette.set(data.subarray(0, 768));
  return palette;
}

/** A function that writes the colour of one pixel of a line. */
function painter(kind, depth, palette) {
  const samples = SAMPLES[kind];
  if (depth < 8) {
    const top = (1 << depth) - 1, perByte = 8 / depth, scale = 255 / top;
    return (line, column, rgb, to) => {
      const value = (line[Math.floor(column / perByte)] >> (8 - depth * (1 + (column % perByte)))) & top;
      if (kind === PALETTE) rgb.set(palette.subarray(3 * value, 3 * value + 3), to);
      else rgb.fill(value * scale, to, to + 3);
    };
  }
  const step = (samples * depth) / 8, next = depth / 8;
  if (kind === PALETTE) return (line, column, rgb, to) => {
    const from = 3 * line[column];
    rgb[to] = palette[from], rgb[to + 1] = palette[from + 1], rgb[to + 2] = palette[from + 2];
  };
  if (kind === GREY && depth === 16) return (line, column, rgb, to) => {
    rgb.fill(Math.round((256 * line[2 * column] + line[2 * column + 1]) / 257), to, to + 3);
  };
  const [green, blue] = samples > 2 ? [next, 2 * next] : [0, 0];
  return (line, column, rgb, to) => {
    const from = column * step;
    rgb[to] = line[from], rgb[to + 1] = line[from + green], rgb[to + 2] = line[from + blue];
  };
}

/** Undoes the filter of a line in place; `step` is the bytes of a pixel. */
function unfilter(filter, line, above, step) {
  if (filter > 4) throw new Refusal(DAMAGED);
  if (filter === 0) return;
  for (let i = 0; i < line.length; i++) {
    const left = i < step ? 0 : line[i - step], up = above[i], corner = i < step ? 0 : above[i - step];
    line[i] += filter === 1 ? left : filter === 2 ? up : filter === 3 ? (left + up) >> 1 : paeth(left, up, corner);
  }
}

function paeth(left, up, corner) {
  const guess = left + up - corner;
  const [toLeft, toUp, toCorner] = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
  return toLeft <= toUp && toLeft <= toCorner ? left : toUp <= toCorner ? up : corner;
}

const CRCS = new Uint32Array(256).map((_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

function crc(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRCS[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}
