//! Every kind of event that the code can report is in `docs/operations/events.md`, since operators
//! script against them.

use std::fs;
use std::path::Path;

/// String literals that follow `Notice::info(`, `Notice::warning(` or `Notice::error(`.
fn kinds(source: &str, found: &mut Vec<String>) {
    for level in ["info", "warning", "error"] {
        for (_, rest) in source
            .match_indices(&format!("Notice::{level}("))
            .map(|(at, call)| source.split_at(at + call.len()))
        {
            if let Some(literal) = rest.trim_start().strip_prefix('"') {
                found.extend(literal.split('"').next().map(str::to_owned));
            }
        }
    }
}

fn scan(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            scan(&path, found);
        } else if name.ends_with(".rs") && !name.contains("test") {
            let source = fs::read_to_string(&path).unwrap();
            // What follows is the unit tests of the file.
            kinds(source.split("#[cfg(test)]").next().unwrap(), found);
        }
    }
}

#[test]
fn every_kind_of_event_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    for folder in ["mirror-core/src", "nbd-frontend/src"] {
        scan(&root.join(folder), &mut found);
    }
    assert!(found.len() > 20, "the scan finds calls: {found:?}");
    let page = fs::read_to_string(root.join("docs/operations/events.md")).unwrap();
    found.retain(|kind| !page.contains(&format!("| `{kind}` |")));
    found.sort();
    found.dedup();
    assert!(
        found.is_empty(),
        "not in docs/operations/events.md: {found:?}"
    );
}
