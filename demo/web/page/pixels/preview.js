import { resize } from "./bicubic.js";

const LONGEST_SIDE = 512;

/** What is shown of an image: the pixels that the model is given, small, as an `ImageBitmap`. */
export function previewOf({ rgb, width, height }) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
  const [toWidth, toHeight] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  const small = resize(rgb, width, height, toWidth, toHeight);
  const picture = new ImageData(toWidth, toHeight);
  picture.data.fill(255);
  for (let from = 0, to = 0; from < small.length; from += 3, to += 4) {
    picture.data[to] = small[from], picture.data[to + 1] = small[from + 1], picture.data[to + 2] = small[from + 2];
  }
  return createImageBitmap(picture);
}
