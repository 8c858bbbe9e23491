// Requests to the server, as JSON.

const PATIENCE_MILLISECONDS = 10_000;
const PAUSE_MILLISECONDS = 1000;

// The server did not answer, or failed. The same request may be sent again.
export class Unreachable extends Error {}

// Send a request and return the server's response as {status, body}.
export async function request(path, body) {
  const options = { credentials: "same-origin", cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MILLISECONDS) };
  if (body !== undefined) {
    const headers = { "Content-Type": "application/json" };
    Object.assign(options, { method: "POST", body: JSON.stringify(body), headers });
  }
  try {
    const response = await fetch(path, options);
    if (response.status >= 500 || response.status === 429) throw new Unreachable(`status ${response.status}`);
    return { status: response.status, body: await response.json() };
  } catch (error) {
    throw error instanceof Unreachable ? error : new Unreachable(String(error));
  }
}

// Repeat a request until the server answers. Call `tell` each time that it does not.
export async function patiently(ask, tell) {
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      tell();
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MILLISECONDS));
    }
  }
}

// Exchange the token, which follows "#" in the address, for a cookie, and remove it from the address.
export async function openSession() {
  const token = location.hash.slice(1);
  if (!token) return request("/api/session");
  const answer = await request("/api/session", { token });
  if (answer.status === 200) history.replaceState(null, "", location.pathname);
  return answer;
}
