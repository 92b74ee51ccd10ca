//! The house rules that a machine can check: who may import whom, the size of files, their first line, words that do not belong,
//! and where files may be touched. It refuses to judge what needs judgement.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lines; ARCHITECTURE.md, house rules.
const FILE_LINES_MAX: usize = 600;

/// Which of our crates each crate may import; the root package, the binary, may import all.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("restante-envelope", &[]),
    ("restante-ledger", &["restante-envelope"]),
    ("restante-smtp", &["restante-envelope"]),
    ("restante-relay", &["restante-envelope", "restante-ledger"]),
    ("restante-journal", &["restante-envelope", "restante-ledger"]),
    ("restante-courier", &["restante-envelope", "restante-ledger"]),
    ("restante-index", &["restante-envelope", "restante-ledger"]),
    // What has a runtime is not benched: it would be the kernel's sockets and scheduler that are measured.
    (
        "restante-benches",
        &[
            "restante-envelope",
            "restante-ledger",
            "restante-smtp",
            "restante-relay",
            "restante-journal",
            "restante-index",
        ],
    ),
    ("restante-sim", &["restante-envelope", "restante-ledger", "restante-smtp", "restante-relay", "restante-journal"]),
    ("xtask", &[]),
    ("restante-fuzz", &["restante-envelope", "restante-ledger", "restante-journal", "restante-smtp"]),
];

/// The only packages with a runtime or a network; the fuzz targets have the names of its traits alone.
const MAY_HAVE_TOKIO: &[&str] = &["restante", "restante-courier", "restante-fuzz"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Each package's name and its `[dependencies]` and `[build-dependencies]`, read from the Cargo.toml files of the workspace.
fn packages() -> BTreeMap<String, BTreeSet<String>> {
    let mut packages = BTreeMap::new();
    for file in files(root(), &|path| path.file_name().is_some_and(|n| n == "Cargo.toml")) {
        let text = fs::read_to_string(&file).unwrap();
        let (mut section, mut name, mut imports) = ("", String::new(), BTreeSet::new());
        for line in text.lines().map(str::trim) {
            if let Some(header) = line.strip_prefix('[') {
                section = header.trim_end_matches(']');
                let table =
                    section.strip_prefix("dependencies.").or_else(|| section.strip_prefix("build-dependencies."));
                imports.extend(table.map(str::to_owned));
            } else if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
                let key = key.trim().split('.').next().unwrap().to_owned();
                if section == "package" && key == "name" {
                    name = value.trim().trim_matches('"').to_owned();
                } else if matches!(section, "dependencies" | "build-dependencies") {
                    imports.insert(key);
                }
            }
        }
        if !name.is_empty() {
            packages.insert(name, imports);
        }
    }
    packages
}

/// All files below `directory` that `wanted` takes; hidden directories and build output left out.
fn files(directory: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() {
            if name != "target" && name != "restante-data" && !name.starts_with('.') {
                found.extend(files(&path, wanted));
            }
        } else if wanted(&path) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn rust_files() -> Vec<PathBuf> {
    files(root(), &|path| path.extension().is_some_and(|e| e == "rs"))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

#[test]
fn crates_import_only_what_the_map_allows() {
    let packages = packages();
    let ours = |name: &String| packages.contains_key(name);
    for (package, imports) in &packages {
        let inner: Vec<&String> = imports.iter().filter(|i| ours(i)).collect();
        println!("{package} -> {inner:?}{}", if imports.contains("tokio") { "  (tokio)" } else { "" });
        for runtime in ["tokio", "hyper", "axum", "lettre"] {
            assert!(
                !imports.contains(runtime) || MAY_HAVE_TOKIO.contains(&package.as_str()),
                "{package} imports {runtime}"
            );
        }
        if package == "restante" {
            continue;
        }
        let (_, allowed) = MAY_IMPORT
            .iter()
            .find(|(name, _)| name == package)
            .unwrap_or_else(|| panic!("{package} is not on the map: say in tests/tidy.rs what it may import"));
        for import in inner {
            assert!(allowed.contains(&import.as_str()), "{package} must not import {import}");
        }
    }
    assert!(packages.len() > MAY_IMPORT.len(), "the workspace was not found: {packages:?}");
}

#[test]
fn the_simulated_disk_is_in_no_build_but_the_simulator_s() {
    for file in files(root(), &|path| path.file_name().is_some_and(|n| n == "Cargo.toml")) {
        let asks = fs::read_to_string(&file).unwrap().contains("\"sim\"]");
        assert!(!asks || shown(&file) == "crates/sim/Cargo.toml", "{} turns the feature sim on", shown(&file));
    }
    assert!(!packages()["restante"].contains("restante-sim"));
}

#[test]
fn each_file_is_short_and_says_what_it_is() {
    for path in rust_files() {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines", shown(&path));
        assert!(text.starts_with("//!"), "{} does not begin with what it is", shown(&path));
    }
}

#[test]
fn words_that_do_not_belong_are_not_there() {
    // Written in two parts, or this file would find itself.
    let banned = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("#[", "allow("),
        concat!("#![", "allow("),
        concat!("mod ", "utils"),
        concat!("mod ", "common"),
        concat!("mod ", "helpers"),
        concat!("Manager", " {"),
        concat!("/tmp/", "wt"),
        concat!("/work", "/"),
    ];
    let told = |path: &Path| {
        path.extension().is_some_and(|e| ["rs", "md", "toml", "sh", "service"].iter().any(|known| e == *known))
    };
    for path in files(root(), &told) {
        let text = fs::read_to_string(&path).unwrap();
        for word in banned {
            let line = text.lines().position(|line| line.contains(word));
            assert!(line.is_none(), "{}:{}: {word}", shown(&path), line.unwrap_or(0) + 1);
        }
    }
}

#[test]
fn files_are_touched_only_in_the_journal_s_storage_and_the_binary() {
    for path in rust_files() {
        let name = shown(&path);
        let inside = name.starts_with("journal/src/") || name.starts_with("crates/");
        let allowed =
            ["journal/src/storage", "crates/restante/", "crates/xtask/"].iter().any(|room| name.starts_with(room));
        let tests = name.contains("/tests/")
            || name.contains("/benches/")
            || name.contains("/examples/")
            || name.ends_with("tests.rs");
        if !inside || allowed || tests {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        // A file's own tests stand at its end.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for call in ["std::fs", "tokio::fs", "rustix::fs", "File::open", "File::create"] {
            assert!(!code.contains(call), "{name} uses {call}");
        }
    }
}
