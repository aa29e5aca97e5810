// Places on the page: `#task/template/split:row`, and `/other` for a template that is compared with.

export function parseLink(hash) {
  const parts = hash.replace(/^#/, "").split("/").map(decoded);
  const [task, template, row, other] = parts;
  return { task: task || null, template: template || null, row: row || null, other: other || null };
}

export function formatLink({ task, template, row, other }) {
  const parts = [task, template, row, other].map((part) => encodeURIComponent(part ?? "").replaceAll("%3A", ":"));
  return `#${parts.join("/").replace(/\/+$/, "")}`;
}

// What is no escape is taken as it stands.
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
