//! Every kind of event that the code can report is in `docs/operations/events.md`, since operators
//! script against them.

use std::fs;
use std::path::Path;

/// String literals that follow `Notice::info(`, `Notice::warning(` or `Notice::error(`, with the level.
fn kinds(source: &str, found: &mut Vec<(String, &'static str)>) {
    for level in ["info", "warning", "error"] {
        for (_, rest) in source
            .match_indices(&format!("Notice::{level}("))
            .map(|(at, call)| source.split_at(at + call.len()))
        {
            if let Some(literal) = rest.trim_start().strip_prefix('"') {
                found.extend(
                    literal
                        .split('"')
                        .next()
                        .map(|kind| (kind.to_owned(), level)),
                );
            }
        }
    }
}

/// Gives everything in the folder that is no test, and adds the events to `found`.
fn scan(folder: &Path, found: &mut Vec<(String, &'static str)>) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            all += &scan(&path, found);
        } else if name.ends_with(".rs") && !name.contains("test") {
            let source = fs::read_to_string(&path).unwrap();
            // What follows is the unit tests of the file.
            let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
            kinds(source, found);
            all += source;
        }
    }
    all
}

/// The rows of the table: kind and severities.
fn documented(page: &str) -> Vec<(&str, &str)> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .filter_map(|(kind, rest)| Some((kind, rest.split(" |").next()?)))
        .collect()
}

#[test]
fn every_kind_of_event_is_documented_with_its_severity() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    let sources: String = ["mirror-core/src", "nbd-frontend/src"]
        .map(|folder| scan(&root.join(folder), &mut found))
        .concat();
    assert!(found.len() > 20, "the scan finds calls: {found:?}");
    let page = fs::read_to_string(root.join("docs/operations/events.md")).unwrap();
    let rows = documented(&page);
    for (kind, level) in found {
        let documented = rows
            .iter()
            .any(|(row, levels)| *row == kind && levels.split(", ").any(|l| l == level));
        assert!(
            documented,
            "{kind} ({level}) is not in docs/operations/events.md"
        );
    }
    for (kind, _) in rows {
        assert!(
            sources.contains(&format!("\"{kind}\"")),
            "{kind} is documented, and nothing reports it"
        );
    }
}
