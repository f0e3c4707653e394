// Photographs: by the camera in a dialog, or where there is none by what the device offers instead.

import { Refusal } from "../refusal.js";

const REASONS = {
  NotAllowedError: "it was not allowed",
  NotFoundError: "there is none",
  NotReadableError: "something else is using it",
};

/**
 * Makes a button take photographs.
 *
 * @param {{button: HTMLElement, dialog: HTMLDialogElement, input: HTMLInputElement}} parts `dialog` has a video and a
 *   button `.shutter`; `input` asks a phone for its camera.
 * @param {(files: File[]) => void} add
 * @param {(error: Error) => void} refuse
 */
export function offerCamera({ button, dialog, input }, add, refuse) {
  const video = dialog.querySelector("video");
  button.addEventListener("click", async () => {
    if (!navigator.mediaDevices?.getUserMedia) return input.click();
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      await video.play();
      dialog.showModal();
    } catch (error) {
      end(video);
      refuse(new Refusal(`The camera cannot be used: ${REASONS[error.name] ?? error.message}.`));
    }
  });
  dialog.querySelector(".shutter").addEventListener("click", async () => {
    const picture = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    picture.getContext("2d").drawImage(video, 0, 0);
    dialog.close();
    add([new File([await picture.convertToBlob()], "photograph.png")]);
  });
  dialog.addEventListener("close", () => end(video));
}

function end(video) {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}
