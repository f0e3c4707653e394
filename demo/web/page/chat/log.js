// The turns on the page.

import { canvasOf, element } from "./element.js";

/** Shows what is said. */
export class Log {
  /** @param {HTMLElement} place */
  constructor(place) {
    this.place = place;
  }

  /**
   * Shows a question, and room for its answer.
   *
   * @returns {{grow: Function, end: Function, remove: Function}} `grow(text)` shows the answer so far, `end(extra)` that
   *   it is whole, with what shall stand below it.
   */
  ask(question, images) {
    const pictures = images.map((image) => canvasOf(image.preview, image.label));
    const asked = element("article", { className: "question", ariaLabel: "You" });
    if (pictures.length) asked.append(element("div", { className: "pictures" }, ...pictures));
    asked.append(element("p", { textContent: question }));
    const text = element("p", { className: "growing", textContent: "…" });
    const answer = element("article", { className: "answer", ariaLabel: "FlashSloth", ariaBusy: "true" }, text);
    this.#show(asked, answer);
    return {
      grow: (said) => {
        text.textContent = said || "…";
        this.#follow(answer);
      },
      end: (said, ...extra) => {
        text.textContent = said || "(nothing)";
        text.classList.remove("growing");
        answer.ariaBusy = "false";
        answer.append(...extra);
        this.#follow(answer);
      },
      remove: () => {
        asked.remove();
        answer.remove();
      },
    };
  }

  /** Shows a sentence about what cannot be done. */
  refuse(sentence) {
    this.#show(element("p", { className: "refusal", role: "alert", textContent: sentence }));
  }

  /** Forgets refusals that were mended. */
  forgive() {
    for (const refusal of this.place.querySelectorAll(".refusal")) refusal.remove();
  }

  clear() {
    this.place.replaceChildren();
  }

  #show(...made) {
    this.place.append(...made);
    this.#follow(made.at(-1));
  }

  #follow(shown) {
    shown.scrollIntoView({ block: "end" });
  }
}
