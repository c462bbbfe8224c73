//! The ground plan of the house, as a test: a file imports only from lower floors, and there are no circles. (Go does
//! the same for its standard library: go/build/deps_test.go.)
//!
//! It reads the sources, comments and strings left out, and finds every path that begins with `crate`, `self`, `super` or
//! a child module: in a `use`, or anywhere in the code. A name that a module only passes on (`pub use`) counts as the
//! file that it comes from. What it cannot see are methods: a call of one that another file adds to a type. Files of tests
//! stand on the roof: they may import anything, and nothing else may import from them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// From the ground up. A room is a file, or a directory whose files may all import each other. Rooms of one floor do not
/// know each other.
const RUNTIME: &[&[&str]] = &[
    &["runtime/rare.rs", "runtime/defer.rs"],
    &["runtime/syscall.rs", "runtime/budget.rs", "runtime/sync/loomy.rs"],
    &["runtime/sys.rs"],
    &["runtime/sync.rs", "runtime/trace.rs"],
    &["runtime/task/state.rs", "runtime/park.rs", "runtime/hold.rs"],
    &["runtime/task/g.rs", "runtime/idle.rs"],
    &["runtime/task/owned.rs"],
    &["runtime/task/cell.rs"],
    &["runtime/task/join.rs"],
    &["runtime/task/mod.rs"],
    &["runtime/task/rig.rs"],
    &["runtime/queue.rs", "runtime/wake_list.rs", "runtime/stuck.rs"],
    &["runtime/timer.rs", "runtime/netpoll/slot.rs", "runtime/netpoll/brk.rs"],
    &["runtime/netpoll/deadline.rs", "runtime/netpoll/until.rs"],
    &["runtime/netpoll/desc.rs"],
    &["runtime/netpoll/epoll.rs"],
    &["runtime/netpoll/mod.rs", "runtime/watchdog.rs"],
    &["runtime/proc/"],
    &["runtime/sysmon.rs", "runtime/blocking.rs"],
    &["runtime/runtime.rs"],
    &["runtime/time.rs", "runtime/poll_gate.rs"],
    &["runtime/mod.rs"],
];

/// On top of the runtime.
const NET: &[&[&str]] = &[
    &["net/sys.rs"],
    &["net/fd.rs", "net/splice.rs"],
    &["net/socket.rs"],
    &["net/stream.rs", "net/datagram.rs"],
    &["net/prelude.rs"],
    &["net/resolve.rs"],
    &["net/listen.rs"],
    &["net/dial.rs"],
    &["net/tcp.rs", "net/udp.rs", "net/unix.rs", "net/poll_fd.rs"],
    &["net/split.rs"],
    &["net/copy.rs"],
    &["net/mod.rs"],
];

/// All that `net` may know of the runtime: whole files, or a file's items.
const DOORS: &[(&str, &[&str])] = &[
    ("runtime/poll_gate.rs", &["*"]),
    ("runtime/time.rs", &["*"]),
    ("runtime/blocking.rs", &["*"]),
    ("runtime/budget.rs", &["*"]),
    ("runtime/runtime.rs", &["spawn", "spawn_blocking", "Handle"]),
];

#[test]
fn every_file_imports_only_from_lower_floors() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = BTreeMap::from([("lib.rs".to_owned(), fs::read_to_string(root.join("lib.rs")).unwrap())]);
    for top in ["runtime", "net"] {
        read_all(root, top, &mut files);
    }
    let mut plan: Vec<_> = RUNTIME.iter().chain(NET).copied().collect();
    plan.push(&["lib.rs"]);
    let wrong = check(&files, &plan);
    assert!(wrong.is_empty(), "the house does not stand:\n  {}", wrong.join("\n  "));
}

fn read_all(root: &Path, dir: &str, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(root.join(dir)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{dir}/{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            read_all(root, &path, files);
        } else if path.ends_with(".rs") {
            let text = fs::read_to_string(entry.path()).unwrap();
            files.insert(path, text);
        }
    }
}

/// Says everything that is wrong.
fn check(files: &BTreeMap<String, String>, plan: &[&[&str]]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut room_of = BTreeMap::new();
    for file in files.keys().filter(|file| !on_roof(file)) {
        let rooms = plan.iter().enumerate().flat_map(|(floor, rooms)| rooms.iter().map(move |room| (floor, *room)));
        let fits = |room: &str| file == room || (room.ends_with('/') && file.starts_with(room));
        match rooms.filter(|(_, room)| fits(room)).collect::<Vec<_>>()[..] {
            [room] => drop(room_of.insert(file.as_str(), room)),
            [] => wrong.push(format!("{file} has no place in the plan")),
            _ => wrong.push(format!("{file} has several places in the plan")),
        }
    }
    let used: BTreeSet<_> = room_of.values().map(|(_, room)| *room).collect();
    for room in plan.iter().copied().flatten().filter(|room| !used.contains(*room)) {
        wrong.push(format!("{room} is in the plan, but not in the house"));
    }

    let house = House::new(files);
    for (file, module) in &house.modules {
        for import in &module.imports {
            let way = house.follow(&import.path);
            let text = import.path.join("::");
            // Through one of the runtime's doors, or not at all.
            let guest = in_net(file) && !on_roof(file);
            if let Some((door, item)) = way.iter().find(|(to, _)| to.starts_with("runtime/")).filter(|_| guest) {
                let opens = |items: &[&str]| items.contains(&"*") || items.contains(&item.as_str());
                if !DOORS.iter().any(|(d, items)| d == door && opens(items)) {
                    wrong.push(format!("{file}:{}: {text} is not for net/ to know ({door})", import.line));
                    continue;
                }
            }
            let Some((to, _)) = way.last() else { continue };
            if to == file {
                continue;
            }
            if on_roof(to) && !on_roof(file) {
                wrong.push(format!("{file}:{}: {text} is an import from the roof ({to})", import.line));
            }
            if let (Some(from), Some(into)) = (room_of.get(file), room_of.get(to.as_str())) {
                if from.1 != into.1 && into.0 >= from.0 {
                    let how = if into.0 > from.0 { "a higher floor" } else { "its own floor" };
                    wrong.push(format!("{file}:{}: {text} is an import from {how} ({to})", import.line));
                }
            }
        }
    }
    wrong
}

/// Is it a file of tests? (Those of a few tests stand in what they test.)
fn on_roof(file: &str) -> bool {
    file.contains("/tests/") || file.ends_with("/tests.rs") || file.ends_with("/models.rs")
}

fn in_net(file: &str) -> bool {
    file.starts_with("net/")
}

/// The modules that are files, by file name.
struct House<'a> {
    modules: BTreeMap<&'a str, Module>,
    file_of: BTreeMap<Vec<String>, &'a str>,
}

#[derive(Default)]
struct Module {
    imports: Vec<Import>,
    /// What the file's `use`s call things, and what those are: paths from the crate's root.
    names: BTreeMap<String, Vec<String>>,
}

struct Import {
    line: usize,
    /// From the crate's root.
    path: Vec<String>,
}

impl<'a> House<'a> {
    fn new(files: &'a BTreeMap<String, String>) -> House<'a> {
        let file_of: BTreeMap<_, _> = files.keys().map(|file| (module_path(file), file.as_str())).collect();
        let modules =
            files.iter().map(|(file, text)| (file.as_str(), Reader::new(file, text, &file_of).read())).collect();
        House { modules, file_of }
    }

    /// The files that a path leads through, each with the item that it means there; the last one has the item.
    fn follow(&self, path: &[String]) -> Vec<(String, String)> {
        let mut way = Vec::new();
        let mut path = path.to_vec();
        // A circle of `use`s would not compile, but this is a test.
        while way.len() < 9 {
            let Some(len) = (0..=path.len()).rev().find(|&len| self.file_of.contains_key(&path[..len])) else { break };
            let file = self.file_of[&path[..len]];
            let item = path.get(len).cloned().unwrap_or_default();
            let next = self.modules[file].names.get(&item).cloned();
            way.push((file.to_owned(), item));
            match next {
                Some(next) if next != path => path = [next, path[len + 1..].to_vec()].concat(),
                _ => break,
            }
        }
        way
    }
}

/// `runtime/task/mod.rs` is `runtime::task`; `lib.rs` is the root.
fn module_path(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("mod").trim_end_matches('/');
    if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    /// `::`
    Sep,
    Mark(char),
}

/// Rust's tokens, as far as they matter here, each with its line.
fn tokens(text: &str) -> Vec<(usize, Token)> {
    let s: Vec<char> = text.chars().collect();
    let at = |i: usize| s.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut tokens, mut i, mut line) = (Vec::new(), 0, 1);
    while i < s.len() {
        let start = i;
        match s[i] {
            '/' if at(i + 1) == '/' => {
                while i < s.len() && s[i] != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= s.len() {
                        break;
                    }
                }
            }
            '"' => {
                i += 1;
                while i < s.len() && s[i] != '"' {
                    i += if s[i] == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            // A character, unless it is a lifetime.
            '\'' if at(i + 1) == '\\' => {
                i += 3;
                while i < s.len() && s[i] != '\'' {
                    i += 1;
                }
                i += 1;
            }
            '\'' if at(i + 2) == '\'' => i += 3,
            c if is_word(c) => {
                while is_word(at(i)) {
                    i += 1;
                }
                let word: String = s[start..i].iter().collect();
                let hashes = (i..).take_while(|&j| at(j) == '#').count();
                if ["r", "br", "cr"].contains(&word.as_str()) && at(i + hashes) == '"' {
                    let end: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                    let body: String = s[i + hashes + 1..].iter().collect();
                    let len = body.find(&end).map_or(body.len(), |n| n + end.len());
                    i += hashes + 1 + body[..len].chars().count();
                } else {
                    tokens.push((line, Token::Word(word)));
                }
            }
            ':' if at(i + 1) == ':' => {
                tokens.push((line, Token::Sep));
                i += 2;
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push((line, Token::Mark(c)));
                }
                i += 1;
            }
        }
        line += s[start..i.min(s.len())].iter().filter(|&&c| c == '\n').count();
    }
    tokens
}

/// Finds a file's imports.
struct Reader {
    tokens: Vec<(usize, Token)>,
    at: usize,
    base: Vec<String>,
    /// The inline modules around, with the depth of braces at which each began.
    inline: Vec<(String, usize)>,
    children: BTreeSet<String>,
    module: Module,
}

impl Reader {
    fn new(file: &str, text: &str, file_of: &BTreeMap<Vec<String>, &str>) -> Reader {
        let base = module_path(file);
        let is_child = |path: &&Vec<String>| path.len() == base.len() + 1 && path.starts_with(&base);
        let children = file_of.keys().filter(is_child).map(|path| path.last().unwrap().clone()).collect();
        Reader { tokens: tokens(text), at: 0, base, inline: Vec::new(), children, module: Module::default() }
    }

    fn read(mut self) -> Module {
        let mut depth = 0;
        while self.at < self.tokens.len() {
            match self.peek(0) {
                Some(Token::Mark('{')) => depth += 1,
                Some(Token::Mark('}')) => {
                    depth -= 1;
                    if self.inline.last().is_some_and(|(_, began)| *began == depth) {
                        self.inline.pop();
                    }
                }
                Some(Token::Word(word)) if word == "mod" => {
                    if let (Some(Token::Word(name)), Some(Token::Mark('{'))) = (self.peek(1), self.peek(2)) {
                        self.inline.push((name, depth));
                    }
                    // The name is no path.
                    self.at += 1;
                }
                Some(Token::Word(word)) if word == "use" && self.peek(1) != Some(Token::Mark('<')) => {
                    self.at += 1;
                    self.tree(&[]);
                }
                Some(Token::Word(_)) if self.at == 0 || self.tokens[self.at - 1].1 != Token::Sep => {
                    let mut path = Vec::new();
                    let line = self.tokens[self.at].0;
                    while let Some(Token::Word(word)) = self.peek(0) {
                        path.push(word);
                        if self.peek(1) != Some(Token::Sep) || !matches!(self.peek(2), Some(Token::Word(_))) {
                            break;
                        }
                        self.at += 2;
                    }
                    if path.len() > 1 {
                        self.import(line, &path);
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
        self.module
    }

    fn peek(&self, ahead: usize) -> Option<Token> {
        self.tokens.get(self.at + ahead).map(|(_, token)| token.clone())
    }

    /// What stands behind `use`, or between braces of it. Ends at the `;`, `,` or `}` behind it.
    fn tree(&mut self, before: &[String]) {
        let mut path = before.to_vec();
        let mut name = None;
        let line = self.tokens[self.at].0;
        loop {
            match self.peek(0) {
                Some(Token::Word(word)) if word == "as" => {
                    self.at += 1;
                    if let Some(Token::Word(alias)) = self.peek(0) {
                        name = Some(alias);
                    }
                }
                // `use x::{self}` is x.
                Some(Token::Word(word)) if word == "self" && !path.is_empty() => {}
                Some(Token::Word(word)) => path.push(word),
                Some(Token::Mark('*')) => path.push("*".to_owned()),
                Some(Token::Mark('{')) => {
                    while self.peek(0) != Some(Token::Mark('}')) {
                        self.at += 1;
                        if self.peek(0) != Some(Token::Mark('}')) {
                            self.tree(&path);
                        }
                    }
                    self.at += 1;
                    return;
                }
                Some(Token::Sep) => {}
                _ => break,
            }
            self.at += 1;
        }
        let name = name.or_else(|| path.last().cloned());
        if let (Some(full), Some(name)) = (self.import(line, &path), name) {
            if self.inline.is_empty() {
                self.module.names.insert(name, full);
            }
        }
    }

    /// Notes a path if it is the crate's own.
    fn import(&mut self, line: usize, path: &[String]) -> Option<Vec<String>> {
        let mut here = self.base.clone();
        here.extend(self.inline.iter().map(|(name, _)| name.clone()));
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => {
                here.clear();
                rest = &rest[1..];
            }
            "self" | "super" => {
                while let Some(first @ ("self" | "super")) = rest.first().map(String::as_str) {
                    if first == "super" {
                        here.pop()?;
                    }
                    rest = &rest[1..];
                }
            }
            first if self.inline.is_empty() && self.children.contains(first) => {}
            _ => return None,
        }
        here.extend_from_slice(rest);
        self.module.imports.push(Import { line, path: here.clone() });
        Some(here)
    }
}

/// A made-up house of three floors. What is wrong with `text` in the middle, if anything?
fn wrong_with(text: &str) -> Vec<String> {
    let files = [
        ("lib.rs", "mod runtime; mod net;"),
        ("runtime/mod.rs", "mod low; mod mid; mod side; mod high;"),
        ("runtime/low.rs", ""),
        ("runtime/mid.rs", text),
        ("runtime/side.rs", ""),
        ("runtime/high/mod.rs", "mod inner; pub use inner::Thing; pub use super::low::Passed;"),
        ("runtime/high/inner.rs", "use super::super::mid::X;"),
        ("runtime/low/tests.rs", "use super::super::{high::Thing, mid::X}; mod more;"),
        ("runtime/low/tests/more.rs", "use super::helper;"),
        ("net/mod.rs", ""),
    ];
    let plan: &[&[&str]] = &[
        &["runtime/low.rs"],
        &["runtime/mid.rs", "runtime/side.rs"],
        &["runtime/high/"],
        &["runtime/mod.rs"],
        &["net/mod.rs"],
        &["lib.rs"],
    ];
    check(&files.map(|(file, text)| (file.to_owned(), text.to_owned())).into(), plan)
}

#[test]
fn an_import_from_below_is_right() {
    assert_eq!(wrong_with("use super::low::{self, A}; use crate::runtime::low as l; use std::high::X;"), [""; 0]);
    assert_eq!(wrong_with("mod tests { use super::*; fn f() { super::super::low::g() } }"), [""; 0]);
    assert_eq!(wrong_with("// use super::high::X;\n/* super::high */ const A: &str = \"super::high\";"), [""; 0]);
    assert_eq!(
        wrong_with("const A: &str = r#\"super::high\" super::high\"#; fn f<'a>(c: char) { c == '\"' }"),
        [""; 0]
    );
    assert_eq!(wrong_with("use super::high::Passed;"), [""; 0], "what is passed on comes from where it is from");
}

#[test]
fn an_import_from_above_is_named() {
    for (text, path, file) in [
        ("use super::high::Thing;", "runtime::high::Thing", "runtime/high/inner.rs"),
        ("use super::high::inner;", "runtime::high::inner", "runtime/high/inner.rs"),
        ("use super::{low::A, high::{B as C, *}};", "runtime::high::B", "runtime/high/mod.rs"),
        ("fn f() { crate::runtime::high::run::<u8>() }", "runtime::high::run", "runtime/high/mod.rs"),
        ("mod imp { fn f() { super::super::high::run() } }", "runtime::high::run", "runtime/high/mod.rs"),
        ("fn f() -> impl A + use<'_> { $crate::runtime::high::run() }", "runtime::high::run", "runtime/high/mod.rs"),
        ("use crate::spawn;", "spawn", "lib.rs"),
    ] {
        let wrong = wrong_with(&format!("\n{text}"));
        let want = format!("runtime/mid.rs:2: {path} is an import from a higher floor ({file})");
        assert!(wrong.contains(&want), "{text}: {wrong:?}");
    }
}

#[test]
fn an_import_from_the_same_floor_is_named() {
    let want = "runtime/mid.rs:1: runtime::side is an import from its own floor (runtime/side.rs)";
    assert_eq!(wrong_with("use super::side;"), [want]);
}

#[test]
fn an_import_from_a_file_of_tests_is_named() {
    let want = "runtime/mid.rs:1: runtime::low::tests::helper is an import from the roof (runtime/low/tests.rs)";
    assert_eq!(wrong_with("use super::low::tests::helper;"), [want]);
}

#[test]
fn net_comes_into_the_runtime_by_its_doors_only() {
    let files = |net: &str| {
        BTreeMap::from(
            [
                ("lib.rs", ""),
                ("runtime/mod.rs", "mod proc; mod poll_gate; mod runtime;"),
                ("runtime/proc.rs", ""),
                ("runtime/poll_gate.rs", "pub use super::proc::Passed;"),
                ("runtime/runtime.rs", ""),
                ("net/mod.rs", net),
            ]
            .map(|(file, text)| (file.to_owned(), text.to_owned())),
        )
    };
    let plan: &[&[&str]] = &[
        &["runtime/proc.rs"],
        &["runtime/poll_gate.rs", "runtime/runtime.rs"],
        &["runtime/mod.rs"],
        &["net/mod.rs"],
        &["lib.rs"],
    ];
    let allowed = "use crate::runtime::{poll_gate::{Gate, Passed}, runtime::spawn};";
    assert_eq!(check(&files(allowed), plan), [""; 0]);
    let wrong = check(&files("use crate::runtime::{proc::Sched, runtime::Builder};"), plan);
    assert_eq!(
        wrong,
        [
            "net/mod.rs:1: runtime::proc::Sched is not for net/ to know (runtime/proc.rs)",
            "net/mod.rs:1: runtime::runtime::Builder is not for net/ to know (runtime/runtime.rs)",
        ]
    );
}

#[test]
fn a_file_or_a_room_too_many_is_named() {
    let files = BTreeMap::from([("lib.rs".to_owned(), String::new()), ("new.rs".to_owned(), String::new())]);
    let wrong = check(&files, &[&["old.rs"], &["lib.rs"]]);
    assert_eq!(wrong, ["new.rs has no place in the plan", "old.rs is in the plan, but not in the house",]);
}
