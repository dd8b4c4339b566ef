// Everything that the page asks of the server by request; the stream is stream.js'.

const REQUEST_TIMEOUT_MS = 30_000;
const UPLOAD_TIMEOUT_MS = 300_000;

/** A request that the server refused (`status` > 0) or that never reached it (`status` 0). */
export class ApiError extends Error {
  constructor(status, message, { type = "", retryAfterMs = null } = {}) {
    super(message);
    this.status = status;
    this.type = type;
    this.retryAfterMs = retryAfterMs;
  }
}

/** `scope` has the `tenant` and `project` that the page works in, `streamId` names the page's stream. */
export function createApi({ scope, streamId }) {
  const place = [scope.tenant, scope.project].map(encodeURIComponent).join("/");
  const conversations = `/api/cb/conversations/${place}`;
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone ?? "";
  const api = {
    /** Told whose session each reply belongs to. */
    onSession: () => {},
    profile: () => request("GET", "/profile"),
    conversations: async () => (await request("GET", conversations)).items ?? [],
    conversation: (id) => request("POST", `${conversations}/${encodeURIComponent(id)}/fetch`, { json: {} }),
    send: (message, files, key) => send(message, files, key),
    probe,
    streamUrl,
  };
  return api;

  function streamUrl(position) {
    const query = new URLSearchParams({
      stream_id: streamId,
      ...scope,
      user_timezone: zone,
      user_utc_offset_min: String(-new Date().getTimezoneOffset()),
    });
    if (position) query.set("last_event_id", position);
    return `/sse/stream?${query}`;
  }

  /** Send a message (`{text, conversation_id, …}`) with its files; `key` makes a repeated request harmless. */
  function send(message, files, key) {
    const path = `/sse/chat?${new URLSearchParams({ stream_id: streamId })}`;
    const body = { message: { ...scope, ...message } };
    const options = { headers: { "Idempotency-Key": key } };
    if (!files.length) return request("POST", path, { json: body, ...options });
    const form = new FormData();
    body.attachment_meta = files.map((file) => ({ filename: file.name, mime: file.type, size: file.size }));
    form.append("message", JSON.stringify(body));
    form.append("attachment_meta", JSON.stringify(body.attachment_meta));
    for (const file of files) form.append("files", file, file.name);
    return request("POST", path, { form, timeoutMs: UPLOAD_TIMEOUT_MS, ...options });
  }

  async function request(method, path, { json, form, headers = {}, timeoutMs = REQUEST_TIMEOUT_MS } = {}) {
    const sent = { Accept: "application/json", "X-User-Timezone": zone, ...headers };
    sent["X-User-UTC-Offset"] = String(-new Date().getTimezoneOffset());
    if (method !== "GET") sent["X-CSRFToken"] = csrfToken();
    if (json !== undefined) sent["Content-Type"] = "application/json";
    const response = await reach(path, {
      method,
      headers: sent,
      body: form ?? (json === undefined ? undefined : JSON.stringify(json)),
      credentials: "same-origin",
      signal: AbortSignal.timeout(timeoutMs),
    });
    const answer = await response.json().catch(() => null);
    if (response.headers.has("X-Session-ID")) api.onSession(response.headers.get("X-Session-ID"));
    if (!response.ok) throw refusal(response, answer);
    return answer ?? {};
  }
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (cause) {
    const late = cause.name === "TimeoutError";
    throw new ApiError(0, late ? "The server did not answer in time." : "The server cannot be reached.");
  }
}

/** Find out why a stream does not open: `{status, detail, retryAfterMs}`, with status 0 when nothing answers. */
async function probe(url) {
  const controller = new AbortController();
  try {
    const response = await fetch(url, { headers: { Accept: "text/event-stream" }, signal: controller.signal });
    if (response.ok) return { status: 0 };
    const error = refusal(response, await response.json().catch(() => null));
    return { status: error.status, detail: error.message, retryAfterMs: error.retryAfterMs };
  } catch {
    return { status: 0 };
  } finally {
    controller.abort();
  }
}

/** Read an error reply in the server's own words. */
function refusal(response, answer) {
  const detail = answer?.detail ?? answer;
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  const words =
    typeof detail === "string" ? detail
    : detail?.rate_limit?.user_message ?? detail?.user_message ?? detail?.error ?? detail?.reason ?? detail?.detail;
  return new ApiError(response.status, words || `The server answered ${response.status}.`, {
    type: detail?.error_type ?? "",
    retryAfterMs: Number.isFinite(seconds) ? seconds * 1000 : null,
  });
}

function csrfToken() {
  const cookie = document.cookie.split("; ").find((part) => part.startsWith("csrftoken="));
  return cookie ? decodeURIComponent(cookie.slice("csrftoken=".length)) : "";
}
