// Asking the server, and handing on what it answers. The token is in the address of the page and goes with every request as a header.

const TOKEN = location.pathname.split("/")[1];

// What the server refuses: its diagnostics, each with a severity, a message and notes.
export class Refusal extends Error {
  constructor(status, diagnostics) {
    super(diagnostics.map((diagnostic) => diagnostic.message).join("; "));
    this.status = status;
    this.diagnostics = diagnostics;
  }

  get code() {
    return this.diagnostics[0]?.code ?? "";
  }
}

export function get(name) {
  return asked(name, { method: "GET" });
}

export function post(name, body) {
  return asked(name, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
}

// Gives the reader a file.
export function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  URL.revokeObjectURL(address);
}

async function asked(name, request) {
  let answer;
  try {
    answer = await fetch(`/api/${name}`, { ...request, headers: { ...request.headers, "X-Flanc-Token": TOKEN } });
  } catch {
    throw new Refusal(0, [{ severity: "error", code: "gone", message: "the server does not answer", notes: [["help", "is `flanc serve` still running?"]] }]);
  }
  const value = await answer.json().catch(() => ({ diagnostics: [{ severity: "error", code: "answer", message: `the server answered with status ${answer.status}`, notes: [] }] }));
  if (!answer.ok) throw new Refusal(answer.status, value.diagnostics);
  return value;
}
