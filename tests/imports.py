#!/usr/bin/env python3
"""Compares imported templates with what their own implementations make of the same rows.

    python3 tests/imports.py FLANC promptsource PROMPTSOURCE [--rows N] [--seed S] [--show N]
    python3 tests/imports.py FLANC flan TEMPLATES.py...  [--rows N] [--seed S] [--show N]

FLANC is the program; PROMPTSOURCE an unpacked promptsource (`pip download promptsource --no-deps
--ignore-requires-python`), whose own `apply` is run under real Jinja2; TEMPLATES.py a file of FLAN's patterns, which
this script executes. Needs jinja2 and pyyaml, and skips without them.

Rows are made up. Of every variable that a subset's templates use, the syntax tree tells what it has to be (a list, a
mapping with these keys, one of these labels); values are drawn from words, numbers, what the templates compare with,
and what is awkward: separators, empty text, quotes, line ends, characters of all sorts, missing and null values. Rows on
which both fail count as the same. Templates that draw at random are left out, except that they have to render.
"""
import argparse, json, random, re, runpy, struct, subprocess, sys, tempfile, types
from collections import Counter
from pathlib import Path

try:
    import jinja2, yaml
    from jinja2 import nodes
except ImportError as error:
    sys.exit(print(f"skipped: {error}"))

WORDS = "the river a Stone window 7 quiet Ann's letter under snow, twelve; bridge (old) nobody knew why? It rained. end".split()
AWKWARD = ["", " ", "a ||| b", "|||", "it's \"quoted\"", "one\ntwo\r\nthree", "ÉCOLE straße İ 東京 👍🏽", "\u00a0x\u200b\u2028",
           "<b>&amp;</b>", "{{ x }} {% y %}", "42", " -3.5e2 ", "1_000", "None", "back\\slash\t", "ﬁne ǆ ΟΔΟΣ", "x" * 3000]
TEXT_METHODS = {"split", "strip", "lower", "upper", "replace", "lstrip", "rstrip", "title", "capitalize", "startswith",
                "endswith", "find", "index", "join", "splitlines", "isdigit", "count", "format", "rsplit", "partition"}
LIST_METHODS = {"append", "extend", "pop", "insert"}
DICT_METHODS = {"items", "keys", "values", "get", "update"}
LIST_FILTERS = {"join", "first", "last", "choice", "random", "most_frequent", "sort", "unique", "map", "select", "reject",
                "selectattr", "rejectattr", "sum", "max", "min", "batch", "list"}
TEXT_FILTERS = {"lower", "upper", "trim", "replace", "capitalize", "title", "wordcount", "truncate", "indent"}


class Shape:
    """What is known of a value from the ways in which it is used."""

    def __init__(self):
        self.keys, self.item, self.constants, self.hints, self.separators = {}, None, [], Counter(), []

    def key(self, name):
        return self.keys.setdefault(name, Shape())

    def items(self):
        self.item = self.item or Shape()
        return self.item


class Uses:
    """Walks the syntax trees of a subset's templates."""

    def __init__(self):
        self.row = Shape()

    def walk(self, node, names):
        if isinstance(node, nodes.For):
            items, inner = self.shape(node.iter, names), dict(names)
            self.bind(node.target, items.items() if items else None, inner, node.iter, names)
            for child in [*([node.test] if node.test else []), *node.body]:
                self.walk(child, inner)
            for child in node.else_:
                self.walk(child, names)
            self.walk(node.iter, names)
            return
        if isinstance(node, nodes.Assign):
            self.walk(node.node, names)
            self.bind(node.target, self.shape(node.node, names), names, node.node, names)
            return
        if isinstance(node, nodes.Compare):
            left = self.shape(node.expr, names)
            for operand in node.ops:
                right = self.shape(operand.expr, names)
                for one, other in ((left, operand.expr), (right, node.expr)):
                    if one is None:
                        continue
                    if isinstance(other, nodes.Const):
                        if operand.op in ("in", "notin") and other is node.expr:
                            one.items().constants.append(other.value)
                        else:
                            one.constants.append(other.value)
                    elif isinstance(other, (nodes.List, nodes.Tuple)):
                        one.constants += [c.value for c in other.items if isinstance(c, nodes.Const)]
                if operand.op in ("gt", "lt", "gteq", "lteq") and left:
                    left.hints["number"] += 1
        if isinstance(node, nodes.Expr):
            self.shape(node, names)
        for child in node.iter_child_nodes():
            self.walk(child, names)

    def bind(self, target, shape, names, iterated, outer):
        if isinstance(target, nodes.Name):
            names[target.name] = shape
        elif isinstance(target, nodes.Tuple):
            pairs = iterated if isinstance(iterated, nodes.Call) else None
            zipped = pairs is not None and isinstance(pairs.node, nodes.Name) and pairs.node.name == "zip"
            for i, one in enumerate(target.items):
                inner = None
                if zipped and i < len(pairs.args):
                    source = self.shape(pairs.args[i], outer)
                    inner = source.items() if source else None
                self.bind(one, inner, names, None, outer)

    def shape(self, node, names):
        """The shape of an expression that is a part of the row, or None."""
        if isinstance(node, nodes.Name):
            if node.name in names:
                return names[node.name]
            return None if node.name in ("range", "zip", "namespace", "dict", "loop") else self.row.key(node.name)
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
            base = self.shape(node.node.node, names)
            if base is not None and node.node.attr in ("split", "rsplit", "index", "find", "partition"):
                base.separators += [c.value for c in node.args if isinstance(c, nodes.Const) and isinstance(c.value, str)]
        if isinstance(node, nodes.Getattr):
            base = self.shape(node.node, names)
            if base is None:
                return None
            for methods, hint in ((TEXT_METHODS, "text"), (LIST_METHODS, "list"), (DICT_METHODS, "dict")):
                if node.attr in methods:
                    base.hints[hint] += 1
                    return None
            return base.key(node.attr)
        if isinstance(node, nodes.Getitem):
            base = self.shape(node.node, names)
            if base is None:
                index = self.shape(node.arg, names)
                if index is not None:
                    index.hints["index"] += 1
                return None
            if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
                return base.key(node.arg.value)
            if isinstance(node.arg, nodes.Slice):
                base.hints["text"] += 1
                return base
            index = self.shape(node.arg, names)
            if index is not None:
                index.hints["index"] += 1
            return base.items()
        if isinstance(node, nodes.Filter) and node.node is not None:
            base = self.shape(node.node, names)
            if base is not None:
                if node.name in LIST_FILTERS:
                    return base.items() if node.name in ("first", "last", "choice", "random", "max", "min") else base
                if node.name in TEXT_FILTERS:
                    base.hints["text"] += 1
                if node.name in ("int", "float", "round", "abs"):
                    base.hints["digits"] += 1
            return None
        if isinstance(node, (nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.Mod, nodes.FloorDiv)):
            for side in (node.left, node.right):
                shape = self.shape(side, names)
                if shape is not None:
                    shape.hints["number"] += 1
        return None


def value(shape, draw, wild, depth=0):
    """A value of the shape; `wild` is how often it is something else."""
    if draw.random() < wild:
        return draw.choice([None, "", 0, [], {}, -1, 2.5, "word", ["a"], {"k": "v"}, True, 1e20, 3e-7])
    if shape.item is not None and shape.keys and depth < 6:
        pass  # used as both: a mapping of lists is what TFDS makes of a list of mappings
    if shape.keys and depth < 6:
        made = {name: value(inner, draw, wild, depth + 1) for name, inner in shape.keys.items()
               if name != "answer_choices"}
        if shape.item is not None and draw.random() < 0.5:
            return [made | value_map(shape.item, draw, wild, depth) for _ in range(draw.randint(0, 3))]
        return made
    if shape.separators and draw.random() < 0.9:
        made = text(draw)
        for separator in dict.fromkeys(shape.separators):
            made += separator + text(draw)
        return made
    if shape.item is not None and depth < 6:
        if shape.hints["text"] and draw.random() < 0.5:
            return text(draw)
        return [value(shape.item, draw, wild, depth + 1) for _ in range(draw.choice([0, 1, 2, 3, 5]))]
    if shape.hints["list"]:
        return [text(draw) for _ in range(draw.randint(0, 3))]
    if shape.hints["dict"]:
        return {draw.choice(WORDS): text(draw) for _ in range(draw.randint(0, 3))}
    if shape.constants and draw.random() < 0.75:
        return draw.choice(shape.constants)
    if shape.hints["digits"] and draw.random() < 0.6:
        return draw.choice(["3", "0", "12.7", "x", 4, 2.5, 0.5, -1, "", " 8 "])
    if shape.hints["index"] or shape.hints["number"]:
        return draw.choice([0, 1, 2, 3, -1, 0, 1] + ([0.25, 12.0, 1e16] if not shape.hints["index"] else []))
    return text(draw)


def value_map(shape, draw, wild, depth):
    made = value(shape, draw, 0, depth + 1)
    return made if isinstance(made, dict) else {}


def text(draw):
    if draw.random() < 0.25:
        return draw.choice(AWKWARD)
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 12)))


def rows(shape, draw, count):
    """Rows of the shape, and then half as many of which a part is missing, null or of another type."""
    for i in range(count + count // 2):
        row = {name: value(inner, draw, 0.15 if i >= count else 0) for name, inner in shape.keys.items()
               if name != "answer_choices"}
        if i >= count and i % 2 and row:
            del row[draw.choice(sorted(row))]
        yield row


def real_rows(flanc, data_dir, dataset, subset, count):
    """Rows of the corpus of the same name, if it is on disk; floats in them are told by their bits."""
    def plain(value):
        if isinstance(value, str) and re.fullmatch(r"f(16|32|64):[0-9a-f]+", value):
            width, digits = value[1:].split(":")
            return struct.unpack({"16": ">e", "32": ">f", "64": ">d"}[width], bytes.fromhex(digits))[0]
        if isinstance(value, list):
            return [plain(item) for item in value]
        return {name: plain(item) for name, item in value.items()} if isinstance(value, dict) else value

    name = dataset + (f"/{subset}" if subset else "")
    for split in ("train", "validation", "test"):
        run = subprocess.run([flanc, "rows", name, "--split", split, "--rows", f"0..{count}", "--data-dir", data_dir],
                             text=True, capture_output=True)
        yield from (plain(json.loads(line)) for line in run.stdout.split("\n") if line)


def render(flanc, definition, lines):
    run = subprocess.run([flanc, "render", str(definition), "--row-json", "-"], input="".join(lines), text=True,
                         capture_output=True)
    if run.returncode:
        sys.exit(f"{definition}: {run.stderr}")
    return [json.loads(line) for line in run.stdout.split("\n") if line]


class Account:
    def __init__(self, what, show):
        self.what, self.show = what, show
        self.cases, self.kinds, self.templates, self.shown = 0, Counter(), {}, Counter()

    def add(self, name, row, ours, theirs, detail=""):
        self.cases += 1
        self.templates.setdefault(name, True)
        if ours == theirs:
            self.kinds["both fail" if ours is None else "identical"] += 1
            return
        self.templates[name] = False
        kind = "only flanc fails" if ours is None else "only the peer fails" if theirs is None else "text differs"
        self.kinds[kind] += 1
        if self.shown[kind] < self.show:
            self.shown[kind] += 1
            print(f"--- {kind}: {name}\nrow    {json.dumps(row)[:600]}\nours   {ours}\ntheirs {theirs}\n{detail}\n")

    def report(self):
        same = sum(self.templates.values())
        cases = self.kinds["identical"] + self.kinds["both fail"]
        print(f"{self.what}: templates identical on every row: {same} of {len(self.templates)} ({same / len(self.templates):.2%})")
        print(f"{self.what}: cases identical: {cases} of {self.cases} ({cases / self.cases:.3%}); {dict(self.kinds)}")
        return same == len(self.templates)


def promptsource(arguments, scratch):
    root = Path(arguments.peer[0])
    package = next((p for p in (root / "promptsource", root) if (p / "templates.py").exists()), None)
    if package is None:
        sys.exit(print(f"skipped: no promptsource in {root}"))
    # Its module imports what only the app needs.
    sys.modules["pandas"] = types.ModuleType("pandas")
    sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")
    sys.modules["pkg_resources"].resource_filename = lambda *_: str(package / "templates")
    peer = runpy.run_path(str(package / "templates.py"), run_name="promptsource.templates")
    environment = peer["env"]
    files = sorted((package / "templates").rglob("templates.yaml"))
    imported = scratch / "imported"
    run = subprocess.run([arguments.flanc, "import", "promptsource", str(package / "templates"), "--out", str(imported)],
                         text=True, capture_output=True)
    print(run.stderr.strip())
    definitions = {}
    import tomllib
    for path in map(Path, run.stdout.splitlines()):
        read = tomllib.loads(path.read_text())
        for template in read["template"]:
            definitions[template["metadata"]["id"]] = (path, template["name"])
    regular, odd = Account("rows as they should be", arguments.show), Account("rows as they should not be", arguments.show)
    real = Account("real rows", arguments.show)
    left_out, missing = 0, []
    for file in files:
        loaded = yaml.load(file.read_text(), Loader=yaml.FullLoader)
        templates = {id: t for id, t in loaded["templates"].items() if id in definitions}
        missing += [id for id in loaded["templates"] if id not in definitions]
        uses = Uses()
        for template in templates.values():
            for source in (template.jinja, template.answer_choices):
                if source is not None:
                    uses.walk(environment.parse(source), {"answer_choices": None})
        draw = random.Random(f"{arguments.seed} {file.relative_to(package)}")
        # What is compared is what JSON can carry.
        given = [json.loads(json.dumps(row)) for row in rows(uses.row, draw, arguments.rows)]
        if not templates:
            continue
        if arguments.data_dir:
            given += real_rows(arguments.flanc, arguments.data_dir, loaded["dataset"], loaded.get("subset"), 40)
        path = definitions[next(iter(templates))][0]
        lines = [json.dumps(row) + "\n" for row in given]
        printed = {(line["template"], line["row"]): line for line in render(arguments.flanc, path, lines)}
        for id, template in templates.items():
            source = template.jinja + (template.answer_choices or "")
            if re.search(r"\|\s*(choice|random)\b", source):
                left_out += 1
                continue
            for i, row in enumerate(given):
                # promptsource leaves this to its callers (its app: removeHyphen).
                row = {name.replace("-", "_"): value for name, value in row.items()}
                try:
                    theirs = (template.apply(dict(row), truncate=False), template.get_answer_choices_list(row))
                except Exception as error:
                    theirs, why = None, f"{type(error).__name__}: {error}"
                line = printed[definitions[id][1], i]
                parts = line["parts"] if "parts" in line else [line["inputs"], line["targets"]] if "inputs" in line else None
                ours = None if parts is None else (parts, line["options"])
                made = arguments.rows + arguments.rows // 2
                account = regular if i < arguments.rows else odd if i < made else real
                account.add(f"{path.stem} / {template.name} ({id})", row, ours, theirs,
                            line.get("detail", "") if theirs is not None else why)
    print(f"{len(files)} files; {left_out} templates that draw at random left out; {len(missing)} not imported")
    for account in (odd, real):
        if account.cases:
            account.report()
    return regular.report() and not missing


def flan(arguments, scratch):
    account, field = Account("patterns", arguments.show), re.compile(r"({\w*})")
    for number, path in enumerate(arguments.peer):
        # Everything that is a dict of lists of pairs. Imports of the file's own package are taken out.
        text_ = re.sub(r"^(from|import) .*$|^PATTERNS_NO_OPTIONS[^\0]*?(?=^[A-Z#@c])", "", Path(path).read_text(), flags=re.M)
        found = {"dataclasses": __import__("dataclasses"), "copy": __import__("copy")}
        try:
            exec(compile(text_.split("PATTERNS_NO_OPTIONS =")[0].split("@dataclasses")[0], path, "exec"), found)
        except Exception as error:
            sys.exit(f"{path}: {error}")
        groups = {f"peer_{name}": pairs for name, pairs in found["PATTERNS"].items()}
        # By the reader of Python, and by that of JSON under names that no task has.
        run = subprocess.run([arguments.flanc, "import", "flan", path, "--out", str(scratch / f"py{number}")], text=True,
                             capture_output=True)
        print(run.stderr.strip().splitlines()[0])
        (scratch / "groups.json").write_text(json.dumps(groups))
        run = subprocess.run([arguments.flanc, "import", "flan", str(scratch / "groups.json"), "--out",
                              str(scratch / f"json{number}")], text=True, capture_output=True)
        print(run.stderr.strip())
        draw = random.Random(arguments.seed)
        import tomllib
        by_python = {}
        for file in (scratch / f"py{number}").rglob("*.toml"):
            read = tomllib.loads(file.read_text())
            by_python.setdefault(read.get("like", read.get("title")), [(t["inputs"], t["targets"]) for t in read["template"]])
        by_title = {}
        for file in (scratch / f"json{number}").rglob("*.toml"):
            read = tomllib.loads(file.read_text())
            by_title[read["title"]] = (file, read)
        for name, pairs in groups.items():
            path_, read = by_title[name]
            same = [(t["inputs"], t["targets"]) for t in read["template"]]
            if name[5:] in by_python and by_python[name[5:]] != same:
                account.add(f"{name}: read as Python", {}, by_python[name[5:]], same)
            fields = sorted({f[1:-1] for pair in pairs for side in pair for f in field.findall(side)})
            given = []
            for _ in range(arguments.rows):
                row = {f: draw.choice([text(draw), text(draw), draw.randint(-3, 99)]) for f in fields}
                row["options"] = [text(draw) for _ in range(3)]
                row["answer"] = draw.choice(row["options"])
                row["options_"] = "OPTIONS:\n- " + "\n- ".join(row["options"])
                given.append(row)
            lines = [json.dumps(row) + "\n" for row in given]
            for line in render(arguments.flanc, path_, lines):
                row = given[line["row"]]
                pair = pairs[int(line["template"].split("-")[1]) - 1]
                theirs = tuple("".join(str(row[p[1:-1]]) if field.fullmatch(p) else p for p in field.split(side)) for side in pair)
                ours = (line["inputs"], line["targets"]) if "inputs" in line else None
                if line.get("skipped", "").startswith("empty") and not all(side.strip() for side in theirs):
                    ours = theirs
                account.add(f"{name} / {line['template']}", row, ours, theirs, line.get("detail", ""))
    return account.report()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("flanc")
parser.add_argument("what", choices=["promptsource", "flan"])
parser.add_argument("peer", nargs="+")
parser.add_argument("--rows", type=int, default=12)
parser.add_argument("--seed", default="1")
parser.add_argument("--data-dir", help="corpora of which rows are taken as well, as TFDS exports them")
parser.add_argument("--show", type=int, default=3)
arguments = parser.parse_args()
with tempfile.TemporaryDirectory() as scratch:
    done = {"promptsource": promptsource, "flan": flan}[arguments.what](arguments, Path(scratch))
sys.exit(0 if done else 1)
