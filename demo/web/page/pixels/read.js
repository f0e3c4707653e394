// A file that somebody chose, to upright 8-bit RGB.

import { Refusal } from "../refusal.js";
import { decodeByBrowser } from "./by_browser.js";
import { takeOrientation } from "./exif.js";
import { FORMATS, formatOf, isWhole } from "./formats.js";
import { decodeGif } from "./gif.js";
import { decodePng } from "./png.js";
import { turnUpright } from "./turn.js";

const MAX_BYTES = 256 * 2 ** 20; // as `image_inputs.py`

/**
 * Reads an image file as `FlashSlothImageProcessor` does.
 *
 * @param {Blob} blob the file.
 * @param {string} name what to call it in a refusal.
 * @returns {Promise<{rgb: Uint8Array, width: number, height: number}>} 3 bytes a pixel, row by row.
 * @throws {Refusal} naming the file, for one that is no image, damaged or too large.
 */
export async function readImage(blob, name) {
  if (blob.size > MAX_BYTES) throw new Refusal(`${name} is too large: a file may have ${MAX_BYTES / 2 ** 20} MB.`);
  const bytes = new Uint8Array(await blob.arrayBuffer().catch(() => {
    throw new Refusal(`${name} cannot be read: is it still there?`);
  }));
  const format = formatOf(bytes);
  if (!format) {
    const known = `${FORMATS.slice(0, -1).join(", ")} or ${FORMATS.at(-1)}`;
    throw new Refusal(`${name} is no image in ${known}${bytes.length ? "" : ": it is empty"}.`);
  }
  try {
    const { orientation, ...pixels } = await decode(bytes, format);
    return turnUpright(pixels, orientation);
  } catch (error) {
    if (error instanceof Refusal) throw new Refusal(`${name} cannot be used: ${error.message}.`);
    throw error;
  }
}

async function decode(bytes, format) {
  if (format === "PNG") return decodePng(bytes);
  if (format === "GIF") return { ...decodeGif(bytes), orientation: 1 };
  if (!isWhole(bytes, format)) throw new Refusal("it is damaged or cut short: save it anew");
  const orientation = takeOrientation(bytes, format);
  return { ...(await decodeByBrowser(new Blob([bytes]))), orientation };
}
