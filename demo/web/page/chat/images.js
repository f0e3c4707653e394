// Images that wait for a question: chosen, dropped, pasted or photographed.

import { canvasOf, element } from "./element.js";

/** The images beside the question. */
export class PendingImages {
  /**
   * @param {HTMLElement} place where they are shown.
   * @param {ModelClient} model
   * @param {(error: Error) => void} refuse is told what cannot be used.
   */
  constructor(place, model, refuse) {
    this.place = place;
    this.model = model;
    this.refuse = refuse;
    this.items = []; // {shown, reading: promise of the image, null once it is refused}
  }

  /** Adds files, each shown as soon as it is read. */
  add(files) {
    for (const file of files) {
      const label = file.name || "the picture";
      const shown = element("li", { className: "reading", ariaLabel: `reading ${label}` });
      const item = { shown, reading: this.#read(file, label, shown).catch((error) => this.#drop(item, error)) };
      this.items.push(item);
      this.place.append(shown);
    }
  }

  /** Waits until all are read, and returns them in their order. */
  async all() {
    const images = await Promise.all(this.items.map(({ reading }) => reading));
    return images.filter(Boolean);
  }

  /** Takes all away, as they were asked about. */
  clear() {
    this.items = [];
    this.place.replaceChildren();
  }

  async #read(file, label, shown) {
    const image = { ...(await this.model.read(file, label)), label };
    const remove = element("button", {
      type: "button", textContent: "×", ariaLabel: `Remove ${label}`, onclick: () => this.#remove(shown, image),
    });
    shown.classList.remove("reading");
    shown.ariaLabel = null;
    shown.append(canvasOf(image.preview, label), remove);
    return image;
  }

  #remove(shown, image) {
    this.items = this.items.filter((item) => item.shown !== shown);
    shown.remove();
    this.model.forget(image.number);
  }

  #drop(item, error) {
    this.items = this.items.filter((one) => one !== item);
    item.shown.remove();
    this.refuse(error);
    return null;
  }
}
