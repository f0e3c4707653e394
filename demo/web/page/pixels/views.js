// Images to views, as `image_processing_flashsloth.py`: the image squashed, and in high definition also the four
// quarters of the image on a grey square.

import { Refusal } from "../refusal.js";
import { resize, resizeColumns, resizeRows } from "./bicubic.js";

// Of processor_config.json, what this page does and nothing else.
const DONE = { do_resize: true, resample: 3, do_convert_rgb: true, do_exif_transpose: true }; // 3 is bicubic

/** Throws a `Refusal` for the `image_processor` of a processor_config.json that asks for what is not done here. */
export function checkOptions(options) {
  for (const [name, value] of Object.entries(DONE)) {
    if ((options[name] ?? value) === value) continue;
    throw new Refusal(`The model's images are read with ${name} ${options[name]}, and this page does ${value} alone.`);
  }
}

/** How many views `viewsOf` makes of an image. */
export const numViewsOf = ({ image_hd: hd }) => (hd ? 5 : 1);

/**
 * Views of an image.
 *
 * @param {{rgb: Uint8Array, width: number, height: number}} image
 * @param {object} options the `image_processor` of processor_config.json.
 * @returns {Uint8Array[]} one view or five, each RGB of `options.size`, row by row.
 */
export function viewsOf({ rgb, width, height }, options) {
  const { size, image_hd: hd, image_mean: mean } = options;
  const views = [resize(rgb, width, height, size.width, size.height)];
  if (!hd) return views;
  const grey = [0, 1, 2].map((channel) => Math.floor(255 * (mean[channel] ?? mean)));
  const square = resizeOnSquare({ rgb, width, height }, 2 * size.width, 2 * size.height, grey);
  for (const top of [0, size.height]) for (const left of [0, size.width]) views.push(cut(square, left, top, size));
  return views;
}

/** An image centred on a grey square, resized. Row by row and column by column, as the square itself may be huge. */
function resizeOnSquare({ rgb, width, height }, toWidth, toHeight, grey) {
  const side = Math.max(width, height), left = (side - width) >> 1, top = (side - height) >> 1;
  const rows = new Uint8Array(3 * toWidth * side);
  fill(rows, grey);
  const row = new Uint8Array(3 * side);
  fill(row, grey);
  for (let y = 0; y < height; y++) {
    row.set(rgb.subarray(3 * y * width, 3 * (y + 1) * width), 3 * left);
    rows.set(resizeRows(row, side, 1, toWidth), 3 * (top + y) * toWidth);
  }
  return { rgb: resizeColumns(rows, toWidth, side, toHeight), width: toWidth };
}

function fill(rgb, colour) {
  for (let i = 0; i < rgb.length; i++) rgb[i] = colour[i % 3];
}

function cut({ rgb, width }, left, top, size) {
  const part = new Uint8Array(3 * size.width * size.height);
  for (let y = 0; y < size.height; y++) {
    const from = 3 * ((top + y) * width + left);
    part.set(rgb.subarray(from, from + 3 * size.width), 3 * y * size.width);
  }
  return part;
}

/**
 * Views to the model's numbers.
 *
 * @param {Uint8Array[]} views RGB, all of one size.
 * @param {object} options the `image_processor` of processor_config.json.
 * @returns {Float32Array} `(V, 3, H, W)`.
 */
export function normalise(views, options) {
  const { do_rescale, rescale_factor, do_normalize, image_mean: mean, image_std: std } = options;
  // As a pixel takes 256 values, each is computed once, in the steps and precisions of `rescale` and `normalize`.
  const tables = [0, 1, 2].map((channel) => Float32Array.from({ length: 256 }, (_, value) => {
    if (do_rescale) value = Math.fround(value * rescale_factor);
    if (!do_normalize) return value;
    const [m, s] = [mean, std].map((values) => Math.fround(values[channel] ?? values));
    return Math.fround(value - m) / s;
  }));
  const plane = views[0].length / 3;
  const pixels = new Float32Array(views.length * 3 * plane);
  views.forEach((view, number) => {
    for (let channel = 0; channel < 3; channel++) {
      const at = (3 * number + channel) * plane;
      for (let i = 0; i < plane; i++) pixels[at + i] = tables[channel][view[3 * i + channel]];
    }
  });
  return pixels;
}
