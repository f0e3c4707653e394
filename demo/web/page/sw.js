// Keeps the files of one version, which the query of this script's address names, and answers from them. A newer
// version takes over when no page of the older one is open, so that no page mixes the two.

const version = new URL(location.href).searchParams.get("version");
const FAMILY = `flashsloth ${new URL(registration.scope).pathname} `; // other pages of this server keep theirs
const CACHE = FAMILY + version; // as in files/files.js, which puts the packed files there
const INDEX = "files.json";

addEventListener("install", (event) => event.waitUntil(keepAll()));
addEventListener("activate", (event) => event.waitUntil(forgetOthers()));
addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  const isOurs = event.request.method === "GET" && url.href.startsWith(registration.scope);
  const asksServer = url.pathname.endsWith(INDEX) && url.search;
  if (isOurs && !asksServer) event.respondWith(answer(event.request));
});

async function keepAll() {
  const index = await (await ok(`${INDEX}?newest`)).json();
  if (index.version !== version) throw new Error(`the server has version ${index.version}, not ${version}`);
  const cache = await caches.open(CACHE);
  await Promise.all([INDEX, ...index.page].map(async (name) => {
    if (!(await cache.match(name))) await cache.put(name, await ok(name));
  }));
}

async function ok(name) {
  const response = await fetch(name, { cache: "no-cache" });
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  return response;
}

async function forgetOthers() {
  const others = (await caches.keys()).filter((name) => name.startsWith(FAMILY) && name !== CACHE);
  await Promise.all(others.map((name) => caches.delete(name)));
}

async function answer(request) {
  const cache = await caches.open(CACHE);
  const isRoot = request.url.split(/[?#]/)[0] === registration.scope;
  return (await cache.match(isRoot ? "index.html" : request, { ignoreSearch: true })) ?? fetch(request);
}
