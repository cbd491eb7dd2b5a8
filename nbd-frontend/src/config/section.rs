//! Reads one table of the file key by key, and at the end names every key that nobody asked for.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Collector, Located};

/// Refusal of one value: what is wrong with it and what to write instead.
#[derive(Debug)]
pub(super) struct Complaint {
    pub message: String,
    pub remedy: String,
}

impl Complaint {
    pub(super) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            remedy: remedy.into(),
        }
    }
}

impl From<super::units::UnitError> for Complaint {
    fn from(error: super::units::UnitError) -> Self {
        Self::new(error.message, error.remedy)
    }
}

/// Turns byte offsets into line numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lines<'a>(pub(super) &'a str);

impl Lines<'_> {
    pub(super) fn at(self, offset: usize) -> usize {
        let before = &self.0.as_bytes()[..offset.min(self.0.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }
}

/// The text as TOML. Where it is none, the first error alone is a problem: what the parser made of the rest is not what its
/// author meant, and what is missing from that, or doubled, may only follow from the error.
pub(super) fn parse<'i>(source: &'i str, problems: &mut Collector) -> Option<Spanned<DeTable<'i>>> {
    let (table, errors) = DeTable::parse_recoverable(source);
    let start = |error: &toml::de::Error| error.span().map(|span| span.start);
    let Some(error) = errors.iter().min_by_key(|error| start(error)) else {
        return Some(table);
    };
    problems.add(
        start(error).map(|start| Lines(source).at(start)),
        "",
        format!("this is not TOML: {}", error.message().trim()),
        "mend the line, and check again: the rest is not looked at before",
    );
    None
}

/// One table under the name that problems give it, for example `mirror "md1"`.
#[derive(Debug)]
pub(super) struct Section<'a, 'i> {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) lines: Lines<'a>,
    table: &'a DeTable<'i>,
    asked: Vec<&'static str>,
}

impl<'a, 'i> Section<'a, 'i> {
    pub(super) fn new(
        name: impl Into<String>,
        line: usize,
        lines: Lines<'a>,
        table: &'a DeTable<'i>,
    ) -> Self {
        Self {
            name: name.into(),
            line,
            lines,
            table,
            asked: Vec::new(),
        }
    }

    /// The raw value of `key`, for tables and arrays that are read further by the caller.
    pub(super) fn raw(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'i>>> {
        self.asked.push(key);
        self.table.get(key)
    }

    pub(super) fn line_of(&self, found: &Spanned<DeValue<'i>>) -> usize {
        self.lines.at(found.span().start)
    }

    /// The section `shape` below this one, if it is there.
    pub(super) fn section(
        &mut self,
        key: &'static str,
        shape: &str,
        problems: &mut Collector,
    ) -> Option<Section<'a, 'i>> {
        let lines = self.lines;
        let (table, line) = table(self, key, shape, lines, problems)?;
        Some(Section::new(
            shape.trim_matches(['[', ']']),
            line,
            lines,
            table,
        ))
    }

    /// The list of sections `shape` below this one. Each is called `word` and its name, if it has one.
    pub(super) fn sections(
        &mut self,
        key: &'static str,
        shape: &str,
        word: &str,
        problems: &mut Collector,
    ) -> Vec<Section<'a, 'i>> {
        let lines = self.lines;
        let titled = |(table, line): (&'a DeTable<'i>, usize)| {
            let name = table.get("name").and_then(|name| name.get_ref().as_str());
            let title = match name {
                Some(name) => format!("{word} {name:?}"),
                None => word.into(),
            };
            Section::new(title, line, lines, table)
        };
        let found = tables(self, key, shape, lines, problems);
        found.into_iter().map(titled).collect()
    }

    /// A list of values. Those that `read` refuses are problems and left out.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        example: &str,
        problems: &mut Collector,
        mut read: impl FnMut(&DeValue<'i>) -> Result<T, Complaint>,
    ) -> Option<Located<Vec<Located<T>>>> {
        let found = self.raw(key)?;
        let line = self.line_of(found);
        let Some(entries) = found.get_ref().as_array() else {
            problems.add(
                Some(line),
                self.key(key),
                format!("this is {}, not a list", article(found.get_ref())),
                format!("write a list such as {example}"),
            );
            return None;
        };
        let mut list = Vec::new();
        for entry in entries.iter() {
            let line = self.line_of(entry);
            match read(entry.get_ref()) {
                Ok(value) => list.push(Located { value, line }),
                Err(complaint) => problems.add(
                    Some(line),
                    self.key(key),
                    complaint.message,
                    complaint.remedy,
                ),
            }
        }
        Some(Located { value: list, line })
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// An optional value. A value that `read` refuses becomes a problem and counts as absent.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        problems: &mut Collector,
        read: impl FnOnce(&DeValue<'i>) -> Result<T, Complaint>,
    ) -> Option<Located<T>> {
        let found = self.raw(key)?;
        let line = self.lines.at(found.span().start);
        match read(found.get_ref()) {
            Ok(value) => Some(Located { value, line }),
            Err(complaint) => {
                problems.add(
                    Some(line),
                    self.key(key),
                    complaint.message,
                    complaint.remedy,
                );
                None
            }
        }
    }

    /// A value that must be there.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        problems: &mut Collector,
        read: impl FnOnce(&DeValue<'i>) -> Result<T, Complaint>,
    ) -> Option<Located<T>> {
        if !self.table.contains_key(key) {
            self.asked.push(key);
            problems.add(
                Some(self.line),
                self.key(key),
                "the key is missing",
                format!("add a line such as: {key} = {example}"),
            );
            return None;
        }
        self.optional(key, problems, read)
    }

    /// Names every key that was not asked for, with the nearest one that was.
    pub(super) fn refuse_unknown_keys(self, problems: &mut Collector) {
        for (key, _) in self.table.iter() {
            let name = key.get_ref().as_ref();
            if self.asked.contains(&name) {
                continue;
            }
            problems.add(
                Some(self.lines.at(key.span().start)),
                self.key(name),
                format!("{name:?} is not a known key here"),
                nearest_of(name, self.asked.iter().copied()),
            );
        }
    }

    /// What problems call this key.
    pub(super) fn key(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.into()
        } else {
            format!("{} {key}", self.name)
        }
    }
}

/// The section `shape`, if it is there, with its line.
pub(super) fn table<'a, 'i>(
    section: &mut Section<'a, 'i>,
    key: &'static str,
    shape: &str,
    lines: Lines,
    problems: &mut Collector,
) -> Option<(&'a DeTable<'i>, usize)> {
    let found: &'a Spanned<DeValue<'i>> = section.raw(key)?;
    let line = lines.at(found.span().start);
    match found.get_ref().as_table() {
        Some(table) => Some((table, line)),
        None => {
            wrong_shape(&section.key(key), shape, line, found.get_ref(), problems);
            None
        }
    }
}

/// The entries of the list of sections `shape`, each with its line.
pub(super) fn tables<'a, 'i>(
    section: &mut Section<'a, 'i>,
    key: &'static str,
    shape: &str,
    lines: Lines,
    problems: &mut Collector,
) -> Vec<(&'a DeTable<'i>, usize)> {
    let Some(found): Option<&'a Spanned<DeValue<'i>>> = section.raw(key) else {
        return Vec::new();
    };
    let line = lines.at(found.span().start);
    let Some(entries) = found.get_ref().as_array() else {
        wrong_shape(&section.key(key), shape, line, found.get_ref(), problems);
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.iter() {
        let line = lines.at(entry.span().start);
        match entry.get_ref().as_table() {
            Some(table) => found.push((table, line)),
            None => wrong_shape(&section.key(key), shape, line, entry.get_ref(), problems),
        }
    }
    found
}

pub(super) fn wrong_shape(
    key: &str,
    shape: &str,
    line: usize,
    value: &DeValue,
    problems: &mut Collector,
) {
    problems.add(
        Some(line),
        key,
        format!("this is {} where a section {shape} belongs", article(value)),
        format!("write it as {shape} with its keys below"),
    );
}

/// "did you mean …" where something is near, else what there is.
pub(super) fn nearest_of<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> String {
    let known: Vec<_> = known.collect();
    match near(name, &known) {
        Some(candidate) => format!("did you mean {candidate:?}?"),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// What `name` may be a slip of.
pub(super) fn near<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let distances = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), *candidate));
    let (distance, candidate) = distances.min()?;
    (distance <= 1 + name.len() / 3).then_some(candidate)
}

/// A string, not empty.
pub(super) fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Complaint> {
    match value.as_str() {
        Some("") => Err(Complaint::new(
            "the value is empty",
            "write a value between the quotes",
        )),
        Some(text) => Ok(text),
        None => Err(Complaint::new(
            format!("this is {}, not a string", article(value)),
            match value {
                DeValue::Integer(number) => {
                    format!("put it in quotes, with its unit if it has one: \"{number}…\"")
                }
                _ => "write a string in double quotes".into(),
            },
        )),
    }
}

pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, Complaint> {
    value.as_bool().ok_or_else(|| {
        Complaint::new(
            format!("this is {}, not a boolean", article(value)),
            "write true or false, without quotes",
        )
    })
}

pub(super) fn article(value: &DeValue<'_>) -> String {
    let kind = value.type_str();
    let vowel = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}
