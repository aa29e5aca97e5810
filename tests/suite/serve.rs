//! `flanc serve`, asked as a browser would ask it, and as those would who should get no answer.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::compile::Scratch;

/// A definition as somebody might keep it: with comments, in an order of their own, in every way of quoting.
const DEFINITION: &str = r#"# RTE, for trying things out.
task = "rte"   # the name
title = "RTE"
tfds = "super_glue/rte:1.0.2"
cluster = "natural-language-inference"
licence = "research"
splits = { validation = "validation", train = "train" }   # no test
filter = 'label >= 0'

[fields]
premise = "premise | trim"   # as it stands
hypothesis = "hypothesis"

options = "['yes', 'no']"
answer  =  "options[label]"   # 0 is entailment

# ---- Templates
[[template]]
kind = "original"
name = "plain"      # the first
inputs = '''
{{ premise }}
Does it follow that {{ hypothesis }}?   
{{ options_ }}'''
targets = "{{ answer }}" # nothing else

[[template]]
name = "second/with a slash"
kind = "original"
inputs = """
{{ hypothesis }} \
    {{ premise }}"""
targets = '{{ answer }}'
# The end.
"#;

/// A row whose answer is yes: Lake Baikal, and that no lake is deeper.
const ENTAILED: u64 = 15;

struct Server {
    child: Child,
    port: u16,
    token: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

impl Server {
    fn start(arguments: &[&str]) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_flanc"))
            .args(["serve", "--rows", "5", "--threads", "2"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let address = url.trim().strip_prefix("http://127.0.0.1:").unwrap_or_else(|| panic!("{url:?}"));
        let (port, token) = address.split_once('/').unwrap();
        let (port, token) = (port.parse().unwrap(), token.trim_end_matches('/').to_owned());
        assert!(token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit()), "{token}");
        Server { child, port, token }
    }

    /// A server over the definition above, in a directory of its own.
    fn of_definition() -> (Server, Scratch) {
        let scratch = Scratch::new();
        let folder = scratch.join("natural-language-inference");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("rte.toml"), DEFINITION).unwrap();
        let server = Server::start(&["--templates", scratch.to_str().unwrap()]);
        (server, scratch)
    }

    /// Sends a request as it is written.
    fn send(&self, request: &[u8], patience: Duration) -> Reply {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(patience)).unwrap();
        // A server that has heard enough may hang up while this is still being said.
        let _ = stream.write_all(request);
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        Reply { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if headers.iter().all(|(name, _)| *name != "Host") {
            request.push_str(&format!("Host: 127.0.0.1:{}\r\n", self.port));
        }
        headers.iter().for_each(|(name, value)| request.push_str(&format!("{name}: {value}\r\n")));
        request.push_str("\r\n");
        request.push_str(body);
        self.send(request.as_bytes(), Duration::from_secs(60))
    }

    fn get(&self, name: &str) -> Reply {
        self.request("GET", &format!("/api/{name}"), &[("X-Flanc-Token", &self.token)], "")
    }

    fn post(&self, name: &str, body: &Value) -> Reply {
        let headers = [("X-Flanc-Token", self.token.as_str()), ("Content-Type", "application/json")];
        self.request("POST", &format!("/api/{name}"), &headers, &body.to_string())
    }

    /// Asks for what has to be answered.
    fn ask(&self, name: &str, body: &Value) -> Value {
        let reply = self.post(name, body);
        assert_eq!(reply.status, 200, "{name} {body}: {}", reply.body);
        reply.json()
    }

    fn version(&self, task: &str) -> String {
        self.ask("open", &json!({ "task": task }))["version"].as_str().unwrap().to_owned()
    }

    fn draft(&self, edits: &Value, template: &str) -> Value {
        let edited = json!({ "task": "rte", "version": self.version("rte"), "edits": edits });
        let row = json!({ "split": "train", "pick": { "row": ENTAILED } });
        self.ask("draft", &json!({ "edited": edited, "template": template, "row": row, "compare": true }))
    }
}

fn codes(reply: &Value) -> Vec<&str> {
    reply["diagnostics"].as_array().unwrap().iter().map(|d| d["code"].as_str().unwrap()).collect()
}

fn text_of(side: &Value) -> String {
    side["pieces"].as_array().unwrap().iter().map(|piece| piece[0].as_str().unwrap()).collect()
}

// ---- Access --------------------------------------------------------------------------------------------------------

#[test]
fn only_the_page_is_answered() {
    let server = Server::start(&["--task", "rte"]);
    let token = ("X-Flanc-Token", server.token.as_str());
    let json = ("Content-Type", "application/json");
    let here = format!("http://127.0.0.1:{}", server.port);
    let localhost = format!("localhost:{}", server.port);
    let page = format!("/{}/", server.token);
    let large = format!("{{\"task\":\"{}\"}}", "x".repeat(2 << 20));
    let open = "{\"task\":\"rte\"}";
    type Case<'c> = (&'c str, &'c str, Vec<(&'c str, &'c str)>, &'c str, u16);
    let cases: Vec<Case<'_>> = vec![
        ("GET", "/api/session", vec![token], "", 200),
        ("GET", "/api/session", vec![token, ("Origin", &here), ("Sec-Fetch-Site", "same-origin")], "", 200),
        ("GET", "/api/session", vec![token, ("Host", &localhost)], "", 200),
        ("GET", &page, vec![("Sec-Fetch-Site", "none")], "", 200),
        // Other hosts, as after DNS rebinding.
        ("GET", "/api/session", vec![token, ("Host", "example.org")], "", 421),
        ("GET", "/api/session", vec![token, ("Host", "127.0.0.1")], "", 421),
        ("GET", &page, vec![("Host", "example.org")], "", 421),
        // Other pages.
        ("GET", "/api/session", vec![token, ("Origin", "http://example.org")], "", 403),
        ("GET", "/api/session", vec![token, ("Origin", "null")], "", 403),
        ("GET", "/api/session", vec![token, ("Sec-Fetch-Site", "cross-site")], "", 403),
        ("POST", "/api/open", vec![token, json, ("Origin", "http://127.0.0.1:1")], open, 403),
        ("GET", &page, vec![("Sec-Fetch-Site", "cross-site")], "", 403),
        // No token, or a wrong one.
        ("GET", "/api/session", vec![], "", 401),
        ("GET", "/api/session", vec![("X-Flanc-Token", "00000000000000000000000000000000")], "", 401),
        ("GET", "/api/session", vec![("Cookie", &server.token)], "", 401),
        ("GET", "/", vec![token], "", 401),
        ("GET", "/00000000000000000000000000000000/", vec![token], "", 401),
        ("GET", "/favicon.ico", vec![], "", 401),
        ("POST", "/api/open", vec![json], open, 401),
        // Nothing that changes anything, or needs a body, is a GET; and no form can send it.
        ("GET", "/api/save", vec![token], "", 405),
        ("GET", "/api/flag", vec![token], "", 405),
        ("GET", "/api/cancel", vec![token], "", 405),
        ("POST", "/api/session", vec![token, json], "{}", 405),
        ("POST", "/api/open", vec![token, ("Content-Type", "text/plain")], open, 415),
        ("POST", "/api/open", vec![token], open, 415),
        ("OPTIONS", "/api/open", vec![token], "", 405),
        ("DELETE", "/api/flags", vec![token], "", 405),
        // What is not there, or cannot be read.
        ("GET", "/api/nothing", vec![token], "", 404),
        ("POST", "/api/open", vec![token, json], open, 200),
        ("POST", "/api/open", vec![token, json], "{\"task\":\"rte\"", 400),
        ("POST", "/api/open", vec![token, json], "{\"task\":\"rte\",\"more\":1}", 400),
        ("POST", "/api/open", vec![token, json], &large, 413),
    ];
    for (method, path, headers, body, expected) in cases {
        let reply = server.request(method, path, &headers, body);
        assert_eq!(reply.status, expected, "{method} {path} {headers:?}: {}", reply.body);
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
             img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cross-origin-opener-policy: same-origin",
            "cross-origin-resource-policy: same-origin",
            "cache-control: no-store",
        ] {
            assert!(reply.head.contains(header), "{method} {path}: no {header} in {}", reply.head);
        }
        assert!(!reply.head.contains("access-control-"), "{}", reply.head);
        assert!(!reply.head.contains("set-cookie"), "{}", reply.head);
    }
    // Broken requests end in an answer or in silence; the server goes on.
    for request in [&b"\r\n\r\n"[..], b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n"]
    {
        let reply = server.send(request, Duration::from_millis(300));
        assert!(matches!(reply.status, 0 | 400 | 421), "{}", reply.status);
    }
    assert_eq!(server.get("session").status, 200);
}

#[test]
fn names_lead_nowhere_else() {
    let (server, _scratch) = Server::of_definition();
    for name in
        ["../../Cargo.toml", "..%2f..%2fCargo.toml", "%2e%2e/edit.html", "edit.html", "mod.rs", "/etc/passwd", ""]
    {
        let reply = server.request("GET", &format!("/{}/assets/{name}", server.token), &[], "");
        assert_eq!(reply.status, 404, "{name}");
        assert_eq!(reply.body, "", "{name}");
    }
    for task in
        ["../rte", "natural-language-inference/rte", "/etc/passwd", "rte.toml", "rte\u{0}", "", "recipes/x", "anli_r1"]
    {
        let reply = server.post("open", &json!({ "task": task }));
        assert_eq!((reply.status, codes(&reply.json())), (404, vec!["unknown-task"]), "{task:?}");
    }
    for part in
        ["../x", "template/plain/../x", "template/none/inputs", "field/premise/x", "field/__proto__", "", "template"]
    {
        let edited = json!({ "task": "rte", "version": server.version("rte"), "edits": { part: "x" } });
        let reply = server.post("save", &json!({ "edited": edited }));
        assert_eq!((reply.status, codes(&reply.json())), (404, vec!["unknown-part"]), "{part:?}");
    }
    for (split, pick, code) in [
        ("../train", json!({ "row": 0 }), "unknown-split"),
        ("train", json!({ "row": u64::MAX }), "unknown-row"),
        ("test", json!({ "row": 1_000_000 }), "unknown-row"),
    ] {
        let edited = json!({ "task": "rte", "version": server.version("rte") });
        let row = json!({ "split": split, "pick": pick });
        let reply = server.post("draft", &json!({ "edited": edited, "template": "plain", "row": row }));
        assert_eq!((reply.status, codes(&reply.json())), (404, vec![code]), "{split}");
    }
}

// ---- Drafts --------------------------------------------------------------------------------------------------------

#[test]
fn a_draft_shows_what_becomes_of_a_row() {
    let (server, _scratch) = Server::of_definition();
    let opened = server.ask("open", &json!({ "task": "rte" }));
    let parts: Vec<&str> = opened["parts"].as_array().unwrap().iter().map(|p| p["part"].as_str().unwrap()).collect();
    assert_eq!(parts[..3], ["filter", "field/premise", "field/hypothesis"]);
    assert!(parts.contains(&"template/second/with a slash/targets"), "{parts:?}");

    let same = server.draft(&json!({}), "plain");
    assert_eq!(same["saved"], Value::Null);
    assert_eq!(same["prompt"]["answer"], "yes");
    assert_eq!(same["fields"]["options"], "[\"yes\",\"no\"]");
    assert!(same["features"].as_str().unwrap().contains("\"premise\":\"Lake Baikal"), "{}", same["features"]);
    assert_eq!(codes(&same), Vec::<&str>::new());

    let other = server.draft(&json!({ "template/plain/inputs": "So: {{ hypothesis | upper }}" }), "plain");
    let text = text_of(&other["prompt"]["inputs"]);
    assert!(text.starts_with("So: NO LAKE"), "{text}");
    assert_eq!(text_of(&other["saved"]["inputs"]), text_of(&same["prompt"]["inputs"]));
    assert_eq!(
        other["origins"][other["prompt"]["inputs"]["pieces"][1][1].as_u64().unwrap() as usize - 1],
        "hypothesis | upper"
    );
    let tokens = other["prompt"]["inputs"]["tokens"].as_array().unwrap();
    let units: u64 = tokens.iter().map(|token| token[1].as_u64().unwrap()).sum();
    assert_eq!(units as usize, text.encode_utf16().count());

    // A field is computed anew, and the templates see it.
    let field = server.draft(&json!({ "field/options": "['ja', 'nein']" }), "plain");
    assert_eq!(field["prompt"]["answer"], "ja");
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let (server, _scratch) = Server::of_definition();
    // Places are in UTF-16 units, whatever stands before them.
    let text = "😀ö {{ premis }}";
    let said = server.draft(&json!({ "template/plain/inputs": text }), "plain");
    let diagnostic = &said["diagnostics"][0];
    assert_eq!(said["prompt"], Value::Null);
    assert_eq!(diagnostic["code"], "unknown-variable");
    assert_eq!(diagnostic["part"], "template/plain/inputs");
    assert_eq!([&diagnostic["from"], &diagnostic["to"]], [7, 13]);
    assert!(diagnostic["notes"].to_string().contains("did you mean `premise`"), "{diagnostic}");

    for (edits, code, part) in [
        (json!({ "template/plain/inputs": "{{ premise " }), "syntax-error", "template/plain/inputs"),
        (json!({ "template/plain/inputs": "{% for x in %}" }), "syntax-error", "template/plain/inputs"),
        (json!({ "field/answer": "options[" }), "syntax-error", "field/answer"),
        (json!({ "field/options": "'yes'" }), "options-not-a-list", "field/options"),
        (json!({ "filter": "labe" }), "unknown-variable", "filter"),
        (json!({ "template/plain/targets": "" }), "empty-targets", "template/plain/targets"),
        (json!({ "template/plain/inputs": "x".repeat(20_000) }), "template-too-large", "template/plain/inputs"),
    ] {
        let said = server.draft(&edits, "plain");
        let found = said["diagnostics"].as_array().unwrap().iter().find(|d| d["code"] == code);
        let found = found.unwrap_or_else(|| panic!("no {code} for {edits}: {}", said["diagnostics"]));
        assert_eq!(found["part"], part, "{edits}");
    }
    let filtered = server.draft(&json!({ "filter": "label < 0" }), "plain");
    assert_eq!(filtered["prompt"]["failure"]["code"], "filtered");
}

#[test]
fn the_audit_looks_at_a_draft() {
    let (server, _scratch) = Server::of_definition();
    let edited = |text: &str| json!({ "task": "rte", "version": server.version("rte"), "edits": { "template/plain/inputs": text } });
    let stray = edited("{{ premise }}n\n{{ hypothesis }}\n{{ options_ }}");
    let has = |found: &Value, code: &str| {
        found["findings"].as_array().unwrap().iter().any(|f| f["code"] == code && f["part"] == "template/plain/inputs")
    };
    let found = server.ask("findings", &json!({ "edited": stray, "rows": 20 }));
    assert!(has(&found, "stray-characters"), "{found}");
    let found = server.ask("findings", &json!({ "edited": edited("{{ premise }}\n{{ options_ }}"), "rows": 20 }));
    assert!(!has(&found, "stray-characters"), "{found}");

    // The same over more rows, in the background.
    let run = server.ask("checks", &json!({ "edited": stray, "rows": 1000 }))["run"].as_u64().unwrap();
    let finished = wait_for(|| Some(server.get("checks").json()).filter(|state| !state["result"].is_null()));
    assert_eq!(finished["run"], run);
    assert_eq!(finished["done"], finished["of"]);
    assert!(has(&finished["result"], "stray-characters"), "{finished}");
    server.ask("cancel", &json!({}));
    assert_eq!(server.get("checks").json()["result"], Value::Null);
    // A run that is given up at once leaves nothing, and the next one is not held up by it.
    server.ask("checks", &json!({ "edited": stray, "rows": 1000 }));
    let run = server.ask("checks", &json!({ "edited": edited("{{ premise"), "rows": 1000 }))["run"].as_u64().unwrap();
    let finished = wait_for(|| Some(server.get("checks").json()).filter(|state| !state["result"].is_null()));
    assert_eq!((finished["run"].as_u64().unwrap(), codes(&finished["result"])), (run, vec!["syntax-error"]));
}

fn wait_for<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it takes too long");
        std::thread::sleep(Duration::from_millis(20));
    }
}

// ---- Rows ----------------------------------------------------------------------------------------------------------

#[test]
fn rows_are_found_and_drawn() {
    let (server, _scratch) = Server::of_definition();
    let found = server.ask("search", &json!({ "task": "rte", "split": "train", "text": "lake BAIKAL" }));
    assert!(found["hits"].as_array().unwrap().iter().any(|hit| hit["row"] == ENTAILED), "{found}");
    assert_eq!(found["hits"][0]["text"][1], "Lake Baikal");
    assert_eq!(server.ask("search", &json!({ "task": "rte", "split": "train", "text": ".*" }))["hits"], json!([]));
    for text in ["", " ", &"x".repeat(300)] {
        assert_eq!(server.post("search", &json!({ "task": "rte", "split": "train", "text": text })).status, 400);
    }
    let version = server.version("rte");
    let draw = |seed: u64, draw: u64| {
        let row = json!({ "split": "train", "pick": { "random": { "seed": seed, "draw": draw } } });
        let edited = json!({ "task": "rte", "version": version });
        server.ask("draft", &json!({ "edited": edited, "template": "plain", "row": row }))["row"].as_u64().unwrap()
    };
    let drawn: Vec<u64> = (0..8).map(|n| draw(17, n)).collect();
    assert_eq!(drawn, (0..8).map(|n| draw(17, n)).collect::<Vec<_>>());
    assert_ne!(drawn, (0..8).map(|n| draw(18, n)).collect::<Vec<_>>());
}

#[test]
fn prompts_are_flagged() {
    let (server, _scratch) = Server::of_definition();
    let edited = json!({ "task": "rte", "version": server.version("rte"), "edits": { "template/plain/targets": "{{ answer }}!" } });
    let row = json!({ "split": "train", "pick": { "row": 1 } });
    let flag = |note: &str| json!({ "edited": edited, "template": "plain", "row": row, "note": note });
    let first = server.ask("flag", &flag("odd </script>"));
    assert_eq!((&first["task"], &first["row"], &first["targets"]), (&json!("rte"), &json!(1), &json!("no!")));
    server.ask("flag", &flag("another"));
    server.ask("unflag", &json!({ "id": first["id"] }));
    let flags = server.get("flags").json();
    assert_eq!(flags["flags"].as_array().unwrap().len(), 1);
    assert_eq!(flags["flags"][0]["note"], "another");
    assert_eq!(server.post("flag", &flag(&"x".repeat(5000))).status, 400);
}

// ---- Saving --------------------------------------------------------------------------------------------------------

fn file(scratch: &Path) -> String {
    fs::read_to_string(scratch.join("natural-language-inference/rte.toml")).unwrap()
}

#[test]
fn saving_changes_the_edited_strings_and_nothing_else() {
    let (server, scratch) = Server::of_definition();
    let version = server.version("rte");
    let edits = json!({
        "filter": "label == 0",
        "field/answer": "options[1 - label]",
        "template/plain/inputs": "One:\n{{ premise }}\n'''",
        "template/second/with a slash/inputs": "{{ hypothesis }}\n\\ \"{{ premise }}\"",
        // As it was: no edit.
        "template/plain/targets": "{{ answer }}",
    });
    let saved = server.ask("save", &json!({ "edited": { "task": "rte", "version": version, "edits": edits } }));
    let expected = DEFINITION
        .replace("'label >= 0'", "'label == 0'")
        .replace("\"options[label]\"", "\"options[1 - label]\"")
        .replace(
            "'''\n{{ premise }}\nDoes it follow that {{ hypothesis }}?   \n{{ options_ }}'''",
            "\"One:\\n{{ premise }}\\n'''\"",
        )
        .replace(
            "\"\"\"\n{{ hypothesis }} \\\n    {{ premise }}\"\"\"",
            "\"\"\"\n{{ hypothesis }}\n\\\\ \\\"{{ premise }}\\\"\"\"\"",
        );
    assert_eq!(file(&scratch), expected);
    assert_eq!(saved["version"], server.version("rte").as_str());
    assert!(fs::read_dir(scratch.join("natural-language-inference")).unwrap().count() == 1, "something is left behind");
    // What is shown from now on is what was saved.
    assert_eq!(server.draft(&json!({}), "plain")["prompt"]["answer"], "no");
    assert_eq!(server.draft(&json!({ "filter": "label == 1" }), "plain")["prompt"]["failure"]["code"], "filtered");
}

#[test]
fn lines_end_as_they_did() {
    let scratch = Scratch::new();
    let definition = DEFINITION.replace('\n', "\r\n");
    fs::write(scratch.join("rte.toml"), &definition).unwrap();
    let server = Server::start(&["--templates", scratch.to_str().unwrap()]);
    let opened = server.ask("open", &json!({ "task": "rte" }));
    let parts = opened["parts"].as_array().unwrap();
    let inputs = parts.iter().find(|part| part["part"] == "template/plain/inputs").unwrap()["text"].as_str().unwrap();
    assert!(inputs.contains('\n') && !inputs.contains('\r'), "{inputs:?}");
    // A browser's text is no edit for the ends of its lines.
    let save = |text: &str| {
        let edits = json!({ "template/plain/inputs": text });
        server.ask("save", &json!({ "edited": { "task": "rte", "version": server.version("rte"), "edits": edits } }));
        fs::read_to_string(scratch.join("rte.toml")).unwrap()
    };
    assert_eq!(save(inputs), definition);
    assert_eq!(save(&inputs.replace("follow", "come")), definition.replace("follow", "come"));
    let said = server.draft(&json!({ "template/plain/inputs": "a\nb\n{{ premis }}" }), "plain");
    assert_eq!([&said["diagnostics"][0]["from"], &said["diagnostics"][0]["to"]], [7, 13]);
}

#[test]
fn a_draft_that_is_not_in_order_is_not_saved() {
    let (server, scratch) = Server::of_definition();
    let save = |version: &str, edits: Value| {
        server.post("save", &json!({ "edited": { "task": "rte", "version": version, "edits": edits } }))
    };
    let version = server.version("rte");
    let reply = save(&version, json!({ "template/plain/inputs": "{{ premis }}" }));
    assert_eq!((reply.status, codes(&reply.json())), (400, vec!["unknown-variable"]));
    assert_eq!(file(&scratch), DEFINITION);
    // Somebody else was faster.
    let theirs = DEFINITION.replace("# The end.", "# Theirs.");
    fs::write(scratch.join("natural-language-inference/rte.toml"), &theirs).unwrap();
    let reply = save(&version, json!({ "template/plain/inputs": "{{ premise }}" }));
    assert_eq!((reply.status, codes(&reply.json())), (409, vec!["changed-on-disk"]));
    assert_eq!(file(&scratch), theirs);
    // With a task beside it that is like it, both have to be in order.
    let like = "task = \"twin\"\nlike = \"rte\"\n";
    fs::write(scratch.join("twin.toml"), like).unwrap();
    let server = Server::start(&["--templates", scratch.to_str().unwrap()]);
    assert_eq!(
        server.ask("open", &json!({ "task": "twin" }))["shared"]["natural-language-inference/rte.toml"],
        json!(["rte"])
    );
    let edit = |text: &str| {
        let edits = json!({ "template/plain/inputs": text });
        server.post("save", &json!({ "edited": { "task": "twin", "version": server.version("twin"), "edits": edits } }))
    };
    assert_eq!(edit("Both: {{ hypothesis }}").status, 200);
    assert!(file(&scratch).contains("Both: {{ hypothesis }}"));
    assert_eq!(fs::read_to_string(scratch.join("twin.toml")).unwrap(), like);
}

#[test]
fn bundled_definitions_and_links_are_not_written() {
    let server = Server::start(&["--task", "rte"]);
    assert_eq!(server.get("session").json()["writable"], false);
    let edits = json!({ "field/premise": "premise | lower" });
    let save = |server: &Server| {
        server.post("save", &json!({ "edited": { "task": "rte", "version": server.version("rte"), "edits": edits } }))
    };
    let reply = save(&server);
    assert_eq!((reply.status, codes(&reply.json())), (409, vec!["bundled-definitions"]));
    assert!(reply.body.contains("--templates"), "{}", reply.body);
    // What would be saved can be taken elsewhere.
    let edited = json!({ "task": "rte", "version": server.version("rte"), "edits": edits });
    let text = server.ask("text", &json!({ "edited": edited }));
    let bundled = fs::read_to_string("template-defs/natural-language-inference/rte.toml").unwrap();
    let changed = bundled.replace("premise = \"premise\"", "premise = \"premise | lower\"");
    assert_eq!(text["files"], json!([["natural-language-inference/rte.toml", changed]]));
    drop(server);

    #[cfg(unix)]
    {
        let (elsewhere, scratch) = (Scratch::new(), Scratch::new());
        fs::write(elsewhere.join("rte.toml"), DEFINITION).unwrap();
        std::os::unix::fs::symlink(elsewhere.join("rte.toml"), scratch.join("rte.toml")).unwrap();
        let server = Server::start(&["--templates", scratch.to_str().unwrap()]);
        let reply = save(&server);
        assert_eq!((reply.status, codes(&reply.json())), (403, vec!["outside"]));
        assert_eq!(fs::read_to_string(elsewhere.join("rte.toml")).unwrap(), DEFINITION);
    }
}

// ---- Harm ----------------------------------------------------------------------------------------------------------

#[test]
fn hostile_templates_end_while_others_are_answered() {
    let (server, _scratch) = Server::of_definition();
    let version = server.version("rte");
    let nested = |open: &str, close: &str| format!("{{{{ {}1{} }}}}", open.repeat(3000), close.repeat(3000));
    let hostile = [
        "{% for a in range(100000) %}{% for b in range(100000) %}{{ premise }}{% endfor %}{% endfor %}".to_owned(),
        "{{ premise * 90000000 }}".to_owned(),
        "{{ premise.ljust(1000000000) }}".to_owned(),
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}".to_owned(),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
        "{% for i in range(50000) %}{{ premise | regex_replace('(a|b|ab)*c' ~ i ~ '\\\\w{90}', '') }}{% endfor %}".to_owned(),
        nested("(", ")"),
        nested("[", "]"),
        "{{ ".repeat(2500),
        "{% if 1 %}".repeat(800),
        "\u{0}\u{1b}]0;\u{7}\u{2028}</script><script>alert(1)</script>{{ premise }}".to_owned(),
    ];
    std::thread::scope(|scope| {
        let threads: Vec<_> = hostile
            .iter()
            .map(|text| {
                let edits = json!({ "template/plain/inputs": text });
                let edited = json!({ "task": "rte", "version": version, "edits": edits });
                let row = json!({ "split": "train", "pick": { "row": 0 } });
                let asked = json!({ "edited": edited, "template": "plain", "row": row });
                let server = &server;
                scope.spawn(move || (text, Instant::now(), server.post("draft", &asked)))
            })
            .collect();
        // The page's own files need no worker.
        let began = Instant::now();
        for _ in 0..20 {
            let reply = server.request("GET", &format!("/{}/assets/dom.js", server.token), &[], "");
            assert_eq!(reply.status, 200);
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        for thread in threads {
            let (text, began, reply) = thread.join().unwrap();
            let start: String = text.chars().take(60).collect();
            assert_eq!(reply.status, 200, "{start}: {}", reply.body);
            assert!(began.elapsed() < Duration::from_secs(30), "{start}: {:?}", began.elapsed());
            let shown = reply.json();
            let failed = shown["prompt"].is_null() || !shown["prompt"]["failure"].is_null();
            assert!(failed || text.contains("<script>"), "{start}: {}", reply.body);
        }
    });
    assert_eq!(
        text_of(&server.draft(&json!({ "template/plain/inputs": "{{ answer }}?" }), "plain")["prompt"]["inputs"]),
        "yes?"
    );
}

#[test]
fn drafts_leave_no_memory_behind() {
    if !cfg!(target_os = "linux") {
        return eprintln!("skipped: memory is read from /proc");
    }
    let (server, _scratch) = Server::of_definition();
    let version = server.version("rte");
    // Every draft is new, and nearly as large as templates may be: kept, they would take 32 MB and what is compiled of them.
    let draft = |n: usize| {
        let text = format!("{{{{ premise }}}} {n} {}", "{{ hypothesis }} word ".repeat(360));
        let edits = json!({ "template/plain/inputs": text, "template/second/with a slash/inputs": format!("{text}!") });
        let row = json!({ "split": "train", "pick": { "row": 0 } });
        let edited = json!({ "task": "rte", "version": version, "edits": edits });
        server.ask("draft", &json!({ "edited": edited, "template": "plain", "row": row }));
    };
    let memory = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (0..200).for_each(draft);
    let before = memory();
    (200..2200).for_each(draft);
    let grown = memory().saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more after 2,000 drafts");
}
