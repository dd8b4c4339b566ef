// What the page's address and its template say about how it is to be used.

/**
 * `{scope: {tenant, project}, bundleId, config, adminUrl}`. A developer names another bundle, or a
 * bundle's config as JSON, in the query: `?bundle_id=demo&config={"pace_ms":50}`.
 */
export function readOptions(search, dataset) {
  const query = new URLSearchParams(search);
  return {
    scope: {
      tenant: query.get("tenant") || dataset.tenant || "default",
      project: query.get("project") || dataset.project || "default",
    },
    bundleId: query.get("bundle_id") || "",
    config: readObject(query.get("config")),
    adminUrl: dataset.adminUrl || "",
  };
}

/** A value kept for this tab, made by `make` the first time. */
export function kept(name, make) {
  const value = sessionStorage.getItem(name) ?? make();
  sessionStorage.setItem(name, value);
  return value;
}

function readObject(text) {
  if (!text) return null;
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}
