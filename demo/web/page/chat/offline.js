/** Keeps the page for visits without a network, and the newest version for the visit after this one. */
export async function keepForOffline(files) {
  if (!("serviceWorker" in navigator)) return;
  try {
    // Past the kept files, to the server's.
    const index = await (await fetch(files.url("files.json?newest"), { cache: "no-cache" })).json();
    await navigator.serviceWorker.register(files.url(`sw.js?version=${index.version}`));
  } catch {
    // Without a network, or where it is forbidden: the page works all the same.
  }
}
