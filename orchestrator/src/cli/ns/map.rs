//! `ns map`: one line per container, one column per kind; letters mark what is shared.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use server::yard::NamespaceMap;

use super::super::print::{self, printable};

/// Kinds in the order in which a pod's story is told: what containers share first.
const ORDER: [&str; 8] = ["net", "ipc", "uts", "pid", "mnt", "cgroup", "user", "time"];

/// Where a kind stands.
pub fn rank(kind: &str) -> usize {
    ORDER.iter().position(|known| *known == kind).unwrap_or(ORDER.len())
}

/// One container, or a process of the yard that is in none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    pod: String,
    container: String,
}

/// Inodes by container and kind.
fn rows(yard: &NamespaceMap) -> (Vec<&str>, BTreeMap<Row, BTreeMap<&str, u64>>) {
    let mut kinds: Vec<&str> = yard.namespaces.iter().map(|namespace| namespace.kind.as_str()).collect();
    kinds.sort_by_key(|kind| rank(kind));
    kinds.dedup();
    let mut rows: BTreeMap<Row, BTreeMap<&str, u64>> = BTreeMap::new();
    for namespace in &yard.namespaces {
        for process in &namespace.processes {
            let row = Row {
                pod: process.pod.clone().unwrap_or_else(|| format!("({})", process.command)),
                container: process.container.clone().unwrap_or_else(|| "-".to_string()),
            };
            rows.entry(row).or_default().entry(&namespace.kind).or_insert(namespace.inode);
        }
        // A pod that runs nothing yet still holds namespaces.
        for pod in &namespace.pods {
            let is_told = namespace.processes.iter().any(|process| process.pod.as_ref() == Some(pod));
            if !is_told {
                let row = Row { pod: pod.clone(), container: "-".to_string() };
                rows.entry(row).or_default().entry(&namespace.kind).or_insert(namespace.inode);
            }
        }
    }
    (kinds, rows)
}

/// Who is in each namespace that more than one is in.
fn shared(kinds: &[&str], rows: &BTreeMap<Row, BTreeMap<&str, u64>>) -> Vec<(String, u64, Vec<String>)> {
    let mut shared = Vec::new();
    for kind in kinds {
        let mut members: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for (row, inodes) in rows {
            if let Some(inode) = inodes.get(kind) {
                members.entry(*inode).or_default().push(name(row));
            }
        }
        let several = members.into_iter().filter(|(_, names)| names.len() > 1);
        shared.extend(several.map(|(inode, names)| ((*kind).to_string(), inode, names)));
    }
    shared
}

fn name(row: &Row) -> String {
    if row.container == "-" { row.pod.clone() } else { format!("{}/{}", row.pod, row.container) }
}

/// The map for programs.
pub fn table(yard: &NamespaceMap) -> Value {
    let (kinds, rows) = rows(yard);
    let containers: Vec<Value> = rows
        .iter()
        .map(|(row, inodes)| json!({"pod": row.pod, "container": row.container, "namespaces": inodes}))
        .collect();
    let shared: Vec<Value> = shared(&kinds, &rows)
        .into_iter()
        .map(|(kind, inode, members)| json!({"kind": kind, "inode": inode, "members": members}))
        .collect();
    json!({"containers": containers, "shared": shared})
}

/// The map for people.
pub fn page(yard: &NamespaceMap) -> String {
    let (kinds, rows) = rows(yard);
    if rows.is_empty() {
        return "no namespaces: no pod runs\n".to_string();
    }
    let shared = shared(&kinds, &rows);
    let mark = |kind: &str, inode: u64| {
        let at = shared.iter().position(|(of, number, _)| of == kind && *number == inode);
        at.map_or(String::new(), |at| format!(" {}", letter(at)))
    };
    let mut header = vec!["POD", "CONTAINER"];
    let upper: Vec<String> = kinds.iter().map(|kind| kind.to_uppercase()).collect();
    header.extend(upper.iter().map(String::as_str));
    let lines = rows.iter().map(|(row, inodes)| {
        let mut cells = vec![printable(&row.pod), printable(&row.container)];
        cells.extend(kinds.iter().map(|kind| {
            inodes.get(kind).map_or_else(|| "-".to_string(), |inode| format!("{inode}{}", mark(kind, *inode)))
        }));
        cells
    });
    let mut text = print::columns(&header, lines.collect());
    if !shared.is_empty() {
        text.push_str("\nshared:\n");
        let lines = shared.iter().enumerate().map(|(index, (kind, inode, members))| {
            vec![format!("  {}", letter(index)), format!("{kind}:[{inode}]"), printable(&members.join(", "))]
        });
        text.push_str(&print::Columns::default().lay_out(&lines.collect::<Vec<_>>()));
    }
    text
}

/// a, b, … z, a2, b2, …
fn letter(index: usize) -> String {
    let letter = char::from(b'a' + u8::try_from(index % 26).unwrap_or(0));
    match index / 26 {
        0 => letter.to_string(),
        round => format!("{letter}{}", round + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_shares_what_is_marked() {
        let expect = "\
POD         CONTAINER   NET   UTS   PID
default/a   x           1 a   6 b   3
default/a   y           1 a   6 b   4
default/b   z           2     6 b   5

shared:
  a   net:[1]   default/a/x, default/a/y
  b   uts:[6]   default/a/x, default/a/y, default/b/z
";
        assert_eq!(page(&super::super::tests::yard()), expect);
        assert_eq!(page(&NamespaceMap::default()), "no namespaces: no pod runs\n");
    }

    #[test]
    fn letters() {
        assert_eq!([letter(0), letter(25), letter(26)], ["a", "z", "a2"]);
    }
}
