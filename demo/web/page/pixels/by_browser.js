// Formats that the browser decodes: JPEG, WebP and BMP.

import { Refusal } from "../refusal.js";
import { checkSize } from "./formats.js";

// Canvases of phones hold no more than 16 million pixels, so a picture is read in strips.
const STRIP_PIXELS = 2 ** 22;

/**
 * Decodes an image as the browser does, without colour management.
 *
 * @param {Blob} blob a whole file, without EXIF data.
 * @returns {Promise<{rgb: Uint8Array, width: number, height: number}>} transparency is dropped,
 *   not blended, as Pillow's `convert("RGB")` does.
 * @throws {Refusal} for a file that is damaged or too large.
 */
export async function decodeByBrowser(blob) {
  const options = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(blob, options).catch(() => {
    throw new Refusal("it cannot be decoded: it is damaged, or of a kind that this browser does not know");
  });
  try {
    const { width, height } = bitmap;
    checkSize(width, height);
    const rgb = new Uint8Array(3 * width * height);
    const rows = Math.max(1, Math.floor(STRIP_PIXELS / width));
    const readers = [readOpaque, readTransparent];
    for (let top = 0; top < height; top += rows) {
      const strip = Math.min(rows, height - top);
      let rgba = readers[0](bitmap, top, width, strip);
      if (!rgba) {
        readers.shift(); // transparency somewhere: from here on by the other way
        rgba = readers[0](bitmap, top, width, strip);
      }
      for (let from = 0, to = 3 * top * width; from < rgba.length; from += 4) {
        rgb[to++] = rgba[from], rgb[to++] = rgba[from + 1], rgb[to++] = rgba[from + 2];
      }
    }
    return { rgb, width, height };
  } finally {
    bitmap.close();
  }
}

/** RGBA of a strip, or null where any of it is transparent: a canvas multiplies colours by it, and loses them. */
function readOpaque(bitmap, top, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, top, width, height, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  for (let i = 3; i < data.length; i += 4) if (data[i] !== 255) return null;
  return data;
}

/** RGBA of a strip by WebGL, which leaves colours as they are. */
function readTransparent(bitmap, top, width, height) {
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2", { premultipliedAlpha: false });
  if (!gl || Math.max(bitmap.width, bitmap.height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new Refusal("it is transparent in parts, which this browser cannot read here: save it as PNG");
  }
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const data = new Uint8Array(4 * width * height);
  gl.readPixels(0, top, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
  gl.getExtension("WEBGL_lose_context")?.loseContext(); // a page may have but a few
  return data;
}
