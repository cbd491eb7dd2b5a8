//! A setting that is one for both nodes or differs by node: `interface = "eth0"`, or
//! `interface.on = { server1 = "eth0", server2 = "eth1" }`.

use toml::de::{DeTable, DeValue};

use super::problem::{Collector, Located};
use super::section::{Complaint, Section, article, nearest_of};

/// Values as written. Whether the nodes of the cluster have one is for [`Self::check`].
#[derive(Debug)]
pub(super) struct ByNode<T> {
    /// What problems call the setting.
    pub title: String,
    pub line: usize,
    /// One value for both.
    both: Option<Located<T>>,
    /// By node; `None` where the value was refused.
    each: Vec<(Located<String>, Option<Located<T>>)>,
}

/// What the value of one node is read from.
#[derive(Debug)]
pub(super) struct Entry<'v, 'i> {
    /// What problems call it.
    pub title: String,
    pub line: usize,
    pub value: &'v DeValue<'i>,
}

impl<T: Clone> ByNode<T> {
    /// The table `key`, with a value for each node.
    pub(super) fn each<'i>(
        section: &mut Section<'_, 'i>,
        key: &'static str,
        example: &str,
        problems: &mut Collector,
        read: impl FnMut(&DeValue<'i>) -> Result<T, Complaint>,
    ) -> Option<Self> {
        let mut read = complaining(read);
        Self::each_with(section, key, example, problems, &mut read)
    }

    /// The same, for values that report their own problems.
    pub(super) fn each_with<'a, 'i>(
        section: &mut Section<'a, 'i>,
        key: &'static str,
        example: &str,
        problems: &mut Collector,
        read: &mut dyn FnMut(Entry<'a, 'i>, &mut Collector) -> Option<T>,
    ) -> Option<Self> {
        let title = section.key(key);
        let Some(found) = section.raw(key) else {
            let remedy = format!("add a value for each node, such as: {example}");
            problems.add(Some(section.line), title, "the key is missing", remedy);
            return None;
        };
        let line = section.line_of(found);
        let Some(table) = found.get_ref().as_table() else {
            let message = format!(
                "this is {} where a value for each node belongs",
                article(found.get_ref())
            );
            problems.add(Some(line), title, message, format!("write {example}"));
            return None;
        };
        let each = entries(section, &title, table, problems, read);
        Some(Self {
            title,
            line,
            both: None,
            each,
        })
    }

    /// `key` as one value for both nodes, or `key.on` with one for each.
    pub(super) fn one_or_each<'i>(
        section: &mut Section<'_, 'i>,
        key: &'static str,
        example: &str,
        problems: &mut Collector,
        read: impl FnMut(&DeValue<'i>) -> Result<T, Complaint>,
    ) -> Option<Self> {
        let mut read = complaining(read);
        let title = section.key(key);
        let Some(found) = section.raw(key) else {
            let remedy = format!("add a line such as: {key} = {example}");
            problems.add(Some(section.line), title, "the key is missing", remedy);
            return None;
        };
        let line = section.line_of(found);
        if let Some(table) = found.get_ref().as_table() {
            let mut below = Section::new(title, line, section.lines, table);
            let example = format!("{key}.on = {{ server1 = {example}, server2 = {example} }}");
            let each = Self::each_with(&mut below, "on", &example, problems, &mut read);
            below.refuse_unknown_keys(problems);
            return each;
        }
        let entry = Entry {
            title: title.clone(),
            line,
            value: found.get_ref(),
        };
        let value = read(entry, problems)?;
        Some(Self {
            title,
            line,
            both: Some(Located { value, line }),
            each: Vec::new(),
        })
    }

    pub(super) fn of(&self, node: &str) -> Option<&Located<T>> {
        let own = || {
            let mut each = self.each.iter();
            each.find(|(name, _)| name.value == node)?.1.as_ref()
        };
        self.both.as_ref().or_else(own)
    }

    /// The values in the order of `nodes`; `None` where one is missing, which is a problem already.
    pub(super) fn in_order(&self, nodes: &[String; 2]) -> Option<[T; 2]> {
        let of = |node: &str| Some(self.of(node)?.value.clone());
        Some([of(&nodes[0])?, of(&nodes[1])?])
    }

    /// Names that are no node of the cluster, and nodes without a value.
    pub(super) fn check(&self, nodes: &[&str], problems: &mut Collector) {
        if self.both.is_some() {
            return;
        }
        for (name, _) in &self.each {
            if !nodes.contains(&name.value.as_str()) {
                problems.add(
                    Some(name.line),
                    &self.title,
                    format!("{:?} is no node of this cluster", name.value),
                    nearest_of(&name.value, nodes.iter().copied()),
                );
            }
        }
        for node in nodes {
            if !self.each.iter().any(|(name, _)| name.value == *node) {
                problems.add(
                    Some(self.line),
                    &self.title,
                    format!("there is no value for {node:?}"),
                    format!("add {node} = … beside the other one"),
                );
            }
        }
    }
}

fn entries<'a, 'i, T>(
    section: &Section<'a, 'i>,
    title: &str,
    table: &'a DeTable<'i>,
    problems: &mut Collector,
    read: &mut dyn FnMut(Entry<'a, 'i>, &mut Collector) -> Option<T>,
) -> Vec<(Located<String>, Option<Located<T>>)> {
    let mut each = Vec::new();
    for (node, value) in table.iter() {
        let line = section.lines.at(node.span().start);
        let name = node.get_ref().to_string();
        let entry = Entry {
            title: format!("{title} {name:?}"),
            line,
            value: value.get_ref(),
        };
        let read = read(entry, problems);
        let value = read.map(|value| Located { value, line });
        each.push((Located { value: name, line }, value));
    }
    each.sort_by_key(|(name, _)| name.line);
    each
}

/// A reader that makes a problem of its complaint.
fn complaining<'v, 'i: 'v, T>(
    mut read: impl FnMut(&DeValue<'i>) -> Result<T, Complaint>,
) -> impl FnMut(Entry<'v, 'i>, &mut Collector) -> Option<T> {
    move |entry, problems| {
        let complaint = match read(entry.value) {
            Ok(value) => return Some(value),
            Err(complaint) => complaint,
        };
        let line = Some(entry.line);
        problems.add(line, entry.title, complaint.message, complaint.remedy);
        None
    }
}
