/** What cannot be done, as one sentence for the reader of the page; anything else that is thrown is a fault of ours. */
export class Refusal extends Error {}
