//! Every id of the alert log is in `docs/operations/alerts.md` with its level, module and meaning, since
//! operators script against them.

use std::path::Path;

use agent::alert::KINDS;

/// The rows of the tables: id, level, module, meaning, cause, what to do.
fn rows(page: &str) -> Vec<Vec<&str>> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells[0].parse::<u16>().is_ok())
        .collect()
}

#[test]
fn every_alert_is_documented_with_its_level_module_and_meaning() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(root.join("docs/operations/alerts.md")).unwrap();
    let rows = rows(&page);
    for kind in KINDS {
        let expected = [
            &kind.id.to_string(),
            kind.level.name(),
            kind.module.name(),
            kind.meaning,
        ];
        let row = rows.iter().find(|row| row[0] == expected[0]);
        let row = row.unwrap_or_else(|| panic!("{} is not documented", kind.id));
        assert_eq!(row[..4], expected);
        assert_eq!(row.len(), 6, "cause and remedy of {}: {row:?}", kind.id);
        assert!(!row[5].is_empty(), "{} says what to do", kind.id);
    }
    assert_eq!(rows.len(), KINDS.len(), "an id is documented that is not");
}
