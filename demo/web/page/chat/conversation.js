// What was said so far, and what is about to be asked.

const says = (role, text, images = []) => ({
  role,
  content: [...images.map(() => ({ type: "image" })), { type: "text", text }],
});

/** Turns of questions and answers, and the images that the next question brings along. */
export class Conversation {
  constructor() {
    this.turns = []; // {question, images, answer}
    this.pending = []; // images, as `ModelClient.read` returns them
  }

  /**
   * The conversation with one more question.
   *
   * @param {string} question
   * @returns {{messages: object[], images: object[]}} as the chat template takes them, and the images in reading order.
   */
  asking(question) {
    const messages = this.turns.flatMap((turn) => [
      says("user", turn.question, turn.images),
      says("assistant", turn.answer),
    ]);
    return {
      messages: [...messages, says("user", question, this.pending)],
      images: [...this.turns.flatMap((turn) => turn.images), ...this.pending],
    };
  }

  /** Takes up a question that was answered. */
  remember(question, images, answer) {
    this.turns.push({ question, images, answer });
  }
}
