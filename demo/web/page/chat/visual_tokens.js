// How many visual tokens a picture becomes, where the model knows several numbers.

/** A slider over the numbers, which are no even steps. Each question takes all its pictures with the number it shows. */
export class VisualTokens {
  /** @param {HTMLElement} place has the slider and a `<span>`, and is shown if there is a choice. */
  constructor(place) {
    this.place = place;
    this.slider = place.querySelector("input");
    this.slider.addEventListener("input", () => this.#say());
    this.numbers = [];
    this.numViews = 1;
  }

  /**
   * @param {{visualTokens: number[], numViews: number}} choice numbers of a view, the model's own first, and the views of
   *   a picture.
   */
  offer({ visualTokens, numViews }) {
    this.numbers = [...visualTokens].sort((one, other) => one - other);
    this.numViews = numViews;
    this.slider.max = this.numbers.length - 1;
    this.slider.value = this.numbers.indexOf(visualTokens[0]);
    this.#say();
    this.place.hidden = this.numbers.length < 2;
  }

  /** Of a view. */
  get chosen() {
    return this.numbers[this.slider.value];
  }

  /** What to say of an answer's number; nothing without a choice. */
  noteOf(tokens) {
    return this.numbers.length < 2 ? "" : inWords(tokens);
  }

  #say() {
    const tokens = this.numViews * this.chosen;
    this.place.querySelector("span").textContent = inWords(tokens);
    this.slider.ariaValueText = String(tokens); // its own value is but the place among the numbers
  }
}

const inWords = (tokens) => `${tokens} visual token${tokens === 1 ? "" : "s"} a picture`;
