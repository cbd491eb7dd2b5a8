//! On which line each key of the file stands, under the name that problems give it, so that what is found
//! later, on the machine for instance, can still point at the file.

use std::collections::HashMap;

use toml::de::{DeTable, DeValue};

use super::section::Lines;

/// Keys are written as problems write them: `cluster key_file`, `heartbeat.path "first"`,
/// `group "g" resource "disk" mount`.
#[derive(Debug, Clone, Default)]
pub struct Places(HashMap<String, usize>);

impl Places {
    pub(super) fn of(root: &DeTable, lines: Lines) -> Self {
        let mut places = Self::default();
        for (key, value) in root {
            let line = lines.at(key.span().start);
            places.add(key.get_ref(), line, value.get_ref(), lines);
        }
        places
    }

    /// The line of `key`, or of what it belongs to where it is not written down.
    pub fn line_of(&self, key: &str) -> Option<usize> {
        let mut key = key;
        loop {
            if let Some(line) = self.0.get(key) {
                return Some(*line);
            }
            let end = key.rfind([' ', '.'])?;
            key = &key[..end];
        }
    }

    fn add(&mut self, title: &str, line: usize, value: &DeValue, lines: Lines) {
        self.0.entry(title.into()).or_insert(line);
        match value {
            DeValue::Table(table) => self.add_table(title, table, '.', lines),
            DeValue::Array(entries) => {
                for entry in entries.iter() {
                    let DeValue::Table(table) = entry.get_ref() else {
                        continue;
                    };
                    let named = table.get("name").and_then(|name| name.get_ref().as_str());
                    let Some(name) = named else { continue };
                    let title = format!("{title} {name:?}");
                    let line = lines.at(entry.span().start);
                    self.0.entry(title.clone()).or_insert(line);
                    self.add_table(&title, table, ' ', lines);
                }
            }
            _ => {}
        }
    }

    /// Sections below a section that has no name of its own are joined to it by a dot.
    fn add_table(&mut self, title: &str, table: &DeTable, join: char, lines: Lines) {
        for (key, value) in table {
            let is_section = matches!(value.get_ref(), DeValue::Table(_))
                || value
                    .get_ref()
                    .as_array()
                    .is_some_and(|entries| entries.iter().any(|entry| entry.get_ref().is_table()));
            let join = if is_section { join } else { ' ' };
            let title = if title.ends_with(" on") {
                // A node, by its name.
                format!("{title} {:?}", key.get_ref())
            } else {
                format!("{title}{join}{}", key.get_ref())
            };
            self.add(&title, lines.at(key.span().start), value.get_ref(), lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[cluster]
key_file = "key"
[[heartbeat.path]]
name = "first"
on = { a = "127.0.0.1" }
[forced_stop]
script = "stop"
[[group]]
name = "g"
[[group.resource]]
name = "disk"
mount = "/mnt"
start.on = { a = "x" }
[[group.resource]]
name = "app"
start = ["run"]
[[mirror]]
name = "md1"
[mirror.on.a]
data = "/dev/x"
[mirror.on.b]
data = "/dev/y"
"#;

    #[test]
    fn keys_are_found_under_the_names_of_problems() {
        let table = DeTable::parse(TEXT).unwrap();
        let places = Places::of(table.get_ref(), Lines(TEXT));
        for (key, line) in [
            ("cluster key_file", Some(3)),
            ("heartbeat.path \"first\"", Some(4)),
            ("forced_stop script", Some(8)),
            ("group \"g\"", Some(9)),
            ("group \"g\" resource \"disk\" mount", Some(13)),
            ("group \"g\" resource \"disk\" attach", Some(11)),
            ("group \"g\" resource \"app\" start", Some(17)),
            ("forced_stop", Some(7)),
            ("mirror \"md1\" on \"a\" data", Some(21)),
            ("mirror \"md1\" on \"b\" data", Some(23)),
            ("mirror \"md1\" on \"b\" metadata", Some(22)),
            ("heartbeat.path \"first\" on \"a\"", Some(6)),
            ("nothing of it", None),
        ] {
            assert_eq!(places.line_of(key), line, "{key}");
        }
    }
}
