//! The live table: nodes, where the pet is, what it answers. Only on a terminal; a log gets the facts alone.

use super::caller::Record;
use api::Object;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::time::Instant;

/// One line per node, and one for the pet.
pub(super) struct Board {
    lines: Vec<ProgressBar>,
    all: MultiProgress,
}

impl Board {
    /// A table below what is printed from now on.
    pub(super) fn new(nodes: usize) -> Board {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template("   {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        let lines = (0..nodes + 3)
            .map(|_| {
                let line = all.add(ProgressBar::new_spinner());
                line.set_style(style.clone());
                line
            })
            .collect();
        Board { lines, all }
    }

    /// Draws what is known now.
    pub(super) fn show(&self, nodes: &[Object], pods: &[Object], record: &Record) {
        for (line, text) in self.lines.iter().zip(rows(nodes, pods, record, Instant::now())) {
            line.set_message(text);
        }
    }

    /// Prints above the table.
    pub(super) fn print(&self, text: &str) {
        // Not drawn at all where there is no terminal.
        self.all.suspend(|| println!("{text}"));
    }

    /// Takes the table away.
    pub(super) fn end(self) {
        for line in &self.lines {
            line.finish_and_clear();
        }
    }
}

fn rows(nodes: &[Object], pods: &[Object], record: &Record, now: Instant) -> Vec<String> {
    let mut rows = vec![format!("{:8} {:9} {:10} {:24}", "NODE", "READY", "STATE", "PETS")];
    for node in nodes {
        let ready = condition(node, "Ready");
        let state = match (node.annotation("podyard.io/power"), node.annotation("podyard.io/fabric")) {
            (Some("off"), _) => "killed",
            (_, Some("cut")) => "cut",
            _ => "",
        };
        let here = pods.iter().filter(|pod| pod.get_str("spec.nodeName") == Some(node.name()));
        let pets: Vec<String> = here.map(describe).collect();
        rows.push(format!("{:8} {:9} {:10} {:24}", node.name(), ready, state, pets.join(", ")));
    }
    rows.push(String::new());
    rows.push(match record.last {
        Some((at, count)) => format!(
            "count {count}, {} answered, {} missed, last answer {} ms ago",
            record.answered,
            record.missed,
            now.duration_since(at).as_millis()
        ),
        None => "no answer yet".into(),
    });
    rows
}

fn describe(pod: &Object) -> String {
    let state = if pod.deletion_timestamp().is_some() {
        "terminating"
    } else if condition(pod, "Ready") == "True" {
        "ready"
    } else {
        "starting"
    };
    format!("{} {state}", pod.name())
}

/// A condition's status; `-` if nobody has said it.
pub(super) fn condition(object: &Object, kind: &str) -> String {
    let all = object.get_array("status.conditions").iter();
    let found = all.filter(|one| one["type"] == kind).find_map(|one| one["status"].as_str());
    found.unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_tells_where_the_pet_is() {
        let node = |name: &str, ready: &str, annotations| {
            Object(json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "annotations": annotations},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
        };
        let pod = Object(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ledger-0", "namespace": "default"},
            "spec": {"nodeName": "n2"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }));
        let nodes = [node("n1", "False", json!({"podyard.io/power": "off"})), node("n2", "True", json!({}))];
        let now = Instant::now();
        let record = Record { last: Some((now, 7)), answered: 7, ..Record::default() };
        let rows = rows(&nodes, &[pod], &record, now);
        assert!(rows[1].starts_with("n1") && rows[1].contains("False") && rows[1].contains("killed"));
        assert!(rows[2].starts_with("n2") && rows[2].contains("ledger-0 ready"));
        assert_eq!(rows[4], "count 7, 7 answered, 0 missed, last answer 0 ms ago");
    }
}
